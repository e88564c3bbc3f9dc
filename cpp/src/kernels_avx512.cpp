// AVX-512 kernels (F, BW, VL, VNNI, VBMI-free): term look-up by register permutation, integer dots by VNNI.
#include "kernels_impl.hpp"

#include <immintrin.h>

namespace sparing {
namespace {

struct Avx512 {
    static float dot_float(const float *a, const float *b, size_t n) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        size_t i = 0;
        for (; i + 32 <= n; i += 32) {
            even = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), even);
            odd = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16), odd);
        }
        for (; i < n; i += 16) {
            const __mmask16 mask = n - i >= 16 ? __mmask16{0xFFFF} : static_cast<__mmask16>((1U << (n - i)) - 1U);
            even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), even);
        }
        return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
    }
    static int32_t dot_int8(const uint8_t *codes, const int8_t *query, size_t n) {
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = 0; i < n; i += 64)
            sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(codes + i), _mm512_loadu_si512(query + i));
        return _mm512_reduce_add_epi32(sum);
    }
    static int32_t dot_int4(const uint8_t *codes, const int8_t *query, size_t n) {
        const __m512i low = _mm512_set1_epi8(15);
        __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
        for (size_t block = 0; block < n; block += 128, codes += 64, query += 128) {
            const __m512i c = _mm512_loadu_si512(codes);
            even = _mm512_dpbusd_epi32(even, _mm512_and_si512(c, low), _mm512_loadu_si512(query));
            odd = _mm512_dpbusd_epi32(odd, _mm512_and_si512(_mm512_srli_epi16(c, 4), low),
                                      _mm512_loadu_si512(query + 64));
        }
        return _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
    }

    static __m512i permute(const void *table, __m512i index) {
        const auto *words = static_cast<const uint16_t *>(table);
        return _mm512_permutex2var_epi16(_mm512_load_si512(words), index, _mm512_load_si512(words + 32));
    }

    static int32_t match_codes(const TermTable &table, const uint16_t *prints, const int8_t *values, size_t n) {
        const __m512i multiplier = _mm512_set1_epi16(static_cast<int16_t>(table.multiplier));
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = 0; i < n; i += 32) {
            const __mmask32 mask = n - i >= 32 ? ~__mmask32{0} : (__mmask32{1} << (n - i)) - 1U;
            const __m512i print = _mm512_maskz_loadu_epi16(mask, prints + i);
            const __m512i value = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, values + i));
            const __m512i bucket = _mm512_srli_epi16(_mm512_mullo_epi16(print, multiplier), 10);
            for (size_t r = 0; r < table.num_rounds; ++r) {
                const TermTable::Round &round = table.rounds[r];
                const __mmask32 hit = _mm512_cmpeq_epi16_mask(permute(round.prints, bucket), print);
                sum = _mm512_dpwssd_epi32(sum, _mm512_maskz_mov_epi16(hit, permute(round.weights, bucket)), value);
            }
        }
        return _mm512_reduce_add_epi32(sum);
    }

    static float match_full(const TermTable &table, const uint32_t *terms, const float *values, size_t n) {
        const __m512i fold = _mm512_set1_epi32(0x9E3B), low = _mm512_set1_epi32(0xFFFF);
        const __m512i none = _mm512_set1_epi16(static_cast<int16_t>(kNoTerm)),
                      other = _mm512_set1_epi16(static_cast<int16_t>(0xFFFE));
        const __m512i factor = _mm512_set1_epi16(static_cast<int16_t>(table.multiplier));
        float sum = 0;
        auto half = [&](__mmask16 mask, const uint32_t *from) {
            const __m512i term = _mm512_maskz_loadu_epi32(mask, from);
            const __m512i folded = _mm512_xor_si512(term, _mm512_mullo_epi32(_mm512_srli_epi32(term, 16), fold));
            return _mm512_cvtepi32_epi16(_mm512_and_si512(folded, low));
        };
        for (size_t i = 0; i < n; i += 32) {
            const size_t left = n - i;
            const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1U;
            const __m256i first = half(static_cast<__mmask16>(mask), terms + i);
            const __m256i second = half(static_cast<__mmask16>(mask >> 16), terms + i + 16);
            __m512i print = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
            print = _mm512_mask_mov_epi16(print, _mm512_cmpeq_epi16_mask(print, none), other);
            const __m512i bucket = _mm512_srli_epi16(_mm512_mullo_epi16(print, factor), 10);
            __mmask32 hits = 0;
            for (size_t r = 0; r < table.num_rounds; ++r)
                hits |= _mm512_cmpeq_epi16_mask(permute(table.rounds[r].prints, bucket), print);
            for (hits &= mask; hits != 0; hits &= hits - 1) {
                const size_t j = i + static_cast<size_t>(__builtin_ctz(hits));
                sum += exact_weight(table, terms[j]) * values[j];
            }
        }
        return sum;
    }
};

} // namespace
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels{"avx512", Scoring<Avx512>::score_codes, Scoring<Avx512>::score_exact};
} // namespace sparing
