// Windowed attention: every level against attention written out over the visible keys; bad tasks are refused.
#include "check.hpp"
#include "sparing/attention.hpp"

#include <cmath>
#include <cstring>
#include <random>

using namespace sparing;

namespace {

float widen(Bits16 bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

std::vector<Bits16> random_bits(size_t count, float spread, uint32_t seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0, spread);
    std::vector<Bits16> bits(count);
    for (auto &b : bits) {
        const float value = normal(engine);
        uint32_t wide;
        std::memcpy(&wide, &value, sizeof wide);
        b = static_cast<Bits16>(wide >> 16);
    }
    return bits;
}

struct Case {
    int32_t queries, sink;
    std::vector<int32_t> sizes;
    std::vector<int32_t> widths; ///< (heads, segments)
};

HeadsView<const Bits16> view(const std::vector<Bits16> &data, size_t heads, size_t tokens) {
    return {data.data(), heads * tokens * kHeadDim, tokens * kHeadDim, kHeadDim};
}

bool sees(const Case &c, size_t head, int32_t query, int32_t key) {
    if (key < c.sink) return true;
    int32_t start = c.sink;
    for (size_t s = 0; s < c.sizes.size(); ++s) {
        if (key < start + c.sizes[s]) {
            const int64_t distance = int64_t{query} * c.sizes[s] - int64_t{key - start} * c.queries;
            return std::abs(distance) < int64_t{c.widths[head * c.sizes.size() + s]} * c.queries;
        }
        start += c.sizes[s];
    }
    return false;
}

void compare(const Case &c, const std::string &level, int threads) {
    const size_t rows = 2, heads = c.sizes.empty() ? 3 : c.widths.size() / c.sizes.size();
    int32_t keys = c.sink;
    std::vector<KeySegment> segments;
    for (const int32_t size : c.sizes) {
        segments.push_back({keys, size});
        keys += size;
    }
    const auto queries = static_cast<size_t>(c.queries), all = static_cast<size_t>(keys);
    const auto q = random_bits(rows * heads * queries * kHeadDim, 0.4F, 1);
    const auto k = random_bits(rows * heads * all * kHeadDim, 0.4F, 2), v = random_bits(k.size(), 1, 3);
    std::vector<Bits16> out(q.size());
    AttentionTask task;
    task.q = view(q, heads, queries);
    task.k = view(k, heads, all);
    task.v = view(v, heads, all);
    task.out = {out.data(), heads * queries * kHeadDim, queries * kHeadDim, kHeadDim};
    task.rows = rows;
    task.heads = heads;
    task.queries = c.queries;
    task.keys = keys;
    task.sink = c.sink;
    task.segments = segments;
    task.widths = c.widths.data();
    task.scale = 1.5F;
    attend(task, level, threads);
    double worst = 0;
    for (size_t r = 0; r < rows; ++r)
        for (size_t h = 0; h < heads; ++h)
            for (int32_t i = 0; i < c.queries; ++i) {
                std::vector<double> sums(kHeadDim);
                double total = 0;
                for (int32_t j = 0; j < keys; ++j) {
                    if (!sees(c, h, i, j)) continue;
                    double score = 0;
                    for (size_t d = 0; d < kHeadDim; ++d)
                        score += double{widen(task.q.at(r, h, static_cast<size_t>(i))[d])} *
                                 widen(task.k.at(r, h, static_cast<size_t>(j))[d]);
                    const double weight = std::exp(1.5 * score - 40);
                    total += weight;
                    for (size_t d = 0; d < kHeadDim; ++d)
                        sums[d] += weight * widen(task.v.at(r, h, static_cast<size_t>(j))[d]);
                }
                for (size_t d = 0; d < kHeadDim; ++d)
                    worst = std::max(worst,
                                     std::abs(sums[d] / total - widen(task.out.at(r, h, static_cast<size_t>(i))[d])));
            }
    CHECK_FOR(level + ", worst " + std::to_string(worst), worst < 0.03);
}

void levels() {
    const std::vector<Case> cases{
        {1, 1, {}, {}},                                                   // one key
        {37, 53, {}, {}},                                                 // everything visible, ragged blocks
        {64, 14, {16, 36, 64}, {3, 5, 9, 16, 36, 64, 0, 0, 0, 1, 0, 64}}, // windows, whole, dropped, mixed
        {196, 5, {25, 36, 196}, {1, 1, 1, 2, 30, 100}},                   // sizes that do not divide
        {17, 14, {16, 17}, {2, 1}},
    };
    for (const auto &level : available_attention())
        for (const auto &c : cases)
            for (const int threads : {1, 3}) compare(c, level, threads);
}

void refusals() {
    const Bits16 zeros[kHeadDim * 4] = {};
    Bits16 out[kHeadDim] = {};
    AttentionTask task;
    task.q = task.k = task.v = {zeros, kHeadDim, kHeadDim, kHeadDim};
    task.out = {out, kHeadDim, kHeadDim, kHeadDim};
    task.rows = task.heads = 1;
    task.queries = 1;
    task.keys = 4;
    const auto refused = [&](int32_t sink, std::vector<KeySegment> segments, const std::string &level) {
        const std::vector<int32_t> widths(segments.size(), 1);
        task.sink = sink;
        task.segments = segments;
        task.widths = widths.data();
        return check::throws(ErrorKind::Argument, [&] { attend(task, level, 1); });
    };
    CHECK(!refused(4, {}, "portable"));
    CHECK(!refused(1, {{1, 3}}, "portable"));
    CHECK(refused(0, {{0, 4}}, "portable"));
    CHECK(refused(5, {}, "portable"));
    CHECK(refused(1, {{1, 4}}, "portable"));
    CHECK(refused(2, {{1, 2}}, "portable"));
    CHECK(refused(1, {{2, 0}}, "portable"));
    CHECK(refused(4, {}, "sse9"));
}

} // namespace

int main() {
    levels();
    refusals();
    return check::report();
}
