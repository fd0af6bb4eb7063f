/* Products by lanes: a few rows of A are met by sixteen columns of B or twice as many; sums stand in registers. */

#ifndef LORICA_PRODUCTS_LANES_H
#define LORICA_PRODUCTS_LANES_H

typedef struct { int unused; } tiles;

static inline void tiles_taken(tiles *kept) { (void)kept; }
static inline void tiles_back(tiles *kept) { (void)kept; }

/* ROWS: a block has a multiple of them.  HELD rows of HALVES times sixteen columns are summed at a time. */
enum { ROWS = 8, HELD = REGISTER / 2, HALVES = REGISTER / 8 };

/* A strip comes from the second cache in time; of two, AT_HAND of their depth is met by all rows before more is. */
enum { DEEPEST = 1 << 30, PIECE = DEEPEST, AT_HAND = 192 };

/* `rows` rows from `r` on, `halves` times sixteen columns. */
static inline __attribute__((always_inline)) void panel(sums C, const run *A, ptrdiff_t runs, ptrdiff_t r, right B,
                                                        int rows, int halves, int add) {
#define SUM_AT(i) (C.at + i / halves * C.ld + i % halves / 2 * C.next + i % halves % 2 * 16)
    f32x16 sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < rows * halves; i++) sum[i] = add ? load_wide(SUM_AT(i)) : zeros();
    for (const run *part = A; part < A + runs; part++) {
        const number *at = part->at + r * part->stride;
        for (ptrdiff_t d = 0; d < part->depth; d += DEPTH, B.at += B.step)
#pragma GCC unroll 8
            for (ptrdiff_t k = 0; k < DEPTH; k += PER) {
                word16 b[4];
#pragma GCC unroll 4
                for (int h = 0; h < halves; h++)
                    b[h] = load_right(B.at + k / PER * B.below + h / 2 * B.next + h % 2 * B.half);
#pragma GCC unroll 16
                for (int i = 0; i < rows; i++) {
                    word16 a = splat_left(at + i * part->stride + d + k);
#pragma GCC unroll 4
                    for (int h = 0; h < halves; h++) sum[i * halves + h] = with_product(sum[i * halves + h], a, b[h]);
                }
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows * halves; i++) store_wide(SUM_AT(i), sum[i]);
#undef SUM_AT
}

static inline sums down(sums C, ptrdiff_t rows) { return (sums){C.at + rows * C.ld, C.ld, C.next}; }

/* 32 columns of R rows. */
static inline void strip_met(sums C, const run *A, ptrdiff_t runs, right B, ptrdiff_t R, int add) {
    for (ptrdiff_t r = 0; r < R; r += HELD, C = down(C, HELD))
        for (ptrdiff_t h = 0; h < 2; h += HALVES) {
            const sums half = {C.at + h * 16, C.ld};
            right columns = B;
            columns.at += h * B.half;
            panel(half, A, runs, r, columns, HELD, HALVES, add);
        }
}

/* 64 columns of R rows.  A number of A is spread once for all four times sixteen, and loads, not products, are what
others waited for: with all at hand a core does 170 GFLOP/s of 175 so, and 152 by eight rows of 32 columns. */
static inline void pair_met(sums C, const run *A, ptrdiff_t runs, right B, ptrdiff_t R, int add) {
    for (const run *part = A; part < A + runs; part++)
        for (ptrdiff_t d = 0, deep; d < part->depth; d += deep, add = 1) {
            deep = part->depth - d < AT_HAND ? part->depth - d : AT_HAND;
            const run piece = {part->at + d, part->stride, deep};
            for (ptrdiff_t r = 0; r < R; r += 4) panel(down(C, r), &piece, 1, r, B, 4, 4, add);
            B.at += deep / DEPTH * B.step;
        }
}

/* R (at most 32, a multiple of ROWS) rows and `some` times 32 columns, at most TOGETHER. */
static inline void blocks(sums C, const run *A, ptrdiff_t runs, right B, ptrdiff_t R, ptrdiff_t some, int add,
                          int passing) {
    (void)passing;
    if (some == 2) pair_met(C, A, runs, B, R, add);
    else strip_met(C, A, runs, B, R, add);
}

/* Sixteen columns of 32 rows. */
static inline void narrow_product(sums C, const run *A, right B) {
    enum { LONE = HELD * HALVES };
    for (ptrdiff_t r = 0; r < 32; r += LONE) panel(down(C, r), A, 1, r, B, LONE, 1, 0);
}

#endif
