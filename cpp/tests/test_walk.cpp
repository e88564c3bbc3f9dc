// Walks on graphs small enough to know the answer.
#include "check.hpp"
#include "items.hpp"

using namespace sparing;

namespace {

/// n items on a line: item i has the vector (i); each linked with its neighbours only.
Storage line(size_t n) {
    items::Items rows;
    rows.count = n;
    rows.dim = 1;
    for (size_t i = 0; i < n; ++i) {
        rows.ids.push_back(static_cast<int64_t>(1000 - i));
        rows.dense.push_back(static_cast<float>(i));
        rows.row_begin.push_back(0);
    }
    Config config;
    config.dim = 1;
    config.dense_code = DenseCode::Float32;
    config.degree = 4;
    config.num_entries = 1;
    Storage storage = items::store(rows, config);
    for (size_t i = 0; i < n; ++i) {
        uint32_t *row = storage.links.row(i);
        if (i > 0) *row++ = static_cast<uint32_t>(i - 1);
        if (i + 1 < n) *row++ = static_cast<uint32_t>(i + 1);
    }
    storage.refresh_entries(0);
    return storage;
}

Query query_of(const Storage &storage, float x) {
    Query query;
    prepare_query(storage.layout, storage.center.span(), &x, {}, 1, 0, 0, query);
    return query;
}

void walks_to_the_end() {
    const Storage storage = line(50);
    Scratch scratch;
    SearchCounts counts;
    walk(storage, storage.links, query_of(storage, 1), {}, 3, scratch, counts);
    CHECK(scratch.pool.size() == 3);
    for (size_t i = 0; i < 3; ++i)
        CHECK(scratch.pool[i].item == 49 - i && scratch.pool[i].score == 49.F - static_cast<float>(i));
    CHECK(counts.hops >= 25 && counts.dense >= 25 && counts.sparse == 0);
    walk(storage, storage.links, query_of(storage, -1), {}, 50, scratch, counts);
    CHECK(scratch.pool.size() == 50);
    for (size_t i = 0; i < scratch.pool.size(); ++i) CHECK(scratch.pool[i].item == i);
    for (const uint64_t word : scratch.visited) CHECK(word == 0); // left clean for the next search
}

void answers() {
    Storage storage = line(50);
    Scratch scratch;
    SearchCounts counts;
    std::vector<Candidate> found, exact;
    SearchOptions options{4, 8, nullptr, 50, false};
    const Query query = query_of(storage, 1);
    search_one(storage, query, options, scratch, found, counts);
    search_exact_one(storage, query, options, scratch, exact);
    CHECK(found.size() == 4 && exact.size() == 4);
    for (size_t i = 0; i < 4; ++i) CHECK(found[i].item == 49 - i && exact[i].item == 49 - i);
    std::vector<uint64_t> allowed{(uint64_t{1} << 3) | (uint64_t{1} << 20)};
    options.allowed = allowed.data();
    options.num_allowed = 2;
    search_one(storage, query, options, scratch, found, counts);
    CHECK(found.size() == 2 && found[0].item == 20 && found[1].item == 3);
    storage.deleted[20] = 1;
    options = {4, 8, nullptr, 49, true};
    search_one(storage, query, options, scratch, found, counts);
    CHECK(found.size() == 4 && found[0].item == 49);
    options.k = 0;
    search_one(storage, query, options, scratch, found, counts);
    CHECK(found.empty());
}

/// Items that no link leads to are still answered when k asks for them.
void the_promise_without_links() {
    Storage storage = line(50);
    for (size_t i = 0; i < 50; ++i) storage.links.row(i)[0] = kNoItem;
    Scratch scratch;
    SearchCounts counts;
    std::vector<Candidate> found;
    search_one(storage, query_of(storage, 1), {10, 10, nullptr, 50, false}, scratch, found, counts);
    CHECK(found.size() == 10);
    for (size_t i = 0; i < found.size(); ++i) CHECK(found[i].item == 49 - i);
}

/// A built graph: out-links are distinct, in range, not to itself; nearly all is reached; order is a permutation.
void built_graphs() {
    const items::Items rows = items::make(700, 16, 10, 80, 9);
    Config config;
    config.dim = 16;
    config.degree = 8;
    config.build_beam = 32;
    Index index(config);
    index.add(rows.batch(), rows.ids.data(), 2, {});
    const Storage &storage = index.storage();
    CHECK(index.size() == 700 && storage.size() == 700);
    for (size_t i = 0; i < 700; ++i) {
        const size_t count = storage.links.count(i);
        CHECK(count > 0 && count <= 8);
        std::set<uint32_t> distinct(storage.links.row(i), storage.links.row(i) + count);
        CHECK(distinct.size() == count && distinct.count(static_cast<uint32_t>(i)) == 0 && *distinct.rbegin() < 700);
    }
    size_t pauses = 0;
    const std::vector<uint32_t> order = locality_order(storage, storage.links, [&] { ++pauses; });
    CHECK(pauses == 1);
    CHECK(check::throws(ErrorKind::Argument, [&] {
        locality_order(storage, storage.links, [] { throw Error(ErrorKind::Argument, "stop"); });
    }));
    CHECK(std::set<uint32_t>(order.begin(), order.end()).size() == 700 && order.size() == 700);
    const auto groups_met = [](const Links &links) { // groups of 16 items that rows link into, in all
        size_t groups = 0;
        for (size_t i = 0; i < 700; ++i) {
            std::set<uint32_t> met;
            for (size_t j = 0; j < links.count(i); ++j) met.insert(links.row(i)[j] / 16);
            groups += met.size();
        }
        return groups;
    };
    std::vector<uint32_t> any(700);
    for (size_t i = 0; i < 700; ++i) any[i] = static_cast<uint32_t>(i * 211 % 700);
    const Storage mixed = storage.select(any), ordered = mixed.select(locality_order(mixed, mixed.links, [] {}));
    const size_t before = groups_met(mixed.links), after = groups_met(ordered.links);
    CHECK_FOR(std::to_string(before) + " to " + std::to_string(after), after < 0.9 * before);
    Scratch scratch;
    SearchCounts counts;
    Query query;
    const ItemBatch batch = rows.batch();
    prepare_query(storage.layout, storage.center.span(), batch.dense_row(0, 16), batch.sparse_row(0), 0.5F, 0.5F, 0,
                  query);
    walk(storage, storage.links, query, {}, 700, scratch, counts);
    CHECK_FOR(std::to_string(scratch.pool.size()) + " of 700", scratch.pool.size() >= 665);
}

/// A first look leaves out most of what does not matter, and little of what does.
void first_look() {
    const items::Items rows = items::make(3000, 64, 20, 200, 11), queries = items::make(60, 64, 20, 200, 12);
    size_t common = 0, heads[2] = {}, scored[2] = {};
    std::vector<std::vector<uint32_t>> found[2];
    for (const bool two_stage : {false, true}) {
        Config config;
        config.dim = 64;
        config.two_stage = two_stage;
        Index index(config);
        index.add(rows.batch(), rows.ids.data(), 2, {});
        const Storage &storage = index.storage();
        const ItemBatch batch = queries.batch();
        for (size_t q = 0; q < 60; ++q) {
            Scratch scratch;
            SearchCounts counts;
            Query query;
            prepare_query(storage.layout, storage.center.span(), batch.dense_row(q, 64), batch.sparse_row(q), 0.5F,
                          0.5F, 0, query);
            std::vector<Candidate> best;
            search_one(storage, query, {10, 64, nullptr, 3000, false}, scratch, best, counts);
            std::vector<uint32_t> ids;
            for (const Candidate &c : best) ids.push_back(static_cast<uint32_t>(storage.ids[c.item]));
            found[two_stage ? 1 : 0].push_back(ids);
            heads[two_stage ? 1 : 0] += counts.heads;
            scored[two_stage ? 1 : 0] += counts.dense;
        }
    }
    for (size_t q = 0; q < 60; ++q)
        for (const uint32_t id : found[1][q])
            common += static_cast<size_t>(std::count(found[0][q].begin(), found[0][q].end(), id));
    CHECK(heads[0] == scored[0]);
    CHECK_FOR(std::to_string(scored[1]) + " of " + std::to_string(heads[1]), 5 * scored[1] < 4 * heads[1]);
    CHECK_FOR(std::to_string(common), common >= 570);
}

} // namespace

int main() {
    walks_to_the_end();
    answers();
    the_promise_without_links();
    built_graphs();
    first_look();
    return check::report();
}
