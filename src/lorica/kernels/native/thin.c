/* out = s L D: the product of few long rows with many, whose gradients of A and B are made; each is read once.

L (R, T), D (T, N), out (R, N).  Threads share columns, so a sum is made in the order of T whatever threads there are. */

#include <omp.h>
#include <string.h>

#include "bfloat16.h"
#include "room.h"

enum { HIGH = 8, DEEP = 8, ACROSS = 32 };

/* HIGH rows of L in columns from t to t + DEEP, zeros past R and T: (DEEP, HIGH). */
static void turned_rows(float *out, const bf16 *L, ptrdiff_t R, ptrdiff_t T, ptrdiff_t r, ptrdiff_t t) {
    for (ptrdiff_t i = 0; i < HIGH; i++)
        for (ptrdiff_t k = 0; k < DEEP; k++) {
            uint32_t bits = r + i < R && t + k < T ? (uint32_t)L[(r + i) * T + t + k] << 16 : 0;
            memcpy(out + k * HIGH + i, &bits, 4);
        }
}

/* HIGH sums of 32 columns, `sums` apart by `stride`, and the products of `deep` rows of D. */
static inline __attribute__((always_inline)) void met(float *sums, ptrdiff_t stride, const float *left, const bf16 *D,
                                                      ptrdiff_t N, ptrdiff_t deep, __mmask16 low, __mmask16 high) {
    __m512 sum[HIGH][2];
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++) {
        sum[i][0] = _mm512_loadu_ps(sums + i * stride);
        sum[i][1] = _mm512_loadu_ps(sums + i * stride + 16);
    }
    for (ptrdiff_t k = 0; k < deep; k++) {
        __m512 a = load_some(D + k * N, low), b = load_some(D + k * N + 16, high);
#pragma GCC unroll 8
        for (int i = 0; i < HIGH; i++) {
            __m512 times = _mm512_set1_ps(left[k * HIGH + i]);
            sum[i][0] = _mm512_fmadd_ps(times, a, sum[i][0]);
            sum[i][1] = _mm512_fmadd_ps(times, b, sum[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++) {
        _mm512_storeu_ps(sums + i * stride, sum[i][0]);
        _mm512_storeu_ps(sums + i * stride + 16, sum[i][1]);
    }
}

/* Columns from `begin` to `end`; sums (R up to HIGH, columns up to ACROSS). */
static void columns(float *sums, bf16 *out, const bf16 *L, const bf16 *D, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t R,
                    ptrdiff_t T, ptrdiff_t N, float scale) {
    float left[DEEP * HIGH] __attribute__((aligned(64)));
    const ptrdiff_t stride = up(end - begin, ACROSS);
    memset(sums, 0, up(R, HIGH) * stride * sizeof(float));
    for (ptrdiff_t t = 0; t < T; t += DEEP)
        for (ptrdiff_t r = 0; r < R; r += HIGH) {
            turned_rows(left, L, R, T, r, t);
            const bf16 *rows = D + t * N;
            ptrdiff_t c = begin;
            if (t + DEEP <= T)
                for (; c + ACROSS <= end; c += ACROSS)
                    met(sums + r * stride + c - begin, stride, left, rows + c, N, DEEP, 0xffff, 0xffff);
            for (; c < end; c += ACROSS)
                met(sums + r * stride + c - begin, stride, left, rows + c, N, T - t < DEEP ? T - t : DEEP,
                    first(end - c), first(end - c - 16));
        }
    const __m512 times = _mm512_set1_ps(scale);
    for (ptrdiff_t r = 0; r < R; r++)
        for (ptrdiff_t c = begin; c < end; c += 16)
            store_some(out + r * N + c, first(end - c),
                       _mm512_mul_ps(times, _mm512_loadu_ps(sums + r * stride + c - begin)));
}

/* 0, or 1 where memory is missing. */
int lorica_thin(const bf16 *L, const bf16 *D, bf16 *out, int64_t R, int64_t T, int64_t N, double scale) {
    int threads = T * N > FEW ? omp_get_max_threads() : 1;
    ptrdiff_t own = up((N + threads - 1) / threads, ACROSS), bytes = up(R, HIGH) * own * sizeof(float);
    char *at = room_of(threads * bytes + 64);
    if (!at) return 1;
#pragma omp parallel num_threads(threads)
    {
        ptrdiff_t thread = omp_get_thread_num(), begin = thread * own, end = begin + own < N ? begin + own : N;
        if (begin < end) columns((float *)(at + thread * bytes), out, L, D, begin, end, R, T, N, (float)scale);
    }
    return 0;
}
