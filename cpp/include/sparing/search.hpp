// Searching a storage: best-first graph walk on codes, exact re-scoring, scans for narrow filters, the exact oracle.
#pragma once
#include "storage.hpp"

namespace sparing {

struct Candidate {
    float score;
    uint32_t item;
};

/// Best first; equal scores by item, so that an order never depends on the way it was reached.
inline bool better(const Candidate &a, const Candidate &b) {
    return a.score != b.score ? a.score > b.score : a.item < b.item;
}

struct SearchCounts {
    uint64_t hops = 0, heads = 0, dense = 0, sparse = 0, exact = 0;
};

struct SearchOptions {
    size_t k = 10;
    size_t beam = 64;
    const uint64_t *allowed = nullptr; ///< bitmap over items, null: all that are not deleted
    size_t num_allowed = 0;            ///< set bits of `allowed` (or live items)
    bool has_deleted = false;
};

/// Working memory of one thread, reused over queries.
struct Scratch {
    std::vector<uint64_t> visited; ///< a bit an item
    std::vector<uint32_t> met;     ///< items visited by this search, in order; the last of them form the open block
    size_t num_met = 0, block_begin = 0;
    std::vector<uint64_t> beam, keys;
    std::vector<uint32_t> items;
    std::vector<float> scores, estimates;
    std::vector<Candidate> pool, frontier;
    Query query;

    void begin(size_t num_items);
    void end();
    void open_block() { block_begin = num_met; }
    std::span<const uint32_t> block() const { return {met.data() + block_begin, num_met - block_begin}; }
    /// Adds those of `row` that were not met before to the open block; `row` ends at kNoItem.
    void meet(const uint32_t *row, size_t size) {
        if (met.size() < num_met + size) met.resize(2 * (num_met + size));
        size_t count = num_met;
        for (size_t i = 0; i < size && row[i] != kNoItem; ++i) {
            // No branch on what cannot be predicted: the item is written in any case and kept if it is new.
            uint64_t &word = visited[row[i] >> 6];
            met[count] = row[i];
            count += ~(word >> (row[i] & 63)) & 1U;
            word |= uint64_t{1} << (row[i] & 63);
        }
        num_met = count;
    }
};

/// Post-processes traversal scores (construction may rank by L2 or cosine); null keeps the inner product.
struct Ranking {
    Similarity similarity = Similarity::InnerProduct;
    const float *norms = nullptr;
    void apply(const uint32_t *items, size_t count, float *scores) const;
};

/// Fills scratch.pool with the `width` best items found, best first. `links` may be wider than storage.links.
void walk(const Storage &storage, const Links &links, const Query &query, const Ranking &ranking, size_t width,
          Scratch &scratch, SearchCounts &counts);

/// The k best items by exact score among those allowed, best first, fewer if there are fewer.
void search_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                std::vector<Candidate> &out, SearchCounts &counts);

/// The same by scoring everything at full precision.
void search_exact_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                      std::vector<Candidate> &out);

} // namespace sparing
