/* h = silu(g) u, silu(g) = g sigma(g); and its two gradients with h made again, each in one pass. */

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

/* dg = dh u sigma(g) (1 + g (1 - sigma(g))), and du = dh silu(g) in the place of dh. */
void lorica_swiglu_backward(bf16 *dh, const bf16 *gate, const bf16 *up, bf16 *dg, bf16 *h, int64_t count) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for if (count > FEW)
    for (ptrdiff_t i = 0; i < count; i += 16) {
        __mmask16 some = first(count - i);
        __m512 d = load_some(dh + i, some), g = load_some(gate + i, some), u = load_some(up + i, some);
        __m512 s = sigma(g), silu = _mm512_mul_ps(g, s);
        __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
        store_some(dg + i, some, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
        store_some(dh + i, some, _mm512_mul_ps(d, silu));
        store_some(h + i, some, _mm512_mul_ps(silu, u));
    }
}
