/* All rows of some left operands meet strips of right ones: what linears of many rows are made of.

Right operands are laid out as the instruction reads them, in strips of 32 columns, as many at a time as stay in a
processor's own cache, and all rows meet them there. What 32 rows make of them is gathered and leaves in lines of the
cache at once: a step of 64 bytes in each of 32 rows took longer than the product. */

#ifndef LORICA_TILING_H
#define LORICA_TILING_H

#include <omp.h>

#include "products.h"
#include "room.h"

enum { FEWEST = 12, LAYING = 8 };
/* FEWEST: strips that a thread lays out at a time, or they are laid out in parts; LAYING: 32 rows meet so many strips
while one is laid out. */

/* The rows of this thread, from a multiple of 32 on. */
static void share_of(ptrdiff_t T, ptrdiff_t *begin, ptrdiff_t *end) {
    ptrdiff_t pieces = up(T, SIDE) / SIDE, threads = omp_get_num_threads(), own = omp_get_thread_num();
    *begin = own * pieces / threads * SIDE;
    *end = (own + 1) * pieces / threads * SIDE;
    if (*end > T) *end = T;
}

static void tail_of(bf16 *tail, const bf16 *x, ptrdiff_t T, ptrdiff_t width) {
    ptrdiff_t whole = T / SIDE * SIDE;
    if (whole == T) return;
    memcpy(tail, x + whole * width, (T - whole) * width * sizeof(bf16));
    memset(tail + (T - whole) * width, 0, (SIDE - T + whole) * width * sizeof(bf16));
}

/* (T, width), of whose columns the first `depth` are met; the rows past the last multiple of 32 lie in `tail`, with
zeros behind. */
typedef struct {
    const bf16 *rows, *tail;
    ptrdiff_t width, depth;
} left;

static inline const bf16 *rows_at(const left *l, ptrdiff_t t, ptrdiff_t T) {
    return t + SIDE > T ? l->tail : l->rows + t * l->width;
}

/* 32 rows from `t` on, of which the depth from `begin` to `end`; what is widened comes into `room`. */
static inline run run_at(const left *l, ptrdiff_t t, ptrdiff_t T, ptrdiff_t begin, ptrdiff_t end, number *room) {
    run made = {.depth = end - begin};
    made.at = numbers(room, rows_at(l, t, T) + begin, l->width, SIDE, end - begin, &made.stride);
    return made;
}

static inline void rounded(bf16 *out, ptrdiff_t stride, const float *C, float scale) {
    const f32x16 by = splat(scale);
    for (ptrdiff_t i = 0; i < SIDE; i++) {
        const float *c = C + i * SIDE;
        f32x16 low = times(by, load_wide(c)), high = times(by, load_wide(c + 16));
        store_two(out + i * stride, low, high);
    }
}

/* `lines` of 32 columns of each row, past the caches: what is larger than they are would not be found there. */
static void leave(bf16 *to, ptrdiff_t stride, const bf16 *in, ptrdiff_t width, ptrdiff_t lines, ptrdiff_t rows) {
    int aligned = (uintptr_t)to % 64 == 0 && stride % SIDE == 0;
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t c = 0; c < lines * SIDE; c += SIDE)
            if (aligned) stream_line(to + i * stride + c, in + i * width + c);
            else memcpy(to + i * stride + c, in + i * width + c, SIDE * sizeof(bf16));
}

/* `columns` of (rows, stride) as rows of (., T). */
static inline void across(bf16 *out, ptrdiff_t T, const bf16 *in, ptrdiff_t stride, ptrdiff_t columns, ptrdiff_t rows) {
    for (ptrdiff_t c = 0; c < columns; c++)
        for (ptrdiff_t i = 0; i < rows; i++) out[c * T + i] = in[i * stride + c];
}

/* Strips of right operands that all rows of some left ones meet, one beside the other: `depth` of all.  A thread lays
out `some` strips at a time, `span` of their depth, of which rows meet a `piece` at a time; `sums` (T / 32, strips)
blocks of float32 wait where the span is not the whole depth, or where more is to come. */
typedef struct {
    const left *lefts;
    ptrdiff_t many, depth, T, strips, some, span, piece;
    float *sums;
    int add;
} tiling;

/* Of a thread. */
typedef struct {
    word *strips;
    number *numbers;
    bf16 *rows, *more;
    float *sums, *kept;
    run *runs;
} workbench;

static void measured(tiling *p, int threads) {
    ptrdiff_t strip = p->depth * STRIP_BYTES, each = (p->strips + threads - 1) / threads;
    ptrdiff_t at_once = LAID / strip, fewest = each < FEWEST ? each : FEWEST;
    if (at_once < fewest) at_once = fewest;
    ptrdiff_t groups = (each + at_once - 1) / at_once;
    p->some = up((each + groups - 1) / groups, TOGETHER);
    ptrdiff_t parts = (p->some * strip + LAID - 1) / LAID;
    p->span = up((p->depth + parts - 1) / parts, SIDE);
    ptrdiff_t pieces = p->span > DEEPEST ? (p->span + PIECE - 1) / PIECE : 1;
    p->piece = up((p->span + pieces - 1) / pieces, SIDE);
}

static ptrdiff_t blocks_of(const tiling *p) { return up(p->T, SIDE) / SIDE; }

/* Bytes of a workbench. */
static size_t bench_bytes(const tiling *p, int more) {
    size_t rows = (1 + more) * SIDE * p->some * SIDE * 2, strips = p->some * p->span * STRIP_BYTES;
    size_t block = p->some * SIDE * SIDE * 4, sums = p->span < p->depth && !p->sums ? blocks_of(p) * block : 0;
    size_t numbers = SIDE * p->piece * WIDENED_BYTES;
    return strips + numbers + rows + block + up(p->many * sizeof(run), 64) + sums + 256;
}

static workbench bench_at(char *at, const tiling *p, int more) {
    workbench own = {.strips = take(&at, p->some * p->span * STRIP_BYTES)};
    own.numbers = take(&at, SIDE * p->piece * WIDENED_BYTES);
    own.rows = take(&at, SIDE * p->some * SIDE * 2);
    own.more = more ? take(&at, SIDE * p->some * SIDE * 2) : NULL;
    own.kept = take(&at, p->some * SIDE * SIDE * 4);
    own.runs = take(&at, p->many * sizeof(run));
    own.sums = p->span < p->depth && !p->sums ? (float *)at : NULL;
    return own;
}

/* What of strips and of blocks of 32 rows is this thread's: it lays out what it meets. */
typedef struct {
    ptrdiff_t first, last, begin, end;
} part;

static part part_of(const tiling *p) {
    ptrdiff_t threads = omp_get_num_threads(), own = omp_get_thread_num(), blocks = blocks_of(p), by = 1, least = 0;
    for (ptrdiff_t rows = 1; rows <= threads; rows++) {
        if (threads % rows) continue;
        ptrdiff_t beside = threads / rows;
        ptrdiff_t takes = (p->strips + beside - 1) / beside * (LAYING + (blocks + rows - 1) / rows);
        if (rows == 1 || takes < least) least = takes, by = rows;
    }
    ptrdiff_t beside = threads / by, column = own % beside, row = own / beside;
    return (part){column * p->strips / beside, (column + 1) * p->strips / beside, row * blocks / by * SIDE,
                  (row + 1) * blocks / by * SIDE};
}

/* Where sums of 32 rows and a strip stand, those of the next strip behind them; where they are met at once, those that
come next stand there too. */
static inline sums sums_of(const tiling *p, const workbench *own, ptrdiff_t t, ptrdiff_t s, ptrdiff_t first) {
    enum { ONE = SIDE * SIDE };
    float *at = own->kept + (p->piece < p->span ? s - first : 0) * ONE;
    if (p->sums) at = p->sums + (t / SIDE * p->strips + s) * ONE;
    else if (own->sums) at = own->sums + (t / SIDE * p->some + s - first) * ONE;
    return (sums){at, SIDE, ONE};
}

/* The depth from `from` to `until` of 32 rows; how many runs it is. */
static inline ptrdiff_t runs_of(const tiling *p, const workbench *own, ptrdiff_t t, ptrdiff_t from, ptrdiff_t until) {
    ptrdiff_t count = 0;
    number *room = own->numbers;
    for (const left *l = p->lefts; until > 0; from -= l->depth, until -= l->depth, l++) {
        ptrdiff_t begin = from > 0 ? from : 0, end = until < l->depth ? until : l->depth;
        if (begin >= end) continue;
        own->runs[count++] = run_at(l, t, p->T, begin, end, room);
        room += SIDE * (end - begin);
    }
    return count;
}

/* lay: the depth from `from` to `until` of strips, one behind the other.  finish: 32 rows of a strip, its sums C, into
a workbench at `column`.  leave_rows: these rows of strips from `first` on. */
typedef void laying(const void *of, word *out, ptrdiff_t first, ptrdiff_t last, ptrdiff_t from, ptrdiff_t until);
typedef void finishing(const void *of, const workbench *own, const float *C, ptrdiff_t t, ptrdiff_t s, ptrdiff_t column,
                       ptrdiff_t width);
typedef void leaving(const void *of, const workbench *own, ptrdiff_t t, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t last,
                     ptrdiff_t width);

/* 32 rows meet the depth from `from` to `until` of all strips that are laid out; what is whole then is finished. */
static inline __attribute__((always_inline)) void meet(const tiling *p, const workbench *own, const void *of,
                                                       finishing *finish, ptrdiff_t t, ptrdiff_t first, ptrdiff_t last,
                                                       ptrdiff_t from, ptrdiff_t until) {
    for (ptrdiff_t d = from; d < until; d += p->piece) {
        ptrdiff_t end = d + p->piece < until ? d + p->piece : until, runs = runs_of(p, own, t, d, end);
        for (ptrdiff_t s = first, some; s < last; s += some) {
            const sums C = sums_of(p, own, t, s, first);
            const word *strips = own->strips + ((s - first) * (until - from) + d - from) * WORDS;
            some = together((last - s) * SIDE);
            met(C, own->runs, runs, strips_at(strips, until - from), SIDE, some, d > 0 || p->add);
            for (ptrdiff_t i = 0; i < some && end == p->depth; i++)
                finish(of, own, C.at + i * C.next, t, s + i, (s + i - first) * SIDE, p->some * SIDE);
        }
    }
}

static inline __attribute__((always_inline)) void tiled(const tiling *p, const workbench *own, const void *of,
                                                        laying *lay, finishing *finish, leaving *leave_rows) {
    const part mine = part_of(p);
    for (ptrdiff_t first = mine.first; first < mine.last; first += p->some) {
        ptrdiff_t last = first + p->some < mine.last ? first + p->some : mine.last;
        for (ptrdiff_t from = 0; from < p->depth; from += p->span) {
            ptrdiff_t until = from + p->span < p->depth ? from + p->span : p->depth;
            lay(of, own->strips, first, last, from, until);
            for (ptrdiff_t t = mine.begin; t < mine.end; t += SIDE) {
                meet(p, own, of, finish, t, first, last, from, until);
                if (until < p->depth) continue;
                leave_rows(of, own, t, p->T - t < SIDE ? p->T - t : SIDE, first, last, p->some * SIDE);
            }
        }
    }
    _mm_sfence();
}

#endif
