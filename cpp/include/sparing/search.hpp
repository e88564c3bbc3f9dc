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
    uint64_t hops = 0, dense = 0, sparse = 0, exact = 0;
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
    std::vector<uint64_t> visited;
    std::vector<uint32_t> touched, block;
    std::vector<float> scores;
    std::vector<Candidate> beam, pool, frontier;
    std::vector<uint8_t> expanded;
    Query query;
    void begin(size_t num_items);
    void end();
    bool visit(uint32_t item) {
        uint64_t &word = visited[item >> 6];
        const uint64_t bit = uint64_t{1} << (item & 63);
        if ((word & bit) != 0) return false;
        word |= bit;
        touched.push_back(item >> 6);
        return true;
    }
};

/// Post-processes traversal scores (construction may rank by L2 or cosine); null keeps the inner product.
struct Ranking {
    Similarity similarity = Similarity::InnerProduct;
    const float *norms = nullptr;
    void apply(const uint32_t *items, size_t count, float *scores) const;
};

/// Fills scratch.beam with the `width` best items found, best first. `links` may be wider than storage.links.
void walk(const Storage &storage, const Links &links, const Query &query, const Ranking &ranking, size_t width,
          bool two_stage, Scratch &scratch, SearchCounts &counts);

/// The k best items by exact score among those allowed, best first, fewer if there are fewer.
void search_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                std::vector<Candidate> &out, SearchCounts &counts);

/// The same by scoring everything at full precision.
void search_exact_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                      std::vector<Candidate> &out);

} // namespace sparing
