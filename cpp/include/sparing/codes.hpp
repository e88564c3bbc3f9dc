// Traversal codes: two fixed-size records an item (quantised dense part, heaviest terms), and the query in matching
// form.
//
// Head, `head_stride` bytes, 64-byte aligned; by itself an estimate of the item's score:
//   signs   a bit a dimension, 1: not negative (none where a first look at heads is not asked for, but for int4)
//   steps   bfloat16 dense step, bfloat16 sparse step (0 where there is nothing)
//   offset  float32: what is left out of products with the dense part of the codes, which is x less a center common to
//           all items: <q, x> = <q - c, x - c> + offset of q + offset of x, with offset of x = <c, x> - <c, c> / 2.
//           Embeddings often share a direction; codes of what they share would drown the differences.
//   level   uint8: what a sign stands for, in steps
//   values  int8, one a group of kValueGroup terms: the mean of their values
//   terms   uint16 fingerprints of the first kHeadTerms terms, largest value first, padded with kNoTerm
// Tail, `tail_stride` bytes, 64-byte aligned; the rest:
//   dense   int4: three planes of a bit a dimension, 4, 2 and 1 each, beside the signs' 8 | int8: one byte | float32
//   terms   the other fingerprints
#pragma once
#include "bfloat16.hpp"
#include "column.hpp"

#include <cstdint>
#include <functional>
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

constexpr size_t kHeadTerms = 32;

struct CodeLayout {
    DenseCode dense = DenseCode::Int4;
    uint32_t dim = 0;
    uint32_t terms = 0;  ///< kept terms an item, whole groups; 0 when traversal reads the stored full vectors
    bool sketch = false; ///< heads are to estimate scores

    SPARING_INLINE size_t padded_dim() const { return (size_t{dim} + 63) / 64 * 64; }
    SPARING_INLINE bool has_signs() const { return sketch || dense == DenseCode::Int4; }
    /// Bytes of one bit a dimension.
    SPARING_INLINE size_t plane_bytes() const { return padded_dim() / 8; }
    SPARING_INLINE size_t head_terms() const { return terms < kHeadTerms ? terms : kHeadTerms; }
    SPARING_INLINE size_t steps_offset() const { return has_signs() ? plane_bytes() : 0; }
    SPARING_INLINE size_t offset_offset() const { return steps_offset() + 2 * sizeof(Bits16); }
    SPARING_INLINE size_t level_offset() const { return offset_offset() + sizeof(float); }
    SPARING_INLINE size_t values_offset() const { return level_offset() + 1; }
    SPARING_INLINE size_t head_terms_offset() const {
        return (values_offset() + (terms + kValueGroup - 1) / kValueGroup + 1) / 2 * 2;
    }
    SPARING_INLINE size_t head_stride() const { return (head_terms_offset() + 2 * head_terms() + 63) / 64 * 64; }
    SPARING_INLINE size_t tail_terms_offset() const {
        return dense == DenseCode::Int4   ? 3 * plane_bytes()
               : dense == DenseCode::Int8 ? padded_dim()
                                          : 4 * padded_dim();
    }
    SPARING_INLINE size_t tail_stride() const {
        return (tail_terms_offset() + 2 * (terms - head_terms()) + 63) / 64 * 64;
    }
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

/// A query ready for scoring: score(x) = dense_factor * step * (sum(code * q) - zero * sum_q) + offset_weight * offset
/// of x + offset + sparse_factor * sparse_step * sum(w * v).
struct Query {
    std::vector<int8_t, AlignedAllocator<int8_t>> dense_int8;
    std::vector<float, AlignedAllocator<float>> dense_float;
    int32_t dense_sum = 0;
    float dense_factor = 0; ///< 0: the dense part does not count
    float sign_factor = 0;  ///< for the estimate from signs
    float offset_weight = 0, offset = 0;
    float sparse_factor = 0; ///< for quantised terms
    float dense_weight = 0;  ///< for full-precision scores
    float sparse_weight = 0; ///< for full-precision scores, alignment included
    TermTable table;
    std::vector<uint32_t> seed_terms; ///< heaviest query terms first
};

/// Sum of squares; not finite if a value is not.
double squared_length(const float *x, size_t n);

/// What is read of a record: cache lines from `first` to before `last`.
struct Lines {
    size_t first, last;
    template <int locality>
    SPARING_INLINE void prefetch(const uint8_t *record) const {
        for (size_t line = first; line < last; ++line) __builtin_prefetch(record + 64 * line, 0, locality);
    }
};

SPARING_INLINE Lines head_lines(const CodeLayout &layout, const Query &query) {
    const bool sparse = query.sparse_factor != 0 && layout.terms != 0;
    return {0, ((sparse ? layout.head_stride() : layout.values_offset()) + 63) / 64};
}

SPARING_INLINE Lines tail_lines(const CodeLayout &layout, const Query &query) {
    const bool dense = query.dense_factor != 0, sparse = query.sparse_factor != 0 && layout.terms > kHeadTerms;
    const size_t begin = layout.tail_terms_offset();
    return {dense ? 0 : begin / 64, sparse ? layout.tail_stride() / 64 : dense ? (begin + 63) / 64 : 0};
}

/// The center of `count` rows that row(i) gives, null ones and zeros aside: their mean, in which rows longer than the
/// median count as if they were of its length, so that a few long ones do not move it.
std::vector<float> center_of(size_t count, size_t dim, const std::function<const float *(size_t)> &row);

/// Writes the records of one item; `center` may be empty, `dense` null (then all zeros), `row.size` 0.
void encode_item(const CodeLayout &layout, std::span<const float> center, const float *dense, const SparseRow &row,
                 uint8_t *head, uint8_t *tail);

/// Prepares a query. Only its `query_terms` heaviest terms (0: all) drive traversal; full-precision scores use all of
/// them.
void prepare_query(const CodeLayout &layout, std::span<const float> center, const float *dense, const SparseRow &row,
                   float dense_weight, float sparse_weight, size_t query_terms, Query &query);

/// Turns an item's own records into a query (construction compares items with items).
void query_from_records(const CodeLayout &layout, std::span<const float> center, const uint8_t *head,
                        const uint8_t *tail, float dense_weight, float sparse_weight, const SparseRow &full,
                        Query &query);

} // namespace sparing
