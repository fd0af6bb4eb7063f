/* y = weight * n, n = h / sqrt(mean(h^2) + eps), h = x or x + added: a row stays in cache from its sum of squares to
its product.

n is rounded before it is weighted, as the definition has it. */

#include <math.h>

#include "bfloat16.h"

static float sum_of_squares(const bf16 *x, ptrdiff_t d) {
    f32x16 even = zeros(), odd = zeros();
    for (ptrdiff_t c = 0; c < d; c += 32) {
        f32x16 a = load_some(x + c, first(d - c)), b = load_some(x + c + 16, first(d - c - 16));
        even = times_plus(a, a, even);
        odd = times_plus(b, b, odd);
    }
    return sum_in(plus(even, odd));
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
            mask16 some = first(d - c);
            f32x16 n = wide(narrow(times(load_some(from + c, some), splat(scale))));
            store_some(y + t * d + c, some, times(n, load_some(weight + c, some)));
        }
    }
}

/* dx = (dn - n mean(dn n)) inverse + dh, dn = weight * dy; n in float32.  dh, the gradient of h beside, may be NULL. */
void lorica_rms_norm_backward(const bf16 *dy, const bf16 *dh, const bf16 *h, const bf16 *weight, const float *inverse,
                              bf16 *dx, int64_t rows, int64_t d) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t t = 0; t < rows; t++) {
        const bf16 *g = dy + t * d, *from = h + t * d, *beside = dh ? dh + t * d : NULL;
        f32x16 along = zeros(), scale = splat(inverse[t]);
        for (ptrdiff_t c = 0; c < d; c += 16) {
            mask16 some = first(d - c);
            f32x16 dn = times(load_some(g + c, some), load_some(weight + c, some));
            along = times_plus(dn, load_some(from + c, some), along);
        }
        f32x16 mean = splat(sum_in(along) * inverse[t] / d);
        for (ptrdiff_t c = 0; c < d; c += 16) {
            mask16 some = first(d - c);
            f32x16 dn = times(load_some(g + c, some), load_some(weight + c, some));
            f32x16 n = times(load_some(from + c, some), scale);
            f32x16 over = beside ? load_some(beside + c, some) : zeros();
            store_some(dx + t * d + c, some, times_plus(minus_times(dn, n, mean), scale, over));
        }
    }
}

/* dweight = sum of dy * n over the rows, in their order whatever the threads: each has columns of its own. */
void lorica_rms_norm_weight(const bf16 *dy, const bf16 *x, const float *inverse, bf16 *dweight, int64_t rows,
                            int64_t d) {
#pragma omp parallel for if (rows * d > FEW)
    for (ptrdiff_t c = 0; c < d; c += 16) {
        mask16 some = first(d - c);
        f32x16 sum = zeros();
        for (ptrdiff_t t = 0; t < rows; t++) {
            f32x16 n = times(load_some(x + t * d + c, some), splat(inverse[t]));
            sum = times_plus(load_some(dy + t * d + c, some), n, sum);
        }
        store_some(dweight + c, some, sum);
    }
}
