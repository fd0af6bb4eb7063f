/* C (R, S) = A (R, D) B (D, S), or that added to C: bfloat16 in, float32 out. R and S are multiples of 32, D of DEPTH.

Three ways, by what the processor has: tiles of AMX, 16 x 16 x 32 at a time; products of pairs; products in float32. How
operands lie is said in `operands_paired.h` and `operands_wide.h`. */

#ifndef LORICA_PRODUCTS_H
#define LORICA_PRODUCTS_H

#include "bfloat16.h"
#include "room.h"

/* Columns of a strip, and rows that meet them at a time. */
enum { SIDE = 32 };

/* Where rows are read next that nobody foresees: `rows` of 64 bytes. */
static inline void foreseen(const bf16 *at, ptrdiff_t stride, ptrdiff_t rows) {
    for (ptrdiff_t i = 0; i < rows; i++) _mm_prefetch((const char *)(at + i * stride), _MM_HINT_T0);
}

/* A strip is 32 columns of a right operand as `met` reads them. What is read one behind the other comes in time; lines
in turn do not.

DEPTH: what a depth is a multiple of; what is less deep, as low-rank products are, is filled up with zeros.
`number` is of a left operand, `word` of a right one.  PER: rows of a right operand in a word.  WORDS: of a strip to
each row; OTHER_HALF and STRIP_LDB: from its first sixteen columns to the others, and from word to word below.
WIDENED_BYTES: of room for a number of a left operand that is widened.  RIGHT_APART: what is left and right operand lies
in two memories. */
#if defined(__AMX_BF16__) || defined(PAIRS_ARE_QUICK)
#include "operands_paired.h"
#else
#include "operands_wide.h"
#endif

enum { STRIP_BYTES = WORDS * sizeof(word) };

/* Rows of A, `stride` after one another, as far as one memory holds their depth; what runs on in another is summed
without a stop. */
typedef struct {
    const number *at;
    ptrdiff_t stride, depth;
} run;

#ifdef __AMX_BF16__
#include "products_tiles.h"
#else
#include "products_lanes.h"
#endif

static inline void product(float *C, ptrdiff_t ldc, const number *A, ptrdiff_t lda, const word *B, ptrdiff_t ldb,
                           ptrdiff_t R, ptrdiff_t S, ptrdiff_t D, int add) {
    for (ptrdiff_t r = 0; r < R; r += 32) {
        const run rows = {A + r * lda, lda, D};
        for (ptrdiff_t s = 0; s < S; s += 32)
            block(C + r * ldc + s, ldc, &rows, 1, B + s, B + s + 16, ldb, DEPTH / PER * ldb, 32, add, 0);
    }
}

/* R (at most 32, a multiple of ROWS) rows and 32 columns of C, of a strip. */
static inline void met(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs, const word *strip, ptrdiff_t R,
                       int add) {
    block(C, ldc, A, runs, strip, strip + OTHER_HALF, STRIP_LDB, DEPTH * WORDS, R, add, 1);
}

/* C (32, 32) of a strip of which the first `columns` count: where sixteen do, the others are 0. */
static inline void met_by_some(float *C, const run *A, const word *strip, ptrdiff_t columns) {
    if (columns > 16) {
        met(C, SIDE, A, 1, strip, SIDE, 0);
        return;
    }
    narrow_product(C, SIDE, A, strip, STRIP_LDB, DEPTH * WORDS);
    for (ptrdiff_t i = 0; i < SIDE; i++) store_wide(C + i * SIDE + 16, zeros());
}

/* (R, S) words -> (S, R), both multiples of 16; strides in words. */
static inline void turn(void *out, ptrdiff_t ldo, const void *in, ptrdiff_t ldi, ptrdiff_t R, ptrdiff_t S) {
    const int32_t *from = in;
    int32_t *to = out;
    for (ptrdiff_t r = 0; r < R; r += 16)
        for (ptrdiff_t s = 0; s < S; s += 16) {
            i32x16 block[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) block[i] = load_words(from + (r + i) * ldi + s);
            turned(block);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) store_words(to + (s + i) * ldo + r, block[i]);
        }
}

#endif
