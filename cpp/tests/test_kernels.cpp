// Every instruction set against the portable kernels, on many shapes.
#include "check.hpp"
#include "items.hpp"

#include <cmath>

using namespace sparing;

namespace {

struct Shape {
    DenseCode code;
    uint32_t dim, doc_terms;
    size_t item_terms, query_terms;
    uint32_t vocabulary;
    bool halves = false; ///< every stored number fits 16 bits
};

std::string name_of(const std::string &level, const Shape &s) {
    return level + ": code " + std::to_string(static_cast<int>(s.code)) + ", dim " + std::to_string(s.dim) + ", kept " +
           std::to_string(s.doc_terms) + ", item terms " + std::to_string(s.item_terms) + ", query terms " +
           std::to_string(s.query_terms) + ", vocabulary " + std::to_string(s.vocabulary);
}

bool near(float a, float b, float size) { return std::fabs(a - b) <= 1e-5F * (std::fabs(a) + size); }

void compare(const Shape &shape, uint32_t seed) {
    constexpr size_t kItems = 37, kQueries = 3; // odd, so that blocks end unevenly
    items::Items rows = items::make(kItems, shape.dim, shape.item_terms, shape.vocabulary, seed);
    if (shape.halves)
        for (auto *values : {&rows.dense, &rows.values})
            for (float &value : *values) value = std::nearbyint(value * 256) / 256;
    items::Items queries = items::make(0, shape.dim, 0, 1, seed);
    std::mt19937 random(seed + 1);
    queries.count = kQueries;
    for (size_t q = 0; q < kQueries; ++q) {
        for (size_t d = 0; d < shape.dim; ++d) queries.dense.push_back(items::gauss(random));
        for (const uint32_t term : items::draw_terms(random, shape.query_terms, shape.vocabulary)) {
            queries.terms.push_back(term);
            queries.values.push_back(items::gauss(random));
        }
        queries.row_begin.push_back(queries.terms.size());
    }
    Config config;
    config.dim = shape.dim;
    config.dense_code = shape.code;
    config.doc_terms = shape.doc_terms;
    config.two_stage = seed % 2 == 0;
    const Storage storage = items::store(rows, config);
    if (shape.halves) CHECK(storage.dense.is_narrow() && storage.values.is_narrow());
    CHECK(storage.terms.is_narrow() == (shape.vocabulary <= 65'536 || storage.terms.size() == 0));
    RowMemory memory;
    std::vector<uint32_t> ids(kItems);
    for (uint32_t i = 0; i < kItems; ++i) ids[i] = (i * 11) % kItems;
    const ItemBatch batch = queries.batch();
    const float size = static_cast<float>(shape.dim + shape.query_terms);
    for (size_t q = 0; q < kQueries + 1; ++q) {
        Query query;
        if (q < kQueries)
            prepare_query(storage.layout, storage.center.span(), batch.dense_row(q, shape.dim), batch.sparse_row(q),
                          q == 1 ? 0.F : 0.75F, q == 2 ? 0.F : 0.25F, q == 0 ? 0 : 5, query);
        else // as construction does; it has no full-precision form
            query_from_records(storage.layout, storage.center.span(), storage.head(5), storage.tail(5), 0.5F, 0.5F,
                               storage.sparse_row(5, memory), query);
        for (const size_t count : {size_t{0}, size_t{1}, size_t{2}, size_t{7}, kItems}) {
            std::vector<float> plain(kItems, -1), fast(kItems, -1);
            for (const std::string &level : available_kernels()) {
                const Kernels &other = kernels(level);
                kernels("scalar").score_heads(storage.view(), query, ids.data(), count, plain.data());
                other.score_heads(storage.view(), query, ids.data(), count, fast.data());
                for (size_t i = 0; i < count; ++i) CHECK_FOR(name_of(level, shape), near(plain[i], fast[i], size));
                kernels("scalar").score_tails(storage.view(), query, ids.data(), count, {}, plain.data());
                other.score_tails(storage.view(), query, ids.data(), count, ids, fast.data());
                for (size_t i = 0; i < count; ++i) CHECK_FOR(name_of(level, shape), near(plain[i], fast[i], size));
                if (q == kQueries) continue;
                kernels("scalar").score_exact(storage.view(), query, ids.data(), count, 0, plain.data());
                other.score_exact(storage.view(), query, ids.data(), count, 0, fast.data());
                for (size_t i = 0; i < count; ++i) CHECK_FOR(name_of(level, shape), near(plain[i], fast[i], size));
            }
        }
    }
}

/// The portable kernel against a double loop over terms.
void oracle() {
    const items::Items rows = items::make(50, 33, 60, 300, 7), queries = items::make(5, 33, 60, 300, 8);
    Config config;
    config.dim = 33;
    const Storage storage = items::store(rows, config);
    const ItemBatch a = queries.batch(), b = rows.batch();
    for (size_t q = 0; q < 5; ++q) {
        Query query;
        prepare_query(storage.layout, storage.center.span(), a.dense_row(q, 33), a.sparse_row(q), 0.3F, 0.9F, 0, query);
        for (uint32_t i = 0; i < 50; ++i) {
            double expected = 0, sparse = 0;
            for (size_t d = 0; d < 33; ++d) expected += double{a.dense_row(q, 33)[d]} * b.dense_row(i, 33)[d];
            const SparseRow x = a.sparse_row(q), y = b.sparse_row(i);
            for (size_t m = 0; m < x.size; ++m)
                for (size_t n = 0; n < y.size; ++n)
                    if (x.terms[m] == y.terms[n]) sparse += double{x.values[m]} * y.values[n];
            expected = 0.3 * expected + 0.9 * sparse;
            float found = 0;
            kernels("scalar").score_exact(storage.view(), query, &i, 1, 0, &found);
            CHECK(std::fabs(found - expected) <= 1e-4);
        }
    }
}

} // namespace

int main() {
    uint32_t seed = 100;
    for (const DenseCode code : {DenseCode::Int4, DenseCode::Int8, DenseCode::Float32})
        for (const uint32_t dim : {0U, 1U, 15U, 16U, 31U, 63U, 64U, 65U, 127U, 129U, 300U})
            for (const bool halves : {false, true}) compare({code, dim, 8, 12, 10, 100, halves}, ++seed);
    for (const uint32_t kept : {0U, 1U, 16U, 31U, 32U, 33U, 40U, 63U, 64U, 65U, 200U})
        for (const size_t query_terms : {size_t{0}, size_t{1}, size_t{40}, size_t{64}, size_t{200}, size_t{700}})
            for (const uint32_t vocabulary : {800U, 70'000U, 0xFFFFFFFFU})
                compare({DenseCode::Int4, 5, kept, 200, query_terms, vocabulary}, ++seed);
    compare({DenseCode::Int8, 4, 4096, 5000, 20'000, 30'000}, ++seed);
    oracle();
    CHECK(!available_kernels().empty() && available_kernels().front() == "scalar");
    CHECK(check::throws(ErrorKind::Argument, [] { kernels("sse9"); }));
    return check::report();
}
