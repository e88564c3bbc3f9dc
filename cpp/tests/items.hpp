// Random items for tests, and an index or storage made of them.
#pragma once
#include "sparing/index.hpp"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

namespace items {

struct Items {
    size_t count = 0, dim = 0;
    std::vector<float> dense, values;
    std::vector<uint64_t> row_begin{0};
    std::vector<uint32_t> terms;
    std::vector<int64_t> ids;

    sparing::ItemBatch batch() const {
        return {count, dim == 0 ? nullptr : dense.data(), row_begin.data(), terms.data(), values.data()};
    }
};

inline float gauss(std::mt19937 &random) { return std::normal_distribution<float>()(random); }

/// Distinct ascending terms below `vocabulary`.
inline std::vector<uint32_t> draw_terms(std::mt19937 &random, size_t count, uint32_t vocabulary) {
    std::set<uint32_t> drawn;
    while (drawn.size() < std::min<size_t>(count, vocabulary)) drawn.insert(random() % vocabulary);
    return {drawn.begin(), drawn.end()};
}

inline Items make(size_t count, size_t dim, size_t max_terms, uint32_t vocabulary, uint32_t seed) {
    std::mt19937 random(seed);
    Items items;
    items.count = count;
    items.dim = dim;
    for (size_t i = 0; i < count; ++i) {
        items.ids.push_back(static_cast<int64_t>(i));
        for (size_t d = 0; d < dim; ++d) items.dense.push_back(gauss(random));
        for (const uint32_t term : draw_terms(random, max_terms == 0 ? 0 : random() % (max_terms + 1), vocabulary)) {
            items.terms.push_back(term);
            items.values.push_back(gauss(random));
        }
        items.row_begin.push_back(items.terms.size());
    }
    return items;
}

inline sparing::Storage store(const Items &items, const sparing::Config &config) {
    sparing::Storage storage(config);
    std::vector<uint32_t> order(items.count);
    for (size_t i = 0; i < items.count; ++i) order[i] = static_cast<uint32_t>(i);
    storage.append(items.batch(), items.ids.data(), order, 1);
    return storage;
}

} // namespace items
