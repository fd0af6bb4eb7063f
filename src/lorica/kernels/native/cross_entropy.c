/* loss = logsumexp(z) - z[label], and softmax(z) - one-hot in the place of z: three passes over a row that is in cache.

A row with a value that is no number, or an infinite largest one, has no number for its loss and its gradient. */

#include <math.h>

#include "bfloat16.h"

static float largest_of(const bf16 *z, ptrdiff_t width) {
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 most = least;
    for (ptrdiff_t c = 0; c < width; c += 16)
        most = _mm512_max_ps(most, _mm512_mask_mov_ps(least, first(width - c), load_some(z + c, first(width - c))));
    return _mm512_reduce_max_ps(most);
}

static inline __m512 exp_of(const bf16 *z, __mmask16 some, __m512 most) {
    return exp2_of(_mm512_mul_ps(_mm512_sub_ps(load_some(z, some), most), _mm512_set1_ps(LOG2_E)));
}

static float sum_of_exp(const bf16 *z, ptrdiff_t width, __m512 most) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (ptrdiff_t c = 0; c < width; c += 32) {
        __mmask16 some = first(width - c), more = first(width - c - 16);
        even = _mm512_mask_add_ps(even, some, even, exp_of(z + c, some, most));
        odd = _mm512_mask_add_ps(odd, more, odd, exp_of(z + c + 16, more, most));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

static float row(bf16 *z, ptrdiff_t width, ptrdiff_t label) {
    float largest = largest_of(z, width);
    __m512 most = _mm512_set1_ps(largest);
    float sum = sum_of_exp(z, width, most);
    __m512 share = _mm512_set1_ps(1.0f / sum);
    float picked = _mm512_cvtss_f32(load_some(z + label, 1)) - largest;
    float at_label = _mm512_cvtss_f32(exp_of(z + label, 1, most)) / sum - 1.0f;
    for (ptrdiff_t c = 0; c < width; c += 16) {
        __mmask16 some = first(width - c);
        store_some(z + c, some, _mm512_mul_ps(exp_of(z + c, some, most), share));
    }
    store_some(z + label, 1, _mm512_set1_ps(at_label));
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
