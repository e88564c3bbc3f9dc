// The loops of windowed attention around an instruction set's four pieces; included once for each of them.
#pragma once
#include "sparing/attention.hpp"
#include "sparing/buffer.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace sparing::attention {

constexpr int kBlock = 16; ///< keys a block
constexpr int kTile = 16;  ///< queries a tile
constexpr size_t kBlockSize = size_t{kBlock} * kHeadDim;

/// Packed keys: block after block, pair of dimensions after pair, 16 keys of two numbers each.
/// Packed values: block after block, pair of keys after pair, 64 dimensions of two numbers each.
struct Scratch {
    std::vector<Bits16, AlignedAllocator<Bits16>> keys, values, queries, weights;
    std::vector<float, AlignedAllocator<float>> scores;
    std::vector<int32_t> blocks;
    size_t stride = 0;

    explicit Scratch(int32_t num_keys) {
        const size_t blocks_in_all = (static_cast<size_t>(num_keys) + kBlock - 1) / kBlock;
        keys.resize(blocks_in_all * kBlockSize);
        values.resize(blocks_in_all * kBlockSize);
        queries.resize(size_t{kTile} * kHeadDim);
        // A little more than needed, so that rows do not fall on the same cache sets.
        stride = blocks_in_all * kBlock + 4 * kBlock;
        weights.resize(kTile * stride);
        scores.resize(kTile * stride);
        blocks.reserve(blocks_in_all);
    }
};

inline constexpr Bits16 kNothing[kHeadDim] = {};

struct Range {
    int32_t begin, end;
};

/// Keys of a segment, counted from its start, that queries first..last see.
inline Range visible(const KeySegment &segment, int32_t width, int32_t queries, int32_t first, int32_t last) {
    // In whole numbers: a rounded quotient would move keys across a window's edge.
    const int64_t low = int64_t{first} * segment.size / queries - width + 1;
    const int64_t high = (int64_t{last} * segment.size + queries - 1) / queries + width;
    return {static_cast<int32_t>(std::max<int64_t>(low, 0)),
            static_cast<int32_t>(std::min<int64_t>(high, segment.size))};
}

inline void pack(const AttentionTask &task, size_t row, size_t head, Scratch &scratch) {
    const int32_t padded = static_cast<int32_t>(scratch.keys.size() / kHeadDim);
    for (int32_t key = 0; key < padded; ++key) {
        Bits16 *keys = scratch.keys.data() + static_cast<size_t>(key / kBlock) * kBlockSize + key % kBlock * 2;
        Bits16 *values = scratch.values.data() + static_cast<size_t>(key / kBlock) * kBlockSize +
                         static_cast<size_t>(key % kBlock / 2) * 2 * kHeadDim + key % 2;
        const bool real = key < task.keys;
        const Bits16 *k = real ? task.k.at(row, head, static_cast<size_t>(key)) : kNothing;
        const Bits16 *v = real ? task.v.at(row, head, static_cast<size_t>(key)) : kNothing;
        for (int d = 0; d < kHeadDim; d += 2) std::memcpy(keys + d * kBlock, k + d, 2 * sizeof(Bits16));
        for (int d = 0; d < kHeadDim; ++d) values[2 * d] = v[d];
    }
}

/// Blocks with a key that some query of the tile sees, in order.
inline void find_blocks(const AttentionTask &task, const int32_t *widths, int32_t first, int32_t last,
                        std::vector<int32_t> &blocks) {
    blocks.clear();
    const auto add = [&](int32_t begin, int32_t end) {
        if (begin >= end) return;
        const int32_t next = blocks.empty() ? 0 : blocks.back() + 1;
        for (int32_t block = std::max(begin / kBlock, next); block <= (end - 1) / kBlock; ++block)
            blocks.push_back(block);
    };
    add(0, task.sink);
    for (size_t s = 0; s < task.segments.size(); ++s) {
        if (widths[s] <= 0) continue;
        const Range range = visible(task.segments[s], widths[s], task.queries, first, last);
        add(task.segments[s].start + range.begin, task.segments[s].start + range.end);
    }
}

/// Sets the scores of keys that one query does not see to minus infinity.
inline void hide(const AttentionTask &task, const int32_t *widths, int32_t query, const std::vector<int32_t> &blocks,
                 float *scores) {
    size_t at = 0;
    const auto hide_keys = [&](int32_t begin, int32_t end) {
        while (at < blocks.size() && (blocks[at] + 1) * kBlock <= begin) ++at;
        for (size_t b = at; b < blocks.size() && blocks[b] * kBlock < end; ++b) {
            const int32_t low = std::max(begin - blocks[b] * kBlock, 0);
            const int32_t high = std::min(end - blocks[b] * kBlock, kBlock);
            for (int32_t i = low; i < high; ++i)
                scores[b * kBlock + static_cast<size_t>(i)] = -std::numeric_limits<float>::infinity();
        }
    };
    int32_t seen = task.sink;
    for (size_t s = 0; s < task.segments.size(); ++s) {
        if (widths[s] <= 0) continue;
        const Range range = visible(task.segments[s], widths[s], task.queries, query, query);
        if (range.begin >= range.end) continue;
        hide_keys(seen, task.segments[s].start + range.begin);
        seen = task.segments[s].start + range.end;
    }
    hide_keys(seen, std::numeric_limits<int32_t>::max());
}

/// One head of one row.
template <class Isa>
void attend_head(const AttentionTask &task, size_t row, size_t head, Scratch &scratch) {
    pack(task, row, head, scratch);
    const int32_t *widths = task.widths + head * task.segments.size();
    for (int32_t begin = 0; begin < task.queries; begin += kTile) {
        const int32_t count = std::min(kTile, task.queries - begin);
        std::fill(scratch.queries.begin(), scratch.queries.end(), Bits16{0});
        for (int32_t i = 0; i < count; ++i)
            std::memcpy(scratch.queries.data() + i * kHeadDim, task.q.at(row, head, static_cast<size_t>(begin + i)),
                        kHeadDim * sizeof(Bits16));
        find_blocks(task, widths, begin, begin + count - 1, scratch.blocks);
        Isa::score(scratch);
        alignas(64) float inverse[kTile] = {};
        for (int32_t i = 0; i < count; ++i) {
            float *scores = scratch.scores.data() + static_cast<size_t>(i) * scratch.stride;
            hide(task, widths, begin + i, scratch.blocks, scores);
            Bits16 *weights = scratch.weights.data() + static_cast<size_t>(i) * scratch.stride;
            inverse[i] = Isa::softmax(scores, scratch.blocks.size() * kBlock, task.scale, weights);
        }
        alignas(64) Bits16 out[kTile * kHeadDim];
        Isa::combine(scratch, inverse, out);
        for (int32_t i = 0; i < count; ++i)
            std::memcpy(task.out.at(row, head, static_cast<size_t>(begin + i)), out + i * kHeadDim,
                        kHeadDim * sizeof(Bits16));
    }
}

} // namespace sparing::attention
