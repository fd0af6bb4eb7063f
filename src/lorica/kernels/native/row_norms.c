#include "bfloat16.h"

/* Sum of the products of r numbers. */
static inline float met(const float *a, const float *b, ptrdiff_t r) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (ptrdiff_t k = 0; k < r; k++) sum += a[k] * b[k];
    return sum;
}

/* (W A^T) B^T of one row of W and of B. */
static float crossed_of(const bf16 *W, const float *A, const float *B, ptrdiff_t r, ptrdiff_t d_in) {
    float total = 0.0f;
    for (ptrdiff_t k = 0; k < r; k += 8) {
        ptrdiff_t many = r - k < 8 ? r - k : 8;
        f32x16 sum[8];
        for (int i = 0; i < 8; i++) sum[i] = zeros();
        ptrdiff_t c = 0;
        if (many == 8)
            for (; c + 16 <= d_in; c += 16) {
                f32x16 w = load(W + c);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++)
                    sum[i] = times_plus(w, load_wide(A + (k + i) * d_in + c), sum[i]);
            }
        for (; c < d_in; c += 16) {
            mask16 some = first(d_in - c);
            f32x16 w = load_some(W + c, some);
            for (ptrdiff_t i = 0; i < many; i++)
                sum[i] = times_plus(w, load_some_wide(A + (k + i) * d_in + c, some), sum[i]);
        }
        for (ptrdiff_t i = 0; i < many; i++) total += sum_in(sum[i]) * B[k + i];
    }
    return total;
}

/* found (d_out,): the squared lengths of the rows of W + scale B A: W (d_out, d_in), read once; A (r, d_in),
B (d_out, r) and squares (d_out,), the row sums of W's squares, in float32; gram (r, r) is room for A A^T. */
void lorica_row_norms(const bf16 *W, const float *A, const float *B, float *gram, const float *squares, float *found,
                      int64_t d_out, int64_t r, int64_t d_in, float scale) {
    for (ptrdiff_t i = 0; i < r; i++)
        for (ptrdiff_t k = 0; k <= i; k++) gram[i * r + k] = gram[k * r + i] = met(A + i * d_in, A + k * d_in, d_in);
#pragma omp parallel for if (d_out * d_in > FEW)
    for (ptrdiff_t o = 0; o < d_out; o++) {
        const float *b = B + o * r;
        float crossed = crossed_of(W + o * d_in, A, b, r, d_in), update = 0.0f;
        for (ptrdiff_t k = 0; k < r; k++) update += b[k] * met(gram + k * r, b, r);
        float square = squares[o] + 2.0f * scale * crossed + scale * scale * update;
        /* where the update cancels a row, rounding can leave less than nothing of it; what is no number stays so */
        found[o] = square < 0.0f ? 0.0f : square;
    }
}
