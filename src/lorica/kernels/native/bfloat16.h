/* bfloat16 as its bits, sixteen at a time in float32; what all files of this folder share. */

#ifndef LORICA_BFLOAT16_H
#define LORICA_BFLOAT16_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;

static inline __m512 first_of_pairs(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }

static inline __m512 second_of_pairs(__m512i x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff0000)));
}

static inline __m512i pairs(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

static inline __m512 wide(__m256i x) { return first_of_pairs(_mm512_cvtepu16_epi32(x)); }

static inline __m512 load(const bf16 *x) { return wide(_mm256_loadu_si256((const __m256i *)x)); }

/* The first `n` of sixteen, zeros behind. */
static inline __m512 load_some(const bf16 *x, __mmask16 some) { return wide(_mm256_maskz_loadu_epi16(some, x)); }

/* Rounded to the nearest, ties to even. */
#ifdef __AVX512BF16__

static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline __m512i narrow_two(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

#else

static inline __m256i narrow(__m512 x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    /* what is no number stays so */
    __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, none, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

static inline __m512i narrow_two(__m512 low, __m512 high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
}

#endif

/* Sums, and the products of both numbers of each pair.  WIDENED: where the instruction for it takes four times as long as
a product of numbers. */
#if defined(__AVX512BF16__) && !defined(WIDENED)
#define PAIRED

static inline __m512 with_pairs(__m512 sums, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
}

#else

static inline __m512 with_pairs(__m512 sums, __m512i a, __m512i b) {
    sums = _mm512_fmadd_ps(first_of_pairs(a), first_of_pairs(b), sums);
    return _mm512_fmadd_ps(second_of_pairs(a), second_of_pairs(b), sums);
}

#endif

static inline void store(bf16 *y, __m512 x) { _mm256_storeu_si256((__m256i *)y, narrow(x)); }

static inline void store_some(bf16 *y, __mmask16 some, __m512 x) { _mm256_mask_storeu_epi16(y, some, narrow(x)); }

static inline __mmask16 first(ptrdiff_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << (n > 0 ? n : 0)) - 1); }

/* h = x + y, each of `count`; h may be x. */
static inline void joined(bf16 *h, const bf16 *x, const bf16 *y, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i += 16) {
        __mmask16 some = first(count - i);
        store_some(h + i, some, _mm512_add_ps(load_some(x + i, some), load_some(y + i, some)));
    }
}

/* 2^x by the minimax polynomial of degree 6 on [-1/2, 1/2], exact at 0: within one unit in the last place of float32.
Below 2^-126 it is 0, not a number too small for the processor's own arithmetic, which takes a hundred cycles for each;
what is no number stays so. */
static inline __m512 exp2_of(__m512 x) {
    __mmask16 large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    x = _mm512_maskz_mov_ps(large, x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.5355155e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3398935e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6184293e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503323e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022648e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314720e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(large, p, n);
}

#define LOG2_E 1.44269504088896340736f

/* Below so many elements a pass over them is shorter than waking the other threads. */
#define FEW 16384

#endif
