/* Linears of one input on a few rows, each row with low-rank products of its own.

    y_i = W x_i + bias + sum over the terms (i, f, weight) of weight * (c_out B (c_mid A x_i) + c_base (W x_i) + bias_f)

x (n, d_in); W (d_out, d_in); A (r, d_in); B turned, (r, d_out); every c and bias_f a vector or absent.

A row's sums are made in one order, whatever rows stand beside it, which is what a decoder needs whose answers may not
depend on its company: `few_rows.h`. */

#include <omp.h>

#include "few_rows.h"
#include "rowwise.h"

static float dot(const bf16 *a, const bf16 *x, ptrdiff_t d) {
    f32x16 sum = zeros();
    for (ptrdiff_t k = 0; k < d; k += 32) {
        mask16 some = first((d - k) / 2);
        i32x16 of_a = load_some_words((const int32_t *)(a + k), some);
        sum = with_pairs(sum, of_a, load_some_words((const int32_t *)(x + k), some));
    }
    return sum_in(sum);
}

/* One row of sixteen outputs from o on: what its terms add to y. */
static f32x16 added(f32x16 y, f32x16 raw, const term *t, const float *h, const linear *l, ptrdiff_t o, mask16 some) {
    const factors *f = t->of;
    f32x16 sum = zeros();
    for (ptrdiff_t r = 0; r < f->r; r++)
        sum = times_plus(splat(h[r]), load_some(f->B + r * l->d_out + o, some), sum);
    if (f->output) sum = times(sum, load_some_wide(f->output + o, some));
    if (f->base) sum = times_plus(raw, load_some_wide(f->base + o, some), sum);
    if (f->bias) sum = plus(sum, load_some_wide(f->bias + o, some));
    return times_plus(splat((float)t->weight), sum, y);
}

/* Rows from `begin` to `end` of 32 outputs from o on: T (rows, 32) is W x. `h` of each term lies where `at` says. */
static void written(const linear *l, const float *T, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t o, const float *h,
                    const int64_t *at, int64_t wide) {
    ptrdiff_t t = 0;
    while (t < l->count && l->terms[t].row < begin) t++;
    for (ptrdiff_t i = begin; i < end; i++) {
        ptrdiff_t last = t;
        while (last < l->count && l->terms[last].row == i) last++;
        for (ptrdiff_t half = 0; half < OUTPUTS; half += 16) {
            mask16 some = first(l->d_out - o - half);
            f32x16 raw = load_wide(T + (i - begin) * OUTPUTS + half), y = raw;
            if (l->bias) y = plus(y, load_some(l->bias + o + half, some));
            for (ptrdiff_t k = t; k < last; k++) y = added(y, raw, l->terms + k, h + at[k], l, o + half, some);
            ptrdiff_t place = i * l->d_out + o + half;
            if (wide) store_some_wide((float *)l->y + place, some, y);
            else store_some((bf16 *)l->y + place, some, y);
        }
        t = last;
    }
}

/* Whether a row's sums are those of `linears.c` to the bit. */
int lorica_few_rows_as_many(void) { return AS_MANY; }

/* x (n, d_in), d_in even; `wide`: y is float32. 0; 1 where memory is missing. */
int lorica_rowwise(const bf16 *x, const linear *linears, int64_t many, int64_t n, int64_t d, int64_t wide) {
    ptrdiff_t blocks = 0, terms = 0, products = 0, threads = omp_get_max_threads();
    int ragged = 0;
    for (ptrdiff_t l = 0; l < many; l++) {
        blocks += up(linears[l].d_out, OUTPUTS) / OUTPUTS;
        ragged |= linears[l].d_out % OUTPUTS != 0;
        terms += linears[l].count;
        for (ptrdiff_t t = 0; t < linears[l].count; t++) products += linears[l].terms[t].of->r;
    }
    few f = few_of(n, d, ragged);
    ptrdiff_t of_T = f.group * OUTPUTS;
    size_t of_x = f.deep / PER * f.columns * sizeof(word), own = (of_T + few_room(&f)) * sizeof(float);
    char *at = room_of(of_x + (terms + 1) * 8 + (products + 1) * 4 + threads * own + 256);
    if (!at) return 1;
    f.at = take(&at, of_x);
    int64_t *places = take(&at, (terms + 1) * 8);
    float *h = take(&at, (products + 1) * 4), *sums = take(&at, threads * own);
    for (ptrdiff_t l = 0, t = 0, place = 0; l < many; l++)
        for (ptrdiff_t k = 0; k < linears[l].count; place += linears[l].terms[k++].of->r) places[t++] = place;
#pragma omp parallel num_threads(threads) if (blocks > 1)
    {
#pragma omp for schedule(static) nowait
        for (ptrdiff_t i = 0; i < f.columns; i += 16) lay_few(&f, x, i);
        for (ptrdiff_t l = 0, before = 0; l < many; before += linears[l++].count) {
#pragma omp for schedule(static) nowait
            for (ptrdiff_t t = 0; t < linears[l].count; t++) {
                const term *one = linears[l].terms + t;
                for (ptrdiff_t r = 0; r < one->of->r; r++) {
                    float sum = dot(one->of->A + r * d, x + one->row * d, d);
                    h[places[before + t] + r] = one->of->middle ? sum * one->of->middle[r] : sum;
                }
            }
        }
#pragma omp barrier
        float *T = sums + omp_get_thread_num() * (of_T + few_room(&f));
        tiles kept;
        tiles_taken(&kept);
        for (ptrdiff_t begin = 0; begin < n; begin += f.group) {
            ptrdiff_t end = begin + f.group < n ? begin + f.group : n;
#pragma omp for schedule(static) nowait
            for (ptrdiff_t b = 0; b < blocks; b++) {
                const linear *l = linears;
                const int64_t *mine = places;
                ptrdiff_t own = b;
                for (; own >= up(l->d_out, OUTPUTS) / OUTPUTS; l++) {
                    own -= up(l->d_out, OUTPUTS) / OUTPUTS;
                    mine += l->count;
                }
                ptrdiff_t o = own * OUTPUTS, rows = l->d_out - o < OUTPUTS ? l->d_out - o : OUTPUTS;
                meet_few(T, &f, l->W + o * d, rows, begin, end, (word *)(T + of_T));
                written(l, T, begin, end, o, h, mine, wide);
            }
        }
        tiles_back(&kept);
    }
    return 0;
}
