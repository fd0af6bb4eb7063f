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

/* R (a multiple of ROWS, at most 32) rows and 32 columns of C.  `low` and `high` are the halves of B's columns, `ldb`
words from a pair of rows to the next, `step` words from DEPTH rows to the next.  passing: B goes by the first cache, so
that rows of A are found there by the columns that come next: a sixth to a quarter quicker. */
static inline void block(float *C, ptrdiff_t ldc, const run *A, ptrdiff_t runs, const int32_t *low,
                         const int32_t *high, ptrdiff_t ldb, ptrdiff_t step, ptrdiff_t R, int add, int passing) {
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

/* C (32, 16) = A (32, D) B (D, 16), `step` words of B from DEPTH rows to the next. */
static inline void narrow_product(float *C, ptrdiff_t ldc, const run *A, const word *B, ptrdiff_t ldb, ptrdiff_t step) {
    const bf16 *rows = A->at;
    memory_is_read();
    _tile_zero(0);
    _tile_zero(1);
    for (ptrdiff_t d = 0; d < A->depth; d += DEPTH, B += step) {
        _tile_loadd(6, B, ldb * 4);
        _tile_loadd(4, rows + d, A->stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, rows + 16 * A->stride + d, A->stride * 2);
        _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, C, ldc * 4);
    _tile_stored(1, C + 16 * ldc, ldc * 4);
}

#endif
