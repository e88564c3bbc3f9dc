// Changes and searches of an index under its locks.
#include "sparing/index.hpp"
#include "sparing/parallel.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <unordered_set>

namespace sparing {

Index::Index(const Config &config) : storage_(config) {}

std::shared_lock<std::shared_mutex> Index::reader() const {
    const std::lock_guard<std::mutex> gate(gate_);
    return std::shared_lock(access_);
}

std::unique_lock<std::shared_mutex> Index::writer() const {
    const std::lock_guard<std::mutex> gate(gate_);
    return std::unique_lock(access_);
}

size_t Index::size() const {
    const auto lock = reader();
    return storage_.size() - num_deleted_;
}

size_t Index::num_deleted() const {
    const auto lock = reader();
    return num_deleted_;
}

bool Index::contains(int64_t id) const {
    const auto lock = reader();
    return slot_of_.contains(id);
}

void Index::rebuild_id_map() {
    slot_of_.clear();
    slot_of_.reserve(storage_.size());
    num_deleted_ = 0;
    for (size_t i = 0; i < storage_.size(); ++i) {
        if (storage_.deleted[i] != 0)
            ++num_deleted_;
        else
            slot_of_[storage_.ids[i]] = static_cast<uint32_t>(i);
    }
}

void Index::check_new_ids(const int64_t *ids, size_t count, bool must_exist) const {
    std::unordered_set<int64_t> seen;
    seen.reserve(count);
    for (size_t i = 0; i < count; ++i) {
        if (ids[i] < 0)
            throw Error(ErrorKind::Argument, "ids[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
                                                 "; ids must be >= 0 (-1 marks padding in results)");
        if (!seen.insert(ids[i]).second)
            throw Error(ErrorKind::DuplicateId,
                        "id " + std::to_string(ids[i]) + " is given twice; every id may appear once in a call");
        if (!must_exist && slot_of_.contains(ids[i]))
            throw Error(ErrorKind::DuplicateId,
                        "id " + std::to_string(ids[i]) + " is in the index already; use update() to replace an item");
        if (must_exist && !slot_of_.contains(ids[i]))
            throw Error(ErrorKind::UnknownId,
                        "id " + std::to_string(ids[i]) + " is not in the index; use add() for new items");
    }
}

void Index::insert(const ItemBatch &batch, const int64_t *ids, int num_threads, const BuildProgress &progress) {
    const size_t first = storage_.size(), count = batch.size;
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0U);
    const size_t stride = storage_.links.stride;
    const Commit at_once = [](const std::function<void()> &body) { body(); };
    if (first == 0) {
        // A fresh graph: random insertion order, wide rows meanwhile, then neighbours laid out near each other.
        std::mt19937_64 random(storage_.config.seed);
        for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
        Storage fresh(storage_.config);
        fresh.append(batch, ids, order, num_threads);
        fresh.refresh_entries(0);
        Links wide{Buffer<uint32_t>(count * 2 * stride, kNoItem), 2 * stride};
        insert_items(fresh, wide, 0, num_threads, progress, at_once);
        fresh.links = narrow_links(fresh, wide, stride, num_threads);
        const std::vector<uint32_t> near = locality_order(fresh, fresh.links, [&] {
            if (progress) progress(count, count);
        });
        Storage ordered = fresh.select(near);
        const auto lock = writer();
        storage_ = std::move(ordered);
        rebuild_id_map();
    } else {
        {
            const auto lock = writer();
            storage_.append(batch, ids, order, num_threads);
            // Not yet visible: marked deleted until linked.
            for (size_t i = first; i < storage_.size(); ++i) storage_.deleted[i] = 1;
            num_deleted_ += count;
        }
        try {
            if (count * 8 > first) {
                Links wide = widen_links(storage_.links, 2 * stride, storage_.size());
                insert_items(storage_, wide, first, num_threads, progress, at_once);
                Links narrow = narrow_links(storage_, wide, stride, num_threads);
                const auto lock = writer();
                storage_.links = std::move(narrow);
            } else {
                insert_items(storage_, storage_.links, first, num_threads, progress,
                             [&](const std::function<void()> &body) {
                                 const auto lock = writer();
                                 body();
                             });
            }
        } catch (...) { // stopped half-way: as if nothing had been added
            const auto lock = writer();
            storage_.truncate(first);
            num_deleted_ -= count;
            throw;
        }
        const auto lock = writer();
        for (size_t i = first; i < storage_.size(); ++i) {
            storage_.deleted[i] = 0;
            const auto [place, is_new] = slot_of_.try_emplace(storage_.ids[i], static_cast<uint32_t>(i));
            if (is_new) {
                --num_deleted_;
            } else { // an update: the old item goes as the new one comes
                storage_.deleted[place->second] = 1;
                place->second = static_cast<uint32_t>(i);
            }
        }
        storage_.refresh_entries(first);
    }
}

void Index::add(const ItemBatch &batch, const int64_t *ids, int num_threads, const BuildProgress &progress) {
    const std::lock_guard<std::mutex> change(change_);
    validate_batch(batch, storage_.config.dim, "item");
    check_new_ids(ids, batch.size, false);
    (void)storage_.deleted.data(); // a read-only index throws here, before any work
    if (storage_.size() + batch.size >= (size_t{1} << 31))
        throw Error(ErrorKind::Argument, "an index holds at most 2^31 - 1 items");
    if (batch.size == 0) return;
    insert(batch, ids, num_threads, progress);
}

void Index::remove(const int64_t *ids, size_t count) {
    const std::lock_guard<std::mutex> change(change_);
    check_new_ids(ids, count, true);
    const auto lock = writer();
    uint8_t *deleted = storage_.deleted.data();
    for (size_t i = 0; i < count; ++i) {
        deleted[slot_of_.at(ids[i])] = 1;
        slot_of_.erase(ids[i]);
    }
    num_deleted_ += count;
}

void Index::update(const ItemBatch &batch, const int64_t *ids, int num_threads) {
    const std::lock_guard<std::mutex> change(change_);
    validate_batch(batch, storage_.config.dim, "item");
    check_new_ids(ids, batch.size, true);
    (void)storage_.deleted.data();
    if (batch.size == 0) return;
    insert(batch, ids, num_threads, {});
}

void Index::compact(int num_threads) {
    const std::lock_guard<std::mutex> change(change_);
    (void)storage_.deleted.data(); // a read-only index throws here, before any work
    if (num_deleted_ == 0) return;
    Links links = widen_links(storage_.links, storage_.links.stride, storage_.size());
    bypass_deleted(storage_, links, num_threads);
    std::vector<uint32_t> live;
    for (size_t i = 0; i < storage_.size(); ++i)
        if (storage_.deleted[i] == 0) live.push_back(static_cast<uint32_t>(i));
    const auto lock = writer();
    storage_.links = std::move(links);
    storage_ = storage_.select(live);
    rebuild_id_map();
}

SearchOutput Index::search(const QueryBatch &queries, size_t k, size_t beam, const int64_t *filter, size_t num_filter,
                           bool has_filter, bool exact, int num_threads, SearchOutput out) const {
    const Config &config = storage_.config;
    validate_batch(queries.items, config.dim, "query");
    const auto lock = reader();
    SearchOptions options{k, beam, nullptr, storage_.size() - num_deleted_, num_deleted_ != 0};
    std::vector<uint64_t> allowed;
    if (has_filter) {
        allowed.assign((storage_.size() + 63) / 64, 0);
        options.num_allowed = 0;
        for (size_t i = 0; i < num_filter; ++i) {
            const auto slot = slot_of_.find(filter[i]);
            if (slot == slot_of_.end()) continue;
            uint64_t &word = allowed[slot->second >> 6];
            const uint64_t bit = uint64_t{1} << (slot->second & 63);
            options.num_allowed += (word & bit) == 0 ? 1 : 0;
            word |= bit;
        }
        options.allowed = allowed.data();
    }
    const size_t n = queries.items.size;
    std::vector<std::unique_ptr<Scratch>> scratches(
        std::min<size_t>(static_cast<size_t>(resolve_threads(num_threads)), std::max<size_t>(n, 1)));
    {
        const std::lock_guard<std::mutex> guard(scratch_mutex_);
        for (auto &scratch : scratches) {
            if (scratches_.empty()) break;
            scratch = std::move(scratches_.back());
            scratches_.pop_back();
        }
    }
    for (auto &scratch : scratches)
        if (!scratch) scratch = std::make_unique<Scratch>();
    std::vector<SearchCounts> counts(scratches.size());
    parallel_for(n, static_cast<int>(scratches.size()), 1, [&](int w, size_t i) {
        Scratch &scratch = *scratches[static_cast<size_t>(w)];
        prepare_query(storage_.layout, storage_.center.span(), queries.items.dense_row(i, config.dim),
                      queries.items.sparse_row(i), queries.weights[2 * i], queries.weights[2 * i + 1] * config.scale,
                      queries.query_terms, scratch.query);
        std::vector<Candidate> found;
        if (exact)
            search_exact_one(storage_, scratch.query, options, scratch, found);
        else
            search_one(storage_, scratch.query, options, scratch, found, counts[static_cast<size_t>(w)]);
        for (size_t j = 0; j < k; ++j) {
            out.ids[i * k + j] = j < found.size() ? storage_.ids[found[j].item] : -1;
            out.scores[i * k + j] = j < found.size() ? found[j].score : -std::numeric_limits<float>::infinity();
        }
    });
    for (const SearchCounts &c : counts) {
        out.counts.hops += c.hops;
        out.counts.heads += c.heads;
        out.counts.dense += c.dense;
        out.counts.sparse += c.sparse;
        out.counts.exact += c.exact;
    }
    const std::lock_guard<std::mutex> guard(scratch_mutex_);
    for (auto &scratch : scratches) scratches_.push_back(std::move(scratch));
    return out;
}

namespace {

[[noreturn]] void bad_file(const std::string &what) {
    throw Error(ErrorKind::Format, "the index file is damaged: " + what + "; restore it from a copy or build it again");
}

void expect_count(size_t count, size_t expected, const char *name) {
    if (count != expected)
        bad_file(std::string(name) + " has " + std::to_string(count) + " values, expected " + std::to_string(expected));
}

template <class T>
void expect_size(const std::span<const T> &array, size_t expected, const char *name) {
    expect_count(array.size(), expected, name);
}

size_t size_of(const auto &column) {
    return std::visit([](const auto &array) { return array.size(); }, column);
}

template <class T>
Buffer<T> hold(const std::span<const T> &array, const std::shared_ptr<const void> &owner, bool borrow) {
    return borrow ? Buffer<T>::view(array.data(), array.size(), owner) : Buffer<T>::copy_of(array.data(), array.size());
}

template <class Wide>
void hold(Column<Wide> &column, const auto &saved, const std::shared_ptr<const void> &owner, bool borrow) {
    std::visit([&](const auto &array) { column.hold(hold(array, owner, borrow)); }, saved);
}

} // namespace

std::unique_ptr<Index> Index::open(const Config &config, const SavedArrays &saved, std::shared_ptr<const void> owner,
                                   bool borrow) {
    auto index = std::make_unique<Index>(config);
    Storage &storage = index->storage_;
    const size_t n = saved.ids.size();
    if (n >= (size_t{1} << 31)) bad_file("too many items");
    expect_size(saved.deleted, n, "deleted");
    if (saved.has_records) {
        if (!saved.center.empty()) expect_size(saved.center, config.dim, "center");
        if (!std::isfinite(squared_length(saved.center.data(), saved.center.size()))) bad_file("center is not finite");
        expect_size(saved.heads, n * storage.layout.head_stride(), "heads");
        expect_size(saved.tails, n * storage.layout.tail_stride(), "tails");
    }
    expect_count(size_of(saved.dense), n * config.dim, "dense");
    expect_size(saved.row_begin, n + 1, "row_begin");
    expect_size(saved.norms, config.similarity == Similarity::InnerProduct ? 0 : n, "norms");
    expect_size(saved.links, n * config.degree, "links");
    if (saved.entries.size() > std::min<size_t>(n, config.num_entries) || (n > 0 && saved.entries.empty()))
        bad_file("wrong number of entry points");
    expect_count(size_of(saved.values), size_of(saved.terms), "values");
    expect_size(saved.seeds, size_t{saved.seed_buckets} * config.seeds_per_term, "seeds");
    if ((saved.seed_buckets & (saved.seed_buckets - 1)) != 0) bad_file("the number of seed buckets is no power of two");
    if (saved.row_begin[0] != 0 || saved.row_begin[n] != size_of(saved.terms))
        bad_file("row_begin does not span the terms");
    for (size_t i = 0; i < n; ++i)
        if (saved.row_begin[i] > saved.row_begin[i + 1]) bad_file("row_begin decreases at item " + std::to_string(i));
    for (const uint32_t item : saved.entries)
        if (item >= n) bad_file("entries names item " + std::to_string(item) + " of " + std::to_string(n));
    for (const int64_t id : saved.ids)
        if (id < 0) bad_file("id " + std::to_string(id) + " is negative");
    auto check_items = [&](const std::span<const uint32_t> &items, const char *name) {
        for (const uint32_t item : items)
            if (item >= n && item != kNoItem)
                bad_file(std::string(name) + " names item " + std::to_string(item) + " of " + std::to_string(n));
    };
    check_items(saved.links, "links");
    check_items(saved.seeds, "seeds");
    storage.ids = hold(saved.ids, owner, borrow);
    storage.deleted = hold(saved.deleted, owner, borrow);
    hold(storage.dense, saved.dense, owner, borrow);
    storage.row_begin = hold(saved.row_begin, owner, borrow);
    hold(storage.terms, saved.terms, owner, borrow);
    hold(storage.values, saved.values, owner, borrow);
    if (saved.has_records) {
        storage.center = hold(saved.center, owner, borrow);
        storage.heads = hold(saved.heads, owner, borrow);
        storage.tails = hold(saved.tails, owner, borrow);
    } else {
        storage.encode();
    }
    storage.norms = hold(saved.norms, owner, borrow);
    storage.links = Links{hold(saved.links, owner, borrow), config.degree};
    storage.entries = hold(saved.entries, owner, borrow);
    storage.seeds.items = hold(saved.seeds, owner, borrow);
    storage.seeds.num_buckets = saved.seed_buckets;
    index->rebuild_id_map();
    if (index->slot_of_.size() + index->num_deleted_ != n) bad_file("an id appears twice");
    return index;
}

} // namespace sparing
