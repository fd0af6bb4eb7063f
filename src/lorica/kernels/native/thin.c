/* out = s L D: the product of few long rows with many, whose gradients of A and B are made; each is read once.

L (R, T), D (T, N), out (R, N).  Threads share columns, so a sum is made in the order of T whatever threads there are. */

#include <omp.h>
#include <string.h>

#include "products.h"
#include "room.h"

/* DEEP: rows of D that are laid out at a time, so that sums come from memory a quarter as often. */
enum { SIDE = 32, DEEP = 128 };

typedef struct {
    const bf16 *L, *D;
    bf16 *out;
    ptrdiff_t R, T, N, high, deep;
    float scale;
} task;

/* L with zeros up to multiples of what a block reads: (high, deep). */
static void whole(bf16 *rows, const task *p) {
    for (ptrdiff_t r = 0; r < p->high; r++, rows += p->deep) {
        ptrdiff_t some = r < p->R ? p->T : 0;
        memcpy(rows, p->L + r * p->T, some * sizeof(bf16));
        memset(rows + some, 0, (p->deep - some) * sizeof(bf16));
    }
}

/* Columns from `begin` to `end`. Sums of 32 of them stand together, (high, 32), and so do strips of some rows of D. */
static void added(float *sums, int32_t *strips, const bf16 *rows, ptrdiff_t begin, ptrdiff_t end, const task *p) {
    for (ptrdiff_t t = 0, deep; t < p->T; t += deep) {
        deep = t + DEEP < p->T ? DEEP : up(p->T - t, SIDE);
        for (ptrdiff_t i = 0; i < deep; i += SIDE)
            strips_of(strips + i * 16, deep * 16, p->D + (t + i) * p->N + begin, p->N, end - begin, p->T - t - i, NULL);
        for (ptrdiff_t c = 0; c < end - begin; c += SIDE)
            for (ptrdiff_t r = 0; r < p->high; r += SIDE)
                met(sums + c * p->high + r * SIDE, SIDE, rows + r * p->deep + t, p->deep, strips + c / SIDE * deep * 16,
                    p->high - r < SIDE ? p->high - r : SIDE, deep, t > 0);
    }
}

static void written(const float *sums, ptrdiff_t begin, ptrdiff_t end, const task *p) {
    const __m512 times = _mm512_set1_ps(p->scale);
    for (ptrdiff_t r = 0; r < p->R; r++)
        for (ptrdiff_t c = begin; c < end; c += 16) {
            const float *place = sums + (c - begin) / SIDE * SIDE * p->high + r * SIDE + (c - begin) % SIDE;
            store_some(p->out + r * p->N + c, first(end - c), _mm512_mul_ps(times, _mm512_loadu_ps(place)));
        }
}

/* 0, or 1 where memory is missing. */
int lorica_thin(const bf16 *L, const bf16 *D, bf16 *out, int64_t R, int64_t T, int64_t N, double scale) {
    const task p = {.L = L, .D = D, .out = out, .R = R, .T = T, .N = N, .high = up(R, ROWS), .deep = up(T, SIDE) + SIDE,
                    .scale = (float)scale};
    int threads = T * N > FEW ? omp_get_max_threads() : 1;
    ptrdiff_t own = up((N + threads - 1) / threads, SIDE), of_rows = p.high * p.deep * 2;
    ptrdiff_t of_sums = p.high * own * 4, of_strips = DEEP * own * 2;
    char *at = room_of(threads * (of_sums + of_strips) + of_rows + 192);
    if (!at) return 1;
    char *sums = take(&at, threads * of_sums), *strips = take(&at, threads * of_strips);
    bf16 *rows = take(&at, of_rows);
    whole(rows, &p);
    if (!T) memset(sums, 0, threads * of_sums);
#pragma omp parallel num_threads(threads)
    {
        tiles kept;
        tiles_taken(&kept);
        ptrdiff_t thread = omp_get_thread_num(), begin = thread * own, end = begin + own < N ? begin + own : N;
        float *of_own = (float *)(sums + thread * of_sums);
        added(of_own, (int32_t *)(strips + thread * of_strips), rows, begin, end, &p);
        written(of_own, begin, end, &p);
        tiles_back(&kept);
    }
    return 0;
}
