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
    /// Bytes of 32 bits: all ones where the bit is set.
    SPARING_INLINE static __m256i load_bits(const uint8_t *bits) {
        int32_t word;
        std::memcpy(&word, bits, sizeof word);
        const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
        const __m256i each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
        return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, each), each);
    }
    SPARING_INLINE static __m256i load_query(const int8_t *query) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(query));
    }
    /// Adds the products of codes up to 15 with the query; 15 * 127 * 2 fits int16, so that none saturates.
    SPARING_INLINE static __m256i add_products(__m256i sum, __m256i codes, __m256i query) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, query), _mm256_set1_epi16(1)));
    }
    SPARING_INLINE static void dot_signs(const uint8_t *const *bits, const int8_t *query, size_t n, int32_t *sums) {
        __m256i sum[4] = {};
        for (size_t i = 0; i < n; i += 32) {
            const __m256i q = load_query(query + i);
            for (size_t j = 0; j < 4; ++j)
                sum[j] = add_products(sum[j], _mm256_and_si256(load_bits(bits[j] + i / 8), _mm256_set1_epi8(1)), q);
        }
        sum4([&](size_t j) { return sum[j]; }, sums);
    }
    SPARING_INLINE static void dot_planes(const uint8_t *const *planes, const int8_t *query, size_t n, int32_t *sums) {
        __m256i sum[4] = {};
        for (size_t i = 0; i < n; i += 32) {
            const __m256i q = load_query(query + i);
            for (size_t j = 0; j < 4; ++j) {
                const uint8_t *const bits = planes[j] + i / 8;
                const __m256i four = _mm256_and_si256(load_bits(bits), _mm256_set1_epi8(4));
                const __m256i two = _mm256_and_si256(load_bits(bits + n / 8), _mm256_set1_epi8(2));
                const __m256i one = _mm256_and_si256(load_bits(bits + n / 4), _mm256_set1_epi8(1));
                sum[j] = add_products(sum[j], _mm256_or_si256(_mm256_or_si256(four, two), one), q);
            }
        }
        sum4([&](size_t j) { return sum[j]; }, sums);
    }
};

} // namespace
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels{"avx2", Scoring<Avx2>::score_heads, Scoring<Avx2>::score_tails, Scoring<Avx2>::score_exact};
} // namespace sparing
