/* Operands of a product in float32, widened once for all that meet them: where no instruction takes pairs of bfloat16,
or none that is quicker. */

#ifndef LORICA_OPERANDS_WIDE_H
#define LORICA_OPERANDS_WIDE_H

typedef float number;
typedef float word;

enum { DEPTH = 8, PER = 1, WIDENED_BYTES = 4, RIGHT_APART = 0, TOGETHER = REGISTER / 8, LAID = 900 << 10 };
enum { WORDS = 32, OTHER_HALF = 16, STRIP_LDB = 32 };

typedef f32x16 word16;

static inline word16 load_right(const word *x) { return load_wide(x); }
static inline word16 splat_left(const number *x) { return splat(*x); }
static inline f32x16 with_product(f32x16 sum, word16 a, word16 b) { return times_plus(a, b, sum); }

static inline void copied(number *out, const bf16 *in, mask16 some) { store_wide(out, load_some(in, some)); }

/* AHEAD: rows by which what is widened comes from memory before. */
enum { AHEAD = 12 };

static inline const number *numbers(number *room, const bf16 *in, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth,
                                    ptrdiff_t *apart) {
    const ptrdiff_t whole = depth / 16 * 16;
    const mask16 rest = first(depth - whole);
    for (ptrdiff_t i = 0; i < rows; i++, in += stride) {
        number *out = room + i * depth;
        for (ptrdiff_t d = 0; d < whole; d += 16) {
            if (d % 32 == 0) foreseen(in + AHEAD * stride + d, stride, 1);
            store_wide(out + d, load(in + d));
        }
        if (whole < depth) store_some_wide(out + whole, rest, load_some(in + whole, rest));
    }
    *apart = depth;
    return room;
}

static inline void store_left(number *y, f32x16 x) { store_wide(y, x); }

static inline void store_right(word *y, ptrdiff_t row, ptrdiff_t ldb, f32x16 x, f32x16 next) {
    store_wide(y + row * ldb, x);
    store_wide(y + (row + 1) * ldb, next);
}

static inline const word *right_of(word *room, const number *in, ptrdiff_t R, ptrdiff_t S) {
    (void)room, (void)R, (void)S;
    return in;
}

/* Sixteen rows, zeros past `rows`, of sixteen numbers, turned. */
static inline void sixteen_turned(word *out, ptrdiff_t ldo, const bf16 *in, ptrdiff_t stride, ptrdiff_t rows) {
    i32x16 turning[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) turning[i] = as_words(i < rows ? load(in + i * stride) : zeros());
    turned(turning);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) store_wide(out + i * ldo, as_numbers(turning[i]));
}

static inline f32x16 row_of_strip(const bf16 *in, ptrdiff_t n, ptrdiff_t rows, mask16 some, const float *gain) {
    if (n >= rows) return zeros();
    f32x16 x = load_some(in, some);
    return gain ? wide(narrow(times(x, splat(gain[n])))) : x;
}

static inline void strips_of(word *out, ptrdiff_t apart, const bf16 *in, ptrdiff_t stride, ptrdiff_t columns,
                             ptrdiff_t rows, ptrdiff_t deep, const float *gain) {
    for (ptrdiff_t n = 0; n < deep; n++, in += stride, out += WORDS)
        for (ptrdiff_t c = 0; c < up(columns, 32); c += 16) {
            if (c % 32 == 0) foreseen(in + 4 * stride + c, stride, 1);
            store_wide(out + c / 32 * apart + c % 32, row_of_strip(in + c, n, rows, first(columns - c), gain));
        }
}

static inline void strip_of_rows(word *out, const bf16 *in, ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t stride) {
    for (ptrdiff_t half = 0; half < SIDE; half += 16)
        for (ptrdiff_t k = 0; k < depth; k += 16) {
            if (k % 32 == 0) foreseen(in + (half + SIDE) * stride + k, stride, 16);
            sixteen_turned(out + k * WORDS + half, WORDS, in + half * stride + k, stride, rows - half);
        }
}

static inline void strip_of_short_rows(word *out, const bf16 *in, ptrdiff_t r) {
    memset(out, 0, up(r, DEPTH) * WORDS * sizeof(word));
    for (ptrdiff_t i = 0; i < SIDE; i++)
        for (ptrdiff_t k = 0; k < r; k++) out[k * WORDS + i] = of_number(in[i * r + k]);
}

#endif
