/* h = silu(g) u, silu(g) = g sigma(g); and its two gradients with h made again, each in one pass. */

#include <string.h>

#include "bfloat16.h"

static inline __m512 sigma(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)))));
}

/* All of one length. */
void lorica_swiglu(const bf16 *gate, const bf16 *up, bf16 *h, int64_t count) {
#pragma omp parallel for if (count > FEW)
    for (ptrdiff_t i = 0; i < count; i += 16) {
        __mmask16 some = first(count - i);
        __m512 g = load_some(gate + i, some);
        store_some(h + i, some, _mm512_mul_ps(_mm512_mul_ps(g, sigma(g)), load_some(up + i, some)));
    }
}

static inline void added(float *sum, __mmask16 some, __m512 a, __m512 b) {
    _mm512_mask_storeu_ps(sum, some, _mm512_fmadd_ps(a, b, _mm512_maskz_loadu_ps(some, sum)));
}

/* dg = dh u sigma(g) (1 + g (1 - sigma(g))), and du = dh silu(g) in the place of dh; all (rows, width).  sums, which may
be NULL, are (parts, 2, width): the columns of dg g and du u, added up over `together` rows each, so that they are the
same under any number of threads. */
void lorica_swiglu_backward(bf16 *dh, const bf16 *gate, const bf16 *up, bf16 *dg, bf16 *h, float *sums, int64_t rows,
                            int64_t width, int64_t together) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t begin = 0; begin < rows; begin += together) {
        ptrdiff_t end = begin + together < rows ? begin + together : rows;
        float *of_gate = sums ? sums + begin / together * 2 * width : NULL, *of_up = of_gate ? of_gate + width : NULL;
        if (sums) memset(of_gate, 0, 2 * width * sizeof(float));
        for (ptrdiff_t t = begin; t < end; t++)
            for (ptrdiff_t c = 0; c < width; c += 16) {
                __mmask16 some = first(width - c);
                ptrdiff_t i = t * width + c;
                __m512 d = load_some(dh + i, some), g = load_some(gate + i, some), u = load_some(up + i, some);
                __m512 s = sigma(g), silu = _mm512_mul_ps(g, s);
                __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
                __m512 of_g = _mm512_mul_ps(_mm512_mul_ps(d, u), slope), of_u = _mm512_mul_ps(d, silu);
                store_some(dg + i, some, of_g);
                store_some(dh + i, some, of_u);
                store_some(h + i, some, _mm512_mul_ps(silu, u));
                if (sums) added(of_gate + c, some, of_g, g), added(of_up + c, some, of_u, u);
            }
    }
}
