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
in two memories.  TOGETHER: strips that rows of A meet at a time.  LAID: bytes of strips that a thread lays out at a time,
beside the rows that meet them, in the second cache. */
#if defined(__AMX_BF16__) || defined(PAIRS_ARE_QUICK)
#include "operands_paired.h"
#else
#include "operands_wide.h"
#endif

enum { STRIP_BYTES = WORDS * sizeof(word) };

/* Where a right operand lies: `below` words from one to that of the next rows, `step` from DEPTH rows to the next, `half`
from sixteen columns to the next sixteen and `next` from 32 to the next 32. */
typedef struct {
    const word *at;
    ptrdiff_t below, step, half, next;
} right;

static inline right matrix(const word *at, ptrdiff_t ldb) { return (right){at, ldb, DEPTH / PER * ldb, 16, SIDE}; }

/* Strips that are `deep`, one behind the other. */
static inline right strips_at(const word *at, ptrdiff_t deep) {
    return (right){at, STRIP_LDB, DEPTH * WORDS, OTHER_HALF, deep * WORDS};
}

/* Sums of some rows: `ld` from row to row, `next` from 32 columns to the next 32. */
typedef struct {
    float *at;
    ptrdiff_t ld, next;
} sums;

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

/* Of `columns` that are left, so many times 32 are met together. */
static inline ptrdiff_t together(ptrdiff_t columns) { return columns < TOGETHER * SIDE ? 1 : TOGETHER; }

static inline void product(float *C, ptrdiff_t ldc, const number *A, ptrdiff_t lda, const word *B, ptrdiff_t ldb,
                           ptrdiff_t R, ptrdiff_t S, ptrdiff_t D, int add) {
    for (ptrdiff_t r = 0; r < R; r += 32) {
        const run rows = {A + r * lda, lda, D};
        for (ptrdiff_t s = 0, some; s < S; s += some * 32) {
            some = together(S - s);
            blocks((sums){C + r * ldc + s, ldc, SIDE}, &rows, 1, matrix(B + s, ldb), 32, some, add, 0);
        }
    }
}

/* R (at most 32, a multiple of ROWS) rows of A, in runs, meet some strips, at most TOGETHER. */
static inline void met(sums C, const run *A, ptrdiff_t runs, right strips, ptrdiff_t R, ptrdiff_t some, int add) {
    blocks(C, A, runs, strips, R, some, add, 1);
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
