/* A few rows x (n, d) and 32 rows of W at a time: T (n, 32) = x W^T, every sum in one order whatever n is.

lay_few    sixteen rows of x from `i` on, as they are met
meet_few   rows of x from `begin` to `end` with `rows` of W (., d), at most 32; T has a multiple of 32 rows
few_room   words that a thread needs beside T */

#ifndef LORICA_FEW_ROWS_H
#define LORICA_FEW_ROWS_H

#include "products.h"
#include "room.h"

enum { OUTPUTS = 32 };

/* x as it is laid out: `columns` rows of it, each in room for `deep` numbers; `group` of them are met while W goes by
once.  padded: W is copied before it is met, with zeros beside it. */
typedef struct {
    word *at;
    ptrdiff_t n, d, deep, columns, group;
    int padded;
} few;

#ifdef PAIRED
#include "few_rows_paired.h"
#else
#include "few_rows_wide.h"
#endif

#endif
