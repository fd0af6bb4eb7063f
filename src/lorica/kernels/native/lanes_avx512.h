/* Sixteen numbers at a time, in one register of AVX-512. */

#ifndef LORICA_LANES_AVX512_H
#define LORICA_LANES_AVX512_H

typedef __m512 f32x16;
typedef __m512i i32x16;
typedef __mmask16 mask16;

/* Numbers of a register. */
enum { REGISTER = 16 };

static inline f32x16 splat(float x) { return _mm512_set1_ps(x); }
static inline f32x16 zeros(void) { return _mm512_setzero_ps(); }
static inline f32x16 plus(f32x16 x, f32x16 y) { return _mm512_add_ps(x, y); }
static inline f32x16 minus(f32x16 x, f32x16 y) { return _mm512_sub_ps(x, y); }
static inline f32x16 times(f32x16 x, f32x16 y) { return _mm512_mul_ps(x, y); }
static inline f32x16 over(f32x16 x, f32x16 y) { return _mm512_div_ps(x, y); }
static inline f32x16 times_plus(f32x16 x, f32x16 y, f32x16 z) { return _mm512_fmadd_ps(x, y, z); }
static inline f32x16 times_minus(f32x16 x, f32x16 y, f32x16 z) { return _mm512_fmsub_ps(x, y, z); }
static inline f32x16 minus_times(f32x16 z, f32x16 x, f32x16 y) { return _mm512_fnmadd_ps(x, y, z); }
static inline f32x16 larger(f32x16 x, f32x16 y) { return _mm512_max_ps(x, y); }
static inline float sum_in(f32x16 x) { return _mm512_reduce_add_ps(x); }
static inline float largest_in(f32x16 x) { return _mm512_reduce_max_ps(x); }

static inline float first_in(f32x16 x) { return _mm512_cvtss_f32(x); }
static inline i32x16 as_words(f32x16 x) { return _mm512_castps_si512(x); }
static inline f32x16 as_numbers(i32x16 x) { return _mm512_castsi512_ps(x); }

static inline f32x16 kept(mask16 some, f32x16 x) { return _mm512_maskz_mov_ps(some, x); }
static inline f32x16 chosen(mask16 some, f32x16 x, f32x16 other) { return _mm512_mask_mov_ps(other, some, x); }
static inline int differs(f32x16 x, f32x16 y) { return _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ); }

static inline f32x16 load_wide(const float *x) { return _mm512_loadu_ps(x); }
static inline f32x16 load_some_wide(const float *x, mask16 some) { return _mm512_maskz_loadu_ps(some, x); }
static inline void store_wide(float *y, f32x16 x) { _mm512_storeu_ps(y, x); }
static inline void store_some_wide(float *y, mask16 some, f32x16 x) { _mm512_mask_storeu_ps(y, some, x); }

static inline i32x16 load_words(const int32_t *x) { return _mm512_loadu_si512(x); }
static inline i32x16 load_some_words(const int32_t *x, mask16 some) { return _mm512_maskz_loadu_epi32(some, x); }
static inline void store_words(int32_t *y, i32x16 x) { _mm512_storeu_si512(y, x); }
static inline i32x16 splat_word(int32_t x) { return _mm512_set1_epi32(x); }

static inline bf16x16 load_some_bits(const bf16 *x, mask16 some) { return _mm256_maskz_loadu_epi16(some, x); }
static inline void store_some_bits(bf16 *y, mask16 some, bf16x16 x) { _mm256_mask_storeu_epi16(y, some, x); }

static inline f32x16 first_of_pairs(i32x16 x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }

static inline f32x16 second_of_pairs(i32x16 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff0000)));
}

static inline i32x16 pairs(bf16x16 first, bf16x16 second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

static inline f32x16 wide(bf16x16 x) { return first_of_pairs(_mm512_cvtepu16_epi32(x)); }

/* Rounded to the nearest, ties to even. */
#ifdef __AVX512BF16__

static inline bf16x16 narrow(f32x16 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void store_two(bf16 *y, f32x16 low, f32x16 high) {
    _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

#else

static inline bf16x16 narrow(f32x16 x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    /* what is no number stays so */
    __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, none, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

#endif

/* p 2^n, n whole; it needs no bounds here. */
static inline f32x16 times_power(f32x16 p, f32x16 n) { return _mm512_scalef_ps(p, n); }

static inline f32x16 bounded(f32x16 x) { return x; }

static inline f32x16 nearest(f32x16 x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x, and 0 where `of` is below `least`; what is no number stays so. */
static inline f32x16 not_below(f32x16 x, float least, f32x16 of) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(of, _mm512_set1_ps(least), _CMP_NLT_UQ), x);
}

/* One of sixteen for each of sixteen bytes; and signed bytes as numbers. */
static inline f32x16 looked_up(f32x16 levels, __m128i codes) {
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), levels);
}

static inline f32x16 of_bytes(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }

/* 64 bytes past the caches, to where a line of them begins. */
static inline void stream_line(bf16 *to, const bf16 *in) {
    _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(in));
}

/* Sixteen rows of sixteen 32-bit words, turned. */
static inline void turned(i32x16 r[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif
