/* Few rows in float32: x and W lie along the lanes, which are added up at the end. One row meets W at the rate of
memory, which is widened in passing; of more it is widened before. */

#ifndef LORICA_FEW_ROWS_WIDE_H
#define LORICA_FEW_ROWS_WIDE_H

enum { AS_MANY = 0 };

/* So many rows of W and of x are met at a time, or so many of W and one.  FEWEST_WIDENED: of so many rows on W is
widened before.  GROUP: bytes of x that stay in the second cache while W goes by. */
enum { BESIDE = REGISTER / 4, ALONE = REGISTER == 16 ? 16 : 4, FEWEST_WIDENED = 5, GROUP = 512 << 10 };

static inline few few_of(ptrdiff_t n, ptrdiff_t d, int ragged) {
    few f = {.n = n, .d = d, .deep = up(d, 16), .columns = up(n, 16)};
    ptrdiff_t held = GROUP / (f.deep * (ptrdiff_t)sizeof(word)) / 32 * 32;
    f.group = held < 32 ? 32 : held < n ? held : up(n, 32);
    f.padded = n >= FEWEST_WIDENED || ragged || d < f.deep;
    return f;
}

static inline void lay_few(const few *f, const bf16 *x, ptrdiff_t i) {
    for (ptrdiff_t end = i + 16; i < end; i++)
        for (ptrdiff_t k = 0; k < f->deep; k += 16)
            copied(f->at + i * f->deep + k, x + i * f->d + k, i < f->n ? first(f->d - k) : 0);
}

static inline ptrdiff_t few_room(const few *f) { return f->padded * 16 * f->deep; }

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

/* Sixteen rows of W as they lie, and each row of x. */
static inline void meet_alone(float *T, const few *f, const bf16 *W, const float *x, ptrdiff_t rows) {
    for (ptrdiff_t i = 0; i < rows; i++) {
        f32x16 sums[16];
        for (ptrdiff_t o = 0; o < 16; o += ALONE) alone(sums + o, W + o * f->deep, x + i * f->deep, f->deep);
        store_wide(T + i * OUTPUTS, added_up(sums));
    }
}

/* Sixteen rows of W, zeros past `some`, widened in `room`, and BESIDE rows of x at a time. */
static inline void meet_beside(float *T, const few *f, const bf16 *W, ptrdiff_t some, const float *x, ptrdiff_t rows,
                               float *room) {
    f32x16 sums[BESIDE * 16];
    for (ptrdiff_t o = 0; o < 16; o++)
        for (ptrdiff_t k = 0; k < f->deep; k += 16)
            copied(room + o * f->deep + k, W + o * f->d + k, o < some ? first(f->d - k) : 0);
    for (ptrdiff_t i = 0; i < rows; i += BESIDE) {
        for (ptrdiff_t o = 0; o < 16; o += BESIDE) beside(sums + o, room + o * f->deep, x + i * f->deep, f->deep);
        for (ptrdiff_t j = 0; j < BESIDE; j++) store_wide(T + (i + j) * OUTPUTS, added_up(sums + 16 * j));
    }
}

static inline void meet_few(float *T, const few *f, const bf16 *W, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t end,
                            word *room) {
    const float *x = f->at + begin * f->deep;
    for (ptrdiff_t half = 0; half < OUTPUTS; half += 16)
        if (f->padded) meet_beside(T + half, f, W + half * f->d, rows - half, x, end - begin, room);
        else meet_alone(T + half, f, W + half * f->d, x, end - begin);
}

#endif
