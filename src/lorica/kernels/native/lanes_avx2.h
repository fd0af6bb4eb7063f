/* Sixteen numbers at a time, in two registers of AVX2: what `lanes_avx512.h` has in one. */

#ifndef LORICA_LANES_AVX2_H
#define LORICA_LANES_AVX2_H

typedef struct {
    __m256 low, high;
} f32x16;

typedef struct {
    __m256i low, high;
} i32x16;

typedef uint16_t mask16;

enum { REGISTER = 8 };

static inline f32x16 splat(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32x16 zeros(void) { return (f32x16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }

#define OF_TWO(name, made)                                                                                             \
    static inline f32x16 name(f32x16 x, f32x16 y) {                                                                    \
        return (f32x16){made(x.low, y.low), made(x.high, y.high)};                                                     \
    }
OF_TWO(plus, _mm256_add_ps)
OF_TWO(minus, _mm256_sub_ps)
OF_TWO(times, _mm256_mul_ps)
OF_TWO(over, _mm256_div_ps)
OF_TWO(larger, _mm256_max_ps)
#undef OF_TWO

#define OF_THREE(name, made)                                                                                           \
    static inline f32x16 name(f32x16 x, f32x16 y, f32x16 z) {                                                          \
        return (f32x16){made(x.low, y.low, z.low), made(x.high, y.high, z.high)};                                      \
    }
OF_THREE(times_plus, _mm256_fmadd_ps)
OF_THREE(times_minus, _mm256_fmsub_ps)
#undef OF_THREE

static inline f32x16 minus_times(f32x16 z, f32x16 x, f32x16 y) {
    return (f32x16){_mm256_fnmadd_ps(x.low, y.low, z.low), _mm256_fnmadd_ps(x.high, y.high, z.high)};
}

static inline float sum_in(f32x16 x) {
    __m256 eight = _mm256_add_ps(x.low, x.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float largest_in(f32x16 x) {
    __m256 eight = _mm256_max_ps(x.low, x.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline float first_in(f32x16 x) { return _mm256_cvtss_f32(x.low); }

static inline i32x16 as_words(f32x16 x) { return (i32x16){_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }

static inline f32x16 as_numbers(i32x16 x) {
    return (f32x16){_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)};
}

/* Each bit of a mask as 32. */
static inline i32x16 spread(mask16 some) {
    __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
    __m256i all = _mm256_set1_epi32(some);
    return (i32x16){_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low),
                    _mm256_cmpeq_epi32(_mm256_and_si256(all, high), high)};
}

static inline f32x16 kept(mask16 some, f32x16 x) {
    i32x16 bits = spread(some);
    return (f32x16){_mm256_and_ps(x.low, _mm256_castsi256_ps(bits.low)),
                    _mm256_and_ps(x.high, _mm256_castsi256_ps(bits.high))};
}

static inline f32x16 chosen(mask16 some, f32x16 x, f32x16 other) {
    i32x16 bits = spread(some);
    return (f32x16){_mm256_blendv_ps(other.low, x.low, _mm256_castsi256_ps(bits.low)),
                    _mm256_blendv_ps(other.high, x.high, _mm256_castsi256_ps(bits.high))};
}

static inline int differs(f32x16 x, f32x16 y) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.low, y.low, _CMP_NEQ_UQ),
                                           _mm256_cmp_ps(x.high, y.high, _CMP_NEQ_UQ)));
}

static inline f32x16 load_wide(const float *x) { return (f32x16){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }

static inline f32x16 load_some_wide(const float *x, mask16 some) {
    i32x16 bits = spread(some);
    return (f32x16){_mm256_maskload_ps(x, bits.low), _mm256_maskload_ps(x + 8, bits.high)};
}

static inline void store_wide(float *y, f32x16 x) {
    _mm256_storeu_ps(y, x.low);
    _mm256_storeu_ps(y + 8, x.high);
}

static inline void store_some_wide(float *y, mask16 some, f32x16 x) {
    i32x16 bits = spread(some);
    _mm256_maskstore_ps(y, bits.low, x.low);
    _mm256_maskstore_ps(y + 8, bits.high, x.high);
}

static inline i32x16 load_words(const int32_t *x) {
    return (i32x16){_mm256_loadu_si256((const __m256i *)x), _mm256_loadu_si256((const __m256i *)(x + 8))};
}

static inline i32x16 load_some_words(const int32_t *x, mask16 some) {
    i32x16 bits = spread(some);
    return (i32x16){_mm256_maskload_epi32(x, bits.low), _mm256_maskload_epi32(x + 8, bits.high)};
}

static inline void store_words(int32_t *y, i32x16 x) {
    _mm256_storeu_si256((__m256i *)y, x.low);
    _mm256_storeu_si256((__m256i *)(y + 8), x.high);
}

static inline i32x16 splat_word(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

/* There is no mask of 16 bits: where not all are asked for they go by a copy. */
static inline bf16x16 load_some_bits(const bf16 *x, mask16 some) {
    if (some == 0xffff) return load_bits(x);
    bf16 copy[16] = {0};
    memcpy(copy, x, __builtin_popcount(some) * sizeof(bf16));
    return load_bits(copy);
}

static inline void store_some_bits(bf16 *y, mask16 some, bf16x16 x) {
    if (some == 0xffff) return store_bits(y, x);
    bf16 copy[16];
    store_bits(copy, x);
    memcpy(y, copy, __builtin_popcount(some) * sizeof(bf16));
}

static inline f32x16 first_of_pairs(i32x16 x) {
    return (f32x16){_mm256_castsi256_ps(_mm256_slli_epi32(x.low, 16)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(x.high, 16))};
}

static inline f32x16 second_of_pairs(i32x16 x) {
    __m256i half = _mm256_set1_epi32(0xffff0000);
    return (f32x16){_mm256_castsi256_ps(_mm256_and_si256(x.low, half)),
                    _mm256_castsi256_ps(_mm256_and_si256(x.high, half))};
}

static inline i32x16 pairs(bf16x16 first, bf16x16 second) {
    __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
    return (i32x16){_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}

static inline f32x16 wide(bf16x16 x) {
    return first_of_pairs((i32x16){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                                   _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))});
}

/* Rounded to the nearest, ties to even, in the low half of each word. */
static inline __m256i narrow_words(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    /* what is no number stays so */
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i none = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, none), 16);
}

static inline bf16x16 narrow(f32x16 x) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow_words(x.low), narrow_words(x.high)), 0xd8);
}

/* 2^n by its bits, n between the exponents of numbers. */
static inline __m256 power(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* p 2^n, n whole and bounded, in two steps: from 128 on 2^n is no number, and p 2^n may be one. */
static inline __m256 times_power_of_eight(__m256 p, __m256 n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(whole, half)));
}

static inline f32x16 times_power(f32x16 p, f32x16 n) {
    return (f32x16){times_power_of_eight(p.low, n.low), times_power_of_eight(p.high, n.high)};
}

/* Beyond 192 2^x is as infinite. */
static inline f32x16 bounded(f32x16 x) {
    __m256 most = _mm256_set1_ps(192.0f);
    return (f32x16){_mm256_min_ps(most, x.low), _mm256_min_ps(most, x.high)};
}

static inline f32x16 nearest(f32x16 x) {
    enum { HOW = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (f32x16){_mm256_round_ps(x.low, HOW), _mm256_round_ps(x.high, HOW)};
}

/* x, and 0 where `of` is below `least`; what is no number stays so. */
static inline f32x16 not_below(f32x16 x, float least, f32x16 of) {
    __m256 bound = _mm256_set1_ps(least);
    return (f32x16){_mm256_and_ps(x.low, _mm256_cmp_ps(of.low, bound, _CMP_NLT_UQ)),
                    _mm256_and_ps(x.high, _mm256_cmp_ps(of.high, bound, _CMP_NLT_UQ))};
}

/* One of sixteen for each of sixteen bytes; and signed bytes as numbers. */
static inline __m256 looked_up_eight(f32x16 levels, __m256i codes) {
    __m256 low = _mm256_permutevar8x32_ps(levels.low, codes), high = _mm256_permutevar8x32_ps(levels.high, codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

static inline f32x16 looked_up(f32x16 levels, __m128i codes) {
    return (f32x16){looked_up_eight(levels, _mm256_cvtepu8_epi32(codes)),
                    looked_up_eight(levels, _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)))};
}

static inline f32x16 of_bytes(__m128i bytes) {
    return (f32x16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

/* 64 bytes past the caches, to where a line of them begins. */
static inline void stream_line(bf16 *to, const bf16 *in) {
    _mm256_stream_si256((__m256i *)to, load_bits(in));
    _mm256_stream_si256((__m256i *)(to + 16), load_bits(in + 16));
}

static inline void turned_eight(__m256i r[8]) {
    __m256i t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i first = r[i], second = r[i + 4];
        r[i] = _mm256_permute2x128_si256(first, second, 0x20);
        r[i + 4] = _mm256_permute2x128_si256(first, second, 0x31);
    }
}

/* Sixteen rows of sixteen 32-bit words, turned, a quarter at a time. */
static inline void turned(i32x16 r[16]) {
    __m256i a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = r[i].low;
    turned_eight(a);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) b[i] = r[i].high, r[i].low = a[i], a[i] = r[i + 8].low;
    turned_eight(a);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i].high = a[i];
    turned_eight(b);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i + 8].low = b[i], a[i] = r[i + 8].high;
    turned_eight(a);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i + 8].high = a[i];
}

#endif
