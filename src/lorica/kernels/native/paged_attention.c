/* Attention of new tokens over keys and values that lie in blocks, as a decoder reads them that answers many at once.

    y_i = sum over j <= i of p_ij v_j        p_ij = exp(s q_i k_j) / sum_j exp(s q_i k_j)        and i - j < window

New keys and values are written to their blocks first. q, y (T, H, E); k, v (T, K, E); blocks (count, BLOCK, K, E);
table (D, most): the blocks of each document in order. One token and one head of keys at a time, keys in their order: what comes out
depends on the token's own document alone, however many tokens are read together. */

#include <math.h>
#include <string.h>

#include "bfloat16.h"
#include "room.h"

enum { BLOCK = 16 };

#define NAME lorica_paged_attention
#define ATTEND attend
#define TYPE bf16
#define LOAD load_some
#define STORE store_some
#include "paged_attention.h"

#define NAME lorica_paged_attention_wide
#define ATTEND attend_wide
#define TYPE float
#define LOAD load_some_wide
#define STORE store_some_wide
#include "paged_attention.h"
