/* What linears of rows are given: `rowwise.c`. */

#ifndef LORICA_ROWWISE_H
#define LORICA_ROWWISE_H

#include "bfloat16.h"

typedef struct {
    const bf16 *A, *B;
    const float *middle, *output, *base, *bias;
    int64_t r;
} factors;

typedef struct {
    const factors *of;
    int64_t row;
    double weight;
} term;

/* One linear; its terms stand in the order of their rows. */
typedef struct {
    const bf16 *W, *bias;
    void *y;
    const term *terms;
    int64_t d_out, count;
} linear;

int lorica_rowwise(const bf16 *x, const linear *linears, int64_t many, int64_t n, int64_t d, int64_t wide);

#endif
