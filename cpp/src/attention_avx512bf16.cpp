// Windowed attention with AVX-512's dot products of bfloat16 pairs.
#include "attention_impl.hpp"

#include <immintrin.h>

namespace sparing::attention {

namespace {

__m512bh pair_everywhere(const Bits16 *pair) {
    int32_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
}

__m512bh load_pairs(const Bits16 *pairs) { return (__m512bh)_mm512_load_si512(pairs); }

/// e^x to about one part in 10^7; x at most 0, minus infinity gives 0.
__m512 exp_of(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504F));
    const __m512 whole = _mm512_roundscale_ps(_mm512_max_ps(t, _mm512_set1_ps(-200)), 8);
    const __m512 rest = _mm512_max_ps(_mm512_sub_ps(t, whole), _mm512_set1_ps(-1));
    __m512 p = _mm512_set1_ps(1.33335581e-3F);
    for (const float c : {9.61812910e-3F, 5.55041087e-2F, 2.40226507e-1F, 6.93147182e-1F, 1.0F})
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, whole);
}

/// Scores of 8 queries against several blocks of 16 keys.
template <int kBlocks>
void score_blocks(const Bits16 *queries, const Scratch &s, size_t first, float *scores) {
    __m512 sums[8][kBlocks];
    const Bits16 *keys[kBlocks];
    for (int b = 0; b < kBlocks; ++b)
        keys[b] = s.keys.data() + static_cast<size_t>(s.blocks[first + static_cast<size_t>(b)]) * kBlockSize;
    for (auto &row : sums)
        for (auto &sum : row) sum = _mm512_setzero_ps();
    for (int d = 0; d < kHeadDim; d += 2) {
        __m512bh of_keys[kBlocks];
        for (int b = 0; b < kBlocks; ++b) of_keys[b] = load_pairs(keys[b] + d * kBlock);
        for (int i = 0; i < 8; ++i) {
            const __m512bh q = pair_everywhere(queries + i * kHeadDim + d);
            for (int b = 0; b < kBlocks; ++b) sums[i][b] = _mm512_dpbf16_ps(sums[i][b], of_keys[b], q);
        }
    }
    for (size_t i = 0; i < 8; ++i)
        for (size_t b = 0; b < kBlocks; ++b) _mm512_store_ps(scores + i * s.stride + (first + b) * kBlock, sums[i][b]);
}

struct Avx512Bf16 {
    static void score(Scratch &s) {
        for (size_t i = 0; i < kTile; i += 8) {
            const Bits16 *queries = s.queries.data() + i * kHeadDim;
            float *scores = s.scores.data() + i * s.stride;
            size_t b = 0;
            for (; b + 3 <= s.blocks.size(); b += 3) score_blocks<3>(queries, s, b, scores);
            for (; b < s.blocks.size(); ++b) score_blocks<1>(queries, s, b, scores);
        }
    }

    static float softmax(const float *scores, size_t count, float scale, Bits16 *weights) {
        __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        for (size_t j = 0; j < count; j += kBlock) largest = _mm512_max_ps(largest, _mm512_load_ps(scores + j));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest)), factor = _mm512_set1_ps(scale);
        __m512 sum = _mm512_setzero_ps();
        for (size_t j = 0; j < count; j += kBlock) {
            const __m512 e = exp_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(scores + j), top), factor));
            sum = _mm512_add_ps(sum, e);
            _mm256_store_si256(reinterpret_cast<__m256i *>(weights + j), (__m256i)_mm512_cvtneps_pbh(e));
        }
        return 1 / _mm512_reduce_add_ps(sum);
    }

    static void combine(const Scratch &s, const float *inverse, Bits16 *out) {
        for (size_t i = 0; i < kTile; i += 4) {
            __m512 sums[4][4];
            for (auto &row : sums)
                for (auto &sum : row) sum = _mm512_setzero_ps();
            for (size_t b = 0; b < s.blocks.size() && inverse[i] != 0; ++b) {
                const Bits16 *values = s.values.data() + static_cast<size_t>(s.blocks[b]) * kBlockSize;
                const Bits16 *weights = s.weights.data() + i * s.stride + b * kBlock;
                for (size_t j = 0; j < kBlock; j += 2) {
                    __m512bh of_values[4];
                    for (size_t c = 0; c < 4; ++c) of_values[c] = load_pairs(values + j * kHeadDim + c * 32);
                    for (size_t r = 0; r < 4; ++r) {
                        const __m512bh w = pair_everywhere(weights + r * s.stride + j);
                        for (size_t c = 0; c < 4; ++c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], of_values[c], w);
                    }
                }
            }
            for (size_t r = 0; r < 4; ++r)
                for (size_t c = 0; c < 4; ++c) {
                    const __m512 done = _mm512_mul_ps(sums[r][c], _mm512_set1_ps(inverse[i + r]));
                    _mm256_store_si256(reinterpret_cast<__m256i *>(out + (i + r) * kHeadDim + c * 16),
                                       (__m256i)_mm512_cvtneps_pbh(done));
                }
        }
    }
};

} // namespace

void attend_avx512bf16(const AttentionTask &task, size_t row, size_t head, Scratch &scratch) {
    attend_head<Avx512Bf16>(task, row, head, scratch);
}

} // namespace sparing::attention
