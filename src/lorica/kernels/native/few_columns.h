/* C (32, 32) = A (32, D) B (D, columns), columns at most 32 and the others 0: what a low-rank product begins with.

few_of_rows: B from its columns, one behind the other; few_of_columns: from its rows, `ld` after one another, each times
its gain where there is one; into `D` times 32 words.  D is a multiple of 32. */

#ifndef LORICA_FEW_COLUMNS_H
#define LORICA_FEW_COLUMNS_H

#include "products.h"

#ifdef PAIRED
#include "few_columns_paired.h"
#else
#include "few_columns_wide.h"
#endif

#endif
