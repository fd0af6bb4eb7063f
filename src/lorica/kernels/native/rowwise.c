/* Linears of one input on a few rows, each row with low-rank products of its own.

    y_i = W x_i + bias + sum over the terms (i, f, weight) of weight * (c_out B (c_mid A x_i) + c_base (W x_i) + bias_f)

x (n, d_in); W (d_out, d_in); A (r, d_in); B turned, (r, d_out); every c and bias_f a vector or absent.

A row's sums are made in one order, whatever rows stand beside it: W is read in blocks of 32 outputs, each met by
columns of x in the order of d_in, which is what a decoder needs whose answers may not depend on its company. */

#include <string.h>

#include "products.h"
#include "room.h"
#include "rowwise.h"

enum { OUTPUTS = 32 };

/* C (32, 16) = A (32, D) B (D, 16), as `product` beside it. */
static inline void narrow_product(float *C, const bf16 *A, ptrdiff_t lda, const bf16 *B, ptrdiff_t ldb, ptrdiff_t D) {
#ifdef __AMX_BF16__
    _tile_zero(0);
    _tile_zero(1);
    for (ptrdiff_t d = 0; d < D; d += 32) {
        _tile_loadd(6, B + d * ldb, ldb * 4);
        _tile_loadd(4, A + d, lda * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, A + 16 * lda + d, lda * 2);
        _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, C, 64);
    _tile_stored(1, C + 256, 64);
#else
    for (ptrdiff_t r = 0; r < OUTPUTS; r += 16) {
        __m512 sum[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
        for (ptrdiff_t d = 0; d < D; d += 2) {
            __m512i b = _mm512_loadu_si512(B + d * ldb);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                int32_t pair;
                __builtin_memcpy(&pair, A + (r + i) * lda + d, 4);
                sum[i] = with_pairs(sum[i], _mm512_set1_epi32(pair), b);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) _mm512_storeu_ps(C + (r + i) * 16, sum[i]);
    }
#endif
}

/* Sixteen rows of x, zeros past n, as pairs: (d_in / 2, 16) words of `columns`. */
static void packed(int32_t *out, ptrdiff_t columns, const bf16 *x, ptrdiff_t n, ptrdiff_t d, ptrdiff_t wide) {
    for (ptrdiff_t p = 0; p < wide / 2; p += 16) {
        __m512i block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            block[i] = _mm512_maskz_loadu_epi32(i < n ? first(d / 2 - p) : 0, x + i * d + 2 * p);
        turned(block);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + (p + i) * columns, block[i]);
    }
}

static float dot(const bf16 *a, const bf16 *x, ptrdiff_t d) {
    __m512 sum = _mm512_setzero_ps();
    for (ptrdiff_t k = 0; k < d; k += 32) {
        __mmask16 some = first((d - k) / 2);
        sum = with_pairs(sum, _mm512_maskz_loadu_epi32(some, a + k), _mm512_maskz_loadu_epi32(some, x + k));
    }
    return _mm512_reduce_add_ps(sum);
}

/* One row of sixteen outputs from o on: what its terms add to y. */
static __m512 added(__m512 y, __m512 raw, const term *t, const float *h, const linear *l, ptrdiff_t o, __mmask16 some) {
    const factors *f = t->of;
    __m512 sum = _mm512_setzero_ps();
    for (ptrdiff_t r = 0; r < f->r; r++)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(h[r]), load_some(f->B + r * l->d_out + o, some), sum);
    if (f->output) sum = _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(some, f->output + o));
    if (f->base) sum = _mm512_fmadd_ps(raw, _mm512_maskz_loadu_ps(some, f->base + o), sum);
    if (f->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some, f->bias + o));
    return _mm512_fmadd_ps(_mm512_set1_ps((float)t->weight), sum, y);
}

/* `many` rows of 32 outputs from o on: T (rows, 32) is W x. `h` of each term lies where `at` says. */
static void written(const linear *l, const float *T, ptrdiff_t begin, ptrdiff_t many, ptrdiff_t o, const float *h,
                    const int64_t *at, int64_t wide) {
    ptrdiff_t t = 0;
    while (t < l->count && l->terms[t].row < begin) t++;
    for (ptrdiff_t i = 0; i < many; i++) {
        ptrdiff_t end = t;
        while (end < l->count && l->terms[end].row == begin + i) end++;
        for (ptrdiff_t half = 0; half < OUTPUTS; half += 16) {
            __mmask16 some = first(l->d_out - o - half);
            __m512 raw = _mm512_loadu_ps(T + i * OUTPUTS + half), y = raw;
            if (l->bias) y = _mm512_add_ps(y, load_some(l->bias + o + half, some));
            for (ptrdiff_t k = t; k < end; k++) y = added(y, raw, l->terms + k, h + at[k], l, o + half, some);
            ptrdiff_t place = (begin + i) * l->d_out + o + half;
            if (wide) _mm512_mask_storeu_ps((float *)l->y + place, some, y);
            else store_some((bf16 *)l->y + place, some, y);
        }
        t = end;
    }
}

/* 32 rows of W from o on, as they lie, or with zeros where there are none. */
static const bf16 *block_of(const linear *l, ptrdiff_t o, ptrdiff_t d, ptrdiff_t wide, bf16 *padded) {
    ptrdiff_t rows = l->d_out - o < OUTPUTS ? l->d_out - o : OUTPUTS;
    if (rows == OUTPUTS && d == wide) return l->W + o * d;
    memset(padded, 0, OUTPUTS * wide * sizeof(bf16));
    for (ptrdiff_t i = 0; i < rows; i++) memcpy(padded + i * wide, l->W + (o + i) * d, d * sizeof(bf16));
    return padded;
}

/* x (n, d_in), d_in even; `wide`: y is float32. 0; 1 where memory is missing. */
int lorica_rowwise(const bf16 *x, const linear *linears, int64_t many, int64_t n, int64_t d, int64_t wide) {
    ptrdiff_t D = up(d, 32), columns = n <= 16 ? 16 : up(n, 32), blocks = 0, terms = 0, products = 0;
    for (ptrdiff_t l = 0; l < many; l++) {
        blocks += up(linears[l].d_out, OUTPUTS) / OUTPUTS;
        terms += linears[l].count;
        for (ptrdiff_t t = 0; t < linears[l].count; t++) products += linears[l].terms[t].of->r;
    }
    char *at = room_of(D * columns * 2 + (terms + 1) * 8 + (products + 1) * 4 + 256);
    if (!at) return 1;
    int32_t *across = take(&at, D * columns * 2);
    int64_t *places = take(&at, (terms + 1) * 8);
    float *h = take(&at, (products + 1) * 4);
    for (ptrdiff_t l = 0, t = 0, place = 0; l < many; l++)
        for (ptrdiff_t k = 0; k < linears[l].count; place += linears[l].terms[k++].of->r) places[t++] = place;
    int failed = 0;
#pragma omp parallel if (blocks > 1)
    {
#pragma omp for schedule(static) nowait
        for (ptrdiff_t i = 0; i < columns; i += 16) packed(across + i, columns, x + i * d, n - i, d, D);
        for (ptrdiff_t l = 0, before = 0; l < many; before += linears[l++].count) {
#pragma omp for schedule(static) nowait
            for (ptrdiff_t t = 0; t < linears[l].count; t++) {
                const term *one = linears[l].terms + t;
                for (ptrdiff_t r = 0; r < one->of->r; r++) {
                    float sum = dot(one->of->A + r * d, x + one->row * d, d);
                    h[places[before + t] + r] = one->of->middle ? sum * one->of->middle[r] : sum;
                }
            }
        }
#pragma omp barrier
        float C[OUTPUTS * 32] __attribute__((aligned(64))), T[OUTPUTS * 32] __attribute__((aligned(64)));
        bf16 *padded = NULL;
        tiles kept;
        tiles_taken(&kept);
#pragma omp for schedule(static)
        for (ptrdiff_t b = 0; b < blocks; b++) {
            const linear *l = linears;
            const int64_t *mine = places;
            ptrdiff_t own = b;
            for (; own >= up(l->d_out, OUTPUTS) / OUTPUTS; l++) {
                own -= up(l->d_out, OUTPUTS) / OUTPUTS;
                mine += l->count;
            }
            ptrdiff_t o = own * OUTPUTS;
            if (!padded && (d != D || o + OUTPUTS > l->d_out)) padded = aligned_alloc(64, OUTPUTS * D * sizeof(bf16));
            if (!padded && (d != D || o + OUTPUTS > l->d_out)) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            const bf16 *W = block_of(l, o, d, D, padded);
            for (ptrdiff_t c = 0; c < columns; c += 32) {
                const bf16 *B = (const bf16 *)(across + c);
                ptrdiff_t S = columns - c < 32 ? 16 : 32;
                if (S == 16) narrow_product(C, W, D, B, columns, D);
                else product(C, 32, W, D, B, columns, OUTPUTS, 32, D, 0);
                turn((int32_t *)T, OUTPUTS, (const int32_t *)C, S, OUTPUTS, S);
                written(l, T, c, n - c < S ? n - c : S, o, h, mine, wide);
            }
        }
        tiles_back(&kept);
        free(padded);
    }
    return failed;
}
