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
static inline void next_of_head(const bf16 *row, ptrdiff_t heads, const task *t) {
    foreseen(row + 16 * heads * t->E, 32, up(t->E, 32) / 32);
}

/* Head `head` of the documents' tokens as (rows, wide), zeros where there is no token and past E. */
static void gathered(number *out, const bf16 *x, ptrdiff_t heads, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n,
                     ptrdiff_t rows, const task *t) {
    memset(out + n * t->wide, 0, (rows - n) * t->wide * sizeof(number));
    const bf16 *row = x + (begin * heads + head) * t->E;
    for (ptrdiff_t i = 0; i < n; i++, row += heads * t->E) {
        next_of_head(row, heads, t);
        for (ptrdiff_t e = 0; e < t->wide; e += 16) copied(out + i * t->wide + e, row + e, first(t->E - e));
    }
}

/* (wide, columns) float32 turned and written as bfloat16 to the first `n` tokens of a head, times `scale` of each. */
static void scattered(bf16 *y, ptrdiff_t heads, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n, const float *x,
                      ptrdiff_t columns, const float *scale, float all, const task *t) {
    float part[BLOCK * 32] __attribute__((aligned(64)));
    for (ptrdiff_t e = 0; e < t->wide; e += 32) {
        turn(part, 32, x + e * columns, columns, 32, BLOCK);
        for (ptrdiff_t i = 0; i < n; i++) {
            f32x16 by = splat(scale ? scale[i] * all : all);
            bf16 *row = y + ((begin + i) * heads + head) * t->E + e;
            store_some(row, first(t->E - e), times(load_wide(part + i * 32), by));
            store_some(row + 16, first(t->E - e - 16), times(load_wide(part + i * 32 + 16), by));
        }
    }
}

/* Which of sixteen queries from `query` on see key `key`, of a document of `n` tokens. */
static mask16 sees(ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, const task *t) {
    if (key >= n) return 0;
    mask16 seen = 0xffff;
    if (t->causal && key > query) seen = (mask16)~first(key - query);
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
    const f32x16 none = splat(-INFINITY);
    for (ptrdiff_t j = 0; j < BLOCK; j++)
        for (int w = 0; w < LANES; w++)
            store_some_wide(z + j * BLOCK + 16 * w, (mask16)~sees(query + 16 * w, key + j, n, t), none);
}

/* Of the queries of a block, sixteen in each: the largest score, in powers of two, and the sum of P. */
typedef struct {
    f32x16 most[LANES], sum[LANES];
} tops;

/* P of one block of scores, before it is divided by its sums, as a right operand.  What stood before shrinks by
`shrink`; 0 where nothing stood or none of it would change. */
static int exponentials(word *p, float *shrink, tops *of, const float *z, f32x16 by) {
    f32x16 most[LANES];
    int grown = 0;
    for (int w = 0; w < LANES; w++) most[w] = of->most[w];
    for (ptrdiff_t j = 0; j < BLOCK; j++)
        for (int w = 0; w < LANES; w++)
            most[w] = larger(times(load_wide(z + j * BLOCK + 16 * w), by), most[w]);
    for (int w = 0; w < LANES; w++) {
        /* A query that sees nothing yet has -inf, and -inf - -inf is no number. */
        f32x16 safe = larger(most[w], splat(-1e30f)), total = zeros();
        for (ptrdiff_t j = 0; j < BLOCK; j += 2) {
            const float *at = z + j * BLOCK + 16 * w;
            f32x16 a = exp2_of(times_minus(load_wide(at), by, safe));
            f32x16 b = exp2_of(times_minus(load_wide(at + BLOCK), by, safe));
            total = plus(total, plus(a, b));
            store_right(p + 16 * w, j, BLOCK, a, b);
        }
        f32x16 less = exp2_of(minus(of->most[w], safe));
        grown |= differs(most[w], of->most[w]);
        of->sum[w] = times_plus(of->sum[w], less, total);
        of->most[w] = most[w];
        store_wide(shrink + 16 * w, less);
    }
    return grown;
}

/* One block of queries of one head: y and l. keys (rows, wide), values turned. */
static void attend(const number *keys, const number *values, ptrdiff_t begin, ptrdiff_t n, ptrdiff_t head,
                   ptrdiff_t query, char *at, const task *t) {
    ptrdiff_t E = t->wide, many = n - query < BLOCK ? n - query : BLOCK, from, to;
    number *q = take(&at, BLOCK * E * sizeof(number));
    word *across = take(&at, BLOCK * E * sizeof(number)), *p = take(&at, BLOCK * BLOCK * sizeof(number));
    float *z = take(&at, BLOCK * BLOCK * 4), *y = take(&at, E * BLOCK * 4);
    float shrink[BLOCK] __attribute__((aligned(64)));
    const f32x16 by = splat(t->scale * LOG2_E);
    tops of;

    gathered(q, t->q, t->H, head, begin + query, many, BLOCK, t);
    turn(across, BLOCK, q, E / PER, BLOCK, E / PER);
    for (int w = 0; w < LANES; w++) of.most[w] = splat(-INFINITY), of.sum[w] = zeros();

    keys_of(query, n, t, &from, &to);
    for (ptrdiff_t key = from; key < to; key += BLOCK) {
        product(z, BLOCK, keys + key * E, E, across, BLOCK, BLOCK, BLOCK, E, 0);
        if (hides(query, key, n, t)) hidden(z, query, key, n, t);
        if (exponentials(p, shrink, &of, z, by) && key > from)
            for (ptrdiff_t e = 0; e < E; e++)
                for (int w = 0; w < LANES; w++) {
                    float *place = y + e * BLOCK + 16 * w;
                    store_wide(place, times(load_wide(place), load_wide(shrink + 16 * w)));
                }
        product(y, BLOCK, values + key * E, BLOCK, p, BLOCK, E, BLOCK, BLOCK, key > from);
    }
    float l[BLOCK] __attribute__((aligned(64)));
    for (int w = 0; w < LANES; w++) {
        float totals[16], most[16];
        store_wide(totals, of.sum[w]);
        store_wide(most, of.most[w]);
        for (int i = 0; i < 16; i++) l[16 * w + i] = most[i] + __builtin_log2f(totals[i]);
        store_wide(shrink + 16 * w, over(splat(1.0f), of.sum[w]));
    }
    memcpy(t->l + head * t->tokens + begin + query, l, many * sizeof(float));
    scattered(t->out, t->H, head, begin + query, many, y, BLOCK, shrink, 1.0f, t);
}

/* Keys (rows, wide), and values turned in blocks (wide, BLOCK), of one head of keys; what is left of the room. */
static char *laid_out(number **keys, number **values, char *at, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t n,
                      ptrdiff_t head, const task *t) {
    ptrdiff_t E = t->wide;
    size_t one = rows * E * sizeof(number);
    *keys = take(&at, one);
    *values = take(&at, one);
    number *v = take(&at, one);
    gathered(*keys, t->k, t->K, head, begin, n, rows, t);
    gathered(v, t->v, t->K, head, begin, n, rows, t);
    const word *right = right_of((word *)at, v, rows, E);
    for (ptrdiff_t i = 0; i < rows; i += BLOCK)
        turn(*values + i * E, BLOCK / PER, right + i / PER * E, E, BLOCK / PER, E);
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
    size_t laid = (3 + RIGHT_APART) * rows_most * t.wide, own = BLOCK * (2 * t.wide + BLOCK);
    size_t sums = BLOCK * (BLOCK + t.wide) * 4;
    size_t bytes = (laid + own) * sizeof(number) + sums + 1024;
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
            number *keys, *values;
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
    number *keys, *keys_turned, *values, *q_rows, *dy_rows;
    word *q_across, *dy_across, *room;
    const word *q_right, *dy_right;
    float *dk, *dv, *dq, *delta, *l, *z, *dz;
    number *p, *dz_rows;
    word *dz_right;
} stage;

static size_t staged(stage *s, char *at, ptrdiff_t rows, ptrdiff_t E) {
    char *begin = at;
    size_t one = rows * E * sizeof(number), sums = rows * E * 4, square = BLOCK * BLOCK * sizeof(number);
    s->keys = take(&at, one), s->keys_turned = take(&at, one), s->values = take(&at, one);
    s->q_rows = take(&at, one), s->dy_rows = RIGHT_APART ? s->q_rows : take(&at, one);
    s->q_across = take(&at, one), s->dy_across = take(&at, one);
    s->room = take(&at, RIGHT_APART * 2 * one);
    s->dk = take(&at, sums), s->dv = take(&at, sums), s->dq = take(&at, E * BLOCK * 4);
    s->delta = take(&at, rows * 4), s->l = take(&at, rows * 4);
    s->z = take(&at, 32 * 32 * 4), s->dz = take(&at, 32 * 32 * 4);
    s->p = take(&at, square), s->dz_rows = take(&at, square), s->dz_right = take(&at, square);
    return at - begin;
}

/* y_i dy_i of each token: what every dz of its row is less by. */
static void deltas(float *delta, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n, ptrdiff_t rows, const task *t) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const bf16 *y = t->y + ((begin + i) * t->H + head) * t->E, *dy = t->dy + ((begin + i) * t->H + head) * t->E;
        f32x16 sum = zeros();
        next_of_head(y, t->H, t);
        for (ptrdiff_t e = 0; e < t->E; e += 16) {
            mask16 some = first(t->E - e);
            sum = times_plus(load_some(y + e, some), load_some(dy + e, some), sum);
        }
        delta[i] = sum_in(sum);
    }
    memset(delta + n, 0, (rows - n) * sizeof(float));
}

/* A head's rows turned, and as they lie, both as right operands; `by_rows` and `room` as large. */
static const word *across_and_right(word *across, word *room, number *by_rows, const bf16 *x, ptrdiff_t head,
                                    ptrdiff_t begin, ptrdiff_t n, ptrdiff_t rows, const task *t) {
    gathered(by_rows, x, t->H, head, begin, n, rows, t);
    for (ptrdiff_t i = 0; i < rows; i += BLOCK)
        turn(across + i / PER * t->wide, BLOCK, by_rows + i * t->wide, t->wide / PER, BLOCK, t->wide / PER);
    return right_of(room, by_rows, rows, t->wide);
}

/* z or dz of 32 keys and 32 queries. */
static inline void quarter(float *z, const number *rows, const word *across, ptrdiff_t E) {
    product(z, 32, rows, E, across, BLOCK, 32, 32, E, 0);
}

/* P and dZ of 32 keys from `key` on and 32 queries, at `place` of their block, as products read them. */
static inline void probabilities(stage *s, ptrdiff_t place, ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, int some,
                                 const task *t) {
    const f32x16 by = splat(t->scale * LOG2_E);
    word *right = s->dz_right + place / (PER * BLOCK) * BLOCK + place % BLOCK;
    for (int w = 0; w < 2; w++) {
        f32x16 l = load_wide(s->l + query + 16 * w), delta = load_wide(s->delta + query + 16 * w);
        for (ptrdiff_t j = 0; j < 32; j += 2) {
            f32x16 dz[2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                ptrdiff_t from = (j + i) * 32 + 16 * w, to = place + (j + i) * BLOCK + 16 * w;
                f32x16 p = exp2_of(times_minus(load_wide(s->z + from), by, l));
                if (some) p = kept(sees(query + 16 * w, key + j + i, n, t), p);
                store_left(s->p + to, p);
                dz[i] = times(p, minus(load_wide(s->dz + from), delta));
                store_left(s->dz_rows + to, dz[i]);
            }
            store_right(right + 16 * w, j, BLOCK, dz[0], dz[1]);
        }
    }
}

/* P and dZ of a block.  A quarter of it at a time, so that z and dz stay in the first cache. */
static void block_of_gradients(stage *s, ptrdiff_t query, ptrdiff_t key, ptrdiff_t n, const task *t) {
    int some = hides(query, key, n, t);
    for (ptrdiff_t i = 0; i < BLOCK; i += 32)
        for (ptrdiff_t j = 0; j < BLOCK; j += 32) {
            quarter(s->z, s->keys + (key + i) * t->wide, s->q_across + query / PER * t->wide + j, t->wide);
            quarter(s->dz, s->values + (key + i) * t->wide, s->dy_across + query / PER * t->wide + j, t->wide);
            probabilities(s, i * BLOCK + j, query + j, key + i, n, some, t);
        }
}

/* One head of queries: its dq, and what it adds to dk and dv. */
static void head_gradients(stage *s, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n, ptrdiff_t rows, const task *t) {
    ptrdiff_t E = t->wide;
    word *room = s->room, *more = room + rows / PER * E;
    s->q_right = across_and_right(s->q_across, room, s->q_rows, t->q, head, begin, n, rows, t);
    s->dy_right = across_and_right(s->dy_across, more, s->dy_rows, t->dy, head, begin, n, rows, t);
    deltas(s->delta, head, begin, n, rows, t);
    memcpy(s->l, t->l + head * t->tokens + begin, n * sizeof(float));
    memset(s->l + n, 0, (rows - n) * sizeof(float));
    for (ptrdiff_t query = 0; query < rows; query += BLOCK) {
        ptrdiff_t from, to;
        keys_of(query, n, t, &from, &to);
        for (ptrdiff_t key = from; key < to; key += BLOCK) {
            block_of_gradients(s, query, key, n, t);
            product(s->dv + key * E, E, s->p, BLOCK, s->dy_right + query / PER * E, E, BLOCK, E, BLOCK, 1);
            product(s->dk + key * E, E, s->dz_rows, BLOCK, s->q_right + query / PER * E, E, BLOCK, E, BLOCK, 1);
            product(s->dq, BLOCK, s->keys_turned + key * E, BLOCK, s->dz_right, BLOCK, E, BLOCK, BLOCK, key > from);
        }
        ptrdiff_t many = n - query < BLOCK ? n - query : BLOCK;
        if (many > 0) scattered(t->dq, t->H, head, begin + query, many, s->dq, BLOCK, NULL, t->scale, t);
    }
}

static void rows_written(bf16 *out, const float *x, float by, ptrdiff_t head, ptrdiff_t begin, ptrdiff_t n,
                         const task *t) {
    f32x16 all = splat(by);
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t e = 0; e < t->E; e += 16)
            store_some(out + ((begin + i) * t->K + head) * t->E + e, first(t->E - e),
                       times(load_wide(x + i * t->wide + e), all));
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
            const word *right = right_of(s.room, s.keys, rows, t.wide);
            for (ptrdiff_t j = 0; j < rows; j += BLOCK)
                turn(s.keys_turned + j * t.wide, BLOCK / PER, right + j / PER * t.wide, t.wide, BLOCK / PER, t.wide);
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
