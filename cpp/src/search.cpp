// The graph walk and what surrounds it.
#include "sparing/search.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace sparing {

void Scratch::begin(size_t num_items) {
    visited.resize((num_items + 63) / 64, 0);
    num_met = block_begin = 0;
}

void Scratch::end() {
    for (size_t i = 0; i < num_met; ++i) visited[met[i] >> 6] = 0;
}

void Ranking::apply(const uint32_t *items, size_t count, float *scores) const {
    if (similarity == Similarity::L2)
        for (size_t i = 0; i < count; ++i) scores[i] = 2 * scores[i] - norms[items[i]];
    else if (similarity == Similarity::Cosine)
        for (size_t i = 0; i < count; ++i) scores[i] /= std::sqrt(norms[items[i]] + 1e-20F);
}

namespace {

/// Fixed-width list of the best candidates, best first, with a cursor to the best one not yet expanded. A candidate is
/// one number, so that one comparison orders by score, then by item: score | inverted item | still open.
class Beam {
  public:
    Beam(std::vector<uint64_t> &memory, size_t width) : width_(width) {
        if (memory.size() < width + 1) memory.resize(width + 1);
        keys_ = memory.data();
        keys_[0] = kNone;
    }
    static uint64_t key(float score, uint32_t item) {
        const auto bits = std::bit_cast<uint32_t>(score + 0.F); // -0 counts as 0
        const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
        return uint64_t{ordered} << 32 | uint64_t{(kLastItem - item) << 1} | 1U;
    }
    static uint32_t item_of(uint64_t key) { return kLastItem - (static_cast<uint32_t>(key) >> 1); }
    static float score_of(uint64_t key) {
        const auto ordered = static_cast<uint32_t>(key >> 32);
        return std::bit_cast<float>((ordered >> 31) != 0 ? ordered ^ 0x80000000U : ~ordered);
    }

    /// Places those of `keys` that are among the best.
    void insert(const uint64_t *keys, size_t count) {
        for (; count > kFew; keys += kFew, count -= kFew) insert_few(keys, kFew);
        insert_few(keys, count);
    }
    /// The best unexpanded item, marked expanded; kNoItem when none is left.
    uint32_t next() {
        while (cursor_ <= size_ && (keys_[cursor_] & 1U) == 0) ++cursor_;
        if (cursor_ > size_) return kNoItem;
        return item_of(keys_[cursor_]--);
    }
    /// Where keys end that cannot be among the best any more.
    uint64_t bar() const { return size_ == width_ ? keys_[size_] : 0; }
    float worst() const { return score_of(keys_[size_]); }
    size_t size() const { return size_; }
    uint64_t operator[](size_t i) const { return keys_[i + 1]; }

  private:
    static constexpr uint32_t kLastItem = 0x7FFFFFFFU;
    static constexpr uint64_t kNone = ~uint64_t{0}; ///< before the first: above all keys
    static constexpr size_t kFew = 16;

    /// Without a branch on what is larger: it cannot be predicted.
    void insert_few(const uint64_t *keys, size_t count) {
        uint64_t few[kFew + 1];
        few[0] = kNone;
        for (size_t i = 0; i < count; ++i) {
            size_t place = 1;
            for (size_t j = 0; j < count; ++j) place += keys[j] > keys[i] ? 1 : 0;
            few[place] = keys[i];
        }
        size_t old = size_;
        size_ = std::min(size_ + count, width_);
        for (size_t fall = old + count - size_; fall != 0; --fall) { // off the end
            const size_t is_old = keys_[old] < few[count] ? 1 : 0;
            old -= is_old;
            count -= 1 - is_old;
        }
        size_t end = size_;
        for (; count != 0; --end) {
            const uint64_t x = keys_[old], y = few[count];
            keys_[end] = x < y ? x : y;
            const size_t is_old = x < y ? 1 : 0;
            old -= is_old;
            count -= 1 - is_old;
        }
        if (end != size_) cursor_ = std::min(cursor_, end + 1);
    }

    uint64_t *keys_ = nullptr; ///< kNone, then the list
    size_t width_, size_ = 0, cursor_ = 1;
};

void count_scored(const Query &query, size_t count, SearchCounts &counts) {
    if (query.dense_factor != 0) counts.dense += count;
    if (query.sparse_factor != 0) counts.sparse += count;
}

void score_items(const Storage &storage, const Query &query, std::span<const uint32_t> items, Scratch &scratch,
                 SearchCounts &counts) {
    if (scratch.scores.size() < items.size()) scratch.scores.resize(2 * items.size());
    score_codes(kernels(), storage.view(), query, items.data(), items.size(), scratch.scores.data());
    counts.heads += items.size();
    count_scored(query, items.size(), counts);
}

constexpr float kNoBar = -std::numeric_limits<float>::infinity();

/// The first of two stages: what an item's head says of its score tells whether the item is scored.
class FirstLook {
  public:
    FirstLook(const Storage &storage, const Query &query, const Ranking &ranking)
        : possible_(storage.config.two_stage && ranking.similarity == Similarity::InnerProduct &&
                    ((query.sign_factor != 0 && storage.layout.has_signs()) ||
                     (query.sparse_factor != 0 && storage.layout.terms != 0))) {}

    void learn(const float *estimates, const float *scores, size_t count) {
        if (!possible_) return;
        for (size_t i = 0; i < count; ++i) {
            const double score = scores[i], error = score - double{estimates[i]};
            score_sum_ += score, score_squares_ += score * score;
            error_sum_ += error, error_squares_ += error * error;
        }
        count_ += static_cast<double>(count);
    }
    /// Estimates up to which an item is left out when only scores above `worst` matter: it would have to be better than
    /// its estimate by more than kSpreads standard deviations.
    float bar(float worst) const {
        constexpr double kFew = 32, kSpreads = 1.5, kUntold = 0.5;
        if (count_ < kFew) return kNoBar;
        const double error = error_sum_ / count_, score = score_sum_ / count_;
        const double variance = std::max(error_squares_ / count_ - error * error, 0.0);
        // Where heads tell little of the scores (or a file held NaN), all items or none would be left out.
        if (!(variance <= kUntold * (score_squares_ / count_ - score * score))) return kNoBar;
        return worst - static_cast<float>(error + kSpreads * std::sqrt(variance));
    }

  private:
    bool possible_;
    double count_ = 0, score_sum_ = 0, score_squares_ = 0, error_sum_ = 0, error_squares_ = 0;
};

/// Asks for the records of items to come. Far more lines can be on their way to the second-level cache than to the
/// first.
SPARING_INLINE void fetch(const uint8_t *records, size_t stride, const Lines &lines, std::span<const uint32_t> items) {
    for (const uint32_t item : items) lines.prefetch<2>(records + item * stride);
}

/// Starting items: entry points, and the seeds of the heaviest query terms.
void meet_starts(const Storage &storage, const Query &query, Scratch &scratch) {
    scratch.open_block();
    if (query.sparse_factor != 0 && storage.seeds.num_buckets != 0) {
        const size_t terms = std::min<size_t>(query.seed_terms.size(), storage.config.seed_terms);
        for (size_t t = 0; t < terms; ++t) __builtin_prefetch(storage.seeds.row(query.seed_terms[t]));
        for (size_t t = 0; t < terms; ++t) scratch.meet(storage.seeds.row(query.seed_terms[t]), storage.seeds.per_term);
    }
    const size_t seeds = scratch.block().size(); // entry points make up what is missing
    scratch.meet(storage.entries.data(), storage.entries.size() - std::min(storage.entries.size(), seeds));
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

/// Exact scores for the head of scratch.pool, which is in order of code scores; keeps the k best in `out`, ties by id.
/// The differences between exact and code scores seen so far tell how far down a better item may still hide: the search
/// ends where a difference kSpreads standard deviations above their mean would not reach the k best.
void rescore(const Storage &storage, const Query &query, size_t k, Scratch &scratch, std::vector<Candidate> &out,
             SearchCounts &counts) {
    constexpr double kSpreads = 3;
    const std::vector<Candidate> &pool = scratch.pool;
    scratch.items.clear();
    for (const Candidate &c : pool) scratch.items.push_back(c.item);
    scratch.scores.resize(std::max(scratch.scores.size(), pool.size()));
    const auto by_id = [&](const Candidate &a, const Candidate &b) {
        return a.score != b.score ? a.score > b.score : storage.ids[a.item] < storage.ids[b.item];
    };
    const size_t keep = std::min(k, pool.size());
    const size_t step = std::max<size_t>(4, keep / 4); // many answers: fewer, longer steps, since each sorts them
    out.clear();
    double sum = 0, squares = 0;
    for (size_t done = 0; done < pool.size();) {
        const size_t size = std::min(pool.size() - done, done == 0 ? keep + step : step);
        const size_t coming = std::min(pool.size() - done - size, step);
        kernels().score_exact(storage.view(), query, scratch.items.data() + done, size, coming, scratch.scores.data());
        for (size_t i = 0; i < size; ++i) {
            out.push_back({scratch.scores[i], pool[done + i].item});
            const double difference = double{scratch.scores[i]} - double{pool[done + i].score};
            sum += difference;
            squares += difference * difference;
        }
        done += size;
        std::partial_sort(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(keep), out.end(), by_id);
        out.resize(keep);
        if (done == pool.size()) break;
        const double n = static_cast<double>(done), mean = sum / n;
        const double spread = std::sqrt(std::max(squares / n - mean * mean, 0.0));
        const double worst = out.back().score, rounding = 1e-5 * std::fabs(worst); // equal items stay equal
        // The first of an order by code scores are rather over- than underestimated: that says nothing of later ones.
        if (pool[done].score + std::max(mean, 0.0) + kSpreads * spread + rounding < worst) {
            counts.exact += done;
            return;
        }
    }
    counts.exact += pool.size();
}

/// Best-first walk that goes through every item but collects only allowed ones.
void walk_filtered(const Storage &storage, const Query &query, const SearchOptions &options, size_t width,
                   Scratch &scratch, SearchCounts &counts) {
    auto worse_first = [](const Candidate &a, const Candidate &b) { return better(a, b); };
    auto better_first = [](const Candidate &a, const Candidate &b) { return better(b, a); };
    std::vector<Candidate> &found = scratch.pool, &frontier = scratch.frontier;
    found.clear();
    frontier.clear();
    const CodeLayout &layout = storage.layout;
    auto take_block = [&] {
        const std::span<const uint32_t> block = scratch.block();
        fetch(storage.heads.data(), layout.head_stride(), head_lines(layout, query), block);
        fetch(storage.tails.data(), layout.tail_stride(), tail_lines(layout, query), block);
        score_items(storage, query, block, scratch, counts);
        for (size_t i = 0; i < block.size(); ++i) {
            const Candidate c{scratch.scores[i], block[i]};
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
    meet_starts(storage, query, scratch);
    take_block();
    while (!frontier.empty()) {
        const Candidate next = frontier.front();
        if (found.size() >= width && better(found.front(), next)) break;
        std::pop_heap(frontier.begin(), frontier.end(), better_first);
        frontier.pop_back();
        ++counts.hops;
        scratch.open_block();
        scratch.meet(storage.links.row(next.item), storage.links.stride);
        take_block();
    }
    scratch.end();
    std::sort(found.begin(), found.end(), better);
}

/// Scores every allowed item by code and keeps the `width` best.
void scan(const Storage &storage, const Query &query, const SearchOptions &options, size_t width, Scratch &scratch,
          SearchCounts &counts) {
    std::vector<Candidate> &found = scratch.pool;
    found.clear();
    scratch.items.clear();
    auto flush = [&] {
        score_items(storage, query, scratch.items, scratch, counts);
        for (size_t i = 0; i < scratch.items.size(); ++i) {
            const Candidate c{scratch.scores[i], scratch.items[i]};
            if (found.size() >= width && !better(c, found.front())) continue;
            if (found.size() >= width) {
                std::pop_heap(found.begin(), found.end(), better);
                found.back() = c;
            } else {
                found.push_back(c);
            }
            std::push_heap(found.begin(), found.end(), better);
        }
        scratch.items.clear();
    };
    each_allowed(storage, options, [&](uint32_t item) {
        scratch.items.push_back(item);
        if (scratch.items.size() == 256) flush();
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
          Scratch &scratch, SearchCounts &counts) {
    constexpr size_t kTogether = 3; ///< items expanded at once: more of the memory's latency is waited for once
    constexpr size_t kFirst = 32;   ///< starting items that are scored before others are looked at first
    const CodeLayout &layout = storage.layout;
    const Lines of_head = head_lines(layout, query), of_tail = tail_lines(layout, query);
    Beam beam(scratch.beam, width);
    FirstLook look(storage, query, ranking);
    scratch.begin(storage.size());
    auto fetch_row = [&](uint32_t item) __attribute__((always_inline)) {
        const uint32_t *row = links.row(item);
        for (size_t j = 0; j < links.stride; j += 16) __builtin_prefetch(row + j);
        __builtin_prefetch(row + links.stride - 1);
    };
    std::span<const uint32_t> items; ///< those being scored
    bool learns = false;
    auto take_heads = [&](size_t begin, size_t end) { // of the items met
        const std::span<const uint32_t> met{scratch.met.data() + begin, end - begin};
        if (scratch.scores.size() < met.size()) scratch.scores.resize(2 * met.size());
        if (scratch.items.size() < met.size()) scratch.items.resize(2 * met.size());
        float *const scores = scratch.scores.data();
        kernels().score_heads(storage.view(), query, met.data(), met.size(), scores);
        counts.heads += met.size();
        const float bar = beam.size() == width ? look.bar(beam.worst()) : kNoBar;
        learns = bar == kNoBar;
        if (learns) scratch.estimates.assign(scores, scores + met.size());
        size_t left = 0;
        for (size_t i = 0; i < met.size(); ++i) { // without a branch: the outcome cannot be predicted
            scratch.items[left] = met[i];
            scores[left] = scores[i];
            left += scores[i] > bar || learns ? 1 : 0;
        }
        items = {scratch.items.data(), left};
        fetch(storage.tails.data(), layout.tail_stride(), of_tail, items);
    };
    auto take_tails = [&](std::span<const uint32_t> coming) { // whose heads are next
        float *const scores = scratch.scores.data();
        if (scratch.keys.size() < items.size()) scratch.keys.resize(2 * items.size());
        kernels().score_tails(storage.view(), query, items.data(), items.size(), coming, scores);
        if (learns) look.learn(scratch.estimates.data(), scores, items.size());
        count_scored(query, items.size(), counts);
        ranking.apply(items.data(), items.size(), scores);
        size_t good = 0;
        for (size_t i = 0; i < items.size(); ++i) {
            scratch.keys[good] = Beam::key(scores[i], items[i]);
            good += scratch.keys[good] > beam.bar() ? 1 : 0;
        }
        beam.insert(scratch.keys.data(), good);
    };
    meet_starts(storage, query, scratch);
    const std::span<const uint32_t> starts = scratch.block();
    fetch(storage.heads.data(), layout.head_stride(), of_head, starts.first(std::min(kFirst, starts.size())));
    size_t taken = 0; // of the items met
    while (taken < starts.size()) {
        const size_t end = std::min(taken + kFirst, starts.size());
        take_heads(taken, end);
        take_tails(starts.subspan(end, std::min(kFirst, starts.size() - end)));
        taken = end;
    }
    // Rows are on their way while heads are scored, tails while rows are read, heads while tails are scored: what is
    // expanded next is chosen before the block at hand is known.
    uint32_t next[kTogether];
    size_t expanded = 0;
    auto choose = [&] {
        for (expanded = 0; expanded < kTogether; ++expanded) {
            next[expanded] = beam.next();
            if (next[expanded] == kNoItem) break;
            fetch_row(next[expanded]);
        }
        counts.hops += expanded;
    };
    for (choose(); expanded != 0 || taken < scratch.num_met; choose()) {
        const size_t end = scratch.num_met;
        take_heads(taken, end);
        scratch.open_block();
        for (size_t i = 0; i < expanded; ++i) scratch.meet(links.row(next[i]), links.stride);
        take_tails(scratch.block());
        taken = end;
    }
    scratch.end();
    scratch.pool.clear();
    for (size_t i = 0; i < beam.size(); ++i) scratch.pool.push_back({Beam::score_of(beam[i]), Beam::item_of(beam[i])});
}

void search_one(const Storage &storage, const Query &query, const SearchOptions &options, Scratch &scratch,
                std::vector<Candidate> &out, SearchCounts &counts) {
    out.clear();
    const size_t k = std::min(options.k, options.num_allowed);
    if (k == 0) return;
    const size_t width = std::max(options.beam, k);
    if (options.allowed == nullptr && !options.has_deleted) {
        walk(storage, storage.links, query, {}, std::min(width, storage.size()), scratch, counts);
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
    scratch.items.clear();
    auto flush = [&] {
        scratch.scores.resize(scratch.items.size());
        kernels().score_exact(storage.view(), query, scratch.items.data(), scratch.items.size(), 0,
                              scratch.scores.data());
        for (size_t i = 0; i < scratch.items.size(); ++i) {
            const Candidate c{scratch.scores[i], scratch.items[i]};
            if (found.size() >= options.k && !by_id(c, found.front())) continue;
            if (found.size() >= options.k) {
                std::pop_heap(found.begin(), found.end(), by_id);
                found.pop_back();
            }
            found.push_back(c);
            std::push_heap(found.begin(), found.end(), by_id);
        }
        scratch.items.clear();
    };
    each_allowed(storage, options, [&](uint32_t item) {
        scratch.items.push_back(item);
        if (scratch.items.size() == 256) flush();
    });
    flush();
    std::sort(found.begin(), found.end(), by_id);
    out = found;
}

} // namespace sparing
