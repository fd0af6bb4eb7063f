/* Few columns, each along the lanes as the rows that meet it are, which are widened in passing: a number of a strip met
by one column of sixteen would be spread for that one alone. */

#ifndef LORICA_FEW_COLUMNS_WIDE_H
#define LORICA_FEW_COLUMNS_WIDE_H

/* So many rows meet so many columns at a time. */
enum { SQUARE = REGISTER / 4 };

/* Columns of which none counts are zeros, as far as a square reads. */
static inline void few_of_rows(word *out, const bf16 *in, ptrdiff_t columns, ptrdiff_t depth) {
    ptrdiff_t some = columns < SIDE ? columns : SIDE;
    for (ptrdiff_t k = 0; k < some * depth; k += 16) store_wide(out + k, load(in + k));
    memset(out + some * depth, 0, (up(some, SQUARE) - some) * depth * sizeof(word));
}

static inline void few_of_columns(word *out, const bf16 *in, ptrdiff_t ld, ptrdiff_t columns, ptrdiff_t depth,
                                  const float *gain) {
    word strip[SIDE * WORDS] __attribute__((aligned(64)));
    for (ptrdiff_t n = 0; n < depth; n += SIDE) {
        strips_of(strip, 0, in + n * ld, ld, columns, SIDE, SIDE, gain ? gain + n : NULL);
        turn(out + n, depth, strip, WORDS, SIDE, up(columns, 16));
    }
}

static inline void square_met(float *C, const bf16 *rows, ptrdiff_t stride, ptrdiff_t depth, const word *few) {
    f32x16 lanes[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) lanes[i] = zeros();
    for (ptrdiff_t k = 0; k < depth; k += 16) {
        f32x16 b[SQUARE];
#pragma GCC unroll 4
        for (int j = 0; j < SQUARE; j++) b[j] = load_wide(few + j * depth + k);
#pragma GCC unroll 4
        for (int i = 0; i < SQUARE; i++) {
            f32x16 a = load(rows + i * stride + k);
#pragma GCC unroll 4
            for (int j = 0; j < SQUARE; j++) lanes[i * SQUARE + j] = times_plus(a, b[j], lanes[i * SQUARE + j]);
        }
    }
    float made[16] __attribute__((aligned(64)));
    store_wide(made, added_up(lanes));
    for (int i = 0; i < SQUARE; i++) memcpy(C + i * SIDE, made + i * SQUARE, SQUARE * sizeof(float));
}

static inline void few_met(float *C, const bf16 *in, ptrdiff_t stride, ptrdiff_t depth, const word *few,
                           ptrdiff_t columns) {
    ptrdiff_t some = up(columns < SIDE ? columns : SIDE, SQUARE);
    for (ptrdiff_t i = 0; i < SIDE; i += SQUARE)
        for (ptrdiff_t j = 0; j < SIDE; j += SQUARE)
            if (j < some) square_met(C + i * SIDE + j, in + i * stride, stride, depth, few + j * depth);
            else for (int r = 0; r < SQUARE; r++) memset(C + (i + r) * SIDE + j, 0, SQUARE * sizeof(float));
}

#endif
