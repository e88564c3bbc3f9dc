// Codes: errors within half a step, the heaviest terms kept, names of terms, hash tables that lose nothing.
#include "check.hpp"
#include "items.hpp"

#include <cmath>

using namespace sparing;

namespace {

/// The records of one item.
struct Records {
    Records(const CodeLayout &layout, const float *dense, const SparseRow &row)
        : layout(layout), head(layout.head_stride(), 0xAA), tail(layout.tail_stride(), 0xAA) {
        encode_item(layout, {}, dense, row, head.empty() ? nullptr : &head[0], tail.empty() ? nullptr : &tail[0]);
    }
    float step(size_t which) const {
        Bits16 steps[2];
        std::memcpy(steps, head.data() + layout.steps_offset(), sizeof steps);
        return widen_bits(steps[which]);
    }
    static int bit(const uint8_t *plane, size_t d) { return plane[d / 8] >> (d % 8) & 1; }
    float sign(size_t d) const {
        return static_cast<float>((2 * bit(head.data(), d) - 1) * head[layout.level_offset()]) * step(0);
    }
    float decoded(size_t d) const {
        const uint8_t *const planes = tail.data();
        if (layout.dense == DenseCode::Float32) return reinterpret_cast<const float *>(planes)[d];
        if (layout.dense == DenseCode::Int8) return static_cast<float>(planes[d] - 128) * step(0);
        const size_t bytes = layout.plane_bytes();
        const int code =
            8 * bit(head.data(), d) + 4 * bit(planes, d) + 2 * bit(planes + bytes, d) + bit(planes + 2 * bytes, d);
        return (static_cast<float>(code) - 7.5F) * step(0);
    }
    uint16_t print(size_t i) const {
        return reinterpret_cast<const uint16_t *>(i < kHeadTerms
                                                      ? head.data() + layout.head_terms_offset()
                                                      : tail.data() + layout.tail_terms_offset() - 2 * kHeadTerms)[i];
    }
    int value(size_t group) const { return static_cast<int8_t>(head[layout.values_offset() + group]); }

    CodeLayout layout;
    Buffer<uint8_t> head, tail;
};

void dense_codes() {
    std::mt19937 random(1);
    for (const DenseCode code : {DenseCode::Int4, DenseCode::Int8, DenseCode::Float32})
        for (const uint32_t dim : {1U, 15U, 64U, 65U, 128U, 200U, 384U}) {
            const CodeLayout layout{code, dim, 8, true};
            CHECK(layout.head_stride() % 64 == 0 && layout.tail_stride() % 64 == 0);
            CHECK(layout.values_offset() + layout.terms / kValueGroup <= layout.head_terms_offset());
            CHECK(layout.head_terms_offset() % 2 == 0 && layout.head_terms_offset() + 16 <= layout.head_stride());
            std::vector<float> x(dim);
            for (float &value : x) value = items::gauss(random) * 3;
            const Records records(layout, x.data(), {});
            const float step = records.step(0), reach = code == DenseCode::Int4 ? 7.5F * step : 1e30F;
            double error = 0, size = 0, by_signs = 0;
            for (size_t d = 0; d < dim; ++d) {
                const float off = std::fabs(records.decoded(d) - x[d]);
                if (code == DenseCode::Float32)
                    CHECK(off == 0);
                else if (std::fabs(x[d]) <= reach)
                    CHECK_FOR(std::to_string(dim), off <= 0.5001F * step);
                error += double{off} * off;
                size += double{x[d]} * x[d];
                by_signs += double{records.sign(d)} * x[d];
            }
            if (dim >= 64) CHECK_FOR(std::to_string(dim), error <= (code == DenseCode::Int4 ? 0.03 : 0.0003) * size);
            CHECK_FOR(std::to_string(by_signs / size), std::fabs(by_signs / size - 1) <= 0.02); // right on average
            const Records absent(layout, nullptr, {}), zero(layout, std::vector<float>(dim).data(), {});
            CHECK(absent.step(0) == 0 && zero.step(0) == 0);
        }
    // The default layout: two lines, then three.
    const CodeLayout usual{DenseCode::Int4, 384, 56, true};
    CHECK(usual.head_stride() == 128 && usual.head_terms_offset() == 64 && usual.tail_stride() == 192);
}

void kept_terms() {
    const uint32_t terms[] = {3, 9, 70'000, 4'000'000'000U, 4'000'000'001U};
    const float values[] = {0.5F, -4, 1, 2, -0.25F};
    const CodeLayout layout{DenseCode::Int4, 0, 24};
    const Records few(layout, nullptr, {terms, values, 5});
    // Three groups for five terms: the values 2 and 1, 0.5 and -0.25, and -4.
    const uint32_t kept[3][3] = {{4'000'000'000U, 70'000}, {3, 4'000'000'001U}, {9}};
    const float means[3] = {1.5F, 0.125F, -4};
    for (size_t group = 0; group < 3; ++group) {
        for (size_t i = 0; i < kValueGroup; ++i)
            CHECK(few.print(8 * group + i) == (i < 3 && kept[group][i] != 0 ? fingerprint(kept[group][i]) : kNoTerm));
        CHECK(std::fabs(static_cast<float>(few.value(group)) * few.step(1) - means[group]) <= 0.5001F * few.step(1));
    }
    std::vector<uint32_t> many(60);
    std::vector<float> rising(60);
    for (uint32_t i = 0; i < 60; ++i) many[i] = i, rising[i] = static_cast<float>(i + 1);
    // A single group: the eight heaviest share their mean.
    const Records one({DenseCode::Int4, 0, 8}, nullptr, {many.data(), rising.data(), 20});
    for (uint32_t i = 0; i < 8; ++i) CHECK(one.print(i) == 19 - i);
    CHECK(std::fabs(static_cast<float>(one.value(0)) * one.step(1) - 16.5F) <= 0.5001F * one.step(1));
    const Records single(layout, nullptr, {terms, values, 1});
    CHECK(single.print(0) == 3 && single.print(1) == kNoTerm && single.print(2) == kNoTerm);
    CHECK(single.value(0) >= 126 && single.step(1) >= values[0] / 127);
    const Records split({DenseCode::Int4, 0, 40}, nullptr, {many.data(), rising.data(), 60}); // 32 terms, then 8
    for (uint32_t i = 0; i < 40; ++i) CHECK(split.print(i) == 59 - i);
    for (const uint32_t term : {0U, 1U, 65'534U}) CHECK(fingerprint(term) == term);
    std::mt19937 random(2);
    for (int i = 0; i < 100'000; ++i) CHECK(fingerprint(random()) != kNoTerm);
    CHECK(fingerprint(65'535) != kNoTerm && fingerprint(0xFFFFFFFFU) != kNoTerm);
}

void tables() {
    std::mt19937 random(3);
    for (const size_t size : {0U, 1U, 40U, 64U, 65U, 300U, 5'000U, 40'000U})
        for (const bool optimise : {false, true}) {
            const std::vector<uint32_t> terms = items::draw_terms(random, size, 0xFFFFFFFFU);
            std::vector<float> values(size);
            std::vector<int16_t> weights(size);
            for (size_t i = 0; i < size; ++i)
                values[i] = static_cast<float>(i + 1), weights[i] = static_cast<int16_t>(i % 30'000);
            TermTable table;
            table.assign({terms.data(), values.data(), size}, weights, optimise);
            size_t found = 0;
            for (size_t i = 0; i < size; ++i) {
                const uint16_t print = fingerprint(terms[i]);
                const size_t b = TermTable::bucket(print, table.multiplier);
                CHECK(b < TermTable::kBuckets);
                for (size_t r = 0; r < table.num_rounds; ++r) {
                    const TermTable::Round &round = table.rounds[r];
                    if (round.prints[b] == print && round.terms[b] == terms[i])
                        found += round.exact[b] == values[i] && round.weights[b] == weights[i] ? 1 : 0;
                }
            }
            CHECK_FOR(std::to_string(size) + " terms", found == size);
        }
}

/// Traversal scores stand near full-precision ones.
void scores() {
    const items::Items rows = items::make(200, 64, 30, 500, 4);
    for (const DenseCode code : {DenseCode::Int4, DenseCode::Int8, DenseCode::Float32}) {
        Config config;
        config.dim = 64;
        config.dense_code = code;
        config.doc_terms = 32;
        const Storage storage = items::store(rows, config);
        const items::Items queries = items::make(20, 64, 30, 500, 5);
        std::vector<uint32_t> all(200);
        for (uint32_t i = 0; i < 200; ++i) all[i] = i;
        std::vector<float> looked(200), fast(200), exact(200);
        double error = 0, size = 0, first_error = 0;
        for (size_t q = 0; q < 20; ++q) {
            Query query;
            const ItemBatch batch = queries.batch();
            prepare_query(storage.layout, storage.center.span(), batch.dense_row(q, 64), batch.sparse_row(q), 0.5F,
                          0.5F, 0, query);
            kernels("scalar").score_heads(storage.view(), query, all.data(), 200, looked.data());
            score_codes(kernels("scalar"), storage.view(), query, all.data(), 200, fast.data());
            kernels("scalar").score_exact(storage.view(), query, all.data(), 200, 0, exact.data());
            for (size_t i = 0; i < 200; ++i) {
                error += std::pow(fast[i] - exact[i], 2);
                size += std::pow(exact[i], 2);
                first_error += std::pow(looked[i] - exact[i], 2);
            }
        }
        CHECK_FOR(std::to_string(error / size), error <= (code == DenseCode::Int4 ? 0.03 : 0.003) * size);
        // Signs alone: the error of one product is (pi / 2 - 1) of its variance, about 4/7.
        CHECK_FOR(std::to_string(first_error / size), first_error <= 0.6 * size && first_error >= 2 * error);
    }
}

/// Items and queries that share a direction are told apart as well as others, and scores stay whole scores.
void shared_direction() {
    for (const DenseCode code : {DenseCode::Int4, DenseCode::Int8, DenseCode::Float32})
        for (const bool sketch : {true, false}) {
            items::Items rows = items::make(300, 64, 0, 1, 11), queries = items::make(20, 64, 0, 1, 12);
            for (float &x : rows.dense) x += 5;
            for (float &x : queries.dense) x += 5;
            std::fill_n(rows.dense.begin(), 64, 0.F);                // absent
            for (size_t d = 64; d < 128; ++d) rows.dense[d] *= 1e4F; // a long one
            std::copy_n(rows.dense.begin() + 640, 64, queries.dense.begin());
            Config config;
            config.dim = 64;
            config.dense_code = code;
            config.two_stage = sketch;
            const Storage storage = items::store(rows, config);
            CHECK(storage.center.size() == 64);
            for (const float x : storage.center.span()) CHECK(std::fabs(x - 5) < 0.5F);
            std::vector<uint32_t> all(300);
            for (uint32_t i = 0; i < 300; ++i) all[i] = i;
            std::vector<float> fast(300), exact(300);
            RowMemory memory;
            double error = 0, spread = 0;
            for (size_t q = 0; q < 21; ++q) {
                Query query, full;
                const float *const x = q < 20 ? queries.batch().dense_row(q, 64) : rows.batch().dense_row(10, 64);
                prepare_query(storage.layout, storage.center.span(), x, {}, 0.5F, 0.5F, 0, full);
                if (q < 20)
                    query = full;
                else // as construction does
                    query_from_records(storage.layout, storage.center.span(), storage.head(10), storage.tail(10), 0.5F,
                                       0.5F, storage.sparse_row(10, memory), query);
                score_codes(kernels("scalar"), storage.view(), query, all.data(), 300, fast.data());
                kernels("scalar").score_exact(storage.view(), full, all.data(), 300, 0, exact.data());
                double sum = 0, squares = 0;
                for (size_t i = 2; i < 300; ++i) {
                    error += std::pow(fast[i] - exact[i], 2);
                    sum += exact[i], squares += std::pow(exact[i], 2);
                }
                spread += squares - sum * sum / 298;
                CHECK(std::fabs(fast[0]) < 0.05F * exact[2]);
                CHECK(std::fabs(fast[1] / exact[1] - 1) < 0.05F);
            }
            CHECK_FOR(std::to_string(error / spread), error <= (code == DenseCode::Int4 ? 0.03 : 0.003) * spread);
        }
}

} // namespace

int main() {
    shared_direction();
    dense_codes();
    kept_terms();
    tables();
    scores();
    return check::report();
}
