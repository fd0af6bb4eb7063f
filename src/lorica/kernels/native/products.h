/* C (R, S) = A (R, D) B (D, S), or that added to C: bfloat16 in, float32 out.

A lies by rows. B lies by pairs of rows, B[D / 2][S][2], as both instructions read it. R, D and S are multiples of 32.
With AMX a product of tiles is 16 x 16 x 32; else a row of A is met by 32 columns at a time. */

#ifndef LORICA_PRODUCTS_H
#define LORICA_PRODUCTS_H

#include "bfloat16.h"

#ifdef __AMX_BF16__

typedef struct {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) tile_config;

/* Tiles are as the caller of this library left them once `tiles_back` has run. */
typedef struct { tile_config before; } tiles;

static inline void tiles_taken(tiles *kept) {
    tile_config wanted = {.palette = 1};
    for (int i = 0; i < 8; i++) wanted.row_bytes[i] = 64, wanted.rows[i] = 16;
    _tile_storeconfig(&kept->before);
    _tile_loadconfig(&wanted);
}

static inline void tiles_back(tiles *kept) {
    if (kept->before.palette) _tile_loadconfig(&kept->before);
    else _tile_release();
}

static inline void product(float *C, ptrdiff_t ldc, const bf16 *A, ptrdiff_t lda, const bf16 *B, ptrdiff_t ldb,
                           ptrdiff_t R, ptrdiff_t S, ptrdiff_t D, int add) {
    for (ptrdiff_t r = 0; r < R; r += 32)
        for (ptrdiff_t s = 0; s < S; s += 32) {
            float *c = C + r * ldc + s;
            if (add) {
                _tile_loadd(0, c, ldc * 4);
                _tile_loadd(1, c + 16, ldc * 4);
                _tile_loadd(2, c + 16 * ldc, ldc * 4);
                _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (ptrdiff_t d = 0; d < D; d += 32) {
                const bf16 *a = A + r * lda + d, *b = B + d / 2 * ldb * 2 + s * 2;
                _tile_loadd(4, a, lda * 2);
                _tile_loadd(6, b, ldb * 4);
                _tile_loadd(7, b + 32, ldb * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + 16 * lda, lda * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, c, ldc * 4);
            _tile_stored(1, c + 16, ldc * 4);
            _tile_stored(2, c + 16 * ldc, ldc * 4);
            _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
        }
}

#else

typedef struct { int unused; } tiles;

static inline void tiles_taken(tiles *kept) { (void)kept; }
static inline void tiles_back(tiles *kept) { (void)kept; }

static inline void product(float *C, ptrdiff_t ldc, const bf16 *A, ptrdiff_t lda, const bf16 *B, ptrdiff_t ldb,
                           ptrdiff_t R, ptrdiff_t S, ptrdiff_t D, int add) {
    for (ptrdiff_t s = 0; s < S; s += 32)
        for (ptrdiff_t r = 0; r < R; r += 8) {
            __m512 sum[8][2];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const float *c = C + (r + i) * ldc + s;
                sum[i][0] = add ? _mm512_loadu_ps(c) : _mm512_setzero_ps();
                sum[i][1] = add ? _mm512_loadu_ps(c + 16) : _mm512_setzero_ps();
            }
            for (ptrdiff_t d = 0; d < D; d += 2) {
                const bf16 *b = B + d / 2 * ldb * 2 + s * 2;
                __m512bh left = (__m512bh)_mm512_loadu_si512(b), right = (__m512bh)_mm512_loadu_si512(b + 32);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    int32_t pair;
                    __builtin_memcpy(&pair, A + (r + i) * lda + d, 4);
                    __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
                    sum[i][0] = _mm512_dpbf16_ps(sum[i][0], a, left);
                    sum[i][1] = _mm512_dpbf16_ps(sum[i][1], a, right);
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                float *c = C + (r + i) * ldc + s;
                _mm512_storeu_ps(c, sum[i][0]);
                _mm512_storeu_ps(c + 16, sum[i][1]);
            }
        }
}

#endif

/* Sixteen rows of sixteen 32-bit words, turned. */
static inline void turned(__m512i r[16]) {
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

/* (R, S) words -> (S, R), both multiples of 16; strides in words. */
static inline void turn(int32_t *out, ptrdiff_t ldo, const int32_t *in, ptrdiff_t ldi, ptrdiff_t R, ptrdiff_t S) {
    for (ptrdiff_t r = 0; r < R; r += 16)
        for (ptrdiff_t s = 0; s < S; s += 16) {
            __m512i block[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) block[i] = _mm512_loadu_si512(in + (r + i) * ldi + s);
            turned(block);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + (s + i) * ldo + r, block[i]);
        }
}

/* Rows 2 i and 2 i + 1 of (R, S) bfloat16 as one row of S pairs. */
static inline void paired(int32_t *out, const bf16 *in, ptrdiff_t R, ptrdiff_t S) {
    for (ptrdiff_t r = 0; r < R; r += 2)
        for (ptrdiff_t s = 0; s < S; s += 16) {
            const bf16 *x = in + r * S + s;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + S)));
            _mm512_storeu_si512(out + r / 2 * S + s, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

#endif
