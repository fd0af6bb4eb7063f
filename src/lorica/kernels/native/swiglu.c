/* h = silu(g) u, silu(g) = g sigma(g); and its two gradients with h made again, each in one pass. */

#include <string.h>

#include "bfloat16.h"

static inline f32x16 sigma(f32x16 x) {
    f32x16 one = splat(1.0f);
    return over(one, plus(one, exp2_of(times(x, splat(-LOG2_E)))));
}

/* All of one length. */
void lorica_swiglu(const bf16 *gate, const bf16 *up, bf16 *h, int64_t count) {
#pragma omp parallel for if (count > FEW)
    for (ptrdiff_t i = 0; i < count; i += 16) {
        mask16 some = first(count - i);
        f32x16 g = load_some(gate + i, some);
        store_some(h + i, some, times(times(g, sigma(g)), load_some(up + i, some)));
    }
}

static inline void added(float *sum, mask16 some, f32x16 a, f32x16 b) {
    store_some_wide(sum, some, times_plus(a, b, load_some_wide(sum, some)));
}

/* dg = dh u sigma(g) (1 + g (1 - sigma(g))), and du = dh silu(g) in the place of dh; all (rows, width).  sums, which may
be NULL, are (parts, 2, width): the columns of dg g and du u, added up over `together` rows each, so that they are the
same under any number of threads. */
void lorica_swiglu_backward(bf16 *dh, const bf16 *gate, const bf16 *up, bf16 *dg, bf16 *h, float *sums, int64_t rows,
                            int64_t width, int64_t together) {
    const f32x16 one = splat(1.0f);
#pragma omp parallel for if (rows * width > FEW)
    for (ptrdiff_t begin = 0; begin < rows; begin += together) {
        ptrdiff_t end = begin + together < rows ? begin + together : rows;
        float *of_gate = sums ? sums + begin / together * 2 * width : NULL, *of_up = of_gate ? of_gate + width : NULL;
        if (sums) memset(of_gate, 0, 2 * width * sizeof(float));
        for (ptrdiff_t t = begin; t < end; t++)
            for (ptrdiff_t c = 0; c < width; c += 16) {
                mask16 some = first(width - c);
                ptrdiff_t i = t * width + c;
                f32x16 d = load_some(dh + i, some), g = load_some(gate + i, some), u = load_some(up + i, some);
                f32x16 s = sigma(g), silu = times(g, s);
                f32x16 slope = times(s, times_plus(g, minus(one, s), one));
                f32x16 of_g = times(times(d, u), slope), of_u = times(d, silu);
                store_some(dg + i, some, of_g);
                store_some(dh + i, some, of_u);
                store_some(h + i, some, times(silu, u));
                if (sums) added(of_gate + c, some, of_g, g), added(of_up + c, some, of_u, u);
            }
    }
}
