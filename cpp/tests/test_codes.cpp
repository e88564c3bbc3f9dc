// Codes: errors within half a step, the heaviest terms kept, names of terms, hash tables that lose nothing.
#include "check.hpp"
#include "items.hpp"

#include <cmath>

using namespace sparing;

namespace {

float step_of(const CodeLayout &layout, const uint8_t *record, size_t which) {
    float steps[2];
    std::memcpy(steps, record + layout.steps_offset(), sizeof steps);
    return steps[which];
}

float decoded(const CodeLayout &layout, const uint8_t *record, size_t d) {
    if (layout.dense == DenseCode::Float32) return reinterpret_cast<const float *>(record)[d];
    int code = 0;
    if (layout.dense == DenseCode::Int4) {
        const uint8_t pair = record[d / 128 * 64 + d % 64];
        code = d % 128 < 64 ? pair & 15 : pair >> 4;
    } else {
        code = record[d];
    }
    return (static_cast<float>(code) - layout.zero()) * step_of(layout, record, 0);
}

void dense_codes() {
    std::mt19937 random(1);
    for (const DenseCode code : {DenseCode::Int4, DenseCode::Int8, DenseCode::Float32})
        for (const uint32_t dim : {1U, 15U, 64U, 65U, 128U, 200U, 384U}) {
            const CodeLayout layout{code, dim, 8};
            CHECK(layout.stride() % 64 == 0 && layout.steps_offset() + 8 <= layout.stride());
            CHECK(layout.values_offset() + layout.terms / kValueGroup <= layout.steps_offset());
            Buffer<uint8_t> record(layout.stride(), 0xAA);
            std::vector<float> x(dim);
            for (float &value : x) value = items::gauss(random) * 3;
            encode_item(layout, x.data(), {}, record.data());
            const float step = step_of(layout, record.data(), 0);
            const float reach = code == DenseCode::Int4 ? 7.5F * step : 1e30F;
            double error = 0, size = 0;
            for (size_t d = 0; d < dim; ++d) {
                const float off = std::fabs(decoded(layout, record.data(), d) - x[d]);
                if (code == DenseCode::Float32)
                    CHECK(off == 0);
                else if (std::fabs(x[d]) <= reach)
                    CHECK_FOR(std::to_string(dim), off <= 0.5001F * step);
                error += double{off} * off;
                size += double{x[d]} * x[d];
            }
            if (dim >= 64) CHECK_FOR(std::to_string(dim), error <= (code == DenseCode::Int4 ? 0.03 : 0.0003) * size);
            encode_item(layout, nullptr, {}, record.data());
            CHECK(step_of(layout, record.data(), 0) == 0);
        }
}

void kept_terms() {
    const uint32_t terms[] = {3, 9, 70'000, 4'000'000'000U, 4'000'000'001U};
    const float values[] = {0.5F, -4, 1, 2, -0.25F};
    const CodeLayout layout{DenseCode::Int4, 0, 24};
    Buffer<uint8_t> record(layout.stride());
    encode_item(layout, nullptr, {terms, values, 5}, record.data());
    const auto *prints = reinterpret_cast<const uint16_t *>(record.data() + layout.terms_offset());
    const auto *codes = reinterpret_cast<const int8_t *>(record.data() + layout.values_offset());
    const float step = step_of(layout, record.data(), 1);
    // Three groups for five terms, the two signs apart, so two share a value.
    const uint32_t kept[3][3] = {{4'000'000'000U, 70'000}, {3}, {4'000'000'001U, 9}};
    const float means[3] = {1.5F, 0.5F, -2.125F};
    for (size_t group = 0; group < 3; ++group) {
        for (size_t i = 0; i < kValueGroup; ++i)
            CHECK(prints[8 * group + i] == (i < 3 && kept[group][i] != 0 ? fingerprint(kept[group][i]) : kNoTerm));
        CHECK(std::fabs(static_cast<float>(codes[group]) * step - means[group]) <= 0.5001F * step);
    }
    const CodeLayout one{DenseCode::Int4, 0, 8}; // a single group: the eight heaviest share their mean
    std::vector<uint32_t> many(20);
    std::vector<float> rising(20);
    for (uint32_t i = 0; i < 20; ++i) many[i] = i, rising[i] = static_cast<float>(i + 1);
    Buffer<uint8_t> short_record(one.stride());
    encode_item(one, nullptr, {many.data(), rising.data(), 20}, short_record.data());
    for (uint32_t i = 0; i < 8; ++i) CHECK(reinterpret_cast<const uint16_t *>(short_record.data())[i] == 19 - i);
    CHECK(short_record[16] == 105); // 16.5 of at most 20, in 127ths
    encode_item(layout, nullptr, {terms, values, 1}, record.data());
    CHECK(prints[0] == 3 && prints[1] == kNoTerm && prints[2] == kNoTerm && codes[0] == 127);
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
        std::vector<float> fast(200), exact(200);
        double error = 0, size = 0;
        for (size_t q = 0; q < 20; ++q) {
            Query query;
            const ItemBatch batch = queries.batch();
            prepare_query(storage.layout, batch.dense_row(q, 64), batch.sparse_row(q), 0.5F, 0.5F, 0, query);
            kernels("scalar").score_codes(storage.view(), query, Stage::Hybrid, all.data(), 200, fast.data());
            kernels("scalar").score_exact(storage.view(), query, all.data(), 200, 0, exact.data());
            for (size_t i = 0; i < 200; ++i) {
                error += std::pow(fast[i] - exact[i], 2);
                size += std::pow(exact[i], 2);
            }
        }
        CHECK_FOR(std::to_string(error / size), error <= (code == DenseCode::Int4 ? 0.03 : 0.003) * size);
    }
}

} // namespace

int main() {
    dense_codes();
    kept_terms();
    tables();
    scores();
    return check::report();
}
