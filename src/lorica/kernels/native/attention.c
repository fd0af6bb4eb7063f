/* Attention over packed documents, causal or not, with nothing of size L x L kept.

    y_i = sum_j p_ij v_j        p_ij = exp(s q_i k_j - l_i)        l_i = log sum_j exp(s q_i k_j)
    dv_j = sum_i p_ij dy_i      dz_ij = p_ij (dy_i v_j - dy_i y_i)
    dq_i = s sum_j dz_ij k_j    dk_j = s sum_i dz_ij q_i

q, y, dy, dq (T, H, E); k, v, dk, dv (T, K, E), H / K heads of queries for each of keys. l (H, T) float32, in powers of
two. `starts` (D + 1) says where documents begin. Token i of a document sees j where j <= i if causal, and
i - j < window. s > 0.

Scores stand by keys and queries, (BLOCK keys, BLOCK queries): maxima and sums over keys then go down the rows, sixteen
queries side by side, and P and dZ come out as products read them. What lies turned does so block by block: in rows as
long as a document its lines would meet in a few places of the first cache. Dao 2023, arXiv:2307.08691, algorithms 1
and 2. */

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "products.h"
#include "room.h"

enum { BLOCK = 64, LANES = BLOCK / 16 };

typedef struct {
    const bf16 *q, *k, *v, *y, *dy;
    bf16 *out, *dq, *dk, *dv;
    float *l;
    const int64_t *starts;
    ptrdiff_t documents, H, K, E, wide, tokens, window;
    int causal;
    float scale;
} task;

/* One head stands in pieces that nobody foresees: that of the sixteenth token from here on. */
static inline void foreseen(const bf16 *row, ptrdiff_t heads, const task *t) {
    for (ptrdiff_t e = 0; e < t->E; e += 32) _mm_prefetch((const char *)(row + 16 * heads * t->E + e), _MM_HINT_T0);
}

/* Head `head` of the documents' tokens as (rows, wide), zeros where there is no token and past E. */
static void gathered(bf16 *out, const bf16 *x, ptrdiff_t heads, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n,
                     ptrdiff_t rows, const task *t) {
    memset(out + n * t->wide, 0, (rows - n) * t->wide * sizeof(bf16));
    const bf16 *row = x + (begin * heads + head) * t->E;
    for (ptrdiff_t i = 0; i < n; i++, row += heads * t->E) {
        foreseen(row, heads, t);
        for (ptrdiff_t e = 0; e < t->E; e += 32) {
            __mmask32 some = t->E - e < 32 ? (1u << (t->E - e)) - 1 : 0xffffffff;
            _mm512_storeu_si512(out + i * t->wide + e, _mm512_maskz_loadu_epi16(some, row + e));
        }
    }
}

/* (wide, columns) float32 turned and written as bfloat16 to the first `n` tokens of a head, times `scale` of each. */
static void scattered(bf16 *y, ptrdiff_t heads, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n, const float *x,
                      ptrdiff_t columns, const float *scale, float all, const task *t) {
    float part[BLOCK * 32] __attribute__((aligned(64)));
    for (ptrdiff_t e = 0; e < t->wide; e += 32) {
        turn((int32_t *)part, 32, (const int32_t *)(x + e * columns), columns, 32, BLOCK);
        for (ptrdiff_t i = 0; i < n; i++) {
            __m512 by = _mm512_set1_ps(scale ? scale[i] * all : all);
            bf16 *row = y + ((begin + i) * heads + head) * t->E + e;
            store_some(row, first(t->E - e), _mm512_mul_ps(_mm512_load_ps(part + i * 32), by));
            store_some(row + 16, first(t->E - e - 16), _mm512_mul_ps(_mm512_load_ps(part + i * 32 + 16), by));
        }
    }
}

/* Which of sixteen queries from `query` on see key `key`, of a document of `n` tokens. */
static __mmask16 sees(ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, const task *t) {
    if (key >= n) return 0;
    __mmask16 seen = 0xffff;
    if (t->causal && key > query) seen = (__mmask16)~first(key - query);
    if (t->window && key + t->window - query < 16) seen &= first(key + t->window - query);
    return seen;
}

/* Whether some query of the block does not see some key of it. */
static int hides(ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, const task *t) {
    return key + BLOCK > n || (t->causal && key + BLOCK > query + 1) || (t->window && query + BLOCK > key + t->window);
}

/* The keys that a block of queries sees: [*from, *to), at multiples of BLOCK. */
static void keys_of(ptrdiff_t query, ptrdiff_t n, const task *t, ptrdiff_t *from, ptrdiff_t *to) {
    ptrdiff_t end = t->causal && query + BLOCK < n ? query + BLOCK : n;
    ptrdiff_t begin = t->window && query + 1 > t->window ? query + 1 - t->window : 0;
    *from = begin / BLOCK * BLOCK;
    *to = up(end, BLOCK);
}

/* -inf where a query does not see a key. */
static void hidden(float *z, ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, const task *t) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    for (ptrdiff_t j = 0; j < BLOCK; j++)
        for (int w = 0; w < LANES; w++)
            _mm512_mask_store_ps(z + j * BLOCK + 16 * w, (__mmask16)~sees(query + 16 * w, key + j, n, t), none);
}

/* Of the queries of a block, sixteen in each: the largest score, in powers of two, and the sum of P. */
typedef struct {
    __m512 most[LANES], sum[LANES];
} tops;

/* P of one block of scores, before it is divided by its sums, in pairs of keys.  What stood before shrinks by `shrink`;
0 where nothing stood or none of it would change. */
static int exponentials(int32_t *p, float *shrink, tops *of, const float *z, __m512 by) {
    __m512 most[LANES];
    int grown = 0;
    for (int w = 0; w < LANES; w++) most[w] = of->most[w];
    for (ptrdiff_t j = 0; j < BLOCK; j++)
        for (int w = 0; w < LANES; w++)
            most[w] = _mm512_max_ps(_mm512_mul_ps(_mm512_load_ps(z + j * BLOCK + 16 * w), by), most[w]);
    for (int w = 0; w < LANES; w++) {
        /* A query that sees nothing yet has -inf, and -inf - -inf is no number. */
        __m512 safe = _mm512_max_ps(most[w], _mm512_set1_ps(-1e30f)), total = _mm512_setzero_ps();
        for (ptrdiff_t j = 0; j < BLOCK; j += 2) {
            const float *at = z + j * BLOCK + 16 * w;
            __m512 a = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(at), by, safe));
            __m512 b = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(at + BLOCK), by, safe));
            total = _mm512_add_ps(total, _mm512_add_ps(a, b));
            _mm512_store_si512(p + j / 2 * BLOCK + 16 * w, pairs(narrow(a), narrow(b)));
        }
        __m512 less = exp2_of(_mm512_sub_ps(of->most[w], safe));
        grown |= _mm512_cmp_ps_mask(most[w], of->most[w], _CMP_NEQ_UQ);
        of->sum[w] = _mm512_fmadd_ps(of->sum[w], less, total);
        of->most[w] = most[w];
        _mm512_store_ps(shrink + 16 * w, less);
    }
    return grown;
}

/* One block of queries of one head: y and l. keys (rows, wide), values turned. */
static void attend(const bf16 *keys, const bf16 *values, ptrdiff_t begin, ptrdiff_t n, ptrdiff_t head, ptrdiff_t query,
                   char *at, const task *t) {
    ptrdiff_t E = t->wide, many = n - query < BLOCK ? n - query : BLOCK, from, to;
    bf16 *q = take(&at, BLOCK * E * 2), *across = take(&at, BLOCK * E * 2);
    float *z = take(&at, BLOCK * BLOCK * 4), *y = take(&at, E * BLOCK * 4);
    int32_t *p = take(&at, BLOCK * BLOCK * 2);
    float shrink[BLOCK] __attribute__((aligned(64)));
    const __m512 by = _mm512_set1_ps(t->scale * LOG2_E);
    tops of;

    gathered(q, t->q, t->H, head, begin + query, many, BLOCK, t);
    turn((int32_t *)across, BLOCK, (const int32_t *)q, E / 2, BLOCK, E / 2);
    for (int w = 0; w < LANES; w++) of.most[w] = _mm512_set1_ps(-INFINITY), of.sum[w] = _mm512_setzero_ps();

    keys_of(query, n, t, &from, &to);
    for (ptrdiff_t key = from; key < to; key += BLOCK) {
        product(z, BLOCK, keys + key * E, E, across, BLOCK, BLOCK, BLOCK, E, 0);
        if (hides(query, key, n, t)) hidden(z, query, key, n, t);
        if (exponentials(p, shrink, &of, z, by) && key > from)
            for (ptrdiff_t e = 0; e < E; e++)
                for (int w = 0; w < LANES; w++) {
                    float *place = y + e * BLOCK + 16 * w;
                    _mm512_store_ps(place, _mm512_mul_ps(_mm512_load_ps(place), _mm512_load_ps(shrink + 16 * w)));
                }
        product(y, BLOCK, values + key * E, BLOCK, (const bf16 *)p, BLOCK, E, BLOCK, BLOCK, key > from);
    }
    float l[BLOCK] __attribute__((aligned(64)));
    for (int w = 0; w < LANES; w++) {
        float totals[16], most[16];
        _mm512_storeu_ps(totals, of.sum[w]);
        _mm512_storeu_ps(most, of.most[w]);
        for (int i = 0; i < 16; i++) l[16 * w + i] = most[i] + __builtin_log2f(totals[i]);
        _mm512_store_ps(shrink + 16 * w, _mm512_div_ps(_mm512_set1_ps(1.0f), of.sum[w]));
    }
    memcpy(t->l + head * t->tokens + begin + query, l, many * sizeof(float));
    scattered(t->out, t->H, head, begin + query, many, y, BLOCK, shrink, 1.0f, t);
}

/* Keys (rows, wide), and values turned in blocks (wide, BLOCK), of one head of keys; what is left of the room. */
static char *laid_out(bf16 **keys, bf16 **values, char *at, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t n,
                      ptrdiff_t head, const task *t) {
    ptrdiff_t E = t->wide;
    *keys = take(&at, rows * E * 2);
    *values = take(&at, rows * E * 2);
    bf16 *v = take(&at, rows * E * 2);
    int32_t *pairs = take(&at, rows * E * 2);
    gathered(*keys, t->k, t->K, head, begin, n, rows, t);
    gathered(v, t->v, t->K, head, begin, n, rows, t);
    paired(pairs, v, rows, E);
    for (ptrdiff_t i = 0; i < rows; i += BLOCK)
        turn((int32_t *)(*values + i * E), BLOCK / 2, pairs + i / 2 * E, E, BLOCK / 2, E);
    return at;
}

typedef struct { ptrdiff_t document, head, query; } item;

/* Blocks of queries that are taken together, so that keys are laid out anew as rarely as threads allow. */
static item *items_of(const task *t, ptrdiff_t heads, ptrdiff_t stride, ptrdiff_t *count) {
    ptrdiff_t most = 0;
    for (ptrdiff_t d = 0; d < t->documents; d++) most += heads * (1 + (t->starts[d + 1] - t->starts[d]) / stride);
    item *items = malloc((most + 1) * sizeof(item));
    *count = 0;
    if (items)
        for (ptrdiff_t d = 0; d < t->documents; d++)
            for (ptrdiff_t h = 0; h < heads; h++)
                for (ptrdiff_t q = t->starts[d + 1] - t->starts[d]; q > 0; q -= stride)
                    items[(*count)++] = (item){d, h, (q - 1) / stride * stride};
    return items;
}

static ptrdiff_t longest(const task *t) {
    ptrdiff_t most = 0;
    for (ptrdiff_t d = 0; d < t->documents; d++)
        if (t->starts[d + 1] - t->starts[d] > most) most = t->starts[d + 1] - t->starts[d];
    return most;
}

/* 0; 1 where memory is missing. */
int lorica_attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *l, const int64_t *starts,
                     int64_t documents, int64_t H, int64_t K, int64_t E, int64_t window, int64_t causal, float scale) {
    task t = {.q = q, .k = k, .v = v, .out = out, .l = l, .starts = starts, .documents = documents, .H = H, .K = K,
              .E = E, .wide = up(E, 32), .tokens = starts[documents], .window = window, .causal = causal != 0,
              .scale = scale};
    ptrdiff_t count, stride = 1024, rows_most = up(longest(&t), BLOCK);
    item *items = items_of(&t, K, stride, &count);
    size_t laid = 4 * rows_most * t.wide * 2, own = 2 * BLOCK * t.wide * 2 + BLOCK * (BLOCK + t.wide) * 4;
    size_t bytes = laid + own + BLOCK * BLOCK * 2 + 1024;
    int failed = items == NULL;
#pragma omp parallel if (count > 1)
    {
        char *held = room_of(bytes);
        if (!held) {
#pragma omp atomic write
            failed = 1;
        }
        tiles kept;
        tiles_taken(&kept);
#pragma omp for schedule(dynamic, 1)
        for (ptrdiff_t i = 0; i < count; i++) {
            if (!held) continue;
            ptrdiff_t begin = starts[items[i].document], n = starts[items[i].document + 1] - begin;
            ptrdiff_t rows = up(n, BLOCK), end = items[i].query + stride < n ? items[i].query + stride : n;
            bf16 *keys, *values;
            char *at = laid_out(&keys, &values, held, rows, begin, n, items[i].head, &t);
            for (ptrdiff_t g = 0; g < H / K; g++)
                for (ptrdiff_t query = items[i].query; query < end; query += BLOCK)
                    attend(keys, values, begin, n, items[i].head * (H / K) + g, query, at, &t);
        }
        tiles_back(&kept);
    }
    free(items);
    return failed;
}

/* What the gradients of one head of a document read, each (rows, wide) in the order that a product wants. */
typedef struct {
    bf16 *keys, *keys_turned, *values;
    bf16 *q_across, *q_pairs, *dy_across, *dy_pairs;
    float *dk, *dv, *dq, *delta, *l, *z, *dz;
    bf16 *p, *dz_rows;
    int32_t *dz_pairs;
    bf16 *rows_of;
} stage;

static size_t staged(stage *s, char *at, ptrdiff_t rows, ptrdiff_t E) {
    char *begin = at;
    size_t one = rows * E * 2;
    s->keys = take(&at, one), s->keys_turned = take(&at, one), s->values = take(&at, one);
    s->q_across = take(&at, one), s->q_pairs = take(&at, one);
    s->dy_across = take(&at, one), s->dy_pairs = take(&at, one);
    s->rows_of = take(&at, one);
    s->dk = take(&at, 2 * one), s->dv = take(&at, 2 * one), s->dq = take(&at, E * BLOCK * 4);
    s->delta = take(&at, rows * 4), s->l = take(&at, rows * 4);
    s->z = take(&at, 32 * 32 * 4), s->dz = take(&at, 32 * 32 * 4);
    s->p = take(&at, BLOCK * BLOCK * 2), s->dz_rows = take(&at, BLOCK * BLOCK * 2);
    s->dz_pairs = take(&at, BLOCK * BLOCK * 2);
    return at - begin;
}

/* y_i dy_i of each token: what every dz of its row is less by. */
static void deltas(float *delta, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n, ptrdiff_t rows, const task *t) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const bf16 *y = t->y + ((begin + i) * t->H + head) * t->E, *dy = t->dy + ((begin + i) * t->H + head) * t->E;
        __m512 sum = _mm512_setzero_ps();
        foreseen(y, t->H, t);
        for (ptrdiff_t e = 0; e < t->E; e += 16) {
            __mmask16 some = first(t->E - e);
            sum = _mm512_fmadd_ps(load_some(y + e, some), load_some(dy + e, some), sum);
        }
        delta[i] = _mm512_reduce_add_ps(sum);
    }
    memset(delta + n, 0, (rows - n) * sizeof(float));
}

static void across_and_pairs(bf16 *across, bf16 *pairs, bf16 *by_rows, const bf16 *x, ptrdiff_t head, ptrdiff_t begin,
                             ptrdiff_t n, ptrdiff_t rows, const task *t) {
    gathered(by_rows, x, t->H, head, begin, n, rows, t);
    paired((int32_t *)pairs, by_rows, rows, t->wide);
    for (ptrdiff_t i = 0; i < rows; i += BLOCK)
        turn((int32_t *)(across + i * t->wide), BLOCK, (const int32_t *)(by_rows + i * t->wide), t->wide / 2, BLOCK,
             t->wide / 2);
}

/* z or dz of 32 keys and 32 queries. */
static inline void quarter(float *z, const bf16 *rows, const bf16 *across, ptrdiff_t E) {
    const int32_t *words = (const int32_t *)across;
    const run of = {rows, E, E};
    block(z, 32, &of, 1, words, words + 16, BLOCK, 16 * BLOCK, 32, 0, 0);
}

/* P and dZ of 32 keys from `key` on and 32 queries, at `place` of their block, as products read them. */
static inline void probabilities(stage *s, ptrdiff_t place, ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, int some,
                                 const task *t) {
    const __m512 by = _mm512_set1_ps(t->scale * LOG2_E);
    int32_t *pairs_at = s->dz_pairs + place / (2 * BLOCK) * BLOCK + place % BLOCK;
    for (int w = 0; w < 2; w++) {
        __m512 l = _mm512_loadu_ps(s->l + query + 16 * w), delta = _mm512_loadu_ps(s->delta + query + 16 * w);
        for (ptrdiff_t j = 0; j < 32; j += 2) {
            __m256i dz[2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                ptrdiff_t from = (j + i) * 32 + 16 * w, to = place + (j + i) * BLOCK + 16 * w;
                __m512 p = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(s->z + from), by, l));
                if (some) p = _mm512_maskz_mov_ps(sees(query + 16 * w, key + j + i, n, t), p);
                store(s->p + to, p);
                dz[i] = narrow(_mm512_mul_ps(p, _mm512_sub_ps(_mm512_load_ps(s->dz + from), delta)));
                _mm256_storeu_si256((__m256i *)(s->dz_rows + to), dz[i]);
            }
            _mm512_storeu_si512(pairs_at + j / 2 * BLOCK + 16 * w, pairs(dz[0], dz[1]));
        }
    }
}

/* P and dZ of a block.  A quarter of it at a time, so that z and dz stay in the first cache. */
static void block_of_gradients(stage *s, ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, const task *t) {
    int some = hides(query, key, n, t);
    for (ptrdiff_t i = 0; i < BLOCK; i += 32)
        for (ptrdiff_t j = 0; j < BLOCK; j += 32) {
            quarter(s->z, s->keys + (key + i) * t->wide, s->q_across + query * t->wide + 2 * j, t->wide);
            quarter(s->dz, s->values + (key + i) * t->wide, s->dy_across + query * t->wide + 2 * j, t->wide);
            probabilities(s, i * BLOCK + j, query + j, key + i, n, some, t);
        }
}

/* One head of queries: its dq, and what it adds to dk and dv. */
static void head_gradients(stage *s, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n, ptrdiff_t rows, const task *t) {
    ptrdiff_t E = t->wide;
    across_and_pairs(s->q_across, s->q_pairs, s->rows_of, t->q, head, begin, n, rows, t);
    across_and_pairs(s->dy_across, s->dy_pairs, s->rows_of, t->dy, head, begin, n, rows, t);
    deltas(s->delta, head, begin, n, rows, t);
    memcpy(s->l, t->l + head * t->tokens + begin, n * sizeof(float));
    memset(s->l + n, 0, (rows - n) * sizeof(float));
    for (ptrdiff_t query = 0; query < rows; query += BLOCK) {
        ptrdiff_t from, to;
        keys_of(query, n, t, &from, &to);
        for (ptrdiff_t key = from; key < to; key += BLOCK) {
            block_of_gradients(s, query, key, n, t);
            product(s->dv + key * E, E, s->p, BLOCK, s->dy_pairs + query * E, E, BLOCK, E, BLOCK, 1);
            product(s->dk + key * E, E, s->dz_rows, BLOCK, s->q_pairs + query * E, E, BLOCK, E, BLOCK, 1);
            product(s->dq, BLOCK, s->keys_turned + key * E, BLOCK, (const bf16 *)s->dz_pairs, BLOCK, E, BLOCK, BLOCK,
                    key > from);
        }
        ptrdiff_t many = n - query < BLOCK ? n - query : BLOCK;
        if (many > 0) scattered(t->dq, t->H, head, begin + query, many, s->dq, BLOCK, NULL, t->scale, t);
    }
}

static void rows_written(bf16 *out, const float *x, float by, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n,
                         const task *t) {
    __m512 all = _mm512_set1_ps(by);
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t e = 0; e < t->E; e += 16)
            store_some(out + ((begin + i) * t->K + head) * t->E + e, first(t->E - e),
                       _mm512_mul_ps(_mm512_loadu_ps(x + i * t->wide + e), all));
}

/* 0; 1 where memory is missing. */
int lorica_attention_backward(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *y, const bf16 *dy, float *l,
                              bf16 *dq, bf16 *dk, bf16 *dv, const int64_t *starts, int64_t documents, int64_t H,
                              int64_t K, int64_t E, int64_t window, int64_t causal, float scale) {
    task t = {.q = q, .k = k, .v = v, .y = y, .dy = dy, .l = l, .dq = dq, .dk = dk, .dv = dv, .starts = starts,
              .documents = documents, .H = H, .K = K, .E = E, .wide = up(E, 32), .tokens = starts[documents],
              .window = window, .causal = causal != 0, .scale = scale};
    stage sizes;
    size_t bytes = staged(&sizes, NULL, up(longest(&t), BLOCK), t.wide);
    int failed = 0;
#pragma omp parallel if (documents * K > 1)
    {
        char *held = room_of(bytes);
        if (!held) {
#pragma omp atomic write
            failed = 1;
        }
        tiles kept;
        tiles_taken(&kept);
#pragma omp for schedule(dynamic, 1)
        for (ptrdiff_t i = 0; i < documents * K; i++) {
            ptrdiff_t begin = starts[i / K], n = starts[i / K + 1] - begin, rows = up(n, BLOCK), head = i % K;
            if (!held || !n) continue;
            stage s;
            staged(&s, held, rows, t.wide);
            gathered(s.keys, k, K, head, begin, n, rows, &t);
            gathered(s.values, v, K, head, begin, n, rows, &t);
            paired((int32_t *)s.rows_of, s.keys, rows, t.wide);
            for (ptrdiff_t j = 0; j < rows; j += BLOCK)
                turn((int32_t *)(s.keys_turned + j * t.wide), BLOCK / 2, (const int32_t *)s.rows_of + j / 2 * t.wide,
                     t.wide, BLOCK / 2, t.wide);
            memset(s.dk, 0, rows * t.wide * 4);
            memset(s.dv, 0, rows * t.wide * 4);
            for (ptrdiff_t g = 0; g < H / K; g++) head_gradients(&s, head * (H / K) + g, begin, n, rows, &t);
            rows_written(dk, s.dk, scale, head, begin, n, &t);
            rows_written(dv, s.dv, 1.0f, head, begin, n, &t);
        }
        tiles_back(&kept);
    }
    return failed;
}

#ifdef __AMX_BF16__
/* Linux gives a process its tiles when it asks. 0 where it does. */
int lorica_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) != 0; }
#else
int lorica_tiles(void) { return 0; }
#endif
