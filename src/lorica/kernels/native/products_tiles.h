/* Products by tiles of AMX. */

#ifndef LORICA_PRODUCTS_TILES_H
#define LORICA_PRODUCTS_TILES_H

typedef struct {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) tile_config;

/* Tiles are as the caller of this library left them once `tiles_back` has run. */
typedef struct { tile_config before; } tiles;

/* GCC 12 takes a load of tiles for one that reads no memory, and that of their shapes for one of eight bytes: what was
written for them may be left out. */
static inline void memory_is_read(void) { __asm__ volatile("" ::: "memory"); }

static inline void tiles_taken(tiles *kept) {
    tile_config wanted = {.palette = 1};
    for (int i = 0; i < 8; i++) wanted.row_bytes[i] = 64, wanted.rows[i] = 16;
    _tile_storeconfig(&kept->before);
    __asm__ volatile("" ::"m"(wanted));
    _tile_loadconfig(&wanted);
}

static inline void tiles_back(tiles *kept) {
    if (kept->before.palette) _tile_loadconfig(&kept->before);
    else _tile_release();
}

/* ROWS: a block has a multiple of them.  DEEPEST: so deep 32 rows of A stay in the first cache of 48 KB while all
columns meet them; what is deeper is met in pieces of about PIECE. */
enum { ROWS = 16, DEEPEST = 640, PIECE = 288 };

/* R (a multiple of ROWS, at most 32) rows and 32 columns.  passing: B goes by the first cache, so that rows of A are
found there by the columns that come next: a sixth to a quarter quicker. */
static inline void blocks(sums of, const run *A, ptrdiff_t runs, right B, ptrdiff_t R, ptrdiff_t some, int add,
                          int passing) {
    float *C = of.at;
    const ptrdiff_t ldc = of.ld, ldb = B.below, step = B.step;
    const word *low = B.at, *high = low + B.half;
    (void)some;
    memory_is_read();
    if (add) {
        _tile_loadd(0, C, ldc * 4);
        _tile_loadd(1, C + 16, ldc * 4);
        if (R > 16) _tile_loadd(2, C + 16 * ldc, ldc * 4);
        if (R > 16) _tile_loadd(3, C + 16 * ldc + 16, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (const run *part = A; part < A + runs; part++) {
        const bf16 *rows = part->at;
        for (ptrdiff_t d = 0; d < part->depth; d += 32, rows += 32, low += step, high += step) {
            _tile_loadd(4, rows, part->stride * 2);
            if (passing) _tile_stream_loadd(6, low, ldb * 4);
            else _tile_loadd(6, low, ldb * 4);
            _tile_dpbf16ps(0, 4, 6);
            if (passing) _tile_stream_loadd(7, high, ldb * 4);
            else _tile_loadd(7, high, ldb * 4);
            _tile_dpbf16ps(1, 4, 7);
            if (R > 16) {
                _tile_loadd(5, rows + 16 * part->stride, part->stride * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, C, ldc * 4);
    _tile_stored(1, C + 16, ldc * 4);
    if (R > 16) _tile_stored(2, C + 16 * ldc, ldc * 4);
    if (R > 16) _tile_stored(3, C + 16 * ldc + 16, ldc * 4);
}

/* Sixteen columns of 32 rows. */
static inline void narrow_product(sums of, const run *A, right B) {
    const bf16 *rows = A->at;
    const word *column = B.at;
    memory_is_read();
    _tile_zero(0);
    _tile_zero(1);
    for (ptrdiff_t d = 0; d < A->depth; d += DEPTH, column += B.step) {
        _tile_loadd(6, column, B.below * 4);
        _tile_loadd(4, rows + d, A->stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, rows + 16 * A->stride + d, A->stride * 2);
        _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, of.at, of.ld * 4);
    _tile_stored(1, of.at + 16 * of.ld, of.ld * 4);
}

#endif
