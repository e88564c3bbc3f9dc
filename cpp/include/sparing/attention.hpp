// Attention over a band of each segment of keys, in bfloat16: only blocks of keys that a tile of queries sees are
// touched.
//
// The keys come in segments. The first `sink` keys are visible to every query; in a segment behind them query i sees
// the keys j with |i * size / queries - j| < width, with a width for each head and segment.
#pragma once
#include "sparing/bfloat16.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sparing {

constexpr int kHeadDim = 64;

/// (rows, heads, tokens, kHeadDim), the last axis contiguous; strides in elements.
template <class T>
struct HeadsView {
    T *data = nullptr;
    size_t row = 0, head = 0, token = 0;
    T *at(size_t r, size_t h, size_t t) const { return data + r * row + h * head + t * token; }
};

struct KeySegment {
    int32_t start = 0, size = 0;
};

struct AttentionTask {
    HeadsView<const Bits16> q, k, v;
    HeadsView<Bits16> out;
    size_t rows = 0, heads = 0;
    int32_t queries = 0, keys = 0;
    int32_t sink = 0; ///< keys [0, sink) are visible to all
    std::span<const KeySegment> segments;
    const int32_t *widths = nullptr; ///< (heads, segments); 0 hides a segment, its size shows all of it
    float scale = 1;
};

/// Fills `out`. Throws Error(Argument) for segments outside the keys, a query that may see nothing, or an unknown
/// level.
void attend(const AttentionTask &task, const std::string &level, int num_threads);

/// Levels that this CPU can run, slowest first: "portable", "avx512bf16".
std::vector<std::string> available_attention();

} // namespace sparing
