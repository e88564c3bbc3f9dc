// Windowed attention in plain loops: runs anywhere, and is what the other levels are compared with.
#include "attention_impl.hpp"

#include <cmath>

namespace sparing::attention {

namespace {

struct Portable {
    static void score(Scratch &s) {
        for (int i = 0; i < kTile; ++i)
            for (size_t b = 0; b < s.blocks.size(); ++b) {
                const Bits16 *keys = s.keys.data() + static_cast<size_t>(s.blocks[b]) * kBlockSize;
                float sums[kBlock] = {};
                for (int d = 0; d < kHeadDim; d += 2)
                    for (int e = 0; e < 2; ++e) {
                        const float q = widen_bits(s.queries[static_cast<size_t>(i * kHeadDim + d + e)]);
                        for (int j = 0; j < kBlock; ++j) sums[j] += q * widen_bits(keys[d * kBlock + 2 * j + e]);
                    }
                std::memcpy(s.scores.data() + static_cast<size_t>(i) * s.stride + b * kBlock, sums, sizeof sums);
            }
    }

    static float softmax(const float *scores, size_t count, float scale, Bits16 *weights) {
        float largest = -std::numeric_limits<float>::infinity(), sum = 0;
        for (size_t j = 0; j < count; ++j) largest = std::max(largest, scores[j]);
        for (size_t j = 0; j < count; ++j) {
            const float e = std::exp((scores[j] - largest) * scale);
            sum += e;
            weights[j] = narrow_bits(e);
        }
        return 1 / sum;
    }

    static void combine(const Scratch &s, const float *inverse, Bits16 *out) {
        for (int i = 0; i < kTile; ++i) {
            float sums[kHeadDim] = {};
            if (inverse[i] != 0)
                for (size_t b = 0; b < s.blocks.size(); ++b) {
                    const Bits16 *values = s.values.data() + static_cast<size_t>(s.blocks[b]) * kBlockSize;
                    for (int j = 0; j < kBlock; ++j) {
                        const float w = widen_bits(
                            s.weights[static_cast<size_t>(i) * s.stride + b * kBlock + static_cast<size_t>(j)]);
                        for (int d = 0; d < kHeadDim; ++d)
                            sums[d] += w * widen_bits(values[j / 2 * 2 * kHeadDim + 2 * d + j % 2]);
                    }
                }
            for (int d = 0; d < kHeadDim; ++d) out[i * kHeadDim + d] = narrow_bits(sums[d] * inverse[i]);
        }
    }
};

} // namespace

void attend_portable(const AttentionTask &task, size_t row, size_t head, Scratch &scratch) {
    attend_head<Portable>(task, row, head, scratch);
}

} // namespace sparing::attention
