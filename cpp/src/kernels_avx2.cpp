// AVX2 + FMA kernels.
#include "kernels_impl.hpp"

#include <immintrin.h>

namespace sparing {
namespace {

int32_t sum_of(__m256i v) {
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xB1)));
}

struct Avx2 : Portable {
    static float dot_float(const float *a, const float *b, size_t n) {
        __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            even = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), even);
            odd = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), odd);
        }
        even = _mm256_add_ps(even, odd);
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(even), _mm256_extractf128_ps(even, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        float sum = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
        for (; i < n; ++i) sum += a[i] * b[i];
        return sum;
    }
    static int32_t dot_int8(const uint8_t *codes, const int8_t *query, size_t n) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t i = 0; i < n; i += 16) {
            const __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes + i)));
            const __m256i q = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(query + i)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(c, q));
        }
        return sum_of(sum);
    }
    static int32_t dot_int4(const uint8_t *codes, const int8_t *query, size_t n) {
        const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        __m256i sum = _mm256_setzero_si256();
        for (size_t block = 0; block < n; block += 128, codes += 64, query += 128)
            for (size_t j = 0; j < 64; j += 32) {
                const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + j));
                const __m256i q0 = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(query + j));
                const __m256i q1 = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(query + j + 64));
                // 15 * 127 * 2 fits int16, so neither product saturates.
                const __m256i lo = _mm256_maddubs_epi16(_mm256_and_si256(c, low), q0);
                const __m256i hi = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(c, 4), low), q1);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(lo, hi), ones));
            }
        return sum_of(sum);
    }
};

} // namespace
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels{"avx2", Scoring<Avx2>::score_codes, Scoring<Avx2>::score_exact};
} // namespace sparing
