/* Each pair (x_i, x_(i + half)) of a head turned by its token's angle; `sign` -1 turns it back. */

#include "bfloat16.h"

/* x (tokens, heads, 2 half), channels side by side, tokens and heads so many elements apart as said; y without gaps.
cos and sin: so many elements from a token to the next, of which the first half is read. */
void lorica_rotary(const bf16 *x, const bf16 *cos, const bf16 *sin, bf16 *y, int64_t tokens, int64_t heads, int64_t half,
                   int64_t token, int64_t head, int64_t cos_token, int64_t sin_token, float sign) {
#pragma omp parallel for if (tokens * heads * half > FEW)
    for (ptrdiff_t t = 0; t < tokens; t++)
        for (ptrdiff_t h = 0; h < heads; h++) {
            const bf16 *from = x + t * token + h * head;
            bf16 *to = y + (t * heads + h) * 2 * half;
            for (ptrdiff_t c = 0; c < half; c += 16) {
                mask16 some = first(half - c);
                f32x16 a = load_some(from + c, some), b = load_some(from + half + c, some);
                f32x16 turn = load_some(cos + t * cos_token + c, some);
                f32x16 cross = times(load_some(sin + t * sin_token + c, some), splat(sign));
                store_some(to + c, some, minus_times(times(a, turn), b, cross));
                store_some(to + half + c, some, times_plus(a, cross, times(b, turn)));
            }
        }
}
