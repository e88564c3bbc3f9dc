// Encoding of items and queries: quantised dense part, heaviest terms, hashed query table.
#include "sparing/codes.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

namespace sparing {
namespace {

constexpr float kTiny = 1e-30F; ///< smaller parts count as absent in traversal: their steps would underflow

/// Of finite values. Sizes of floats are in the order of their bits, and integers a compiler compares side by side.
float largest(const float *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFU);
    return std::bit_cast<float>(most);
}

bool bit_of(const uint8_t *plane, size_t i) { return (plane[i / 8] >> (i % 8) & 1U) != 0; }

/// Code of dimension i minus its zero point, doubled where that is a half: an integer from -127 to 127.
int signed_code(const CodeLayout &layout, const uint8_t *head, const uint8_t *tail, size_t i) {
    if (layout.dense == DenseCode::Int8) return int{tail[i]} - 128;
    int code = bit_of(head, i) ? 8 : 0;
    for (size_t plane = 0; plane < 3; ++plane) code += bit_of(tail + plane * layout.plane_bytes(), i) ? 4 >> plane : 0;
    return 2 * code - 15;
}

/// What a sign stands for so that products with the signs alone are right on average: sum of squares / sum of sizes.
float sign_size(const float *x, size_t dim) {
    double squares = 0, sizes = 0;
    for (size_t i = 0; i < dim; ++i) {
        squares += double{x[i]} * x[i];
        sizes += std::fabs(x[i]);
    }
    return sizes < double{kTiny} ? 0.F : static_cast<float>(squares / sizes);
}

/// The next bfloat16 that is not smaller; positive numbers only. A step is rounded before anything is divided by it.
Bits16 round_up(float value) { return static_cast<Bits16>((std::bit_cast<uint32_t>(value) + 0xFFFFU) >> 16); }

/// `dense` (zeros where it is null) less the center.
std::vector<float> residual_of(std::span<const float> center, const float *dense) {
    std::vector<float> residual(center.size());
    for (size_t i = 0; i < residual.size(); ++i) residual[i] = (dense == nullptr ? 0.F : dense[i]) - center[i];
    return residual;
}

/// Of x = residual + center. In eight lanes that a compiler keeps in registers.
float offset_of(std::span<const float> center, const std::vector<float> &residual) {
    double lane[8] = {};
    const size_t whole = center.size() / 8 * 8;
    for (size_t i = 0; i < whole; i += 8)
        for (size_t j = 0; j < 8; ++j) lane[j] += center[i + j] * (residual[i + j] + 0.5 * center[i + j]);
    double offset = 0;
    for (size_t i = whole; i < center.size(); ++i) offset += center[i] * (residual[i] + 0.5 * center[i]);
    for (const double part : lane) offset += part;
    return static_cast<float>(offset);
}

/// Writes the dense part, signs and codes; returns its step.
Bits16 encode_dense(const CodeLayout &layout, const float *dense, uint8_t *head, uint8_t *tail) {
    const size_t dim = layout.dim;
    const float size = sign_size(dense, dim);
    // In int4 a sign stands for 4 steps: of dimensions spread like a bell, nearly the step of the least squared error.
    float step = layout.dense == DenseCode::Int4 ? size / 4 : size;
    if (layout.dense == DenseCode::Int8) step = largest(dense, dim) / 127.F;
    if (!(size > 0 && std::isfinite(size)) || largest(dense, dim) < kTiny) return 0;
    const Bits16 rounded = round_up(step);
    step = widen_bits(rounded);
    for (size_t i = 0; i < dim; ++i) {
        const auto bit = static_cast<uint8_t>(1U << (i % 8));
        const float x = dense[i] / step;
        if (layout.has_signs() && x >= 0) head[i / 8] |= bit;
        if (layout.dense == DenseCode::Int8) {
            tail[i] = static_cast<uint8_t>(std::clamp(std::nearbyint(x), -127.F, 127.F) + 128.F);
        } else if (layout.dense == DenseCode::Int4) {
            const auto code = static_cast<unsigned>(std::clamp(std::floor(x) + 8.F, 0.F, 15.F));
            for (size_t plane = 0; plane < 3; ++plane)
                if ((code >> (2 - plane) & 1U) != 0) tail[plane * layout.plane_bytes() + i / 8] |= bit;
        }
    }
    const float level = layout.dense == DenseCode::Int4 ? 4.F : std::clamp(std::nearbyint(size / step), 1.F, 255.F);
    head[layout.level_offset()] = static_cast<uint8_t>(level);
    return rounded;
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

/// Cuts sorted values into at most `groups` of at most kValueGroup, so that the squared error is least when each group
/// takes its mean: short rows share little, and their largest values least.
std::vector<size_t> group_sizes(std::span<const float> values, size_t groups) {
    const size_t n = values.size();
    if (n <= groups) return std::vector<size_t>(n, 1);
    std::vector<double> sums(n + 1, 0), squares(n + 1, 0);
    for (size_t i = 0; i < n; ++i) {
        sums[i + 1] = sums[i] + double{values[i]};
        squares[i + 1] = squares[i] + double{values[i]} * values[i];
    }
    // least[end]: the error of the first `end` values in the groups so far.
    std::vector<double> least(n + 1, std::numeric_limits<double>::infinity()), next(n + 1);
    std::vector<uint8_t> sizes((groups + 1) * (n + 1), 0);
    least[0] = 0;
    for (size_t g = 1; g <= groups; ++g) {
        std::fill(next.begin(), next.end(), std::numeric_limits<double>::infinity());
        const size_t room = (groups - g) * kValueGroup; // what later groups can take
        for (size_t end = n > room ? n - room : 0; end <= std::min(n, g * kValueGroup); ++end)
            for (size_t size = 0; size <= std::min(end, kValueGroup); ++size) {
                const size_t begin = end - size;
                const double sum = sums[end] - sums[begin];
                const double error =
                    size < 2 ? 0 : squares[end] - squares[begin] - sum * sum / static_cast<double>(size);
                if (least[begin] + error >= next[end]) continue;
                next[end] = least[begin] + error;
                sizes[g * (n + 1) + end] = static_cast<uint8_t>(size);
            }
        std::swap(least, next);
    }
    std::vector<size_t> found;
    for (size_t g = groups, end = n; g > 0; --g) {
        const size_t size = sizes[g * (n + 1) + end];
        if (size != 0) found.push_back(size);
        end -= size;
    }
    std::reverse(found.begin(), found.end());
    return found;
}

/// Largest bucket under a multiplier: the number of rounds that it needs, or anything from `limit` on.
size_t rounds_needed(std::span<const uint16_t> prints, uint16_t multiplier, size_t limit) {
    if (limit == 2) { // what is asked for most: does every bucket hold one at most?
        uint64_t full = 0;
        for (const uint16_t print : prints) {
            const uint64_t bit = uint64_t{1} << TermTable::bucket(print, multiplier);
            if ((full & bit) != 0) return 2;
            full |= bit;
        }
        return 1;
    }
    uint32_t load[TermTable::kBuckets] = {};
    size_t worst = 0;
    for (size_t i = 0; i < prints.size() && worst < limit; ++i)
        worst = std::max<size_t>(worst, ++load[TermTable::bucket(prints[i], multiplier)]);
    return worst;
}

} // namespace

// In eight lanes that a compiler keeps in registers.
double squared_length(const float *x, size_t n) {
    double lane[8] = {};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; ++j) lane[j] += double{x[i + j]} * x[i + j];
    double sum = 0;
    for (; i < n; ++i) sum += double{x[i]} * x[i];
    for (const double part : lane) sum += part;
    return sum;
}

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

std::vector<float> center_of(size_t count, size_t dim, const std::function<const float *(size_t)> &row) {
    std::vector<double> lengths(count, 0);
    for (size_t i = 0; i < count; ++i)
        if (const float *x = row(i); x != nullptr) {
            const double square = squared_length(x, dim);
            lengths[i] = std::isfinite(square) ? std::sqrt(square) : 0; // a damaged file may hold anything
        }
    std::vector<double> present;
    std::copy_if(lengths.begin(), lengths.end(), std::back_inserter(present), [](double l) { return l > 0; });
    if (present.empty()) return {};
    const auto median = present.begin() + static_cast<std::ptrdiff_t>(present.size() / 2);
    std::nth_element(present.begin(), median, present.end());
    std::vector<double> sum(dim, 0);
    for (size_t i = 0; i < count; ++i) {
        if (lengths[i] == 0) continue;
        const float *x = row(i);
        const double share = std::min(1.0, *median / lengths[i]);
        for (size_t d = 0; d < dim; ++d) sum[d] += share * x[d];
    }
    std::vector<float> center(dim);
    for (size_t d = 0; d < dim; ++d) center[d] = static_cast<float>(sum[d] / static_cast<double>(present.size()));
    return center;
}

void encode_item(const CodeLayout &layout, std::span<const float> center, const float *dense, const SparseRow &row,
                 uint8_t *head, uint8_t *tail) {
    std::fill_n(head, layout.head_stride(), uint8_t{0});
    std::fill_n(tail, layout.tail_stride(), uint8_t{0}); // there may be no tail at all
    Bits16 steps[2] = {};
    if (dense != nullptr && layout.dense == DenseCode::Float32) std::memcpy(tail, dense, layout.dim * sizeof *dense);
    if (!center.empty()) {
        const std::vector<float> residual = residual_of(center, dense);
        steps[0] = encode_dense(layout, residual.data(), head, tail);
        const float offset = offset_of(center, residual);
        std::memcpy(head + layout.offset_offset(), &offset, sizeof offset);
    } else if (dense != nullptr) {
        steps[0] = encode_dense(layout, dense, head, tail);
    }
    auto *first = reinterpret_cast<uint16_t *>(head + layout.head_terms_offset());
    auto *rest = reinterpret_cast<uint16_t *>(tail + layout.tail_terms_offset());
    auto *values = reinterpret_cast<int8_t *>(head + layout.values_offset());
    std::fill(first, first + layout.head_terms(), kNoTerm);
    std::fill(rest, rest + layout.terms - layout.head_terms(), kNoTerm);
    const float peak = largest(row.values, row.size);
    if (layout.terms != 0 && peak >= kTiny) {
        std::vector<uint32_t> order = heaviest(row, layout.terms);
        std::stable_sort(order.begin(), order.end(),
                         [&](uint32_t a, uint32_t b) { return row.values[a] > row.values[b]; });
        steps[1] = round_up(peak / 127.F);
        const float step = widen_bits(steps[1]);
        std::vector<float> sorted(order.size());
        for (size_t i = 0; i < order.size(); ++i) sorted[i] = row.values[order[i]];
        size_t begin = 0, group = 0;
        for (const size_t size : group_sizes(sorted, layout.terms / kValueGroup)) {
            float sum = 0;
            for (size_t i = 0; i < size; ++i) {
                const size_t place = group * kValueGroup + i;
                (place < kHeadTerms ? first[place] : rest[place - kHeadTerms]) =
                    fingerprint(row.terms[order[begin + i]]);
                sum += sorted[begin + i];
            }
            values[group++] = static_cast<int8_t>(std::nearbyint(sum / static_cast<float>(size) / step));
            begin += size;
        }
    }
    std::memcpy(head + layout.steps_offset(), steps, sizeof steps);
}

namespace {

/// The query's dense part in int8, with its sum; returns the step, 0 where there is nothing to score.
float set_int8(const CodeLayout &layout, const float *dense, Query &query) {
    query.dense_int8.assign(layout.padded_dim(), 0);
    query.dense_sum = 0;
    const float peak = largest(dense, layout.dim);
    if (peak < kTiny) return 0;
    constexpr float kRound = 12582912.F; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const float inverse = 127.F / peak;
    int32_t sum = 0;
    int8_t *__restrict const out = query.dense_int8.data(); // written bytes change nothing that the loop reads
    for (size_t i = 0, dim = layout.dim; i < dim; ++i) {
        const int32_t code = std::bit_cast<int32_t>(dense[i] * inverse + kRound) - std::bit_cast<int32_t>(kRound);
        out[i] = static_cast<int8_t>(code);
        sum += code;
    }
    query.dense_sum = sum;
    return peak / 127.F;
}

/// The factors of a query whose codes are made; `step` is 0 where there is nothing to score but offsets.
void set_factors(const CodeLayout &layout, float weight, float step, float offset, Query &query) {
    query.sign_factor = step > 0 ? weight * step : weight;
    query.dense_factor = layout.dense == DenseCode::Float32 ? weight : query.sign_factor;
    query.offset_weight = weight;
    query.offset = weight * offset;
}

void set_dense(const CodeLayout &layout, std::span<const float> center, const float *dense, float weight,
               Query &query) {
    query.dense_float.assign(layout.padded_dim(), 0.F);
    query.dense_weight = dense == nullptr ? 0.F : weight;
    query.dense_factor = query.sign_factor = query.offset_weight = query.offset = 0;
    if (dense == nullptr || largest(dense, layout.dim) < kTiny) return;
    std::copy(dense, dense + layout.dim, query.dense_float.begin());
    if (center.empty()) {
        set_factors(layout, weight, set_int8(layout, dense, query), 0, query);
        return;
    }
    const std::vector<float> residual = residual_of(center, dense);
    set_factors(layout, weight, set_int8(layout, residual.data(), query), offset_of(center, residual), query);
}

} // namespace

void prepare_query(const CodeLayout &layout, std::span<const float> center, const float *dense, const SparseRow &row,
                   float dense_weight, float sparse_weight, size_t query_terms, Query &query) {
    set_dense(layout, center, dense, dense_weight, query);
    query.sparse_weight = row.size == 0 ? 0.F : sparse_weight;
    const float peak = largest(row.values, row.size);
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

void query_from_records(const CodeLayout &layout, std::span<const float> center, const uint8_t *head,
                        const uint8_t *tail, float dense_weight, float sparse_weight, const SparseRow &full,
                        Query &query) {
    Bits16 bits[2];
    float offset;
    std::memcpy(bits, head + layout.steps_offset(), sizeof bits);
    std::memcpy(&offset, head + layout.offset_offset(), sizeof offset);
    const float steps[2] = {widen_bits(bits[0]), widen_bits(bits[1])};
    query.dense_weight = query.dense_factor = query.sign_factor = query.offset_weight = query.offset = 0;
    const size_t padded = layout.padded_dim();
    if (layout.dense == DenseCode::Float32) {
        const auto *dense = reinterpret_cast<const float *>(tail);
        query.dense_float.assign(dense, dense + padded);
        if (center.empty()) {
            const float step = set_int8(layout, dense, query);
            if (step > 0) set_factors(layout, dense_weight, step, 0, query);
        } else {
            set_factors(layout, dense_weight, set_int8(layout, residual_of(center, dense).data(), query), offset,
                        query);
        }
    } else {
        query.dense_sum = 0;
        query.dense_int8.assign(padded, 0);
        for (size_t i = 0; i < layout.dim && steps[0] > 0; ++i) {
            query.dense_int8[i] = static_cast<int8_t>(signed_code(layout, head, tail, i));
            query.dense_sum += query.dense_int8[i];
        }
        if (steps[0] > 0 || !center.empty())
            set_factors(layout, dense_weight, steps[0] * (layout.dense == DenseCode::Int4 ? 0.5F : 1.F), offset, query);
    }
    if (layout.terms == 0) {
        const float peak = largest(full.values, full.size);
        std::vector<int16_t> weights(full.size, 0);
        query.sparse_weight = query.sparse_factor = peak > 0 ? sparse_weight : 0.F;
        query.table.assign(full, weights, false);
        return;
    }
    const auto *first = reinterpret_cast<const uint16_t *>(head + layout.head_terms_offset());
    const auto *rest = reinterpret_cast<const uint16_t *>(tail + layout.tail_terms_offset());
    const auto *values = reinterpret_cast<const int8_t *>(head + layout.values_offset());
    uint32_t terms[4096];
    float zeros[4096];
    int16_t weights[4096];
    const int factor = layout.terms <= 512 ? 256 : 32; // products of 4,096 terms must fit int32
    size_t size = 0;
    for (size_t i = 0; i < layout.terms; ++i) {
        const uint16_t print = i < kHeadTerms ? first[i] : rest[i - kHeadTerms];
        if (print == kNoTerm) continue;
        terms[size] = print;
        zeros[size] = 0;
        weights[size++] = static_cast<int16_t>(values[i / kValueGroup] * factor);
    }
    query.sparse_factor = sparse_weight * steps[1] / static_cast<float>(factor);
    query.table.assign({terms, zeros, size}, {weights, size}, false);
}

} // namespace sparing
