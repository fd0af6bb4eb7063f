/* `paged_attention.c` for one type of number: TYPE, read by LOAD and written by STORE, sixteen at a time. */

/* G heads of queries of one token on one head of keys: `z` (G, up(n, 16)) and `q` (G, up(E, 16)) are room. */
static inline __attribute__((always_inline)) void ATTEND(TYPE *y, const TYPE *q_of, const TYPE *keys, const TYPE *values,
                                                         const int32_t *table, ptrdiff_t from, ptrdiff_t to,
                                                         ptrdiff_t G, ptrdiff_t K, ptrdiff_t E, float scale, float *z,
                                                         float *q) {
    ptrdiff_t parts = up(E, 16) / 16, first_block = from / BLOCK, stride = K * E, n = up(to, BLOCK) - first_block * BLOCK;
    for (ptrdiff_t g = 0; g < G; g++)
        for (ptrdiff_t e = 0; e < parts; e++)
            store_wide(q + (g * parts + e) * 16, times(LOAD(q_of + g * E + e * 16, first(E - e * 16)),
                                                                    splat(scale * LOG2_E)));
    for (ptrdiff_t b = first_block; b * BLOCK < to; b++) {
        const TYPE *block = keys + (ptrdiff_t)table[b] * BLOCK * stride;
        ptrdiff_t live = to - b * BLOCK < BLOCK ? to - b * BLOCK : BLOCK;
        mask16 seen = first(live);
        if (b * BLOCK < from) seen &= ~first(from - b * BLOCK);
        for (ptrdiff_t g = 0; g < G; g++) {
            f32x16 sums[16];
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) {
                sums[j] = zeros();
                if (j < live)
                    for (ptrdiff_t e = 0; e < parts; e++)
                        sums[j] = times_plus(load_wide(q + (g * parts + e) * 16),
                                                  LOAD(block + j * stride + e * 16, first(E - e * 16)), sums[j]);
            }
            store_wide(z + g * n + (b - first_block) * BLOCK, chosen(seen, added_up(sums), splat(-INFINITY)));
        }
    }
    for (ptrdiff_t g = 0; g < G; g++) {
        f32x16 most = splat(-INFINITY), total = zeros();
        for (ptrdiff_t j = 0; j < n; j += 16) most = larger(load_wide(z + g * n + j), most);
        f32x16 top = splat(largest_in(most));
        for (ptrdiff_t j = 0; j < n; j += 16) {
            f32x16 p = exp2_of(minus(load_wide(z + g * n + j), top));
            store_wide(z + g * n + j, p);
            total = plus(total, p);
        }
        f32x16 by = splat(1.0f / sum_in(total));
        for (ptrdiff_t e = 0; e < parts; e++) {
            f32x16 sum = zeros();
            mask16 some = first(E - e * 16);
            for (ptrdiff_t b = first_block; b * BLOCK < to; b++) {
                const TYPE *block = values + (ptrdiff_t)table[b] * BLOCK * stride + e * 16;
                const float *p = z + g * n + (b - first_block) * BLOCK;
                ptrdiff_t live = to - b * BLOCK < BLOCK ? to - b * BLOCK : BLOCK;
                for (ptrdiff_t j = 0; j < live; j++)
                    sum = times_plus(splat(p[j]), LOAD(block + j * stride, some), sum);
            }
            STORE(y + g * E + e * 16, some, times(sum, by));
        }
    }
}

/* 0; 1 where memory is missing. */
int NAME(const TYPE *q, const TYPE *k, const TYPE *v, TYPE *y, TYPE *keys, TYPE *values, const int32_t *tables,
         const int64_t *documents, const int64_t *positions, int64_t T, int64_t H, int64_t K, int64_t E, int64_t most,
         int64_t window, float scale) {
    ptrdiff_t G = H / K, longest = 0;
    for (ptrdiff_t t = 0; t < T; t++) longest = positions[t] + 1 > longest ? positions[t] + 1 : longest;
    size_t bytes = G * (up(longest, BLOCK) + BLOCK + up(E, 16)) * 4 + 256;
    int failed = 0;
#pragma omp parallel if (T * K > 1)
    {
        char *at = room_of(bytes);
        if (!at) {
#pragma omp atomic write
            failed = 1;
        }
        float *z = at ? take(&at, G * (up(longest, BLOCK) + BLOCK) * 4) : NULL, *own = (float *)at;
#pragma omp for schedule(static)
        for (ptrdiff_t t = 0; t < T; t++) {
            ptrdiff_t block = tables[documents[t] * most + positions[t] / BLOCK];
            ptrdiff_t place = (block * BLOCK + positions[t] % BLOCK) * K * E;
            memcpy(keys + place, k + t * K * E, K * E * sizeof(TYPE));
            memcpy(values + place, v + t * K * E, K * E * sizeof(TYPE));
        }
#pragma omp for schedule(dynamic, 1)
        for (ptrdiff_t i = 0; i < T * K; i++) {
            ptrdiff_t t = i / K, head = i % K, to = positions[t] + 1;
            if (!z) continue;
            ptrdiff_t from = window && to > window ? to - window : 0;
            const int32_t *table = tables + documents[t] * most;
            const TYPE *q_of = q + (t * H + head * G) * E;
            TYPE *y_of = y + (t * H + head * G) * E;
            if (E == 64) ATTEND(y_of, q_of, keys + head * E, values + head * E, table, from, to, G, K, 64, scale, z, own);
            else ATTEND(y_of, q_of, keys + head * E, values + head * E, table, from, to, G, K, E, scale, z, own);
        }
    }
    return failed;
}

#undef NAME
#undef ATTEND
#undef TYPE
#undef LOAD
#undef STORE
