// Batched insertion: search all items of a batch in the graph as it stands, then apply links grouped by target.
#include "sparing/build.hpp"
#include "sparing/parallel.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sparing {
namespace {

/// Items with counts that go up and down by one, in lists by count, so that one of the highest is always at hand.
class CountedItems {
  public:
    explicit CountedItems(size_t size) : counts_(size, 0), next_(size), previous_(size), first_(1, kNoItem) {
        for (size_t i = size; i-- > 0;) link(static_cast<uint32_t>(i));
    }
    /// Changes an item's count by 1 or -1, unless it was taken.
    void add(uint32_t item, int change) {
        if (counts_[item] == kTaken) return;
        unlink(item);
        counts_[item] += static_cast<uint32_t>(change);
        link(item);
        highest_ = std::max(highest_, counts_[item]);
    }
    /// There must be one left.
    uint32_t take_highest() {
        while (first_[highest_] == kNoItem) --highest_;
        const uint32_t item = first_[highest_];
        unlink(item);
        counts_[item] = kTaken;
        return item;
    }

  private:
    static constexpr uint32_t kTaken = 0xFFFFFFFF;
    void link(uint32_t item) {
        const uint32_t count = counts_[item];
        if (count >= first_.size()) first_.resize(count + 1, kNoItem);
        previous_[item] = kNoItem;
        next_[item] = first_[count];
        if (next_[item] != kNoItem) previous_[next_[item]] = item;
        first_[count] = item;
    }
    void unlink(uint32_t item) {
        (previous_[item] != kNoItem ? next_[previous_[item]] : first_[counts_[item]]) = next_[item];
        if (next_[item] != kNoItem) previous_[next_[item]] = previous_[item];
    }
    std::vector<uint32_t> counts_, next_, previous_, first_;
    uint32_t highest_ = 0;
};

constexpr size_t kFirstBatch = 256; ///< compared all with all

struct Worker {
    Scratch scratch;
    Query query, other;
    std::vector<Candidate> candidates, occluded;
    std::vector<uint32_t> open;
    std::vector<float> own_scores, scores;
    RowMemory row;
    SearchCounts counts;
};

void load_query(const Storage &storage, uint32_t item, RowMemory &memory, Query &query) {
    const Config &config = storage.config;
    const SparseRow row = config.doc_terms == 0 ? storage.sparse_row(item, memory) : SparseRow{};
    query_from_records(storage.layout, storage.center.span(), storage.head(item), storage.tail(item),
                       config.dense_weight, config.sparse_weight * config.scale, row, query);
}

Ranking ranking_of(const Storage &storage) { return {storage.config.similarity, storage.norms.data()}; }

/// Distance-like value under the construction similarity; smaller is nearer.
struct Nearness {
    const Storage &storage;
    float operator()(float inner, uint32_t a, uint32_t b) const {
        switch (storage.config.similarity) {
        case Similarity::L2:
            return storage.norms[a] + storage.norms[b] - 2 * inner;
        case Similarity::Cosine:
            return 1.F - inner / std::sqrt(storage.norms[a] * storage.norms[b] + 1e-20F);
        default:
            return -inner;
        }
    }
};

/// Picks up to `degree` of worker.candidates (inner products with `item`): a candidate stays if no kept one is nearer
/// to it than `item` is. `in_links`, if given, counts the links to each item.
size_t prune(const Storage &storage, uint32_t item, size_t degree, Worker &worker, uint32_t *out,
             const std::vector<uint32_t> *in_links = nullptr) {
    const Nearness nearness{storage};
    std::vector<Candidate> &candidates = worker.candidates;
    for (Candidate &c : candidates) c.score = -nearness(c.score, item, c.item);
    std::sort(candidates.begin(), candidates.end(), better);
    worker.occluded.clear();
    worker.open.clear();
    worker.own_scores.clear();
    for (size_t i = 0; i < candidates.size(); ++i) {
        if (candidates[i].item == item || (i > 0 && candidates[i].item == candidates[i - 1].item)) continue;
        worker.open.push_back(candidates[i].item);
        worker.own_scores.push_back(-candidates[i].score);
    }
    size_t kept = 0;
    std::vector<uint32_t> &open = worker.open;
    while (!open.empty() && kept < degree) {
        const uint32_t chosen = open.front();
        const float chosen_score = worker.own_scores.front();
        out[kept++] = chosen;
        open.erase(open.begin());
        worker.own_scores.erase(worker.own_scores.begin());
        if (open.empty() || kept == degree) break;
        load_query(storage, chosen, worker.row, worker.other);
        worker.scores.resize(open.size());
        score_codes(kernels(), storage.view(), worker.other, open.data(), open.size(), worker.scores.data());
        size_t left = 0;
        for (size_t i = 0; i < open.size(); ++i) {
            const float between = nearness(worker.scores[i], chosen, open[i]);
            // The second case: item, chosen and open[i] are the same thrice. Links to one of them are enough.
            if (between < worker.own_scores[i] || (between == worker.own_scores[i] && between == chosen_score)) {
                worker.occluded.push_back({-worker.own_scores[i], open[i]});
                continue;
            }
            open[left] = open[i];
            worker.own_scores[left++] = worker.own_scores[i];
        }
        open.resize(left);
        worker.own_scores.resize(left);
    }
    // Places left over go to the others: to those that fewest items link to, so that they can be found, or the nearest.
    if (kept < degree)
        std::sort(worker.occluded.begin(), worker.occluded.end(), [&](const Candidate &a, const Candidate &b) {
            const uint32_t x = in_links == nullptr ? 0 : (*in_links)[a.item],
                           y = in_links == nullptr ? 0 : (*in_links)[b.item];
            return x != y ? x < y : better(a, b);
        });
    for (size_t i = 0; kept < degree && i < worker.occluded.size(); ++i) out[kept++] = worker.occluded[i].item;
    return kept;
}

void score_items(const Storage &storage, const std::vector<uint32_t> &items, Worker &worker) {
    worker.scores.resize(items.size());
    score_codes(kernels(), storage.view(), worker.query, items.data(), items.size(), worker.scores.data());
    worker.candidates.clear();
    for (size_t i = 0; i < items.size(); ++i) worker.candidates.push_back({worker.scores[i], items[i]});
}

/// Forward links of a new item.
void link_forward(const Storage &storage, const Links &links, uint32_t item, size_t linked,
                  const std::vector<uint32_t> &peers, Worker &worker, Links &out, size_t row) {
    load_query(storage, item, worker.row, worker.query);
    if (linked == 0) {
        score_items(storage, peers, worker);
    } else {
        const SparseRow sparse = storage.sparse_row(item, worker.row);
        worker.query.seed_terms.assign(sparse.terms, sparse.terms + sparse.size);
        std::vector<uint32_t> order(sparse.size);
        std::iota(order.begin(), order.end(), 0U);
        const size_t top = std::min<size_t>(order.size(), storage.config.seed_terms);
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                          [&](uint32_t a, uint32_t b) {
                              const float x = std::fabs(sparse.values[a]), y = std::fabs(sparse.values[b]);
                              return x != y ? x > y : a < b;
                          });
        worker.query.seed_terms.resize(top);
        for (size_t i = 0; i < top; ++i) worker.query.seed_terms[i] = sparse.terms[order[i]];
        walk(storage, links, worker.query, ranking_of(storage), storage.config.build_beam, worker.scratch,
             worker.counts);
        std::vector<uint32_t> items;
        for (const Candidate &c : worker.scratch.pool) items.push_back(c.item);
        // Links that others made to this item before its turn.
        for (size_t j = 0; j < links.count(item); ++j)
            if (std::find(items.begin(), items.end(), links.row(item)[j]) == items.end())
                items.push_back(links.row(item)[j]);
        score_items(storage, items, worker);
    }
    const size_t kept = prune(storage, item, storage.config.degree, worker, out.row(row));
    std::fill(out.row(row) + kept, out.row(row) + out.stride, kNoItem);
}

struct Reverse {
    uint32_t target, source;
    bool operator<(const Reverse &other) const {
        return target != other.target ? target < other.target : source < other.source;
    }
};

/// New rows of all targets of `pairs` with links target -> source added; a row that would overflow is pruned to
/// `degree`.
struct ReverseRows {
    std::vector<uint32_t> targets;
    Links rows;
};

ReverseRows link_reverse(const Storage &storage, const Links &links, std::vector<Reverse> &pairs, int num_threads,
                         std::vector<Worker> &workers) {
    std::sort(pairs.begin(), pairs.end());
    ReverseRows out;
    std::vector<size_t> groups;
    for (size_t i = 0; i < pairs.size(); ++i)
        if (i == 0 || pairs[i].target != pairs[i - 1].target) {
            groups.push_back(i);
            out.targets.push_back(pairs[i].target);
        }
    groups.push_back(pairs.size());
    out.rows = Links{Buffer<uint32_t>(out.targets.size() * links.stride, kNoItem), links.stride};
    uint32_t *const rows = out.rows.data.data();
    parallel_for(out.targets.size(), num_threads, 32, [&](int w, size_t g) {
        Worker &worker = workers[static_cast<size_t>(w)];
        const uint32_t target = out.targets[g];
        const uint32_t *row = links.row(target);
        const size_t count = links.count(target);
        std::vector<uint32_t> items(row, row + count);
        for (size_t i = groups[g]; i < groups[g + 1]; ++i)
            if (std::find(row, row + count, pairs[i].source) == row + count) items.push_back(pairs[i].source);
        uint32_t *to = rows + g * links.stride;
        if (items.size() <= links.stride) {
            std::copy(items.begin(), items.end(), to);
            return;
        }
        load_query(storage, target, worker.row, worker.query);
        score_items(storage, items, worker);
        prune(storage, target, storage.config.degree, worker, to);
    });
    return out;
}

} // namespace

void insert_items(const Storage &storage, Links &links, size_t first, int num_threads, const BuildProgress &progress,
                  const Commit &commit) {
    const size_t n = storage.size(), degree = storage.config.degree;
    std::vector<Worker> workers(static_cast<size_t>(resolve_threads(num_threads)));
    std::vector<Reverse> pairs;
    for (size_t begin = first; begin < n;) {
        const size_t size = begin == 0 ? kFirstBatch : std::max<size_t>(64, begin / 20);
        const size_t end = std::min(n, begin + size);
        std::vector<uint32_t> peers;
        if (begin == 0)
            for (size_t i = 0; i < end; ++i) peers.push_back(static_cast<uint32_t>(i));
        Links fresh{Buffer<uint32_t>((end - begin) * degree, kNoItem), degree};
        parallel_for(end - begin, num_threads, 8, [&](int w, size_t i) {
            link_forward(storage, links, static_cast<uint32_t>(begin + i), begin, peers,
                         workers[static_cast<size_t>(w)], fresh, i);
        });
        pairs.clear();
        for (size_t i = begin; i < end; ++i) {
            const uint32_t *row = fresh.row(i - begin);
            for (size_t j = 0; j < degree && row[j] != kNoItem; ++j)
                pairs.push_back({row[j], static_cast<uint32_t>(i)});
        }
        commit([&] {
            for (size_t i = begin; i < end; ++i)
                std::copy(fresh.row(i - begin), fresh.row(i - begin) + degree, links.row(i));
        });
        // Items of the batch may be targets too: seeds and entry points lead to items that are not linked yet.
        const ReverseRows reverse = link_reverse(storage, links, pairs, num_threads, workers);
        commit([&] {
            for (size_t g = 0; g < reverse.targets.size(); ++g)
                std::copy(reverse.rows.row(g), reverse.rows.row(g) + links.stride, links.row(reverse.targets[g]));
        });
        begin = end;
        if (progress) progress(begin - first, n - first);
    }
}

Links widen_links(const Links &links, size_t stride, size_t num_items) {
    Links wide{Buffer<uint32_t>(num_items * stride, kNoItem), stride};
    for (size_t i = 0; i * links.stride < links.data.size(); ++i)
        std::copy(links.row(i), links.row(i) + links.stride, wide.row(i));
    return wide;
}

Links narrow_links(const Storage &storage, const Links &links, size_t stride, int num_threads) {
    const size_t n = storage.size();
    Links narrow{Buffer<uint32_t>(n * stride, kNoItem), stride};
    std::vector<uint32_t> in_links(n, 0);
    for (const uint32_t item : links.data.span())
        if (item != kNoItem) ++in_links[item];
    std::vector<Worker> workers(static_cast<size_t>(resolve_threads(num_threads)));
    parallel_for(n, num_threads, 32, [&](int w, size_t i) {
        Worker &worker = workers[static_cast<size_t>(w)];
        const size_t count = links.count(i);
        if (count <= stride) {
            std::copy(links.row(i), links.row(i) + count, narrow.row(i));
            return;
        }
        load_query(storage, static_cast<uint32_t>(i), worker.row, worker.query);
        score_items(storage, {links.row(i), links.row(i) + count}, worker);
        prune(storage, static_cast<uint32_t>(i), stride, worker, narrow.row(i), &in_links);
    });
    return narrow;
}

void bypass_deleted(const Storage &storage, Links &links, int num_threads) {
    const size_t n = storage.size();
    const Links before{Buffer<uint32_t>::copy_of(links.data.data(), links.data.size()), links.stride};
    std::vector<Worker> workers(static_cast<size_t>(resolve_threads(num_threads)));
    parallel_for(n, num_threads, 32, [&](int w, size_t i) {
        if (storage.deleted[i] != 0) return;
        Worker &worker = workers[static_cast<size_t>(w)];
        std::vector<uint32_t> items;
        bool broken = false;
        auto collect = [&](uint32_t item) {
            if (storage.deleted[item] == 0 && item != i && std::find(items.begin(), items.end(), item) == items.end())
                items.push_back(item);
        };
        for (size_t j = 0; j < before.count(i); ++j) {
            const uint32_t item = before.row(i)[j];
            collect(item);
            if (storage.deleted[item] == 0) continue;
            broken = true;
            for (size_t m = 0; m < before.count(item); ++m) collect(before.row(item)[m]);
        }
        if (!broken) return;
        load_query(storage, static_cast<uint32_t>(i), worker.row, worker.query);
        score_items(storage, items, worker);
        const size_t kept = prune(storage, static_cast<uint32_t>(i), storage.config.degree, worker, links.row(i));
        std::fill(links.row(i) + kept, links.row(i) + links.stride, kNoItem);
    });
}

std::vector<uint32_t> locality_order(const Storage &storage, const Links &links,
                                     const std::function<void()> &meanwhile) {
    constexpr size_t kWindow = 32; ///< items placed last, whose company the next one is chosen for
    constexpr size_t kPause = 4096;
    const size_t n = storage.size();
    std::vector<size_t> begin(n + 1, 0); // of the items that link to each
    for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < links.count(i); ++j) ++begin[links.row(i)[j] + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<uint32_t> sources(begin[n]);
    std::vector<size_t> end(begin.begin(), begin.end() - 1);
    for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < links.count(i); ++j) sources[end[links.row(i)[j]]++] = static_cast<uint32_t>(i);

    CountedItems left(n);
    const auto count_links = [&](uint32_t item, int change) {
        const uint32_t *row = links.row(item);
        for (size_t j = 0; j < links.stride && row[j] != kNoItem; ++j) left.add(row[j], change);
    };
    const auto count_company = [&](uint32_t item, int change) {
        count_links(item, change);
        for (size_t i = begin[item]; i < begin[item + 1]; ++i) {
            left.add(sources[i], change);
            count_links(sources[i], change);
        }
    };
    std::vector<uint32_t> order;
    order.reserve(n);
    while (order.size() < n) {
        if (order.size() % kPause == 0) meanwhile();
        order.push_back(left.take_highest());
        count_company(order.back(), 1);
        if (order.size() > kWindow) count_company(order[order.size() - 1 - kWindow], -1);
    }
    return order;
}

} // namespace sparing
