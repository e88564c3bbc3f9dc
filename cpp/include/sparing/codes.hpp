// Traversal codes: one fixed-size record an item (quantised dense part, heaviest terms), and the query in matching
// form.
//
// Record, `stride` bytes, 64-byte aligned:
//   dense   int4: two dimensions a byte | int8: one byte | float32
//   terms   uint16 fingerprints in groups of kValueGroup, largest value first, padded with kNoTerm
//   values  int8, one a group: the mean of its terms' values
//   steps   float32 dense step, float32 sparse step (0 where the part is absent)
#pragma once
#include "column.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace sparing {

enum class DenseCode : uint32_t { Int4 = 0, Int8 = 1, Float32 = 2 };

constexpr uint16_t kNoTerm = 0xFFFF;
constexpr size_t kValueGroup = 8; ///< in order of value neighbours are so alike that one byte serves eight

/// A 16-bit name for a term id; the identity below 65,535, so only huge vocabularies can collide (and only in
/// traversal).
SPARING_INLINE uint16_t fingerprint(uint32_t term) {
    const uint32_t folded = (term ^ ((term >> 16) * 0x9E3Bu)) & 0xFFFFu;
    return folded == kNoTerm ? uint16_t{0xFFFE} : static_cast<uint16_t>(folded);
}

struct SparseRow {
    const uint32_t *terms = nullptr;
    const float *values = nullptr;
    size_t size = 0;
};

struct CodeLayout {
    DenseCode dense = DenseCode::Int4;
    uint32_t dim = 0;
    uint32_t terms = 0; ///< kept terms an item, whole groups; 0 when traversal reads the stored full vectors

    /// Bits of one dimension.
    SPARING_INLINE size_t bits() const { return dense == DenseCode::Int4 ? 4 : dense == DenseCode::Int8 ? 8 : 32; }
    SPARING_INLINE size_t padded_dim() const {
        const size_t unit = bits() == 4 ? 128 : bits() == 8 ? 64 : 16;
        return (dim + unit - 1) / unit * unit;
    }
    SPARING_INLINE size_t dense_bytes() const { return padded_dim() * bits() / 8; }
    SPARING_INLINE size_t terms_offset() const { return dense_bytes(); }
    SPARING_INLINE size_t values_offset() const { return terms_offset() + 2 * size_t{terms}; }
    SPARING_INLINE size_t steps_offset() const {
        return (values_offset() + (terms + kValueGroup - 1) / kValueGroup + 3) / 4 * 4;
    }
    SPARING_INLINE size_t stride() const { return (steps_offset() + 8 + 63) / 64 * 64; }
    /// Zero point of the unsigned dense codes: value = (code - zero) * step.
    SPARING_INLINE float zero() const { return bits() == 4 ? 7.5F : 128.F; }
};

/// Query terms in a perfect (or nearly perfect) hash of 64 buckets, so that 32 item terms are looked up in a few
/// instructions.
struct TermTable {
    static constexpr size_t kBuckets = 64;
    struct alignas(64) Round {
        uint16_t prints[kBuckets];
        int16_t weights[kBuckets];
        uint32_t terms[kBuckets];
        float exact[kBuckets];
    };
    uint16_t multiplier = 1;
    size_t num_rounds = 0;
    std::vector<Round> rounds;

    SPARING_INLINE static size_t bucket(uint16_t print, uint16_t multiplier) {
        return static_cast<uint16_t>(print * multiplier) >> 10;
    }
    /// `prints` and `weights` drive traversal; `terms` and `exact` drive full-precision scores.
    void assign(const SparseRow &row, std::span<const int16_t> weights, bool optimise);
};

/// A query ready for scoring: score(x) = dense_factor * step * (sum(code * q) - zero * sum_q) + sparse_factor *
/// sparse_step * sum(w * v).
struct Query {
    std::vector<int8_t, AlignedAllocator<int8_t>> dense_int8;
    std::vector<float, AlignedAllocator<float>> dense_float;
    int32_t dense_sum = 0;
    float dense_factor = 0;  ///< 0: the dense part does not count
    float sparse_factor = 0; ///< for quantised terms
    float dense_weight = 0;  ///< for full-precision scores
    float sparse_weight = 0; ///< for full-precision scores, alignment included
    TermTable table;
    std::vector<uint32_t> seed_terms; ///< heaviest query terms first
};

/// Writes the record of one item; `dense` may be null, `row.size` may be 0.
void encode_item(const CodeLayout &layout, const float *dense, const SparseRow &row, uint8_t *record);

/// Prepares a query. Only its `query_terms` heaviest terms (0: all) drive traversal; full-precision scores use all of
/// them.
void prepare_query(const CodeLayout &layout, const float *dense, const SparseRow &row, float dense_weight,
                   float sparse_weight, size_t query_terms, Query &query);

/// Turns an item's own record into a query (construction compares items with items).
void query_from_record(const CodeLayout &layout, const uint8_t *record, float dense_weight, float sparse_weight,
                       const SparseRow &full, Query &query);

} // namespace sparing
