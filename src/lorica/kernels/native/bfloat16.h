/* bfloat16 as its bits, sixteen at a time in float32; what all files of this folder share. */

#ifndef LORICA_BFLOAT16_H
#define LORICA_BFLOAT16_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef __m256i bf16x16;

static inline bf16x16 bits_none(void) { return _mm256_setzero_si256(); }
static inline bf16x16 load_bits(const bf16 *x) { return _mm256_loadu_si256((const __m256i *)x); }
static inline void store_bits(bf16 *y, bf16x16 x) { _mm256_storeu_si256((__m256i *)y, x); }

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif

static inline f32x16 load(const bf16 *x) { return wide(load_bits(x)); }

/* Some of sixteen, zeros in place of the others. A mask of bfloat16 is of the first ones. */
static inline f32x16 load_some(const bf16 *x, mask16 some) { return wide(load_some_bits(x, some)); }

static inline float of_number(bf16 x) {
    union {
        uint32_t bits;
        float number;
    } as = {.bits = (uint32_t)x << 16};
    return as.number;
}

/* Sums, and the products of both numbers of each pair.  WIDENED: where the instruction for it takes four times as long as
a product of numbers. */
#if defined(__AVX512BF16__) && !defined(WIDENED)
#define PAIRS_ARE_QUICK

static inline f32x16 with_pairs(f32x16 sums, i32x16 a, i32x16 b) {
    return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
}

#else

static inline f32x16 with_pairs(f32x16 sums, i32x16 a, i32x16 b) {
    sums = times_plus(first_of_pairs(a), first_of_pairs(b), sums);
    return times_plus(second_of_pairs(a), second_of_pairs(b), sums);
}

#endif

static inline void store(bf16 *y, f32x16 x) { store_bits(y, narrow(x)); }

static inline void store_some(bf16 *y, mask16 some, f32x16 x) { store_some_bits(y, some, narrow(x)); }

#ifndef __AVX512BF16__

static inline void store_two(bf16 *y, f32x16 low, f32x16 high) {
    store(y, low);
    store(y + 16, high);
}

#endif

static inline mask16 first(ptrdiff_t n) { return n >= 16 ? 0xffff : (mask16)((1u << (n > 0 ? n : 0)) - 1); }

/* h = x + y, each of `count`; h may be x. */
static inline void joined(bf16 *h, const bf16 *x, const bf16 *y, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i += 16) {
        mask16 some = first(count - i);
        store_some(h + i, some, plus(load_some(x + i, some), load_some(y + i, some)));
    }
}

/* Sixteen sums, each over its lanes, in their order. */
static inline f32x16 added_up(const f32x16 sums[16]) {
    i32x16 words[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) words[i] = as_words(sums[i]);
    turned(words);
    f32x16 all = as_numbers(words[0]);
#pragma GCC unroll 15
    for (int i = 1; i < 16; i++) all = plus(all, as_numbers(words[i]));
    return all;
}

/* 2^x by the minimax polynomial of degree 6 on [-1/2, 1/2], exact at 0: within one unit in the last place of float32.
Below 2^-126 it is 0, not a number too small for the processor's own arithmetic, which takes a hundred cycles for each;
what is no number stays so. */
static inline f32x16 exp2_of(f32x16 of) {
    f32x16 x = bounded(not_below(of, -126.0f, of)), n = nearest(x), f = minus(x, n);
    f32x16 p = splat(1.5355155e-4f);
    p = times_plus(p, f, splat(1.3398935e-3f));
    p = times_plus(p, f, splat(9.6184293e-3f));
    p = times_plus(p, f, splat(5.5503323e-2f));
    p = times_plus(p, f, splat(2.4022648e-1f));
    p = times_plus(p, f, splat(6.9314720e-1f));
    p = times_plus(p, f, splat(1.0f));
    return not_below(times_power(p, n), -126.0f, of);
}

#define LOG2_E 1.44269504088896340736f

/* Below so many elements a pass over them is shorter than waking the other threads. */
#define FEW 16384

#endif
