/* y = weight * n, n = x / sqrt(mean(x^2) + eps): a row stays in cache from its sum of squares to its product.

n is rounded before it is weighted, as the definition has it. */

#include <math.h>

#include "bfloat16.h"

static float sum_of_squares(const bf16 *x, ptrdiff_t d) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (ptrdiff_t c = 0; c < d; c += 32) {
        __m512 a = load_some(x + c, first(d - c)), b = load_some(x + c + 16, first(d - c - 16));
        even = _mm512_fmadd_ps(a, a, even);
        odd = _mm512_fmadd_ps(b, b, odd);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

/* x, y (rows, d); weight (d,); inverse (rows,): 1 / sqrt(mean(x^2) + eps). */
void lorica_rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, float *inverse, int64_t rows, int64_t d, float eps) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t t = 0; t < rows; t++) {
        const bf16 *from = x + t * d;
        float scale = inverse[t] = 1.0f / sqrtf(sum_of_squares(from, d) / d + eps);
        for (ptrdiff_t c = 0; c < d; c += 16) {
            __mmask16 some = first(d - c);
            __m512 n = wide(narrow(_mm512_mul_ps(load_some(from + c, some), _mm512_set1_ps(scale))));
            store_some(y + t * d + c, some, _mm512_mul_ps(n, load_some(weight + c, some)));
        }
    }
}

/* dx = (dn - n mean(dn n)) inverse, dn = weight * dy; n in float32. */
void lorica_rms_norm_backward(const bf16 *dy, const bf16 *x, const bf16 *weight, const float *inverse, bf16 *dx,
                              int64_t rows, int64_t d) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t t = 0; t < rows; t++) {
        const bf16 *g = dy + t * d, *from = x + t * d;
        __m512 along = _mm512_setzero_ps(), scale = _mm512_set1_ps(inverse[t]);
        for (ptrdiff_t c = 0; c < d; c += 16) {
            __mmask16 some = first(d - c);
            __m512 dn = _mm512_mul_ps(load_some(g + c, some), load_some(weight + c, some));
            along = _mm512_fmadd_ps(dn, load_some(from + c, some), along);
        }
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(along) * inverse[t] / d);
        for (ptrdiff_t c = 0; c < d; c += 16) {
            __mmask16 some = first(d - c);
            __m512 dn = _mm512_mul_ps(load_some(g + c, some), load_some(weight + c, some));
            __m512 n = _mm512_mul_ps(load_some(from + c, some), scale);
            store_some(dx + t * d + c, some, _mm512_mul_ps(_mm512_fnmadd_ps(n, mean, dn), scale));
        }
    }
}

/* dweight = sum of dy * n over the rows, in their order whatever the threads: each has columns of its own. */
void lorica_rms_norm_weight(const bf16 *dy, const bf16 *x, const float *inverse, bf16 *dweight, int64_t rows,
                            int64_t d) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t c = 0; c < d; c += 16) {
        __mmask16 some = first(d - c);
        __m512 sum = _mm512_setzero_ps();
        for (ptrdiff_t t = 0; t < rows; t++) {
            __m512 n = _mm512_mul_ps(load_some(x + t * d + c, some), _mm512_set1_ps(inverse[t]));
            sum = _mm512_fmadd_ps(load_some(dy + t * d + c, some), n, sum);
        }
        store_some(dweight + c, some, sum);
    }
}
