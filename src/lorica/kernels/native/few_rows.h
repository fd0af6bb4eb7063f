/* A few rows x (n, d) and 32 rows of W at a time: T (n, 32) = x W^T, every sum in one order whatever n is.

Where there are products of pairs, rows of x stand side by side and W is read as it lies.  Where there are none, both lie
along the lanes, which are added up at the end: of one row W is read at the rate of memory, and widened in passing. */

#ifndef LORICA_FEW_ROWS_H
#define LORICA_FEW_ROWS_H

#include "products.h"
#include "room.h"

enum { OUTPUTS = 32 };

/* x as it is laid out. */
typedef struct {
    word *at;
    ptrdiff_t n, d, deep, columns;
} few;

#ifdef PAIRED

/* Whether sums are made as those of many rows are. */
enum { AS_MANY = 1 };

static inline few few_of(ptrdiff_t n, ptrdiff_t d) {
    return (few){.n = n, .d = d, .deep = up(d, 32), .columns = n <= 16 ? 16 : up(n, 32)};
}

/* Sixteen rows of x from `i` on. */
static inline void lay_few(const few *f, const bf16 *x, ptrdiff_t i) {
    across_of(f->at + i, f->columns, x + i * f->d, f->n - i, f->d, f->deep);
}

/* Words of room beside T. */
static inline ptrdiff_t few_room(const few *f) { return OUTPUTS * f->deep / PER + OUTPUTS * 32; }

/* `rows` of W (., d), at most 32; T has up(n, 32) rows. */
static inline void meet_few(float *T, const few *f, const bf16 *W, ptrdiff_t rows, word *room) {
    float *C = (float *)room;
    if (rows < OUTPUTS || f->d < f->deep) {
        bf16 *padded = (bf16 *)(C + OUTPUTS * 32);
        memset(padded, 0, OUTPUTS * f->deep * sizeof(bf16));
        for (ptrdiff_t i = 0; i < rows; i++) memcpy(padded + i * f->deep, W + i * f->d, f->d * sizeof(bf16));
        W = padded;
    }
    for (ptrdiff_t c = 0; c < f->n; c += 32) {
        ptrdiff_t S = f->columns - c < 32 ? 16 : 32;
        if (S == 16) narrow_product(C, W, f->deep, f->at + c, f->columns, f->deep);
        else product(C, 32, W, f->deep, f->at + c, f->columns, OUTPUTS, 32, f->deep, 0);
        turn(T + c * OUTPUTS, OUTPUTS, C, S, OUTPUTS, S);
    }
}

#else

enum { AS_MANY = 0 };

/* So many rows of W and of x are met at a time, or so many of W and one.  FEWEST_WIDENED: of so many rows on W is widened
before, not each time. */
enum { BESIDE = REGISTER / 4, ALONE = REGISTER == 16 ? 16 : 4, FEWEST_WIDENED = 5 };

static inline few few_of(ptrdiff_t n, ptrdiff_t d) {
    return (few){.n = n, .d = d, .deep = up(d, 16), .columns = up(n, 16)};
}

static inline void lay_few(const few *f, const bf16 *x, ptrdiff_t i) {
    for (ptrdiff_t end = i + 16; i < end; i++)
        for (ptrdiff_t k = 0; k < f->deep; k += 16)
            copied(f->at + i * f->deep + k, x + i * f->d + k, i < f->n ? first(f->d - k) : 0);
}

static inline ptrdiff_t few_room(const few *f) { return 16 * f->deep; }

/* Sixteen sums of one row, each over its lanes. */
static inline void added_up(float *y, const f32x16 *sums) {
    i32x16 words[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) words[i] = as_words(sums[i]);
    turned(words);
    f32x16 all = as_numbers(words[0]);
#pragma GCC unroll 15
    for (int i = 1; i < 16; i++) all = plus(all, as_numbers(words[i]));
    store_wide(y, all);
}

/* Lanes of ALONE rows of W, as they lie, and of one of x. */
static inline void alone(f32x16 *sums, const bf16 *W, const float *x, ptrdiff_t deep) {
    f32x16 sum[ALONE];
#pragma GCC unroll 16
    for (int o = 0; o < ALONE; o++) sum[o] = zeros();
    for (ptrdiff_t k = 0; k < deep; k += 16) {
        f32x16 a = load_wide(x + k);
#pragma GCC unroll 16
        for (int o = 0; o < ALONE; o++) sum[o] = times_plus(load(W + o * deep + k), a, sum[o]);
    }
#pragma GCC unroll 16
    for (int o = 0; o < ALONE; o++) sums[o] = sum[o];
}

/* Lanes of BESIDE rows of W, widened, and of as many of x; from one of x to the next there are sixteen sums. */
static inline void beside(f32x16 *sums, const float *W, const float *x, ptrdiff_t deep) {
    f32x16 sum[BESIDE][BESIDE];
#pragma GCC unroll 16
    for (int i = 0; i < BESIDE * BESIDE; i++) sum[i / BESIDE][i % BESIDE] = zeros();
    for (ptrdiff_t k = 0; k < deep; k += 16) {
        f32x16 w[BESIDE];
#pragma GCC unroll 4
        for (int o = 0; o < BESIDE; o++) w[o] = load_wide(W + o * deep + k);
#pragma GCC unroll 4
        for (int i = 0; i < BESIDE; i++) {
            f32x16 a = load_wide(x + i * deep + k);
#pragma GCC unroll 4
            for (int o = 0; o < BESIDE; o++) sum[i][o] = times_plus(w[o], a, sum[i][o]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < BESIDE * BESIDE; i++) sums[i / BESIDE * 16 + i % BESIDE] = sum[i / BESIDE][i % BESIDE];
}

static inline void meet_few(float *T, const few *f, const bf16 *W, ptrdiff_t rows, word *room) {
    f32x16 sums[BESIDE * 16];
    int as_it_lies = f->n < FEWEST_WIDENED && rows == OUTPUTS && f->d == f->deep;
    for (ptrdiff_t half = 0; half < OUTPUTS; half += 16) {
        for (ptrdiff_t o = 0; !as_it_lies && o < 16; o++)
            for (ptrdiff_t k = 0; k < f->deep; k += 16)
                copied(room + o * f->deep + k, W + (half + o) * f->d + k, half + o < rows ? first(f->d - k) : 0);
        for (ptrdiff_t i = 0; as_it_lies && i < f->n; i++) {
            for (ptrdiff_t o = 0; o < 16; o += ALONE)
                alone(sums + o, W + (half + o) * f->d, f->at + i * f->deep, f->deep);
            added_up(T + i * OUTPUTS + half, sums);
        }
        for (ptrdiff_t i = 0; !as_it_lies && i < f->n; i += BESIDE) {
            for (ptrdiff_t o = 0; o < 16; o += BESIDE)
                beside(sums + o, room + o * f->deep, f->at + i * f->deep, f->deep);
            for (ptrdiff_t j = 0; j < BESIDE; j++) added_up(T + (i + j) * OUTPUTS + half, sums + 16 * j);
        }
    }
}

#endif
#endif
