/* Linears of one input on many rows, each with a low-rank product beside it: forward, and the gradient of the input.

    m = x A^T       z_i = x W_i^T + s m_i B_i^T + b_i       y_i = z_i + (z_i - b_i) (c_i - 1)
    inner_i = s dy_i (c_i B_i)      dx = sum over i of inner_i A_i + dy_i (c_i W_i)

x (T, K), W_i (N_i, K) as it is or in codes, A (R, K) of all branches, B_i (N_i, r_i), c_i (N_i,); K and every N are multiples of 32.

Weights are laid out in strips that all rows meet: `tiling.h`. Sums of a row are made in one order, whatever rows stand
beside it and whatever threads there are; y is rounded once. */

#include "few_columns.h"
#include "tiling.h"

/* Columns of 32 rows that are read from codes before they are laid out, in the first cache. */
enum { DECODED = 256 };

/* y: what the branch gives, or its gradient. bias, B, gain and z may be NULL. W is NULL where it lies in codes: of four
bits, two a byte, the first in the high half, each a level times the scale of its block of 2^block; or, without levels,
of eight bits, each times the scale of its row. */
typedef struct {
    const bf16 *W, *bias, *B;
    const float *gain;
    bf16 *y, *z;
    const uint8_t *codes;
    const float *scales, *levels;
    int64_t N, r, block;
    double scale;
} branch;

/* 32 numbers of a row, from the flat place `at`, a multiple of 32, on. */
static inline void decoded(bf16 *out, const branch *b, ptrdiff_t row, ptrdiff_t at) {
    f32x16 low, high, scale;
    if (b->levels) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(b->codes + at / 2)), half = _mm_set1_epi8(15);
        __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), half), odd = _mm_and_si128(bytes, half);
        f32x16 levels = load_wide(b->levels);
        low = looked_up(levels, _mm_unpacklo_epi8(even, odd));
        high = looked_up(levels, _mm_unpackhi_epi8(even, odd));
        scale = splat(b->scales[at >> b->block]);
    } else {
        const __m128i *bytes = (const __m128i *)(b->codes + at);
        low = of_bytes(_mm_loadu_si128(bytes));
        high = of_bytes(_mm_loadu_si128(bytes + 1));
        scale = splat(b->scales[row]);
    }
    store_two(out, times(low, scale), times(high, scale));
}

/* Rows one `stride` after another. */
typedef struct {
    const bf16 *at;
    ptrdiff_t stride;
} view;

/* `rows` of W (N, K) from `row` on, at most 32, of which `width` columns from `column` on; what lies in codes comes into
`room`. */
static inline view rows_of(const branch *b, ptrdiff_t K, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t column,
                           ptrdiff_t width, bf16 *room) {
    if (!b->codes) return (view){b->W + row * K + column, K};
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t c = 0; c < width; c += SIDE)
            decoded(room + i * width + c, b, row + i, (row + i) * K + column + c);
    return (view){room, width};
}

/* Columns of W that are read at a time: all that are asked for where they lie as they are. */
static inline ptrdiff_t columns_at_once(const branch *b, ptrdiff_t asked) {
    return b->codes && asked > DECODED ? DECODED : asked;
}

typedef struct {
    const branch *branches;
    left x;
    tiling tiles;
    bf16 *m;
    number *M;
    word *of_A, *of_B;
    ptrdiff_t T, K, R, wide;
} forward;

/* M (T, wide) and m (R, T) of the rows from `begin` to `end`. */
static void middles(const forward *f, ptrdiff_t begin, ptrdiff_t end) {
    float C[SIDE * SIDE] __attribute__((aligned(64)));
    bf16 made[SIDE * SIDE] __attribute__((aligned(64)));
    for (ptrdiff_t t = begin; t < end; t += SIDE) {
        ptrdiff_t rows = end - t < SIDE ? end - t : SIDE;
        const bf16 *x = rows_at(&f->x, t, f->T);
        memset(f->M + t * f->wide, 0, SIDE * f->wide * sizeof(number));
        for (ptrdiff_t c = 0; c < f->R; c += SIDE) {
            few_met(C, x, f->K, f->K, f->of_A + c / SIDE * f->K * WORDS, f->R - c);
            rounded(made, SIDE, C, 1.0f);
            for (ptrdiff_t i = 0; i < SIDE * SIDE; i += 16)
                copied(f->M + (t + i / SIDE) * f->wide + c + i % SIDE, made + i, 0xffff);
            across(f->m + c * f->T + t, f->T, made, SIDE, f->R - c < SIDE ? f->R - c : SIDE, rows);
        }
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
        found.before += found.of->N / SIDE * up(found.of->r, DEPTH) * WORDS;
        found.row += found.of->r;
    }
    found.o = s * SIDE;
    found.before += s * up(found.of->r, DEPTH) * WORDS;
    return found;
}

static void lay_outputs(const void *of, word *out, ptrdiff_t first, ptrdiff_t last, ptrdiff_t from,
                        ptrdiff_t until) {
    bf16 room[SIDE * DECODED] __attribute__((aligned(64)));
    const forward *f = of;
    for (ptrdiff_t s = first; s < last; s++)
        for (ptrdiff_t c = from, width; c < until; c += width, out += width * WORDS) {
            strip one = strip_at(f->branches, s);
            width = columns_at_once(one.of, until - c);
            view W = rows_of(one.of, f->K, one.o, SIDE, c, width, room);
            strip_of_rows(out, W.at, SIDE, width, W.stride);
        }
}

/* C is x W^T, D is m B^T. */
static void finish_outputs(const void *of, const workbench *own, const float *C, ptrdiff_t t, ptrdiff_t s,
                           ptrdiff_t column, ptrdiff_t width) {
    float D[SIDE * SIDE] __attribute__((aligned(64)));
    const forward *f = of;
    const strip one = strip_at(f->branches, s);
    const branch *b = one.of;
    const f32x16 scale = splat((float)b->scale), unit = splat(1.0f);
    f32x16 bias[2], more[2], z[2];
    for (int h = 0; h < 2; h++) {
        bias[h] = b->bias ? load(b->bias + one.o + 16 * h) : zeros();
        more[h] = b->gain ? minus(load_wide(b->gain + one.o + 16 * h), unit) : unit;
    }
    const run m = {f->M + one.row + t * f->wide, f->wide, up(b->r, DEPTH)};
    if (b->B) met((sums){D, SIDE}, &m, 1, strips_at(f->of_B + one.before, 0), SIDE, 1, 0);
    for (ptrdiff_t i = 0; i < SIDE; i++) {
        for (int h = 0; h < 2; h++) {
            z[h] = load_wide(C + i * SIDE + 16 * h);
            if (b->B) z[h] = times_plus(load_wide(D + i * SIDE + 16 * h), scale, z[h]);
        }
        ptrdiff_t place = i * width + column;
        if (b->z)
            store_two(own->more + place, plus(z[0], bias[0]), plus(z[1], bias[1]));
        for (int h = 0; h < 2; h++)
            z[h] = plus(b->gain ? times_plus(z[h], more[h], z[h]) : z[h], bias[h]);
        store_two(own->rows + place, z[0], z[1]);
    }
}

static void leave_outputs(const void *of, const workbench *own, ptrdiff_t t, ptrdiff_t rows, ptrdiff_t first,
                          ptrdiff_t last, ptrdiff_t width) {
    const forward *f = of;
    for (ptrdiff_t s = first, lines; s < last; s += lines) {
        strip one = strip_at(f->branches, s);
        const branch *b = one.of;
        ptrdiff_t place = t * b->N + one.o, column = (s - first) * SIDE;
        lines = (b->N - one.o) / SIDE < last - s ? (b->N - one.o) / SIDE : last - s;
        leave(b->y + place, b->N, own->rows + column, width, lines, rows);
        if (b->z) leave(b->z + place, b->N, own->more + column, width, lines, rows);
    }
}

/* m (R, T); 0, or 1 where memory is missing. */
int lorica_linears(const bf16 *x, const bf16 *A, bf16 *m, const branch *branches, int64_t count, int64_t T, int64_t K,
                   int64_t R) {
    forward f = {.branches = branches, .x = {x, NULL, K, K}, .m = m, .T = T, .K = K, .R = R};
    ptrdiff_t low = 0, in_A = up(R, SIDE) / SIDE;
    int threads = T * K > FEW ? omp_get_max_threads() : 1, more = 0;
    f.tiles = (tiling){.lefts = &f.x, .many = 1, .depth = K, .T = T};
    for (ptrdiff_t b = 0; b < count; b++) {
        f.tiles.strips += branches[b].N / SIDE;
        low += branches[b].N / SIDE * up(branches[b].r, DEPTH) * STRIP_BYTES;
        more |= branches[b].z != NULL;
        /* what lies behind the middles of the last branch is met by zeros */
        f.wide = up(branches[b].r, DEPTH) > f.wide ? up(branches[b].r, DEPTH) : f.wide;
    }
    f.wide += up(R, SIDE);
    measured(&f.tiles, threads);
    size_t bench = bench_bytes(&f.tiles, more);
    size_t middle = up(T, SIDE) * f.wide * sizeof(number);
    char *at = room_of(threads * bench + in_A * K * STRIP_BYTES + low + middle + SIDE * K * 2 + 512);
    if (!at) return 1;
    f.of_A = take(&at, in_A * K * STRIP_BYTES);
    f.of_B = take(&at, low);
    f.M = take(&at, middle);
    bf16 *tail = take(&at, SIDE * K * 2);
    tail_of(tail, x, T, K);
    f.x.tail = tail;
#pragma omp parallel num_threads(threads)
    {
        tiles kept;
        tiles_taken(&kept);
        const workbench own = bench_at(at + omp_get_thread_num() * bench, &f.tiles, more);
        ptrdiff_t begin, end;
        share_of(T, &begin, &end);
#pragma omp for schedule(static) nowait
        for (ptrdiff_t s = 0; s < in_A; s++)
            few_of_rows(f.of_A + s * K * WORDS, A + s * SIDE * K, R - s * SIDE, K);
#pragma omp for schedule(static)
        for (ptrdiff_t s = 0; s < f.tiles.strips; s++) {
            strip one = strip_at(branches, s);
            if (one.of->B) strip_of_short_rows(f.of_B + one.before, one.of->B + one.o * one.of->r, one.of->r);
        }
        if (R) middles(&f, begin, end);
#pragma omp barrier
        tiled(&f.tiles, &own, &f, lay_outputs, finish_outputs, leave_outputs);
        tiles_back(&kept);
    }
    return 0;
}

typedef struct {
    const branch *branches;
    const bf16 *A;
    left *lefts;
    tiling tiles;
    bf16 *inner, *dx, *I;
    word *of_B;
    ptrdiff_t count, T, K, wide;
} backward;

/* I (T, wide) and inner (R, T) of the rows from `begin` to `end`. */
static void inner_gradients(const backward *f, ptrdiff_t begin, ptrdiff_t end) {
    float C[SIDE * SIDE] __attribute__((aligned(64)));
    for (ptrdiff_t t = begin; t < end; t += SIDE) {
        ptrdiff_t rows = end - t < SIDE ? end - t : SIDE, row = 0;
        const word *of_B = f->of_B;
        bf16 *I = f->I + t * f->wide;
        for (ptrdiff_t i = 0; i < f->count; i++) {
            const branch *b = f->branches + i;
            if (!b->r) continue;
            const bf16 *dy = rows_at(f->lefts + 2 * i + 1, t, f->T);
            for (ptrdiff_t c = 0; c < b->r; c += SIDE, of_B += b->N * WORDS) {
                few_met(C, dy, b->N, b->N, of_B, b->r - c);
                rounded(I + c, f->wide, C, (float)b->scale);
            }
            across(f->inner + row * f->T + t, f->T, I, f->wide, b->r, rows);
            row += b->r;
            I += up(b->r, SIDE);
        }
    }
}

/* Rows of W (N, K) from `begin` to `end`, zeros past N, as depth of strips from `first` to `last` that are `whole` long:
some rows at a time, so that they are read as they lie. */
static word *lay_rows(word *out, ptrdiff_t whole, const branch *b, ptrdiff_t K, ptrdiff_t first, ptrdiff_t last,
                         ptrdiff_t begin, ptrdiff_t end) {
    bf16 room[SIDE * DECODED] __attribute__((aligned(64)));
    for (ptrdiff_t n = begin, deep; n < end; n += deep, out += deep * WORDS) {
        deep = end - n < SIDE ? end - n : SIDE;
        for (ptrdiff_t s = first, some; s < last; s += some) {
            some = columns_at_once(b, (last - s) * SIDE) / SIDE;
            view W = rows_of(b, K, n, deep, s * SIDE, some * SIDE, room);
            strips_of(out + (s - first) * whole * WORDS, whole * WORDS, W.at, W.stride, some * SIDE, b->N - n, deep,
                      b->gain ? b->gain + n : NULL);
        }
    }
    return out;
}

/* Of each branch A, its rows up to a multiple of DEPTH, and W. */
static void lay_inputs(const void *of, word *out, ptrdiff_t first, ptrdiff_t last, ptrdiff_t from,
                       ptrdiff_t until) {
    const backward *f = of;
    const ptrdiff_t whole = until - from;
    const bf16 *A = f->A;
    for (const branch *b = f->branches; until > 0; A += b++->r * f->K) {
        ptrdiff_t of_A = up(b->r, DEPTH), begin = from > 0 ? from : 0, end = until < of_A ? until : of_A;
        const branch beside = {.W = A, .N = b->r};
        out = lay_rows(out, whole, &beside, f->K, first, last, begin, end);
        from -= of_A, until -= of_A;
        begin = from > 0 ? from : 0, end = until < b->N ? until : b->N;
        out = lay_rows(out, whole, b, f->K, first, last, begin, end);
        from -= b->N, until -= b->N;
    }
}

static void finish_inputs(const void *of, const workbench *own, const float *C, ptrdiff_t t, ptrdiff_t s,
                          ptrdiff_t column, ptrdiff_t width) {
    (void)of, (void)t, (void)s;
    rounded(own->rows + column, width, C, 1.0f);
}

static void leave_inputs(const void *of, const workbench *own, ptrdiff_t t, ptrdiff_t rows, ptrdiff_t first,
                         ptrdiff_t last, ptrdiff_t width) {
    const backward *f = of;
    if (f->dx) leave(f->dx + t * f->K + first * SIDE, f->K, own->rows, width, last - first, rows);
}

static void columns_of_B(const backward *f) {
    word *out = f->of_B;
    for (const branch *b = f->branches; b < f->branches + f->count; b++)
        for (ptrdiff_t c = 0; c < b->r; c += SIDE, out += b->N * WORDS)
            few_of_columns(out, b->B + c, b->r, b->r - c < SIDE ? b->r - c : SIDE, b->N, b->gain);
}

/* inner (R, T), dx (T, K); 0, or 1 where memory is missing. Where weights come one at a time, `sum` of K by T rounded
up to 32 goes from call to call in float32, `add` but in the first, and dx is NULL but in the last. */
int lorica_linears_backward(const bf16 *A, bf16 *inner, bf16 *dx, float *sum, const branch *branches, int64_t count,
                            int64_t T, int64_t K, int64_t add) {
    backward f = {.branches = branches, .A = A, .count = count, .inner = inner, .dx = dx, .T = T, .K = K};
    ptrdiff_t low = 0, tails = 0;
    int threads = T * K > FEW ? omp_get_max_threads() : 1;
    f.tiles = (tiling){.many = 2 * count, .T = T, .strips = K / SIDE, .sums = sum, .add = add};
    for (ptrdiff_t b = 0; b < count; b++) {
        f.wide += up(branches[b].r, SIDE);
        f.tiles.depth += branches[b].N + up(branches[b].r, DEPTH);
        low += branches[b].N * up(branches[b].r, SIDE) / SIDE * STRIP_BYTES;
        tails += branches[b].N * SIDE * 2;
    }
    measured(&f.tiles, threads);
    size_t bench = bench_bytes(&f.tiles, 0);
    char *at = room_of(threads * bench + low + up(T, SIDE) * f.wide * 2 + tails + 2 * count * sizeof(left) + 512);
    if (!at) return 1;
    f.of_B = take(&at, low);
    f.I = take(&at, up(T, SIDE) * f.wide * 2);
    bf16 *tail = take(&at, tails);
    f.tiles.lefts = f.lefts = take(&at, 2 * count * sizeof(left));
    for (ptrdiff_t b = 0, row = 0; b < count; row += up(branches[b].r, SIDE), tail += SIDE * branches[b++].N) {
        tail_of(tail, branches[b].y, T, branches[b].N);
        const bf16 *I = f.I + row;
        f.lefts[2 * b] = (left){I, I + T / SIDE * SIDE * f.wide, f.wide, up(branches[b].r, DEPTH)};
        f.lefts[2 * b + 1] = (left){branches[b].y, tail, branches[b].N, branches[b].N};
    }
#pragma omp parallel num_threads(threads)
    {
        tiles kept;
        tiles_taken(&kept);
        const workbench own = bench_at(at + omp_get_thread_num() * bench, &f.tiles, 0);
        ptrdiff_t begin, end;
        share_of(T, &begin, &end);
#pragma omp single
        columns_of_B(&f);
        if (f.wide) inner_gradients(&f, begin, end);
#pragma omp barrier
        tiled(&f.tiles, &own, &f, lay_inputs, finish_inputs, leave_inputs);
        tiles_back(&kept);
    }
    return 0;
}
