/* loss = logsumexp(z) - z[label], and softmax(z) - one-hot in the place of z: three passes over a row that is in cache.

A row with a value that is no number, or an infinite largest one, has no number for its loss and its gradient. */

#include <math.h>

#include "bfloat16.h"

static float largest_of(const bf16 *z, ptrdiff_t width) {
    const f32x16 least = splat(-INFINITY);
    f32x16 most = least;
    for (ptrdiff_t c = 0; c < width; c += 16)
        most = larger(most, chosen(first(width - c), load_some(z + c, first(width - c)), least));
    return largest_in(most);
}

static inline f32x16 exp_of(const bf16 *z, mask16 some, f32x16 most) {
    return exp2_of(times(minus(load_some(z, some), most), splat(LOG2_E)));
}

static float sum_of_exp(const bf16 *z, ptrdiff_t width, f32x16 most) {
    f32x16 even = zeros(), odd = zeros();
    for (ptrdiff_t c = 0; c < width; c += 32) {
        mask16 some = first(width - c), more = first(width - c - 16);
        even = chosen(some, plus(even, exp_of(z + c, some, most)), even);
        odd = chosen(more, plus(odd, exp_of(z + c + 16, more, most)), odd);
    }
    return sum_in(plus(even, odd));
}

static float row(bf16 *z, ptrdiff_t width, ptrdiff_t label) {
    float largest = largest_of(z, width);
    f32x16 most = splat(largest);
    float sum = sum_of_exp(z, width, most);
    f32x16 share = splat(1.0f / sum);
    float picked = of_number(z[label]) - largest;
    float at_label = first_in(exp_of(z + label, 1, most)) / sum - 1.0f;
    for (ptrdiff_t c = 0; c < width; c += 16) {
        mask16 some = first(width - c);
        store_some(z + c, some, times(exp_of(z + c, some, most), share));
    }
    store_some(z + label, 1, splat(at_label));
    return (float)(log(sum) - picked);
}

/* logits (rows, width), overwritten; labels and losses (rows,).  Not 0 where a label is none of the columns. */
int lorica_cross_entropy(bf16 *logits, const int64_t *labels, float *losses, int64_t rows, int64_t width) {
    for (ptrdiff_t t = 0; t < rows; t++)
        if (labels[t] < 0 || labels[t] >= width) return 1;
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t t = 0; t < rows; t++) losses[t] = row(logits + t * width, width, labels[t]);
    return 0;
}
