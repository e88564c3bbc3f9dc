// Construction: deterministic batched insertion without locks, diversity pruning, reverse links, repair after deletes.
#pragma once
#include "search.hpp"

#include <functional>

namespace sparing {

/// progress(done, total); may throw to stop.
using BuildProgress = std::function<void(size_t, size_t)>;

/// Runs a change of the links; an index that is being searched takes its lock around it.
using Commit = std::function<void(const std::function<void()> &)>;

/// Links items [first, storage.size()) into `links`; the same result for any number of threads.
void insert_items(const Storage &storage, Links &links, size_t first, int num_threads, const BuildProgress &progress,
                  const Commit &commit);

/// Copies links to rows of `stride`, pruning rows that are longer.
Links narrow_links(const Storage &storage, const Links &links, size_t stride, int num_threads);
Links widen_links(const Links &links, size_t stride, size_t num_items);

/// Replaces links to deleted items by the best of their live out-links.
void bypass_deleted(const Storage &storage, Links &links, int num_threads);

/// An order in which items that a walk meets together lie near each other: next always comes an item with the most
/// links from and to those placed last, and the most items that link to it and to one of them (Gorder; Wei, Yu, Lu and
/// Lin, "Speedup Graph Processing by Graph Ordering", SIGMOD 2016). Calls `meanwhile` now and then; it may throw to
/// stop.
std::vector<uint32_t> locality_order(const Storage &storage, const Links &links,
                                     const std::function<void()> &meanwhile);

} // namespace sparing
