/* A gain on the columns of a product, and both its gradients in one pass.

    y = z + (z - b) (c - 1)        dz = c dy        dc = sum over rows of dy (z - b)        z (T, d), b and c (d,)

A gain of one leaves z to the bit. */

#include "bfloat16.h"

/* y may be z. */
void lorica_gain(const bf16 *z, const bf16 *bias, const float *gain, bf16 *y, int64_t rows, int64_t width) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t t = 0; t < rows; t++)
        for (ptrdiff_t c = 0; c < width; c += 16) {
            __mmask16 some = first(width - c);
            __m512 x = load_some(z + t * width + c, some);
            __m512 moved = bias ? _mm512_sub_ps(x, load_some(bias + c, some)) : x;
            __m512 more = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, gain + c), one);
            store_some(y + t * width + c, some, _mm512_fmadd_ps(moved, more, x));
        }
}

/* dz may be NULL. Sums of `together` rows each, (parts, width): what they add up to is the same under any number of threads. */
void lorica_gain_backward(const bf16 *dy, const bf16 *z, const bf16 *bias, const float *gain, bf16 *dz, float *sums,
                          int64_t rows, int64_t width, int64_t together) {
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t begin = 0; begin < rows; begin += together)
        for (ptrdiff_t c = 0; c < width; c += 16) {
            __mmask16 some = first(width - c);
            __m512 by = _mm512_maskz_loadu_ps(some, gain + c), sum = _mm512_setzero_ps();
            __m512 less = bias ? load_some(bias + c, some) : _mm512_setzero_ps();
            ptrdiff_t end = begin + together < rows ? begin + together : rows;
            for (ptrdiff_t t = begin; t < end; t++) {
                __m512 d = load_some(dy + t * width + c, some);
                sum = _mm512_fmadd_ps(d, _mm512_sub_ps(load_some(z + t * width + c, some), less), sum);
                if (dz) store_some(dz + t * width + c, some, _mm512_mul_ps(d, by));
            }
            _mm512_mask_storeu_ps(sums + begin / together * width + c, some, sum);
        }
}
