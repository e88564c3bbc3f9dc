// The graph walk and what surrounds it.
#include "sparing/search.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace sparing {

void Scratch::begin(size_t num_items) {
    visited.resize((num_items + 63) / 64, 0);
    touched.clear();
}

void Scratch::end() {
    for (const uint32_t word : touched) visited[word] = 0;
    touched.clear();
}

void Ranking::apply(const uint32_t *items, size_t count, float *scores) const {
    if (similarity == Similarity::L2)
        for (size_t i = 0; i < count; ++i) scores[i] = 2 * scores[i] - norms[items[i]];
    else if (similarity == Similarity::Cosine)
        for (size_t i = 0; i < count; ++i) scores[i] /= std::sqrt(norms[items[i]] + 1e-20F);
}

namespace {

constexpr uint32_t kExpanded = 0x80000000U;

/// Fixed-width list of the best candidates, sorted, with a cursor to the best one not yet expanded.
class Beam {
  public:
    Beam(std::vector<Candidate> &memory, size_t width) : entries_(memory), width_(width) { entries_.resize(width + 1); }
    bool admits(float score) const { return size_ < width_ || score > entries_[size_ - 1].score; }
    void insert(Candidate candidate) {
        size_t at = size_;
        size_t low = 0;
        while (low < at) {
            const size_t middle = (low + at) / 2;
            const Candidate other{entries_[middle].score, entries_[middle].item & ~kExpanded};
            if (better(candidate, other))
                at = middle;
            else
                low = middle + 1;
        }
        if (at >= width_) return;
        std::memmove(&entries_[at + 1], &entries_[at], (size_ - at) * sizeof(Candidate));
        entries_[at] = candidate;
        size_ = std::min(size_ + 1, width_);
        cursor_ = std::min(cursor_, at);
    }
    /// The best unexpanded item, marked expanded; kNoItem when none is left.
    uint32_t next() {
        while (cursor_ < size_ && (entries_[cursor_].item & kExpanded) != 0) ++cursor_;
        if (cursor_ >= size_) return kNoItem;
        const uint32_t item = entries_[cursor_].item;
        entries_[cursor_].item |= kExpanded;
        return item;
    }
    /// Calls body(item) for the `count` best unexpanded items.
    template <class Body>
    void each_open(size_t count, Body &&body) const {
        for (size_t i = cursor_; i < size_ && count != 0; ++i)
            if ((entries_[i].item & kExpanded) == 0) body(entries_[i].item), --count;
    }
    float best() const { return size_ == 0 ? 0.F : entries_[0].score; }
    size_t size() const { return size_; }
    Candidate &operator[](size_t i) { return entries_[i]; }
    void sort() {
        std::sort(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(size_),
                  [](const Candidate &a, const Candidate &b) {
                      return better({a.score, a.item & ~kExpanded}, {b.score, b.item & ~kExpanded});
                  });
        cursor_ = 0;
    }
    void finish() {
        entries_.resize(size_);
        for (Candidate &entry : entries_) entry.item &= ~kExpanded;
    }

  private:
    std::vector<Candidate> &entries_;
    size_t width_, size_ = 0, cursor_ = 0;
};

void score_block(const Storage &storage, const Query &query, const Ranking &ranking, Stage stage, Scratch &scratch,
                 SearchCounts &counts) {
    scratch.scores.resize(scratch.block.size());
    kernels().score_codes(storage.view(), query, stage, scratch.block.data(), scratch.block.size(),
                          scratch.scores.data());
    ranking.apply(scratch.block.data(), scratch.block.size(), scratch.scores.data());
    if (query.dense_factor != 0) counts.dense += scratch.block.size();
    if (stage == Stage::Hybrid && query.sparse_factor != 0) counts.sparse += scratch.block.size();
}

/// Unvisited starting items into scratch.block: entry points, and the seeds of the heaviest query terms.
void gather_starts(const Storage &storage, const Query &query, Scratch &scratch) {
    scratch.block.clear();
    if (query.sparse_factor != 0 && storage.seeds.num_buckets != 0) {
        const size_t terms = std::min<size_t>(query.seed_terms.size(), storage.config.seed_terms);
        for (size_t t = 0; t < terms; ++t) {
            const uint32_t *row = storage.seeds.row(query.seed_terms[t]);
            for (size_t j = 0; j < storage.seeds.per_term && row[j] != kNoItem; ++j)
                if (scratch.visit(row[j])) scratch.block.push_back(row[j]);
        }
    }
    for (size_t i = 0; i < storage.entries.size(); ++i)
        if (scratch.visit(storage.entries[i])) scratch.block.push_back(storage.entries[i]);
}

void gather_neighbours(const Links &links, uint32_t item, Scratch &scratch) {
    const uint32_t *row = links.row(item);
    for (size_t j = 0; j < links.stride && row[j] != kNoItem; ++j)
        if (scratch.visit(row[j])) scratch.block.push_back(row[j]);
}

bool is_allowed(const Storage &storage, const SearchOptions &options, uint32_t item) {
    if (storage.deleted[item] != 0) return false;
    return options.allowed == nullptr || (options.allowed[item >> 6] >> (item & 63) & 1U) != 0;
}

/// Calls body(item) for every allowed item, in order.
template <class Body>
void each_allowed(const Storage &storage, const SearchOptions &options, Body &&body) {
    const size_t n = storage.size();
    for (size_t word = 0; word < (n + 63) / 64; ++word) {
        const uint64_t inside = n - word * 64 >= 64 ? ~uint64_t{0} : (uint64_t{1} << (n - word * 64)) - 1;
        for (uint64_t bits = options.allowed == nullptr ? inside : options.allowed[word]; bits != 0; bits &= bits - 1) {
            const auto item = static_cast<uint32_t>(word * 64 + static_cast<size_t>(std::countr_zero(bits)));
            if (storage.deleted[item] == 0) body(item);
        }
    }
}

/// Exact scores for all of scratch.pool; keeps the k best in `out`, ties by id.
void rescore(const Storage &storage, const Query &query, size_t k, Scratch &scratch, std::vector<Candidate> &out,
             SearchCounts &counts) {
    scratch.block.clear();
    for (const Candidate &c : scratch.pool) scratch.block.push_back(c.item);
    scratch.scores.resize(scratch.block.size());
    kernels().score_exact(storage.view(), query, scratch.block.data(), scratch.block.size(), scratch.scores.data());
    counts.exact += scratch.block.size();
    out.clear();
    for (size_t i = 0; i < scratch.block.size(); ++i) out.push_back({scratch.scores[i], scratch.block[i]});
    const auto by_id = [&](const Candidate &a, const Candidate &b) {
        return a.score != b.score ? a.score > b.score : storage.ids[a.item] < storage.ids[b.item];
    };
    const size_t keep = std::min(k, out.size());
    std::partial_sort(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(keep), out.end(), by_id);
    out.resize(keep);
}

/// Best-first walk that goes through every item but collects only allowed ones.
void walk_filtered(const Storage &storage, const Query &query, const SearchOptions &options, size_t width,
                   Scratch &scratch, SearchCounts &counts) {
    const Ranking plain;
    auto worse_first = [](const Candidate &a, const Candidate &b) { return better(a, b); };
    auto better_first = [](const Candidate &a, const Candidate &b) { return better(b, a); };
    std::vector<Candidate> &found = scratch.pool, &frontier = scratch.frontier;
    found.clear();
    frontier.clear();
    auto take_block = [&] {
        score_block(storage, query, plain, Stage::Hybrid, scratch, counts);
        for (size_t i = 0; i < scratch.block.size(); ++i) {
            const Candidate c{scratch.scores[i], scratch.block[i]};
            if (found.size() >= width && !better(c, found.front())) continue;
            frontier.push_back(c);
            std::push_heap(frontier.begin(), frontier.end(), better_first);
            if (!is_allowed(storage, options, c.item)) continue;
            found.push_back(c);
            std::push_heap(found.begin(), found.end(), worse_first);
            if (found.size() > width) {
                std::pop_heap(found.begin(), found.end(), worse_first);
                found.pop_back();
            }
        }
    };
    scratch.begin(storage.size());
    gather_starts(storage, query, scratch);
    take_block();
    while (!frontier.empty()) {
        const Candidate next = frontier.front();
        if (found.size() >= width && better(found.front(), next)) break;
        std::pop_heap(frontier.begin(), frontier.end(), better_first);
        frontier.pop_back();
        ++counts.hops;
        scratch.block.clear();
        gather_neighbours(storage.links, next.item, scratch);
        take_block();
    }
    scratch.end();
    std::sort(found.begin(), found.end(), better);
}

/// Scores every allowed item by code and keeps the `width` best.
void scan(const Storage &storage, const Query &query, const SearchOptions &options, size_t width, Scratch &scratch,
          SearchCounts &counts) {
    const Ranking plain;
    std::vector<Candidate> &found = scratch.pool;
    found.clear();
    scratch.block.clear();
    auto flush = [&] {
        score_block(storage, query, plain, Stage::Hybrid, scratch, counts);
        for (size_t i = 0; i < scratch.block.size(); ++i) {
            const Candidate c{scratch.scores[i], scratch.block[i]};
            if (found.size() >= width && !better(c, found.front())) continue;
            if (found.size() >= width) {
                std::pop_heap(found.begin(), found.end(), better);
                found.back() = c;
            } else {
                found.push_back(c);
            }
            std::push_heap(found.begin(), found.end(), better);
        }
        scratch.block.clear();
    };
    each_allowed(storage, options, [&](uint32_t item) {
        scratch.block.push_back(item);
        if (scratch.block.size() == 256) flush();
    });
    flush();
    std::sort(found.begin(), found.end(), better);
}

/// Scanning wins when a walk, which meets one allowed item in n / allowed, would score as many items.
bool scan_is_cheaper(const Storage &storage, const SearchOptions &options, size_t width) {
    const double n = static_cast<double>(storage.size()), allowed = static_cast<double>(options.num_allowed);
    const double walk_cost = 10.0 * static_cast<double>(width) * n / std::max(allowed, 1.0);
    return allowed * 0.5 <= walk_cost;
}

} // namespace

void walk(const Storage &storage, const Links &links, const Query &query, const Ranking &ranking, size_t width,
          bool two_stage, Scratch &scratch, SearchCounts &counts) {
    Beam beam(scratch.beam, width);
    scratch.begin(storage.size());
    Stage stage = two_stage && query.dense_factor != 0 && query.sparse_factor != 0 ? Stage::DenseOnly : Stage::Hybrid;
    auto take_block = [&] {
        score_block(storage, query, ranking, stage, scratch, counts);
        for (size_t i = 0; i < scratch.block.size(); ++i)
            if (beam.admits(scratch.scores[i])) beam.insert({scratch.scores[i], scratch.block[i]});
    };
    gather_starts(storage, query, scratch);
    take_block();
    constexpr size_t kTogether = 2; ///< items expanded at once: longer blocks hide more of the memory's latency
    for (uint32_t item = beam.next(); item != kNoItem; item = beam.next()) {
        const float before = beam.best();
        scratch.block.clear();
        for (size_t taken = 0; item != kNoItem; item = beam.next()) {
            ++counts.hops;
            gather_neighbours(links, item, scratch);
            if (++taken == kTogether) break;
        }
        take_block();
        beam.each_open(kTogether, [&](uint32_t coming) {
            const uint32_t *row = links.row(coming);
            for (size_t j = 0; j < links.stride; j += 16) __builtin_prefetch(row + j);
        });
        if (stage == Stage::DenseOnly && beam.best() <= before) {
            // The dense walk has arrived: score the whole beam once with both parts and go on with both.
            stage = Stage::Hybrid;
            scratch.block.clear();
            for (size_t i = 0; i < beam.size(); ++i) scratch.block.push_back(beam[i].item & ~kExpanded);
            score_block(storage, query, ranking, stage, scratch, counts);
            for (size_t i = 0; i < beam.size(); ++i) beam[i].score = scratch.scores[i];
            beam.sort();
        }
    }
    scratch.end();
    beam.finish();
}

void search_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                std::vector<Candidate> &out, SearchCounts &counts) {
    out.clear();
    const size_t k = std::min(options.k, options.num_allowed);
    if (k == 0) return;
    const size_t width = std::max(options.beam, k);
    if (options.allowed == nullptr && !options.has_deleted) {
        walk(storage, storage.links, query, {}, std::min(width, storage.size()), storage.config.two_stage, scratch,
             counts);
        std::swap(scratch.pool, scratch.beam);
    } else if (options.num_allowed <= std::max<size_t>(512, 4 * width)) {
        search_exact_one(storage, query, {k, width, options.allowed, options.num_allowed, options.has_deleted}, scratch,
                         out);
        counts.exact += options.num_allowed;
        return;
    } else if (scan_is_cheaper(storage, options, width)) {
        scan(storage, query, options, width, scratch, counts);
    } else {
        walk_filtered(storage, query, options, width, scratch, counts);
    }
    if (scratch.pool.size() < k) scan(storage, query, options, width, scratch, counts); // the promise of k answers
    rescore(storage, query, k, scratch, out, counts);
}

void search_exact_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                      std::vector<Candidate> &out) {
    SearchCounts counts;
    std::vector<Candidate> &found = scratch.pool;
    found.clear();
    const auto by_id = [&](const Candidate &a, const Candidate &b) {
        return a.score != b.score ? a.score > b.score : storage.ids[a.item] < storage.ids[b.item];
    };
    scratch.block.clear();
    auto flush = [&] {
        scratch.scores.resize(scratch.block.size());
        kernels().score_exact(storage.view(), query, scratch.block.data(), scratch.block.size(), scratch.scores.data());
        for (size_t i = 0; i < scratch.block.size(); ++i) {
            const Candidate c{scratch.scores[i], scratch.block[i]};
            if (found.size() >= options.k && !by_id(c, found.front())) continue;
            if (found.size() >= options.k) {
                std::pop_heap(found.begin(), found.end(), by_id);
                found.pop_back();
            }
            found.push_back(c);
            std::push_heap(found.begin(), found.end(), by_id);
        }
        scratch.block.clear();
    };
    each_allowed(storage, options, [&](uint32_t item) {
        scratch.block.push_back(item);
        if (scratch.block.size() == 256) flush();
    });
    flush();
    std::sort(found.begin(), found.end(), by_id);
    out = found;
}

} // namespace sparing
