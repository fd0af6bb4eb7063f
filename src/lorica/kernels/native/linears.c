/* Linears of one input on many rows, each with a low-rank product beside it: forward, and the gradient of the input.

    m = x A^T       z_i = x W_i^T + s m_i B_i^T + b_i       y_i = z_i + (z_i - b_i) (c_i - 1)
    inner_i = s dy_i (c_i B_i)      dx = sum over i of inner_i A_i + dy_i (c_i W_i)

x (T, K), W_i (N_i, K), A (R, K) of all branches, B_i (N_i, r_i), c_i (N_i,); K and every N are multiples of 32.

Weights are laid out as the instruction reads them, AHEAD bytes at a time, into room that is kept. Sums of a row are made in the order of K, whatever rows
stand beside it and whatever threads there are; y is rounded once. */

#include <omp.h>
#include <string.h>

#include "products.h"
#include "room.h"

enum { SIDE = 32, AHEAD = 4 << 20, BLOCK = 256, BLOCK_BACK = 128 };

/* y: what the branch gives, or its gradient. bias, B, gain and z may be NULL. */
typedef struct {
    const bf16 *W, *bias, *B;
    const float *gain;
    bf16 *y, *z;
    int64_t N, r;
    double scale;
} branch;

/* Strips of right operands: 32 columns, their rows by pairs, (depth / 2, 32) words. */

/* 32 rows of (., K), turned; zeros past `rows`. */
static void strip_of_rows(int32_t *out, const bf16 *in, ptrdiff_t rows, ptrdiff_t K) {
    for (ptrdiff_t half = 0; half < SIDE; half += 16)
        for (ptrdiff_t p = 0; p < K / 2; p += 16) {
            __m512i block[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                block[i] = _mm512_maskz_loadu_epi32(half + i < rows ? 0xffff : 0, in + (half + i) * K + 2 * p);
            turned(block);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + (p + i) * SIDE + half, block[i]);
        }
}

/* 32 rows of (., r), turned; r is small and may be odd. */
static void strip_of_short_rows(int32_t *out, const bf16 *in, ptrdiff_t r) {
    bf16 *pairs = (bf16 *)out;
    memset(out, 0, up(r, SIDE) * SIDE * sizeof(bf16));
    for (ptrdiff_t i = 0; i < SIDE; i++)
        for (ptrdiff_t k = 0; k < r; k++) pairs[(k / 2 * SIDE + i) * 2 + k % 2] = in[i * r + k];
}

static inline __m256i row_of_strip(const bf16 *in, ptrdiff_t n, ptrdiff_t rows, __mmask16 some, const float *gain) {
    if (n >= rows) return _mm256_setzero_si256();
    __m256i x = _mm256_maskz_loadu_epi16(some, in);
    return gain ? narrow(_mm512_mul_ps(wide(x), _mm512_set1_ps(gain[n]))) : x;
}

/* `columns` of (rows, stride), each row times its gain; zeros up to 32 columns and `depth` rows. */
static void strip_of_columns(int32_t *out, const bf16 *in, ptrdiff_t stride, ptrdiff_t columns, ptrdiff_t rows,
                             ptrdiff_t depth, const float *gain) {
    for (ptrdiff_t half = 0; half < SIDE; half += 16) {
        __mmask16 some = first(columns - half);
        for (ptrdiff_t n = 0; n < depth; n += 2) {
            __m256i a = row_of_strip(in + n * stride + half, n, rows, some, gain);
            __m256i b = row_of_strip(in + (n + 1) * stride + half, n + 1, rows, some, gain);
            __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
            _mm512_storeu_si512(out + n / 2 * SIDE + half, pairs);
        }
    }
}

/* The rows of this thread, from a multiple of 32 on. */
static void share_of(ptrdiff_t T, ptrdiff_t *begin, ptrdiff_t *end) {
    ptrdiff_t pieces = up(T, SIDE) / SIDE, threads = omp_get_num_threads(), own = omp_get_thread_num();
    *begin = own * pieces / threads * SIDE;
    *end = (own + 1) * pieces / threads * SIDE;
    if (*end > T) *end = T;
}

/* 32 rows of a left operand from t on: as they lie, or of its last rows with zeros behind, (32, width) in `tail`. */
static inline const bf16 *rows_at(const bf16 *x, const bf16 *tail, ptrdiff_t t, ptrdiff_t T, ptrdiff_t width) {
    return t + SIDE > T ? tail : x + t * width;
}

static void tail_of(bf16 *tail, const bf16 *x, ptrdiff_t T, ptrdiff_t width) {
    ptrdiff_t whole = T / SIDE * SIDE;
    if (whole == T) return;
    memcpy(tail, x + whole * width, (T - whole) * width * sizeof(bf16));
    memset(tail + (T - whole) * width, 0, (SIDE - T + whole) * width * sizeof(bf16));
}

/* C = left right, both of 32 rows and columns. */
static inline void met(float *C, const bf16 *left, ptrdiff_t width, const int32_t *right, ptrdiff_t depth, int add) {
    product(C, SIDE, left, width, (const bf16 *)right, SIDE, SIDE, SIDE, depth, add);
}

static inline void rounded(bf16 *out, ptrdiff_t stride, const float *C, float scale, ptrdiff_t rows) {
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t half = 0; half < SIDE; half += 16)
            store(out + i * stride + half, _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(C + i * SIDE + half)));
}

/* `columns` of (rows, stride) as rows of (., T). */
static inline void across(bf16 *out, ptrdiff_t T, const bf16 *in, ptrdiff_t stride, ptrdiff_t columns, ptrdiff_t rows) {
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t i = 0; i < rows; i++) out[c * T + i] = in[i * stride + c];
}

/* 32 columns of y from o on: C is x W^T, D is m B^T. */
static inline void finished(const branch *b, const float *C, const float *D, ptrdiff_t t, ptrdiff_t rows, ptrdiff_t o) {
    const __m512 scale = _mm512_set1_ps((float)b->scale), one = _mm512_set1_ps(1.0f);
    for (ptrdiff_t half = 0; half < SIDE; half += 16) {
        __m512 bias = b->bias ? load(b->bias + o + half) : _mm512_setzero_ps();
        __m512 more = b->gain ? _mm512_sub_ps(_mm512_loadu_ps(b->gain + o + half), one) : one;
        for (ptrdiff_t i = 0; i < rows; i++) {
            ptrdiff_t place = (t + i) * b->N + o + half;
            __m512 z = _mm512_loadu_ps(C + i * SIDE + half);
            if (b->B) z = _mm512_fmadd_ps(_mm512_loadu_ps(D + i * SIDE + half), scale, z);
            if (b->z) store(b->z + place, _mm512_add_ps(z, bias));
            if (b->gain) z = _mm512_fmadd_ps(z, more, z);
            store(b->y + place, _mm512_add_ps(z, bias));
        }
    }
}

typedef struct {
    const bf16 *x, *tail;
    bf16 *m, *M;
    int32_t *of_W, *of_A, *of_B;
    ptrdiff_t T, K, R, wide;
} forward;

/* M (T, wide) and m (R, T) of the rows from `begin` to `end`. */
static void middles(const forward *f, ptrdiff_t begin, ptrdiff_t end) {
    float C[SIDE * SIDE] __attribute__((aligned(64)));
    for (ptrdiff_t t = begin; t < end; t += SIDE) {
        ptrdiff_t rows = end - t < SIDE ? end - t : SIDE;
        memset(f->M + t * f->wide, 0, SIDE * f->wide * sizeof(bf16));
        for (ptrdiff_t c = 0; c < f->R; c += SIDE) {
            met(C, rows_at(f->x, f->tail, t, f->T, f->K), f->K, f->of_A + c / SIDE * f->K * 16, f->K, 0);
            rounded(f->M + t * f->wide + c, f->wide, C, 1.0f, SIDE);
        }
        across(f->m + t, f->T, f->M + t * f->wide, f->wide, f->R, rows);
    }
}

/* One strip of outputs, of the rows from `begin` to `end`. */
static void outputs(const forward *f, const branch *b, const bf16 *middle, const int32_t *of_W, const int32_t *of_B,
                    ptrdiff_t o, ptrdiff_t begin, ptrdiff_t end) {
    float C[SIDE * SIDE] __attribute__((aligned(64))), D[SIDE * SIDE] __attribute__((aligned(64)));
    for (ptrdiff_t t = begin; t < end; t += SIDE) {
        met(C, rows_at(f->x, f->tail, t, f->T, f->K), f->K, of_W, f->K, 0);
        if (b->B) met(D, middle + t * f->wide, f->wide, of_B, up(b->r, SIDE), 0);
        finished(b, C, D, t, end - t < SIDE ? end - t : SIDE, o);
    }
}

/* A strip among those of all branches: its branch, the first of its columns there, its place among strips of B and
middles. */
typedef struct {
    const branch *of;
    ptrdiff_t o, before, row;
} strip;

static strip strip_at(const branch *branches, ptrdiff_t s) {
    strip found = {.of = branches};
    for (; s >= found.of->N / SIDE; found.of++) {
        s -= found.of->N / SIDE;
        found.before += found.of->N * up(found.of->r, SIDE) / 2;
        found.row += found.of->r;
    }
    found.o = s * SIDE;
    found.before += s * up(found.of->r, SIDE) * 16;
    return found;
}

static inline ptrdiff_t at_once(ptrdiff_t strips, ptrdiff_t bytes) {
    ptrdiff_t some = AHEAD / bytes;
    return some < 1 ? 1 : some > strips ? strips : some;
}

/* m (R, T); 0, or 1 where memory is missing. */
int lorica_linears(const bf16 *x, const bf16 *A, bf16 *m, const branch *branches, int64_t count, int64_t T, int64_t K,
                   int64_t R) {
    ptrdiff_t strips = 0, low = 0, in_A = up(R, SIDE) / SIDE;
    for (ptrdiff_t b = 0; b < count; b++) {
        strips += branches[b].N / SIDE;
        low += branches[b].N * up(branches[b].r, SIDE) * 2;
    }
    forward f = {.x = x, .m = m, .T = T, .K = K, .R = R};
    /* what lies behind the middles of the last branch is met by zeros */
    for (ptrdiff_t b = 0; b < count; b++) f.wide = up(branches[b].r, SIDE) > f.wide ? up(branches[b].r, SIDE) : f.wide;
    f.wide += up(R, SIDE);
    ptrdiff_t some = at_once(strips, K * SIDE * 2);
    char *at = room_of(some * K * 64 + in_A * K * 64 + low + up(T, SIDE) * f.wide * 2 + SIDE * K * 2 + 512);
    if (!at) return 1;
    f.of_W = take(&at, some * K * 64);
    f.of_A = take(&at, in_A * K * 64);
    f.of_B = take(&at, low);
    f.M = take(&at, up(T, SIDE) * f.wide * 2);
    bf16 *tail = take(&at, SIDE * K * 2);
    tail_of(tail, x, T, K);
    f.tail = tail;
#pragma omp parallel if (T * K > FEW)
    {
        tiles kept;
        tiles_taken(&kept);
        ptrdiff_t begin, end;
        share_of(T, &begin, &end);
#pragma omp for schedule(static) nowait
        for (ptrdiff_t s = 0; s < in_A; s++)
            strip_of_rows(f.of_A + s * K * 16, A + s * SIDE * K, R - s * SIDE, K);
#pragma omp for schedule(static)
        for (ptrdiff_t s = 0; s < strips; s++) {
            strip one = strip_at(branches, s);
            if (one.of->B) strip_of_short_rows(f.of_B + one.before, one.of->B + one.o * one.of->r, one.of->r);
        }
        if (R) middles(&f, begin, end);
        for (ptrdiff_t from = 0; from < strips; from += some) {
            ptrdiff_t until = from + some < strips ? from + some : strips;
#pragma omp for schedule(static)
            for (ptrdiff_t s = from; s < until; s++) {
                strip one = strip_at(branches, s);
                strip_of_rows(f.of_W + (s - from) * K * 16, one.of->W + one.o * K, SIDE, K);
            }
            for (ptrdiff_t t = begin; t < end; t += BLOCK)
                for (ptrdiff_t s = from; s < until; s++) {
                    strip one = strip_at(branches, s);
                    outputs(&f, one.of, f.M + one.row, f.of_W + (s - from) * K * 16, f.of_B + one.before, one.o, t,
                            t + BLOCK < end ? t + BLOCK : end);
                }
#pragma omp barrier
        }
        tiles_back(&kept);
    }
    return 0;
}

typedef struct {
    const branch *branches;
    const bf16 *tail;
    bf16 *inner, *dx, *I;
    float *sum;
    int32_t *of_W, *of_A, *of_B;
    ptrdiff_t count, T, K, depth, wide, add;
} backward;

/* I (T, wide) and inner (R, T) of the rows from `begin` to `end`. */
static void inner_gradients(const backward *f, ptrdiff_t begin, ptrdiff_t end) {
    float C[SIDE * SIDE] __attribute__((aligned(64)));
    for (ptrdiff_t t = begin; t < end; t += SIDE) {
        ptrdiff_t rows = end - t < SIDE ? end - t : SIDE, row = 0;
        const int32_t *of_B = f->of_B;
        const bf16 *tail = f->tail;
        bf16 *I = f->I + t * f->wide;
        for (const branch *b = f->branches; b < f->branches + f->count; tail += SIDE * b++->N) {
            for (ptrdiff_t c = 0; c < b->r; c += SIDE, of_B += b->N * 16) {
                met(C, rows_at(b->y, tail, t, f->T, b->N), b->N, of_B, b->N, 0);
                rounded(I + c, f->wide, C, (float)b->scale, SIDE);
            }
            across(f->inner + row * f->T + t, f->T, I, f->wide, b->r, rows);
            row += b->r;
            I += up(b->r, SIDE);
        }
    }
}

/* One strip of dx, or of the sum, of the rows from `begin` to `end`. */
static void gradients(const backward *f, const int32_t *of_W, ptrdiff_t column, ptrdiff_t begin, ptrdiff_t end) {
    float kept[SIDE * SIDE] __attribute__((aligned(64)));
    for (ptrdiff_t t = begin; t < end; t += SIDE) {
        float *C = f->sum ? f->sum + column * up(f->T, SIDE) + t * SIDE : kept;
        const int32_t *of_A = f->of_A + column / SIDE * f->wide * 16, *right = of_W;
        const bf16 *tail = f->tail, *I = f->I + t * f->wide;
        int add = f->add;
        for (const branch *b = f->branches; b < f->branches + f->count; b++, add = 1) {
            ptrdiff_t r = up(b->r, SIDE);
            if (r) met(C, I, f->wide, of_A, r, add);
            met(C, rows_at(b->y, tail, t, f->T, b->N), b->N, right, b->N, r || add);
            I += r;
            of_A += r * 16;
            right += b->N * 16;
            tail += SIDE * b->N;
        }
        if (f->dx) rounded(f->dx + t * f->K + column, f->K, C, 1.0f, end - t < SIDE ? end - t : SIDE);
    }
}

/* What lies in A for 32 columns, the rows of each branch from a multiple of 32 on. */
static void strip_of_A(const backward *f, const bf16 *A, ptrdiff_t column) {
    int32_t *out = f->of_A + column / SIDE * f->wide * 16;
    for (const branch *b = f->branches; b < f->branches + f->count; b++) {
        strip_of_columns(out, A + column, f->K, SIDE, b->r, up(b->r, SIDE), NULL);
        out += up(b->r, SIDE) * 16;
        A += b->r * f->K;
    }
}

static void strip_of_W(const backward *f, int32_t *out, ptrdiff_t column) {
    for (const branch *b = f->branches; b < f->branches + f->count; out += b++->N * 16)
        strip_of_columns(out, b->W + column, f->K, SIDE, b->N, b->N, b->gain);
}

static void strips_of_B(const backward *f) {
    int32_t *out = f->of_B;
    for (const branch *b = f->branches; b < f->branches + f->count; b++)
        for (ptrdiff_t c = 0; c < b->r; c += SIDE, out += b->N * 16)
            strip_of_columns(out, b->B + c, b->r, b->r - c, b->N, b->N, b->gain);
}

/* inner (R, T), dx (T, K); 0, or 1 where memory is missing. Where weights come one at a time, `sum` of K by T rounded
up to 32 goes from call to call in float32, `add` but in the first, and dx is NULL but in the last. */
int lorica_linears_backward(const bf16 *A, bf16 *inner, bf16 *dx, float *sum, const branch *branches, int64_t count,
                            int64_t T, int64_t K, int64_t add) {
    backward f = {.branches = branches, .count = count, .inner = inner, .dx = dx, .T = T, .K = K};
    f.sum = sum;
    f.add = add;
    ptrdiff_t low = 0;
    for (ptrdiff_t b = 0; b < count; b++) {
        f.depth += branches[b].N;
        f.wide += up(branches[b].r, SIDE);
        low += branches[b].N * up(branches[b].r, SIDE) * 2;
    }
    ptrdiff_t strips = K / SIDE, some = at_once(strips, f.depth * SIDE * 2);
    char *at = room_of(some * f.depth * 64 + strips * f.wide * 64 + low + up(T, SIDE) * f.wide * 2 +
                       SIDE * f.depth * 2 + 512);
    if (!at) return 1;
    f.of_W = take(&at, some * f.depth * 64);
    f.of_A = take(&at, strips * f.wide * 64);
    f.of_B = take(&at, low);
    f.I = take(&at, up(T, SIDE) * f.wide * 2);
    bf16 *tail = take(&at, SIDE * f.depth * 2);
    f.tail = tail;
    for (ptrdiff_t b = 0; b < count; tail += SIDE * branches[b++].N) tail_of(tail, branches[b].y, T, branches[b].N);
#pragma omp parallel if (T * K > FEW)
    {
        tiles kept;
        tiles_taken(&kept);
        ptrdiff_t begin, end;
        share_of(T, &begin, &end);
#pragma omp single nowait
        strips_of_B(&f);
#pragma omp for schedule(static)
        for (ptrdiff_t s = 0; s < strips; s++) strip_of_A(&f, A, s * SIDE);
        if (f.wide) inner_gradients(&f, begin, end);
        for (ptrdiff_t from = 0; from < strips; from += some) {
            ptrdiff_t until = from + some < strips ? from + some : strips;
#pragma omp for schedule(static)
            for (ptrdiff_t s = from; s < until; s++) strip_of_W(&f, f.of_W + (s - from) * f.depth * 16, s * SIDE);
            for (ptrdiff_t t = begin; t < end; t += BLOCK_BACK)
                for (ptrdiff_t s = from; s < until; s++)
                    gradients(&f, f.of_W + (s - from) * f.depth * 16, s * SIDE, t,
                              t + BLOCK_BACK < end ? t + BLOCK_BACK : end);
#pragma omp barrier
        }
        tiles_back(&kept);
    }
    return 0;
}
