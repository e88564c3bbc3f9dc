// Index::open: sound arrays open, damaged ones throw before anything is used.
#include "check.hpp"
#include "items.hpp"

#include <functional>

using namespace sparing;

namespace {

/// The arrays of a small index, to be damaged.
struct Arrays {
    std::vector<int64_t> ids;
    std::vector<uint8_t> deleted, heads, tails;
    std::vector<float> dense, values, norms;
    std::vector<uint64_t> row_begin;
    std::vector<uint16_t> terms;
    std::vector<uint32_t> links, entries, seeds;
    uint32_t seed_buckets;
};

template <class T>
std::vector<T> copy(const Buffer<T> &buffer) {
    return {buffer.data(), buffer.data() + buffer.size()};
}

template <class Wide>
std::vector<Wide> copy(const Column<Wide> &column) {
    std::vector<Wide> out(column.size());
    column.read(0, out.size(), out.data());
    return out;
}

Config small_config() {
    Config config;
    config.dim = 6;
    config.degree = 4;
    config.build_beam = 16;
    config.num_entries = 4;
    config.seeds_per_term = 2;
    config.similarity = Similarity::L2;
    return config;
}

Arrays arrays_of(const Index &index) {
    const Storage &s = index.storage();
    CHECK(s.terms.is_narrow() && !s.dense.is_narrow() && !s.values.is_narrow());
    return {copy(s.ids),        copy(s.deleted),   copy(s.heads),
            copy(s.tails),      copy(s.dense),     copy(s.values),
            copy(s.norms),      copy(s.row_begin), {s.terms.narrow_data(), s.terms.narrow_data() + s.terms.size()},
            copy(s.links.data), copy(s.entries),   copy(s.seeds.items),
            s.seeds.num_buckets};
}

std::unique_ptr<Index> open(const Config &config, const Arrays &a, bool borrow) {
    SavedArrays saved;
    saved.ids = a.ids;
    saved.deleted = a.deleted;
    saved.heads = a.heads;
    saved.tails = a.tails;
    saved.dense = std::span<const float>(a.dense);
    saved.values = std::span<const float>(a.values);
    saved.norms = a.norms;
    saved.row_begin = a.row_begin;
    saved.terms = std::span<const uint16_t>(a.terms);
    saved.links = a.links;
    saved.entries = a.entries;
    saved.seeds = a.seeds;
    saved.seed_buckets = a.seed_buckets;
    return Index::open(config, saved, nullptr, borrow);
}

struct Answers {
    std::vector<int64_t> ids;
    std::vector<float> scores;
};

Answers search(const Index &index, const items::Items &queries, size_t k) {
    Answers answers{std::vector<int64_t>(queries.count * k), std::vector<float>(queries.count * k)};
    const std::vector<float> weights(2 * queries.count, 0.5F);
    QueryBatch batch;
    batch.items = queries.batch();
    batch.weights = weights.data();
    index.search(batch, k, 16, nullptr, 0, false, false, 1, {answers.ids.data(), answers.scores.data(), {}});
    return answers;
}

} // namespace

int main() {
    const items::Items rows = items::make(40, 6, 5, 30, 11), queries = items::make(10, 6, 5, 30, 12);
    const Config config = small_config();
    Index index(config);
    index.add(rows.batch(), rows.ids.data(), 1, {});
    const int64_t gone[] = {3, 4};
    index.remove(gone, 2);
    const Arrays sound = arrays_of(index);

    for (const bool borrow : {false, true}) {
        const auto again = open(config, sound, borrow);
        CHECK(again->size() == 38 && again->num_deleted() == 2 && again->contains(5) && !again->contains(3));
        const Answers a = search(index, queries, 8), b = search(*again, queries, 8);
        CHECK(a.ids == b.ids && a.scores == b.scores);
        const int64_t more[] = {5};
        if (borrow)
            CHECK(check::throws(ErrorKind::ReadOnly, [&] { again->remove(more, 1); }));
        else
            again->remove(more, 1);
        CHECK(again->size() == (borrow ? 38U : 37U));
    }

    const std::vector<std::pair<const char *, std::function<void(Arrays &)>>> damages{
        {"a link out of range", [](Arrays &a) { a.links[7] = 40; }},
        {"an entry out of range", [](Arrays &a) { a.entries[0] = 40; }},
        {"a seed out of range", [](Arrays &a) { a.seeds[0] = 4'000'000'000U; }},
        {"row_begin falls", [](Arrays &a) { a.row_begin[9] = uint64_t{1} << 60; }},
        {"row_begin starts late", [](Arrays &a) { a.row_begin[0] = 1; }},
        {"row_begin ends early", [](Arrays &a) { a.row_begin[40] -= 1; }},
        {"an id twice", [](Arrays &a) { a.ids[0] = a.ids[1] = 39; }},
        {"ids too short", [](Arrays &a) { a.ids.pop_back(); }},
        {"deleted too short", [](Arrays &a) { a.deleted.pop_back(); }},
        {"heads too short", [](Arrays &a) { a.heads.pop_back(); }},
        {"tails too short", [](Arrays &a) { a.tails.pop_back(); }},
        {"dense too short", [](Arrays &a) { a.dense.pop_back(); }},
        {"values too long", [](Arrays &a) { a.values.push_back(1); }},
        {"norms too short", [](Arrays &a) { a.norms.pop_back(); }},
        {"row_begin too long", [](Arrays &a) { a.row_begin.push_back(a.row_begin.back()); }},
        {"terms too short", [](Arrays &a) { a.terms.pop_back(); }},
        {"links too short", [](Arrays &a) { a.links.pop_back(); }},
        {"entries too long", [](Arrays &a) { a.entries.push_back(0); }},
        {"seeds too short", [](Arrays &a) { a.seeds.pop_back(); }},
        {"buckets no power of two", [](Arrays &a) { a.seed_buckets = 100, a.seeds.resize(200); }},
        {"nothing at all", [](Arrays &a) { a = Arrays{}; }},
    };
    for (const auto &[name, damage] : damages)
        for (const bool borrow : {false, true}) {
            Arrays damaged = sound;
            damage(damaged);
            CHECK_FOR(name, check::throws(ErrorKind::Format, [&] { open(config, damaged, borrow); }));
        }
    Config other = config;
    other.degree = 8;
    CHECK(check::throws(ErrorKind::Format, [&] { open(other, sound, false); }));
    other = config;
    other.dim = 7;
    CHECK(check::throws(ErrorKind::Format, [&] { open(other, sound, false); }));
    return check::report();
}
