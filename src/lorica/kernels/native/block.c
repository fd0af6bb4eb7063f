/* A block of a decoder on a few rows: the ops of this folder one after another, as the model calls them one by one.

    x <- x + o(attention(q, k, v of norm(x)))        x <- x + down(swiglu(gate, up of norm(x)))

Between two products of one row stands as much time of Python's as of the processor's; here nothing does. */

#include <string.h>

#include "room.h"
#include "rowwise.h"

typedef struct {
    const bf16 *before_attention, *before_mlp, *q_norm, *k_norm;
    linear q, k, v, o, gate, up, down;
} block;

void lorica_rms_norm(const bf16 *x, const bf16 *added, const bf16 *weight, bf16 *h, bf16 *y, float *inverse,
                     int64_t rows, int64_t d, float eps);
void lorica_rotary(const bf16 *x, const bf16 *cos, const bf16 *sin, bf16 *y, int64_t tokens, int64_t heads, int64_t half,
                   int64_t token, int64_t head, int64_t cos_token, int64_t sin_token, float sign);
void lorica_swiglu(const bf16 *gate, const bf16 *up, bf16 *h, int64_t count);
int lorica_paged_attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *y, bf16 *keys, bf16 *values,
                           const int32_t *tables, const int64_t *documents, const int64_t *positions, int64_t T,
                           int64_t H, int64_t K, int64_t E, int64_t most, int64_t window, float scale);

static linear into(linear l, bf16 *y) {
    l.y = y;
    return l;
}

/* x (n, d); H heads of queries on K of keys, each E wide; F of the MLP; cos and sin (n, E).  0; 1 where memory is missing. */
int lorica_block(bf16 *x, const block *b, bf16 *keys, bf16 *values, const int32_t *tables, const int64_t *documents,
                 const int64_t *positions, const bf16 *cos, const bf16 *sin, int64_t n, int64_t d, int64_t H, int64_t K,
                 int64_t E, int64_t F, int64_t most, int64_t window, float eps, float scale) {
    char *at = room_of(n * (2 * d + (2 * H + 2 * K) * E + 3 * F) * 2 + n * (H + 1) * 4 + 1024);
    if (!at) return 1;
    bf16 *normed = take(&at, n * d * 2), *out = take(&at, n * d * 2);
    bf16 *q = take(&at, n * H * E * 2), *k = take(&at, n * K * E * 2), *v = take(&at, n * K * E * 2);
    bf16 *attended = take(&at, n * H * E * 2);
    bf16 *gate = take(&at, n * F * 2), *up = take(&at, n * F * 2), *h = take(&at, n * F * 2);
    float *inverse = take(&at, n * H * 4 + 4);

    lorica_rms_norm(x, NULL, b->before_attention, x, normed, inverse, n, d, eps);
    linear outer[] = {into(b->q, q), into(b->k, k), into(b->v, v)};
    if (lorica_rowwise(normed, outer, 3, n, d, 0)) return 1;
    if (b->q_norm) {
        lorica_rms_norm(q, NULL, b->q_norm, q, q, inverse, n * H, E, eps);
        lorica_rms_norm(k, NULL, b->k_norm, k, k, inverse, n * K, E, eps);
    }
    lorica_rotary(q, cos, sin, q, n, H, E / 2, H * E, E, E, E, 1.0f);
    lorica_rotary(k, cos, sin, k, n, K, E / 2, K * E, E, E, E, 1.0f);
    if (lorica_paged_attention(q, k, v, attended, keys, values, tables, documents, positions, n, H, K, E, most, window, scale))
        return 1;
    linear inner = into(b->o, out);
    if (lorica_rowwise(attended, &inner, 1, n, H * E, 0)) return 1;
    lorica_rms_norm(x, out, b->before_mlp, x, normed, inverse, n, d, eps);
    linear gated[] = {into(b->gate, gate), into(b->up, up)};
    if (lorica_rowwise(normed, gated, 2, n, d, 0)) return 1;
    lorica_swiglu(gate, up, h, n * F);
    inner = into(b->down, out);
    if (lorica_rowwise(h, &inner, 1, n, F, 0)) return 1;
    joined(x, x, out, n * d);
    return 0;
}
