// AVX-512 kernels (F, BW, VL, VNNI, VBMI-free): term look-up by register permutation, integer dots by VNNI.
#include "kernels_impl.hpp"

#include <immintrin.h>

namespace sparing {
namespace {

struct Avx512 {
    SPARING_INLINE static __m512 load(__mmask16 mask, const float *from) { return _mm512_maskz_loadu_ps(mask, from); }
    SPARING_INLINE static __m512 load(__mmask16 mask, const Half *from) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
    }
    SPARING_INLINE static __m512i load(__mmask16 mask, const uint32_t *from) {
        return _mm512_maskz_loadu_epi32(mask, from);
    }
    SPARING_INLINE static __m512i load(__mmask16 mask, const uint16_t *from) {
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    }

    template <class T>
    static float dot_float(const T *a, const float *b, size_t n) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        size_t i = 0;
        for (; i + 32 <= n; i += 32) {
            even = _mm512_fmadd_ps(load(0xFFFF, a + i), _mm512_loadu_ps(b + i), even);
            odd = _mm512_fmadd_ps(load(0xFFFF, a + i + 16), _mm512_loadu_ps(b + i + 16), odd);
        }
        for (; i < n; i += 16) {
            const __mmask16 mask = n - i >= 16 ? __mmask16{0xFFFF} : static_cast<__mmask16>((1U << (n - i)) - 1U);
            even = _mm512_fmadd_ps(load(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), even);
        }
        return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
    }
    /// Sums of the lanes of partial(0) .. partial(3).
    template <class Partial>
    SPARING_INLINE static void sum4(Partial &&partial, int32_t *sums) {
        auto fold = [](__m512i v) {
            return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
        };
        const __m256i a = fold(partial(0)), b = fold(partial(1)), c = fold(partial(2)), d = fold(partial(3));
        const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        const __m256i all = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(sums),
                         _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
    }
    SPARING_INLINE static __m512i dot_int8(const uint8_t *codes, const int8_t *query, size_t n) {
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = 0; i < n; i += 64)
            sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(codes + i), _mm512_loadu_si512(query + i));
        return sum;
    }
    SPARING_INLINE static __mmask64 load_bits(const uint8_t *bits) {
        __mmask64 mask;
        std::memcpy(&mask, bits, sizeof mask);
        return mask;
    }
    SPARING_INLINE static void dot_signs(const uint8_t *const *bits, const int8_t *query, size_t n, int32_t *sums) {
        const __m512i one = _mm512_set1_epi8(1);
        __m512i sum[4] = {};
        for (size_t i = 0; i < n; i += 64) {
            const __m512i q = _mm512_loadu_si512(query + i);
            for (size_t j = 0; j < 4; ++j)
                sum[j] = _mm512_dpbusd_epi32(sum[j], one, _mm512_maskz_mov_epi8(load_bits(bits[j] + i / 8), q));
        }
        sum4([&](size_t j) { return sum[j]; }, sums);
    }
    SPARING_INLINE static void dot_planes(const uint8_t *const *planes, const int8_t *query, size_t n, int32_t *sums) {
        const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2), four = _mm512_set1_epi8(4);
        __m512i sum[4] = {};
        for (size_t i = 0; i < n; i += 64) {
            const __m512i q = _mm512_loadu_si512(query + i);
            for (size_t j = 0; j < 4; ++j) {
                const uint8_t *const bits = planes[j] + i / 8;
                __m512i code = _mm512_maskz_mov_epi8(load_bits(bits), four);
                code = _mm512_mask_add_epi8(code, load_bits(bits + n / 8), code, two);
                code = _mm512_mask_add_epi8(code, load_bits(bits + n / 4), code, one);
                sum[j] = _mm512_dpbusd_epi32(sum[j], code, q);
            }
        }
        sum4([&](size_t j) { return sum[j]; }, sums);
    }

    SPARING_INLINE static __m512i permute(const void *table, __m512i index) {
        const auto *words = static_cast<const uint16_t *>(table);
        return _mm512_permutex2var_epi16(_mm512_load_si512(words), index, _mm512_load_si512(words + 32));
    }

    SPARING_INLINE static __m512i match_codes(const TermTable::Round *rounds, size_t num_rounds, uint16_t factor,
                                              const uint16_t *prints, const int8_t *values, size_t n) {
        const __m512i multiplier = _mm512_set1_epi16(static_cast<int16_t>(factor));
        // Byte j of four goes to the high halves of the 16-bit lanes 8 j to 8 j + 7, the low halves are zero.
        const __m512i spread = _mm512_or_si512(
            _mm512_set1_epi16(0x0080),
            _mm512_slli_epi16(
                _mm512_cvtepi8_epi16(_mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0)),
                8));
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = 0; i < n; i += 32) {
            const __mmask32 mask = n - i >= 32 ? ~__mmask32{0} : (__mmask32{1} << (n - i)) - 1U;
            const __m512i print = _mm512_maskz_loadu_epi16(mask, prints + i);
            int32_t four_values; // the steps behind the values make this safe at the end
            std::memcpy(&four_values, values + i / kValueGroup, sizeof four_values);
            const __m512i value = _mm512_srai_epi16(_mm512_shuffle_epi8(_mm512_set1_epi32(four_values), spread), 8);
            const __m512i bucket = _mm512_srli_epi16(_mm512_mullo_epi16(print, multiplier), 10);
            for (size_t r = 0; r < num_rounds; ++r) {
                const TermTable::Round &round = rounds[r];
                const __mmask32 hit = _mm512_mask_cmpeq_epi16_mask(mask, permute(round.prints, bucket), print);
                sum = _mm512_dpwssd_epi32(sum, _mm512_maskz_mov_epi16(hit, permute(round.weights, bucket)), value);
            }
        }
        return sum;
    }

    /// Lanes of a table of 64 words of 32 bits.
    SPARING_INLINE static __m512i permute64(const void *table, __m512i index) {
        const auto *words = static_cast<const uint32_t *>(table);
        const __m512i low = _mm512_permutex2var_epi32(_mm512_load_si512(words), index, _mm512_load_si512(words + 16)),
                      high = _mm512_permutex2var_epi32(_mm512_load_si512(words + 32), index,
                                                       _mm512_load_si512(words + 48));
        return _mm512_mask_mov_epi32(low, _mm512_test_epi32_mask(index, _mm512_set1_epi32(32)), high);
    }

    /// Without a branch on which terms match: that cannot be predicted, and a wrong guess would hold up the loads of
    /// the next items.
    template <class Term, class Value>
    static float match_full(const TermTable &table, const Term *terms, const Value *values, size_t n) {
        const __m512i fold = _mm512_set1_epi32(0x9E3B), low = _mm512_set1_epi32(0xFFFF),
                      factor = _mm512_set1_epi32(table.multiplier);
        __m512 sum = _mm512_setzero_ps();
        for (size_t i = 0; i < n; i += 16) {
            const __mmask16 mask = n - i >= 16 ? __mmask16{0xFFFF} : static_cast<__mmask16>((1U << (n - i)) - 1U);
            const __m512i term = load(mask, terms + i);
            const __m512 value = load(mask, values + i);
            __m512i print =
                _mm512_and_si512(_mm512_xor_si512(term, _mm512_mullo_epi32(_mm512_srli_epi32(term, 16), fold)), low);
            print = _mm512_mask_sub_epi32(print, _mm512_cmpeq_epi32_mask(print, low), print, _mm512_set1_epi32(1));
            const __m512i bucket = _mm512_srli_epi32(_mm512_and_si512(_mm512_mullo_epi32(print, factor), low), 10);
            for (size_t r = 0; r < table.num_rounds; ++r) {
                const TermTable::Round &round = table.rounds[r];
                const __mmask16 hit = _mm512_mask_cmpeq_epi32_mask(mask, permute64(round.terms, bucket), term);
                sum = _mm512_mask3_fmadd_ps(_mm512_castsi512_ps(permute64(round.exact, bucket)), value, sum, hit);
            }
        }
        return _mm512_reduce_add_ps(sum);
    }
};

} // namespace
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels{"avx512", Scoring<Avx512>::score_heads, Scoring<Avx512>::score_tails,
                             Scoring<Avx512>::score_exact};
} // namespace sparing
