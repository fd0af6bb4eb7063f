/* Few rows by products of pairs: rows of x stand side by side, and W is read as it lies. */

#ifndef LORICA_FEW_ROWS_PAIRED_H
#define LORICA_FEW_ROWS_PAIRED_H

/* Sums are made as those of many rows are. */
enum { AS_MANY = 1 };

static inline few few_of(ptrdiff_t n, ptrdiff_t d, int ragged) {
    few f = {.n = n, .d = d, .deep = up(d, 32), .columns = n <= 16 ? 16 : up(n, 32), .group = up(n, 32)};
    f.padded = ragged || d < f.deep;
    return f;
}

static inline void lay_few(const few *f, const bf16 *x, ptrdiff_t i) {
    across_of(f->at + i, f->columns, x + i * f->d, f->n - i, f->d, f->deep);
}

static inline ptrdiff_t few_room(const few *f) { return OUTPUTS * 32 + f->padded * OUTPUTS * f->deep / PER; }

static inline void meet_few(float *T, const few *f, const bf16 *W, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t end,
                            word *room) {
    float *C = (float *)room;
    if (f->padded) {
        bf16 *padded = (bf16 *)(room + OUTPUTS * 32);
        memset(padded, 0, OUTPUTS * f->deep * sizeof(bf16));
        for (ptrdiff_t i = 0; i < rows; i++) memcpy(padded + i * f->deep, W + i * f->d, f->d * sizeof(bf16));
        W = padded;
    }
    const run weights = {W, f->deep, f->deep};
    for (ptrdiff_t c = begin; c < end; c += 32, T += 32 * OUTPUTS) {
        ptrdiff_t S = f->columns - c < 32 ? 16 : 32;
        if (S == 16) narrow_product((sums){C, 16}, &weights, matrix(f->at + c, f->columns));
        else product(C, 32, W, f->deep, f->at + c, f->columns, OUTPUTS, 32, f->deep, 0);
        turn(T, OUTPUTS, C, S, OUTPUTS, S);
    }
}

#endif
