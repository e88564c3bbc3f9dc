// Everything an index holds, as plain arrays: vectors, codes, links, entry points. No locks, no algorithms.
#pragma once
#include "codes.hpp"
#include "kernels.hpp"

#include <cstdint>
#include <vector>

namespace sparing {

constexpr uint32_t kNoItem = 0xFFFFFFFFU;

enum class Similarity : uint32_t { InnerProduct = 0, L2 = 1, Cosine = 2 };

struct Config {
    uint32_t dim = 0;
    DenseCode dense_code = DenseCode::Int4;
    uint32_t doc_terms =
        56; ///< kept terms an item in traversal, rounded up to whole groups; 0 keeps all, at full precision
    uint32_t query_terms = 0; ///< kept query terms in traversal; 0 keeps all
    uint32_t degree = 28;
    uint32_t build_beam = 128;
    Similarity similarity = Similarity::InnerProduct;
    float dense_weight = 0.5F, sparse_weight = 0.5F; ///< weights of construction
    float scale = 1.F;                               ///< alignment factor
    uint32_t num_entries = 32;
    uint32_t seeds_per_term = 8;
    uint32_t seed_terms = 8; ///< heaviest query terms that open a search
    bool two_stage = true;   ///< walks look at heads first
    uint64_t seed = 0;
};

/// Items handed in by a caller; terms of a row strictly ascending, everything finite (see validate_batch).
struct ItemBatch {
    size_t size = 0;
    const float *dense = nullptr;        ///< (size, dim) or null
    const uint64_t *row_begin = nullptr; ///< (size + 1) or null
    const uint32_t *terms = nullptr;
    const float *values = nullptr;

    const float *dense_row(size_t i, size_t dim) const { return dense == nullptr ? nullptr : dense + i * dim; }
    SparseRow sparse_row(size_t i) const {
        if (row_begin == nullptr) return {};
        return {terms + row_begin[i], values + row_begin[i], static_cast<size_t>(row_begin[i + 1] - row_begin[i])};
    }
};

/// Throws Error(NonFinite | SparseFormat) naming the first bad row.
void validate_batch(const ItemBatch &batch, size_t dim, const char *what);

/// Out-links of every item, `stride` a row, padded with kNoItem.
struct Links {
    Buffer<uint32_t> data;
    size_t stride = 0;

    const uint32_t *row(size_t i) const { return data.data() + i * stride; }
    uint32_t *row(size_t i) { return &data[i * stride]; }
    size_t count(size_t i) const {
        const uint32_t *links = row(i);
        size_t n = 0;
        while (n < stride && links[n] != kNoItem) ++n;
        return n;
    }
};

/// For each bucket of terms the few items in which such a term is heaviest: where a sparse query starts.
struct Seeds {
    Buffer<uint32_t> items; ///< (num_buckets, per_term), padded with kNoItem
    uint32_t num_buckets = 0;
    uint32_t per_term = 0;

    const uint32_t *row(uint32_t term) const {
        return items.data() + size_t{fingerprint(term) & (num_buckets - 1)} * per_term;
    }
};

struct RowMemory {
    std::vector<uint32_t> terms;
    std::vector<float> values;
};

struct Storage {
    Config config;
    CodeLayout layout;
    Buffer<int64_t> ids;
    Buffer<uint8_t> deleted;
    Buffer<float> center;         ///< of the dense parts, by the first items; empty where there were none
    Buffer<uint8_t> heads, tails; ///< the records of codes.hpp
    Column<float> dense;
    Buffer<uint64_t> row_begin;
    Column<uint32_t> terms;
    Column<float> values;
    Buffer<float> norms; ///< squared joint norm under the construction weights; empty for the inner product
    Links links;
    Buffer<uint32_t> entries;
    Seeds seeds;
    Buffer<float> seed_weights; ///< not saved; beside seeds.items

    explicit Storage(const Config &config);
    size_t size() const { return ids.size(); }
    ItemView view() const { return {layout, heads.data(), tails.data(), &dense, row_begin.data(), &terms, &values}; }
    /// The full sparse row of an item, written to `memory`.
    SparseRow sparse_row(size_t i, RowMemory &memory) const {
        const size_t begin = row_begin[i], size = row_begin[i + 1] - begin;
        memory.terms.resize(size);
        memory.values.resize(size);
        terms.read(begin, size, memory.terms.data());
        values.read(begin, size, memory.values.data());
        return {memory.terms.data(), memory.values.data(), size};
    }
    const uint8_t *head(size_t i) const { return heads.data() + i * layout.head_stride(); }
    const uint8_t *tail(size_t i) const { return tails.data() + i * layout.tail_stride(); }

    /// Appends items `order[i]` of the batch (vectors, codes, empty links); links and entries come later.
    void append(const ItemBatch &batch, const int64_t *ids, const std::vector<uint32_t> &order, int num_threads);
    /// Writes center and records anew from the stored vectors; a sparse part that is not finite counts as absent.
    void encode();
    void set_center(size_t count, const std::function<const float *(size_t)> &row);
    /// Drops the items from `count` on, and links to them.
    void truncate(size_t count);
    /// A new storage with items order[0], order[1], ... of this one; links are renumbered, links to others dropped.
    Storage select(const std::vector<uint32_t> &order) const;
    /// Recomputes entry points and, for items from `first` on (0: all), the seeds.
    void refresh_entries(size_t first);
};

} // namespace sparing
