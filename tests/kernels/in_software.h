/* Tiles and pairs of bfloat16 for a processor that has neither: what their instructions do, number by number. Included
before all else. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define __AVX512BF16__ 1
#ifdef TILES_TOO
#define __AMX_BF16__ 1
#else
#undef __AMX_BF16__
#endif

static inline __m512 first_half(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }

static inline __m512 second_half(__m512i x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff0000)));
}

static inline __m512 pairs_in_software(__m512 sum, __m512i a, __m512i b) {
    sum = _mm512_fmadd_ps(second_half(a), second_half(b), sum);
    return _mm512_fmadd_ps(first_half(a), first_half(b), sum);
}

static inline __m256i rounded_in_software(__m512 x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_or_epi32(up, none, bits, _mm512_set1_epi32(0x400000)), 16));
}

#define __m512bh __m512i
#define _mm512_dpbf16_ps pairs_in_software
#define _mm512_cvtneps_pbh rounded_in_software
#define _mm512_cvtne2ps_pbh(high, low)                                                                                 \
    _mm512_inserti64x4(_mm512_castsi256_si512(rounded_in_software(low)), rounded_in_software(high), 1)

#ifdef __AMX_BF16__

/* Every tile has 16 rows of 64 bytes, as all of ours. */
static __thread __m512i tile_rows[8][16];

static inline void tile_loaded(int tile, const void *from, ptrdiff_t stride) {
    for (int i = 0; i < 16; i++) tile_rows[tile][i] = _mm512_loadu_si512((const char *)from + i * stride);
}

static inline void tile_stored(int tile, void *to, ptrdiff_t stride) {
    for (int i = 0; i < 16; i++) _mm512_storeu_si512((char *)to + i * stride, tile_rows[tile][i]);
}

static inline void tile_product(int sum, int a, int b) {
    for (int i = 0; i < 16; i++) {
        __m512 row = _mm512_castsi512_ps(tile_rows[sum][i]);
        for (int k = 0; k < 16; k++) {
            int32_t pair;
            memcpy(&pair, (const char *)&tile_rows[a][i] + 4 * k, 4);
            row = pairs_in_software(row, _mm512_set1_epi32(pair), tile_rows[b][k]);
        }
        tile_rows[sum][i] = _mm512_castps_si512(row);
    }
}

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#define _tile_loadd tile_loaded
#define _tile_stream_loadd tile_loaded
#define _tile_stored tile_stored
#define _tile_zero(tile) memset(tile_rows[tile], 0, sizeof(tile_rows[tile]))
#define _tile_dpbf16ps tile_product
#define _tile_loadconfig(from) (void)(from)
#define _tile_storeconfig(to) memset(to, 0, 64)
#define _tile_release() (void)0
#define syscall(...) 0

#endif
