/* Products by lanes: a few rows of A are met by sixteen columns of B or twice as many; sums stand in registers. */

#ifndef LORICA_PRODUCTS_LANES_H
#define LORICA_PRODUCTS_LANES_H

typedef struct { int unused; } tiles;

static inline void tiles_taken(tiles *kept) { (void)kept; }
static inline void tiles_back(tiles *kept) { (void)kept; }

/* ROWS: a block has a multiple of them.  HELD rows of HALVES times sixteen columns are summed at a time. */
enum { ROWS = 8, HELD = REGISTER / 2, HALVES = REGISTER / 8 };

/* Strips come from the second cache in time: pieces of them were no quicker. */
enum { DEEPEST = 1 << 30, PIECE = DEEPEST };

/* `rows` rows of `halves` times sixteen columns of C, the other half at `other` words. */
static inline __attribute__((always_inline)) void panel(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs,
                                                        ptrdiff_t r, const word *B, ptrdiff_t other, ptrdiff_t ldb,
                                                        ptrdiff_t step, int rows, int halves, int add) {
    f32x16 sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < rows * halves; i++)
        sum[i] = add ? load_wide(C + i / halves * ldc + i % halves * 16) : zeros();
    for (const run *part = A; part < A + runs; part++) {
        const number *at = part->at + r * part->stride;
        for (ptrdiff_t d = 0; d < part->depth; d += DEPTH, B += step)
#pragma GCC unroll 8
            for (ptrdiff_t k = 0; k < DEPTH; k += PER) {
                word16 b[2];
#pragma GCC unroll 2
                for (int h = 0; h < halves; h++) b[h] = load_right(B + k / PER * ldb + h * other);
#pragma GCC unroll 16
                for (int i = 0; i < rows; i++) {
                    word16 a = splat_left(at + i * part->stride + d + k);
#pragma GCC unroll 2
                    for (int h = 0; h < halves; h++) sum[i * halves + h] = with_product(sum[i * halves + h], a, b[h]);
                }
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows * halves; i++) store_wide(C + i / halves * ldc + i % halves * 16, sum[i]);
}

static inline void block(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs, const word *low, const word *high,
                         ptrdiff_t ldb, ptrdiff_t step, ptrdiff_t R, int add, int passing) {
    (void)passing;
    for (ptrdiff_t r = 0; r < R; r += HELD, C += HELD * ldc)
        for (ptrdiff_t h = 0; h < 2; h += HALVES)
            panel(C + 16 * h, ldc, A, runs, r, h ? high : low, high - low, ldb, step, HELD, HALVES, add);
}

/* C (32, 16) = A (32, D) B (D, 16), `step` words of B from DEPTH rows to the next. */
static inline void narrow_product(float *C, ptrdiff_t ldc, const run *A, const word *B, ptrdiff_t ldb, ptrdiff_t step) {
    enum { LONE = HELD * HALVES };
    for (ptrdiff_t r = 0; r < 32; r += LONE) panel(C + r * ldc, ldc, A, 1, r, B, 0, ldb, step, LONE, 1, 0);
}

#endif
