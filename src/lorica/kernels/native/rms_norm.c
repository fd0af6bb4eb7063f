/* y = weight * n, n = h / sqrt(mean(h^2) + eps), h = x or x + added: a row stays in cache from its sum of squares to
its product.

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

/* x, added, h, y (rows, d); weight (d,); inverse (rows,): 1 / sqrt(mean(h^2) + eps).  Without `added`, h is x. */
void lorica_rms_norm(const bf16 *x, const bf16 *added, const bf16 *weight, bf16 *h, bf16 *y, float *inverse,
                     int64_t rows, int64_t d, float eps) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t t = 0; t < rows; t++) {
        if (added) joined(h + t * d, x + t * d, added + t * d, d);
        const bf16 *from = (added ? h : x) + t * d;
        float scale = inverse[t] = 1.0f / sqrtf(sum_of_squares(from, d) / d + eps);
        for (ptrdiff_t c = 0; c < d; c += 16) {
            __mmask16 some = first(d - c);
            __m512 n = wide(narrow(_mm512_mul_ps(load_some(from + c, some), _mm512_set1_ps(scale))));
            store_some(y + t * d + c, some, _mm512_mul_ps(n, load_some(weight + c, some)));
        }
    }
}

/* dx = (dn - n mean(dn n)) inverse + dh, dn = weight * dy; n in float32.  dh, the gradient of h beside, may be NULL. */
void lorica_rms_norm_backward(const bf16 *dy, const bf16 *dh, const bf16 *h, const bf16 *weight, const float *inverse,
                              bf16 *dx, int64_t rows, int64_t d) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t t = 0; t < rows; t++) {
        const bf16 *g = dy + t * d, *from = h + t * d, *beside = dh ? dh + t * d : NULL;
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
            __m512 over = beside ? load_some(beside + c, some) : _mm512_setzero_ps();
            store_some(dx + t * d + c, some, _mm512_fmadd_ps(_mm512_fnmadd_ps(n, mean, dn), scale, over));
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
