// Scoring kernels, one table of functions an instruction set, chosen at run time.
#pragma once
#include "codes.hpp"

#include <string>

namespace sparing {

/// What the kernels read: records, and the stored full-precision vectors.
struct ItemView {
    CodeLayout layout;
    const uint8_t *heads = nullptr, *tails = nullptr;
    const Column<float> *dense = nullptr; ///< (n, dim) full precision, rows of absent parts are zero
    const uint64_t *row_begin = nullptr;
    const Column<uint32_t> *terms = nullptr;
    const Column<float> *values = nullptr;
};

struct Kernels {
    const char *name;
    /// out[i] = what the head of item ids[i] says about its score.
    void (*score_heads)(const ItemView &, const Query &, const uint32_t *ids, size_t count, float *out);
    /// Makes of scores by heads traversal scores, in place. Meanwhile the heads of `coming` items are asked for.
    void (*score_tails)(const ItemView &, const Query &, const uint32_t *ids, size_t count,
                        std::span<const uint32_t> coming, float *scores);
    /// out[i] = full-precision score of item ids[i]; `coming` more ids behind them may be fetched into the cache.
    void (*score_exact)(const ItemView &, const Query &, const uint32_t *ids, size_t count, size_t coming, float *out);
};

/// out[i] = traversal score of item ids[i].
inline void score_codes(const Kernels &kernels, const ItemView &view, const Query &query, const uint32_t *ids,
                        size_t count, float *out) {
    kernels.score_heads(view, query, ids, count, out);
    kernels.score_tails(view, query, ids, count, {}, out);
}

/// The best kernels of this CPU, or those named by the environment variable SPARING_SIMD (scalar, avx2, avx512).
const Kernels &kernels();
/// Kernels by name; throws Error(Argument) where the CPU cannot run them.
const Kernels &kernels(const std::string &name);
/// Names that this CPU can run, slowest first.
std::vector<std::string> available_kernels();

} // namespace sparing
