/* Few columns in strips, as all right operands are; where sixteen or fewer count, the others are not met. */

#ifndef LORICA_FEW_COLUMNS_PAIRED_H
#define LORICA_FEW_COLUMNS_PAIRED_H

static inline void few_of_rows(word *out, const bf16 *in, ptrdiff_t columns, ptrdiff_t depth) {
    strip_of_rows(out, in, columns, depth, depth);
}

static inline void few_of_columns(word *out, const bf16 *in, ptrdiff_t ld, ptrdiff_t columns, ptrdiff_t depth,
                                  const float *gain) {
    for (ptrdiff_t n = 0; n < depth; n += SIDE, out += SIDE * WORDS)
        strips_of(out, 0, in + n * ld, ld, columns, SIDE, SIDE, gain ? gain + n : NULL);
}

static inline void few_met(float *C, const bf16 *in, ptrdiff_t stride, ptrdiff_t depth, const word *few,
                           ptrdiff_t columns) {
    const run rows = {in, stride, depth};
    if (columns > 16) {
        met((sums){C, SIDE}, &rows, 1, strips_at(few, depth), SIDE, 1, 0);
        return;
    }
    narrow_product((sums){C, SIDE}, &rows, strips_at(few, depth));
    for (ptrdiff_t i = 0; i < SIDE; i++) store_wide(C + i * SIDE + 16, zeros());
}

#endif
