// Index: a storage behind locks, with ids. Many threads may search while one changes it.
#pragma once
#include "build.hpp"

#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace sparing {

struct QueryBatch {
    ItemBatch items;                ///< dense and sparse query rows
    const float *weights = nullptr; ///< (size, 2)
    size_t query_terms = 0;
};

struct SearchOutput {
    int64_t *ids;  ///< (size, k), padded with -1
    float *scores; ///< (size, k), padded with -inf
    SearchCounts counts;
};

/// The arrays of a saved index, borrowed; `owner` keeps them alive.
struct SavedArrays {
    std::span<const int64_t> ids;
    std::span<const uint8_t> deleted, heads, tails;
    bool has_records = true; ///< false: center, heads and tails are to be made from the vectors
    std::variant<std::span<const Half>, std::span<const float>> dense, values;
    std::variant<std::span<const uint16_t>, std::span<const uint32_t>> terms;
    std::span<const float> center, norms;
    std::span<const uint64_t> row_begin;
    std::span<const uint32_t> links, entries, seeds;
    uint32_t seed_buckets = 0;
};

class Index {
  public:
    explicit Index(const Config &config);
    /// Checks every count, link and offset before anything is used; throws Error(Format).
    static std::unique_ptr<Index> open(const Config &config, const SavedArrays &arrays,
                                       std::shared_ptr<const void> owner, bool borrow);

    void add(const ItemBatch &batch, const int64_t *ids, int num_threads, const BuildProgress &progress);
    void remove(const int64_t *ids, size_t count);
    /// Replaces items that exist: one change, seen whole or not at all.
    void update(const ItemBatch &batch, const int64_t *ids, int num_threads);
    void compact(int num_threads);

    SearchOutput search(const QueryBatch &queries, size_t k, size_t beam, const int64_t *filter, size_t num_filter,
                        bool has_filter, bool exact, int num_threads, SearchOutput out) const;

    size_t size() const;
    size_t num_deleted() const;
    bool contains(int64_t id) const;
    const Storage &storage() const { return storage_; }
    /// While it is held no change can happen.
    std::shared_lock<std::shared_mutex> reader() const;

  private:
    std::unique_lock<std::shared_mutex> writer() const;
    void check_new_ids(const int64_t *ids, size_t count, bool must_exist) const;
    void insert(const ItemBatch &batch, const int64_t *ids, int num_threads, const BuildProgress &progress);
    void rebuild_id_map();

    Storage storage_;
    std::unordered_map<int64_t, uint32_t> slot_of_;
    size_t num_deleted_ = 0;
    mutable std::mutex change_; ///< one change at a time
    mutable std::mutex gate_;   ///< a waiting writer holds it, so that readers cannot starve it
    mutable std::shared_mutex access_;
    mutable std::mutex scratch_mutex_;
    mutable std::vector<std::unique_ptr<Scratch>> scratches_;
};

} // namespace sparing
