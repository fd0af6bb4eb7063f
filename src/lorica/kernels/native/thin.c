/* out = s L D: products of few long rows with many, whose gradients of A and B are made; each is read once.

L (R, T), D (T, N); out (R, N) float32, at `by_row` and `by_column`, its columns times `gain` (N,), which may be NULL.
Threads share columns, so a sum is made in the order of T whatever threads there are. */

#include <omp.h>

#include "products.h"
#include "room.h"

/* DEEP: rows of D that are laid out at a time, so that sums come from memory a quarter as often. */
enum { DEEP = 128 };

typedef struct {
    const bf16 *L, *D;
    float *out;
    const float *gain;
    int64_t R, T, N, by_row, by_column;
    double scale;
} task;

static inline ptrdiff_t high(const task *p) { return up(p->R, ROWS); }

/* Columns of a thread. */
static inline ptrdiff_t own(const task *p, int threads) { return up((p->N + threads - 1) / threads, SIDE); }

/* From one row of L to the next where it is read from: not a power of two, which would be one set of the cache. */
static inline ptrdiff_t apart(const task *p) { return up(p->T, SIDE) + SIDE; }

/* L with zeros up to what a block reads, (high, apart). */
static void whole(number *rows, const task *p) {
    for (ptrdiff_t r = 0; r < high(p); r++, rows += apart(p)) {
        ptrdiff_t some = r < p->R ? p->T : 0;
        for (ptrdiff_t t = 0; t < some; t += 16) copied(rows + t, p->L + r * p->T + t, first(some - t));
        memset(rows + some, 0, (apart(p) - some) * sizeof(number));
    }
}

/* Columns from `begin` to `end`. Sums of 32 of them stand together, (high, 32), and so do strips of some rows of D. */
static void added(float *made, word *strips, const number *rows, ptrdiff_t begin, ptrdiff_t end, const task *p) {
    const ptrdiff_t R = high(p);
    if (!p->T) memset(made, 0, R * up(end - begin, SIDE) * sizeof(float));
    for (ptrdiff_t t = 0, deep; t < p->T; t += deep) {
        deep = t + DEEP < p->T ? DEEP : up(p->T - t, SIDE);
        for (ptrdiff_t i = 0; i < deep; i += SIDE)
            strips_of(strips + i * WORDS, deep * WORDS, p->D + (t + i) * p->N + begin, p->N, end - begin, p->T - t - i,
                      SIDE, NULL);
        for (ptrdiff_t c = 0, some; c < end - begin; c += some * SIDE) {
            some = together(end - begin - c);
            for (ptrdiff_t r = 0; r < R; r += SIDE) {
                const run of = {rows + r * apart(p) + t, apart(p), deep};
                const sums C = {made + c * R + r * SIDE, SIDE, R * SIDE};
                const right met_ones = strips_at(strips + c / SIDE * deep * WORDS, deep);
                met(C, &of, 1, met_ones, R - r < SIDE ? R - r : SIDE, some, t > 0);
            }
        }
    }
}

static void written(const float *sums, ptrdiff_t begin, ptrdiff_t end, const task *p) {
    for (ptrdiff_t c = begin; c < end; c++) {
        const float *column = sums + (c - begin) / SIDE * SIDE * high(p) + (c - begin) % SIDE;
        float *out = p->out + c * p->by_column, scale = (float)p->scale * (p->gain ? p->gain[c] : 1.0f);
        for (ptrdiff_t r = 0; r < p->R; r++) out[r * p->by_row] = scale * column[r * SIDE];
    }
}

/* 0, or 1 where memory is missing. */
int lorica_thin(const task *tasks, int64_t count) {
    int most = omp_get_max_threads(), threads = 1;
    ptrdiff_t sums = 0, strips = 0, rows = 0;
    for (const task *p = tasks; p < tasks + count; p++)
        if (p->T * p->N > FEW) threads = most;
    for (const task *p = tasks; p < tasks + count; p++) {
        ptrdiff_t of_sums = high(p) * own(p, threads) * 4, of_strips = DEEP * own(p, threads) / SIDE * STRIP_BYTES;
        sums = of_sums > sums ? of_sums : sums;
        strips = of_strips > strips ? of_strips : strips;
        ptrdiff_t of_rows = high(p) * apart(p) * sizeof(number);
        rows = of_rows > rows ? of_rows : rows;
    }
    ptrdiff_t each = up(sums, 64) + up(strips, 64) + up(rows, 64);
    char *room = room_of(threads * each);
    if (!room) return 1;
#pragma omp parallel num_threads(threads)
    {
        tiles kept;
        tiles_taken(&kept);
        char *at = room + omp_get_thread_num() * each;
        float *of_sums = take(&at, sums);
        word *of_strips = take(&at, strips);
        number *of_rows = take(&at, rows);
        for (const task *p = tasks; p < tasks + count; p++) {
            ptrdiff_t columns = own(p, threads), begin = omp_get_thread_num() * columns;
            ptrdiff_t end = begin + columns < p->N ? begin + columns : p->N;
            if (begin >= end) continue;
            whole(of_rows, p);
            added(of_sums, of_strips, of_rows, begin, end, p);
            written(of_sums, begin, end, p);
        }
        tiles_back(&kept);
    }
    return 0;
}
