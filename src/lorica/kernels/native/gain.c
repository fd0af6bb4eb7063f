/* A gain on the columns of a product, and both its gradients in one pass.

    y = z + (z - b) (c - 1)        dz = c dy        dc = sum over rows of dy (z - b)        z (T, d), b and c (d,)

A gain of one leaves z to the bit. */

#include "bfloat16.h"

/* y may be z. */
void lorica_gain(const bf16 *z, const bf16 *bias, const float *gain, bf16 *y, int64_t rows, int64_t width) {
    const f32x16 one = splat(1.0f);
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t t = 0; t < rows; t++)
        for (ptrdiff_t c = 0; c < width; c += 16) {
            mask16 some = first(width - c);
            f32x16 x = load_some(z + t * width + c, some);
            f32x16 moved = bias ? minus(x, load_some(bias + c, some)) : x;
            f32x16 more = minus(load_some_wide(gain + c, some), one);
            store_some(y + t * width + c, some, times_plus(moved, more, x));
        }
}

/* dz may be NULL. Sums of `together` rows each, (parts, width): what they add up to is the same under any number of threads. */
void lorica_gain_backward(const bf16 *dy, const bf16 *z, const bf16 *bias, const float *gain, bf16 *dz, float *sums,
                          int64_t rows, int64_t width, int64_t together) {
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t begin = 0; begin < rows; begin += together)
        for (ptrdiff_t c = 0; c < width; c += 16) {
            mask16 some = first(width - c);
            f32x16 by = load_some_wide(gain + c, some), sum = zeros();
            f32x16 less = bias ? load_some(bias + c, some) : zeros();
            ptrdiff_t end = begin + together < rows ? begin + together : rows;
            for (ptrdiff_t t = begin; t < end; t++) {
                f32x16 d = load_some(dy + t * width + c, some);
                sum = times_plus(d, minus(load_some(z + t * width + c, some), less), sum);
                if (dz) store_some(dz + t * width + c, some, times(d, by));
            }
            store_some_wide(sums + begin / together * width + c, some, sum);
        }
}
