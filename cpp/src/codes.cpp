// Encoding of items and queries: quantised dense part, heaviest terms, hashed query table.
#include "sparing/codes.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sparing {
namespace {

constexpr float kTiny = 1e-30F; ///< smaller parts count as absent in traversal: their steps would underflow

/// Step that minimises the squared error of `levels` symmetric levels over a few candidates.
float best_step(const float *x, size_t dim, int bits) {
    double sum = 0;
    float peak = 0;
    for (size_t i = 0; i < dim; ++i) {
        sum += double{x[i]} * x[i];
        peak = std::max(peak, std::fabs(x[i]));
    }
    if (peak < kTiny) return 0;
    const float half = static_cast<float>((1 << (bits - 1))) - 0.5F;
    if (bits == 8) return peak / 127.F;
    const float sigma = static_cast<float>(std::sqrt(sum / static_cast<double>(dim)));
    float best = peak / half;
    double best_error = -1;
    for (const float clip : {1.8F, 2.1F, 2.4F, 2.7F, 3.1F, 3.6F}) {
        const float step = std::min(peak, sigma * clip) / half;
        double error = 0;
        for (size_t i = 0; i < dim; ++i) {
            const float level = std::clamp(std::floor(x[i] / step), -half - 0.5F, half - 0.5F) + 0.5F;
            const double e = double{x[i]} - double{level} * step;
            error += e * e;
        }
        if (best_error < 0 || error < best_error) best_error = error, best = step;
    }
    return best;
}

/// Code of dimension i minus its zero point, doubled where that is a half: an integer from -127 to 127.
int signed_code(const CodeLayout &layout, const uint8_t *record, size_t i) {
    const size_t lane = i % 128;
    if (layout.dense == DenseCode::Int8) return int{record[i]} - 128;
    const uint8_t pair = record[i / 128 * 64 + lane % 64];
    return 2 * (lane < 64 ? pair & 15 : pair >> 4) - 15;
}

void encode_dense(const CodeLayout &layout, const float *dense, uint8_t *record, float &step) {
    step = 0;
    const size_t dim = layout.dim;
    if (layout.dense == DenseCode::Float32) {
        auto *out = reinterpret_cast<float *>(record);
        std::memset(out, 0, layout.dense_bytes());
        if (dense != nullptr) std::copy(dense, dense + dim, out), step = 1;
        return;
    }
    std::memset(record, 0, layout.dense_bytes());
    const size_t bits = layout.bits();
    if (dense != nullptr) step = best_step(dense, dim, static_cast<int>(bits));
    for (size_t i = 0; i < layout.padded_dim(); ++i) {
        const float x = i < dim && dense != nullptr && step > 0 ? dense[i] / step : 0.F;
        if (bits == 8) {
            record[i] = static_cast<uint8_t>(std::clamp(std::nearbyint(x), -127.F, 127.F) + 128.F);
        } else {
            const auto code = static_cast<unsigned>(std::clamp(std::floor(x) + 8.F, 0.F, 15.F));
            uint8_t &pair = record[i / 128 * 64 + i % 64];
            pair = static_cast<uint8_t>(pair | (i % 128 < 64 ? code : code << 4));
        }
    }
}

/// Positions of the `keep` heaviest values of a row, ties by term, then back in term order.
std::vector<uint32_t> heaviest(const SparseRow &row, size_t keep) {
    std::vector<uint32_t> order(row.size);
    std::iota(order.begin(), order.end(), 0U);
    if (keep == 0 || keep >= row.size) return order;
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(keep), order.end(),
                     [&](uint32_t a, uint32_t b) {
                         const float x = std::fabs(row.values[a]), y = std::fabs(row.values[b]);
                         return x != y ? x > y : a < b;
                     });
    order.resize(keep);
    std::sort(order.begin(), order.end());
    return order;
}

float peak_of(const SparseRow &row) {
    float peak = 0;
    for (size_t i = 0; i < row.size; ++i) peak = std::max(peak, std::fabs(row.values[i]));
    return peak;
}

/// Largest bucket under a multiplier: the number of rounds that it needs, or anything from `limit` on.
size_t rounds_needed(std::span<const uint16_t> prints, uint16_t multiplier, size_t limit) {
    uint32_t load[TermTable::kBuckets] = {};
    size_t worst = 0;
    for (size_t i = 0; i < prints.size() && worst < limit; ++i)
        worst = std::max<size_t>(worst, ++load[TermTable::bucket(prints[i], multiplier)]);
    return worst;
}

} // namespace

void TermTable::assign(const SparseRow &row, std::span<const int16_t> weights, bool optimise) {
    std::vector<uint16_t> prints(row.size);
    for (size_t i = 0; i < row.size; ++i) prints[i] = fingerprint(row.terms[i]);
    multiplier = 0x9E37;
    num_rounds = rounds_needed(prints, multiplier, prints.size());
    uint32_t state = 0x2545F491U;
    const size_t ideal = (row.size + 39) / 40;
    for (int attempt = 0; optimise && attempt < 48 && num_rounds > ideal; ++attempt) {
        state = state * 1664525U + 1013904223U;
        const auto candidate = static_cast<uint16_t>((state >> 16) | 1U);
        const size_t needed = rounds_needed(prints, candidate, num_rounds);
        if (needed < num_rounds) num_rounds = needed, multiplier = candidate;
    }
    if (rounds.size() < num_rounds) rounds.resize(num_rounds);
    for (size_t r = 0; r < num_rounds; ++r) {
        std::memset(rounds[r].prints, 0xFF, sizeof rounds[r].prints);
        std::memset(rounds[r].weights, 0, sizeof rounds[r].weights);
        std::memset(rounds[r].exact, 0, sizeof rounds[r].exact);
    }
    uint32_t load[kBuckets] = {};
    for (size_t i = 0; i < row.size; ++i) {
        const size_t b = bucket(prints[i], multiplier);
        Round &round = rounds[load[b]++];
        round.prints[b] = prints[i];
        round.weights[b] = weights[i];
        round.terms[b] = row.terms[i];
        round.exact[b] = row.values[i];
    }
}

void encode_item(const CodeLayout &layout, const float *dense, const SparseRow &row, uint8_t *record) {
    std::memset(record, 0, layout.stride());
    float steps[2] = {0, 0};
    encode_dense(layout, dense, record, steps[0]);
    auto *prints = reinterpret_cast<uint16_t *>(record + layout.terms_offset());
    auto *values = reinterpret_cast<int8_t *>(record + layout.values_offset());
    std::fill(prints, prints + layout.terms, kNoTerm);
    const float peak = peak_of(row);
    if (layout.terms != 0 && peak >= kTiny) {
        std::vector<uint32_t> order = heaviest(row, layout.terms);
        std::stable_sort(order.begin(), order.end(),
                         [&](uint32_t a, uint32_t b) { return row.values[a] > row.values[b]; });
        steps[1] = peak / 127.F;
        // Short rows share a value among fewer terms; no value is shared by both signs if there are groups to spare.
        const size_t positive = static_cast<size_t>(
            std::count_if(order.begin(), order.end(), [&](uint32_t position) { return row.values[position] > 0; }));
        size_t share = 0;
        bool apart = false;
        while (!apart && share < kValueGroup) {
            ++share;
            apart = (positive + share - 1) / share + (order.size() - positive + share - 1) / share <=
                    layout.terms / kValueGroup;
        }
        for (size_t begin = 0, group = 0; begin < order.size(); ++group) {
            size_t end = std::min(begin + share, order.size());
            if (apart && begin < positive) end = std::min(end, positive);
            float sum = 0;
            for (size_t i = begin; i < end; ++i) {
                prints[group * kValueGroup + i - begin] = fingerprint(row.terms[order[i]]);
                sum += row.values[order[i]];
            }
            values[group] = static_cast<int8_t>(std::nearbyint(sum / static_cast<float>(end - begin) / steps[1]));
            begin = end;
        }
    }
    std::memcpy(record + layout.steps_offset(), steps, sizeof steps);
}

namespace {

void set_dense(const CodeLayout &layout, const float *dense, float weight, Query &query) {
    query.dense_float.assign(layout.padded_dim(), 0.F);
    query.dense_int8.clear();
    query.dense_sum = 0;
    query.dense_weight = dense == nullptr ? 0.F : weight;
    query.dense_factor = query.dense_weight;
    if (dense == nullptr) return;
    std::copy(dense, dense + layout.dim, query.dense_float.begin());
    if (layout.dense == DenseCode::Float32) return;
    query.dense_int8.assign(layout.padded_dim(), 0);
    float peak = 0;
    for (size_t i = 0; i < layout.dim; ++i) peak = std::max(peak, std::fabs(dense[i]));
    if (peak < kTiny) {
        query.dense_factor = 0;
        return;
    }
    const float step = peak / 127.F, inverse = 127.F / peak;
    int32_t sum = 0;
    for (size_t i = 0; i < layout.dim; ++i) {
        const float level = dense[i] * inverse;
        const auto code = static_cast<int32_t>(level + (level < 0 ? -0.5F : 0.5F));
        query.dense_int8[i] = static_cast<int8_t>(code);
        sum += code;
    }
    query.dense_sum = sum;
    query.dense_factor = weight * step;
}

} // namespace

void prepare_query(const CodeLayout &layout, const float *dense, const SparseRow &row, float dense_weight,
                   float sparse_weight, size_t query_terms, Query &query) {
    set_dense(layout, dense, dense_weight, query);
    query.sparse_weight = row.size == 0 ? 0.F : sparse_weight;
    const float peak = peak_of(row);
    float total = 0;
    for (size_t i = 0; i < row.size; ++i) total += std::fabs(row.values[i]);
    // The sum of products with int8 values must fit int32, however many terms match.
    const float step = peak >= kTiny ? std::max(peak / 32767.F, total / 16'000'000.F) : 0.F;
    query.sparse_factor = query.sparse_weight * step;
    const std::vector<uint32_t> kept = heaviest(row, query_terms);
    std::vector<int16_t> weights(row.size, 0);
    for (const uint32_t position : kept)
        if (step > 0) weights[position] = static_cast<int16_t>(std::nearbyint(row.values[position] / step));
    query.table.assign(row, weights, true);
    query.seed_terms.assign(kept.begin(), kept.end());
    std::sort(query.seed_terms.begin(), query.seed_terms.end(), [&](uint32_t a, uint32_t b) {
        const float x = std::fabs(row.values[a]), y = std::fabs(row.values[b]);
        return x != y ? x > y : a < b;
    });
    for (uint32_t &position : query.seed_terms) position = row.terms[position];
}

void query_from_record(const CodeLayout &layout, const uint8_t *record, float dense_weight, float sparse_weight,
                       const SparseRow &full, Query &query) {
    float steps[2];
    std::memcpy(steps, record + layout.steps_offset(), sizeof steps);
    query.dense_sum = 0;
    query.dense_weight = query.dense_factor = 0;
    const size_t padded = layout.padded_dim();
    if (layout.dense == DenseCode::Float32) {
        const auto *dense = reinterpret_cast<const float *>(record);
        query.dense_float.assign(dense, dense + padded);
        query.dense_factor = steps[0] > 0 ? dense_weight : 0.F;
    } else {
        query.dense_int8.resize(padded);
        for (size_t i = 0; i < padded; ++i) {
            query.dense_int8[i] = static_cast<int8_t>(i < layout.dim ? signed_code(layout, record, i) : 0);
            query.dense_sum += query.dense_int8[i];
        }
        query.dense_factor = dense_weight * steps[0] * (layout.bits() == 4 ? 0.5F : 1.F);
    }
    if (layout.terms == 0) {
        const float peak = peak_of(full);
        std::vector<int16_t> weights(full.size, 0);
        query.sparse_weight = query.sparse_factor = peak > 0 ? sparse_weight : 0.F;
        query.table.assign(full, weights, false);
        return;
    }
    const auto *prints = reinterpret_cast<const uint16_t *>(record + layout.terms_offset());
    const auto *values = reinterpret_cast<const int8_t *>(record + layout.values_offset());
    uint32_t terms[4096];
    float zeros[4096];
    int16_t weights[4096];
    const int factor = layout.terms <= 512 ? 256 : 32; // products of 4,096 terms must fit int32
    size_t size = 0;
    for (size_t i = 0; i < layout.terms; ++i) {
        if (prints[i] == kNoTerm) continue;
        terms[size] = prints[i];
        zeros[size] = 0;
        weights[size++] = static_cast<int16_t>(values[i / kValueGroup] * factor);
    }
    query.sparse_factor = sparse_weight * steps[1] / static_cast<float>(factor);
    query.table.assign({terms, zeros, size}, {weights, size}, false);
}

} // namespace sparing
