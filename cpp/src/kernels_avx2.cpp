// AVX2 + FMA kernels.
#include "kernels_impl.hpp"

#include <immintrin.h>
#include <type_traits>

namespace sparing {
namespace {

struct Avx2 : Portable {
    SPARING_INLINE static __m256 load(const float *from) { return _mm256_loadu_ps(from); }
    SPARING_INLINE static __m256 load(const Half *from) {
        const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
        const __m256i magnitude = _mm256_slli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFF)), 13);
        const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(bits, 15), 31);
        return _mm256_or_ps(_mm256_mul_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p112F)),
                            _mm256_castsi256_ps(sign));
    }

    template <class T>
    static float dot_float(const T *a, const float *b, size_t n) {
        __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            even = _mm256_fmadd_ps(load(a + i), _mm256_loadu_ps(b + i), even);
            odd = _mm256_fmadd_ps(load(a + i + 8), _mm256_loadu_ps(b + i + 8), odd);
        }
        even = _mm256_add_ps(even, odd);
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(even), _mm256_extractf128_ps(even, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        float sum = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
        for (; i < n; ++i) sum += widen(a[i]) * b[i];
        return sum;
    }
    /// Sums of the lanes of partial(0) .. partial(3), or of whole sums.
    template <class Partial>
    SPARING_INLINE static void sum4(Partial &&partial, int32_t *sums) {
        if constexpr (std::is_same_v<decltype(partial(0)), int32_t>) {
            Portable::sum4(partial, sums);
        } else {
            const __m256i ab = _mm256_hadd_epi32(partial(0), partial(1)),
                          cd = _mm256_hadd_epi32(partial(2), partial(3));
            const __m256i all = _mm256_hadd_epi32(ab, cd);
            _mm_storeu_si128(reinterpret_cast<__m128i *>(sums),
                             _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
        }
    }
    SPARING_INLINE static __m256i dot_int8(const uint8_t *codes, const int8_t *query, size_t n) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t i = 0; i < n; i += 16) {
            const __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes + i)));
            const __m256i q = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(query + i)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(c, q));
        }
        return sum;
    }
    SPARING_INLINE static __m256i dot_int4(const uint8_t *codes, const int8_t *query, size_t n) {
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
        return sum;
    }
};

} // namespace
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels{"avx2", Scoring<Avx2>::score_codes, Scoring<Avx2>::score_exact};
} // namespace sparing
