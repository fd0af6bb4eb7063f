#include "bfloat16.h"

/* W A^T (d_out, r) in float32, of W (d_out, d_in) and A (r, d_in) float32: W is read once, in the type it is stored in. */
void lorica_wide_product(const bf16 *W, const float *A, float *C, int64_t d_out, int64_t r, int64_t d_in) {
#pragma omp parallel for if (d_out * d_in > FEW)
    for (ptrdiff_t o = 0; o < d_out; o++)
        for (ptrdiff_t k = 0; k < r; k += 8) {
            ptrdiff_t many = r - k < 8 ? r - k : 8;
            __m512 sum[8];
            for (int i = 0; i < 8; i++) sum[i] = _mm512_setzero_ps();
            for (ptrdiff_t c = 0; c < d_in; c += 16) {
                __mmask16 some = first(d_in - c);
                __m512 w = load_some(W + o * d_in + c, some);
                if (many == 8)
#pragma GCC unroll 8
                    for (int i = 0; i < 8; i++)
                        sum[i] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(some, A + (k + i) * d_in + c), sum[i]);
                else
                    for (ptrdiff_t i = 0; i < many; i++)
                        sum[i] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(some, A + (k + i) * d_in + c), sum[i]);
            }
            for (ptrdiff_t i = 0; i < many; i++) C[o * r + k + i] = _mm512_reduce_add_ps(sum[i]);
        }
}
