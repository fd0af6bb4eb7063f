/* Operands of a product in bfloat16: a left one as its rows lie, a right one by pairs of rows, as instructions read
them. */

#ifndef LORICA_OPERANDS_PAIRED_H
#define LORICA_OPERANDS_PAIRED_H

#define PAIRED

typedef bf16 number;
typedef int32_t word;

enum { DEPTH = 32, PER = 2, WIDENED_BYTES = 0, RIGHT_APART = 1, TOGETHER = 1, LAID = 800 << 10 };

enum { WORDS = 16, OTHER_HALF = 256, STRIP_LDB = 16 };

typedef i32x16 word16;

static inline word16 load_right(const word *x) { return load_words(x); }

static inline word16 splat_left(const number *x) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return splat_word(pair);
}

static inline f32x16 with_product(f32x16 sum, word16 a, word16 b) { return with_pairs(sum, a, b); }

static inline void copied(number *out, const bf16 *in, mask16 some) { store_bits(out, load_some_bits(in, some)); }

/* Rows as they lie. */
static inline const number *numbers(number *room, const bf16 *in, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth,
                                    ptrdiff_t *apart) {
    (void)room, (void)rows, (void)depth;
    *apart = stride;
    return in;
}

static inline void store_left(number *y, f32x16 x) { store(y, x); }

/* Rows `row` and the one behind it of a right operand, sixteen columns of each. */
static inline void store_right(word *y, ptrdiff_t row, ptrdiff_t ldb, f32x16 x, f32x16 next) {
    store_words(y + row / 2 * ldb, pairs(narrow(x), narrow(next)));
}

/* (R, S) as a right operand. */
static inline const word *right_of(word *room, const number *in, ptrdiff_t R, ptrdiff_t S) {
    for (ptrdiff_t r = 0; r < R; r += 2)
        for (ptrdiff_t s = 0; s < S; s += 16)
            store_words(room + r / 2 * S + s, pairs(load_bits(in + r * S + s), load_bits(in + (r + 1) * S + s)));
    return room;
}

/* Sixteen rows of x, zeros past n, as sixteen columns of a right operand of `columns`; d even. */
static inline void across_of(word *out, ptrdiff_t columns, const bf16 *x, ptrdiff_t n, ptrdiff_t d, ptrdiff_t wide) {
    for (ptrdiff_t p = 0; p < wide / 2; p += 16) {
        i32x16 block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            block[i] = load_some_words((const int32_t *)(x + i * d + 2 * p), i < n ? first(d / 2 - p) : 0);
        turned(block);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) store_words(out + (p + i) * columns, block[i]);
    }
}

static inline bf16x16 row_of_strip(const bf16 *in, ptrdiff_t n, ptrdiff_t rows, mask16 some, const float *gain) {
    if (n >= rows) return bits_none();
    bf16x16 x = load_some_bits(in, some);
    return gain ? narrow(times(wide(x), splat(gain[n]))) : x;
}

/* 32 rows of (rows, stride), each times its gain, as 32 rows of strips `apart` words from each other; zeros past `rows`
and past `columns`. Of less than 32 rows `deep` are laid out, a multiple of DEPTH. Two rows at a time are read as they
lie, and those after the next two are asked for. */
static inline void strips_of(word *out, ptrdiff_t apart, const bf16 *in, ptrdiff_t stride, ptrdiff_t columns,
                             ptrdiff_t rows, ptrdiff_t deep, const float *gain) {
    for (ptrdiff_t n = 0; n < deep; n += 2, in += 2 * stride, out += 16)
        for (ptrdiff_t c = 0; c < up(columns, 32); c += 16) {
            mask16 some = first(columns - c);
            if (c % 32 == 0) foreseen(in + 4 * stride + c, stride, 2);
            bf16x16 low = row_of_strip(in + c, n, rows, some, gain);
            bf16x16 high = row_of_strip(in + stride + c, n + 1, rows, some, gain);
            store_words(out + c / 32 * apart + c % 32 * 16, pairs(low, high));
        }
}

/* 32 rows of (., depth), turned; zeros past `rows`. */
static inline void strip_of_rows(word *out, const bf16 *in, ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t stride) {
    for (ptrdiff_t half = 0; half < SIDE; half += 16)
        for (ptrdiff_t p = 0; p < depth / 2; p += 16) {
            i32x16 turning[16];
            foreseen(in + (half + SIDE) * stride + 2 * p, stride, 16);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                turning[i] = load_some_words((const int32_t *)(in + (half + i) * stride + 2 * p),
                                             half + i < rows ? 0xffff : 0);
            turned(turning);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) store_words(out + p * SIDE + (half + i) * 16, turning[i]);
        }
}

/* 32 rows of (., r), turned; r is small and may be odd. */
static inline void strip_of_short_rows(word *out, const bf16 *in, ptrdiff_t r) {
    bf16 *pairs = (bf16 *)out;
    memset(out, 0, up(r, DEPTH) * WORDS * sizeof(word));
    for (ptrdiff_t i = 0; i < SIDE; i++)
        for (ptrdiff_t k = 0; k < r; k++)
            pairs[(k / 32 * 512 + i / 16 * 256 + k % 32 / 2 * 16 + i % 16) * 2 + k % 2] = in[i * r + k];
}

#endif
