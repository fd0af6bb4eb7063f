/* C (R, S) = A (R, D) B (D, S), or that added to C: bfloat16 in, float32 out.

A lies by rows. B lies by pairs of rows, B[D / 2][S][2], as instructions read it. R, D and S are multiples of 32.
With AMX a product of tiles is 16 x 16 x 32; else a row of A is met by 32 columns at a time, by pairs of numbers or, where
there is no instruction for pairs that is quicker, in float32. */

#ifndef LORICA_PRODUCTS_H
#define LORICA_PRODUCTS_H

#include "bfloat16.h"
#include "room.h"

/* Columns of a strip, and rows that meet them at a time. */
enum { SIDE = 32 };

/* Rows of A, `stride` after one another, as far as one memory holds their depth; what runs on in another is summed
without a stop. */
typedef struct {
    const bf16 *at;
    ptrdiff_t stride, depth;
} run;

#ifdef __AMX_BF16__

typedef struct {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) tile_config;

/* Tiles are as the caller of this library left them once `tiles_back` has run. */
typedef struct { tile_config before; } tiles;

/* GCC 12 takes a load of tiles for one that reads no memory, and that of their shapes for one of eight bytes: what was
written for them may be left out. */
static inline void memory_is_read(void) { __asm__ volatile("" ::: "memory"); }

static inline void tiles_taken(tiles *kept) {
    tile_config wanted = {.palette = 1};
    for (int i = 0; i < 8; i++) wanted.row_bytes[i] = 64, wanted.rows[i] = 16;
    _tile_storeconfig(&kept->before);
    __asm__ volatile("" ::"m"(wanted));
    _tile_loadconfig(&wanted);
}

static inline void tiles_back(tiles *kept) {
    if (kept->before.palette) _tile_loadconfig(&kept->before);
    else _tile_release();
}

/* ROWS: a block has a multiple of them.  DEEPEST: so deep 32 rows of A stay in the first cache of 48 KB while all
columns meet them; what is deeper is met in pieces of about PIECE. */
enum { ROWS = 16, DEEPEST = 640, PIECE = 288 };

/* R (a multiple of ROWS, at most 32) rows and 32 columns of C.  `low` and `high` are the halves of B's columns, `ldb`
words from a pair of rows to the next, `step` words from 32 rows to the next.  passing: B goes by the first cache, so
that rows of A are found there by the columns that come next: a sixth to a quarter quicker. */
static inline void block(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs, const int32_t *low,
                         const int32_t *high, ptrdiff_t ldb, ptrdiff_t step, ptrdiff_t R, int add, int passing) {
    memory_is_read();
    if (add) {
        _tile_loadd(0, C, ldc * 4);
        _tile_loadd(1, C + 16, ldc * 4);
        if (R > 16) _tile_loadd(2, C + 16 * ldc, ldc * 4);
        if (R > 16) _tile_loadd(3, C + 16 * ldc + 16, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (const run *part = A; part < A + runs; part++) {
        const bf16 *rows = part->at;
        for (ptrdiff_t d = 0; d < part->depth; d += 32, rows += 32, low += step, high += step) {
            _tile_loadd(4, rows, part->stride * 2);
            if (passing) _tile_stream_loadd(6, low, ldb * 4);
            else _tile_loadd(6, low, ldb * 4);
            _tile_dpbf16ps(0, 4, 6);
            if (passing) _tile_stream_loadd(7, high, ldb * 4);
            else _tile_loadd(7, high, ldb * 4);
            _tile_dpbf16ps(1, 4, 7);
            if (R > 16) {
                _tile_loadd(5, rows + 16 * part->stride, part->stride * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, C, ldc * 4);
    _tile_stored(1, C + 16, ldc * 4);
    if (R > 16) _tile_stored(2, C + 16 * ldc, ldc * 4);
    if (R > 16) _tile_stored(3, C + 16 * ldc + 16, ldc * 4);
}

#else

typedef struct { int unused; } tiles;

static inline void tiles_taken(tiles *kept) { (void)kept; }
static inline void tiles_back(tiles *kept) { (void)kept; }

enum { ROWS = 8, DEEPEST = 1 << 30, PIECE = DEEPEST };

#ifdef PAIRED

/* Sums, and the products of 32 numbers of each row of A with 32 rows of B. */
static inline void deeper(__m512 sum[ROWS][2], const bf16 *A, ptrdiff_t lda, const int32_t *low, const int32_t *high,
                          ptrdiff_t ldb) {
    for (ptrdiff_t p = 0; p < 16; p++) {
        __m512i l = _mm512_loadu_si512(low + p * ldb), h = _mm512_loadu_si512(high + p * ldb);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            int32_t pair;
            __builtin_memcpy(&pair, A + i * lda + 2 * p, 4);
            sum[i][0] = with_pairs(sum[i][0], _mm512_set1_epi32(pair), l);
            sum[i][1] = with_pairs(sum[i][1], _mm512_set1_epi32(pair), h);
        }
    }
}

#else

/* The same numbers in float32, those of A once for all columns. */
static inline void deeper(__m512 sum[ROWS][2], const bf16 *A, ptrdiff_t lda, const int32_t *low, const int32_t *high,
                          ptrdiff_t ldb) {
    float a[ROWS][32] __attribute__((aligned(64)));
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
        _mm512_store_ps(a[i], load(A + i * lda));
        _mm512_store_ps(a[i] + 16, load(A + i * lda + 16));
    }
    for (ptrdiff_t p = 0; p < 16; p++) {
        __m512i l = _mm512_loadu_si512(low + p * ldb), h = _mm512_loadu_si512(high + p * ldb);
        __m512 l0 = first_of_pairs(l), l1 = second_of_pairs(l), h0 = first_of_pairs(h), h1 = second_of_pairs(h);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            __m512 x = _mm512_set1_ps(a[i][2 * p]), y = _mm512_set1_ps(a[i][2 * p + 1]);
            sum[i][0] = _mm512_fmadd_ps(y, l1, _mm512_fmadd_ps(x, l0, sum[i][0]));
            sum[i][1] = _mm512_fmadd_ps(y, h1, _mm512_fmadd_ps(x, h0, sum[i][1]));
        }
    }
}

#endif

static inline void block(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs, const int32_t *low,
                         const int32_t *high, ptrdiff_t ldb, ptrdiff_t step, ptrdiff_t R, int add, int passing) {
    (void)passing;
    for (ptrdiff_t r = 0; r < R; r += ROWS, C += ROWS * ldc) {
        ptrdiff_t before = 0;
        __m512 sum[ROWS][2];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            sum[i][0] = add ? _mm512_loadu_ps(C + i * ldc) : _mm512_setzero_ps();
            sum[i][1] = add ? _mm512_loadu_ps(C + i * ldc + 16) : _mm512_setzero_ps();
        }
        for (const run *part = A; part < A + runs; part++)
            for (ptrdiff_t d = 0; d < part->depth; d += 32, before += step)
                deeper(sum, part->at + r * part->stride + d, part->stride, low + before, high + before, ldb);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            _mm512_storeu_ps(C + i * ldc, sum[i][0]);
            _mm512_storeu_ps(C + i * ldc + 16, sum[i][1]);
        }
    }
}

#endif

static inline void product(float *C, ptrdiff_t ldc, const bf16 *A, ptrdiff_t lda, const bf16 *B, ptrdiff_t ldb,
                           ptrdiff_t R, ptrdiff_t S, ptrdiff_t D, int add) {
    const int32_t *words = (const int32_t *)B;
    for (ptrdiff_t r = 0; r < R; r += 32) {
        const run rows = {A + r * lda, lda, D};
        for (ptrdiff_t s = 0; s < S; s += 32)
            block(C + r * ldc + s, ldc, &rows, 1, words + s, words + s + 16, ldb, 16 * ldb, 32, add, 0);
    }
}

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

/* A strip is 32 columns of B as `met` reads them: of each 32 rows the first sixteen columns by pairs of rows, (16, 16)
words, and the others behind them.  What is read one behind the other comes in time; lines in turn do not. */

static inline __m256i row_of_strip(const bf16 *in, ptrdiff_t n, ptrdiff_t rows, __mmask16 some, const float *gain) {
    if (n >= rows) return _mm256_setzero_si256();
    __m256i x = _mm256_maskz_loadu_epi16(some, in);
    return gain ? narrow(_mm512_mul_ps(wide(x), _mm512_set1_ps(gain[n]))) : x;
}

/* 32 rows of (rows, stride), each times its gain, as 32 rows of strips `apart` words from each other; zeros past `rows`
and past `columns`. Two rows at a time are read as they lie, and those after the next two are asked for. */
static inline void strips_of(int32_t *out, ptrdiff_t apart, const bf16 *in, ptrdiff_t stride, ptrdiff_t columns,
                             ptrdiff_t rows, const float *gain) {
    for (ptrdiff_t n = 0; n < 32; n += 2, in += 2 * stride, out += 16)
        for (ptrdiff_t c = 0; c < up(columns, 32); c += 16) {
            __mmask16 some = first(columns - c);
            if (c % 32 == 0) {
                _mm_prefetch((const char *)(in + 4 * stride + c), _MM_HINT_T0);
                _mm_prefetch((const char *)(in + 5 * stride + c), _MM_HINT_T0);
            }
            __m256i low = row_of_strip(in + c, n, rows, some, gain);
            __m256i high = row_of_strip(in + stride + c, n + 1, rows, some, gain);
            _mm512_storeu_si512(out + c / 32 * apart + c % 32 * 16, pairs(low, high));
        }
}

/* R (at most 32, a multiple of ROWS) rows and 32 columns of C, of a strip. */
static inline void met(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs, const int32_t *strip, ptrdiff_t R,
                       int add) {
    block(C, ldc, A, runs, strip, strip + 256, 16, 512, R, add, 1);
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
            __m256i low = _mm256_loadu_si256((const __m256i *)x), high = _mm256_loadu_si256((const __m256i *)(x + S));
            _mm512_storeu_si512(out + r / 2 * S + s, pairs(low, high));
        }
}

#endif
