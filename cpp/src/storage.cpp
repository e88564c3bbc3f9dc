// Appending, selecting and checking stored items.
#include "sparing/storage.hpp"
#include "sparing/parallel.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace sparing {

namespace {
/// Squared length up to which the products of any two rows stay finite in float32.
constexpr double kLongest = 1e37;
} // namespace

void validate_batch(const ItemBatch &batch, size_t dim, const char *what) {
    for (size_t i = 0; i < batch.size; ++i) {
        auto row = [&] { return std::string(what) + " row " + std::to_string(i); };
        const float *x = batch.dense_row(i, dim);
        if (x != nullptr && !(squared_length(x, dim) <= kLongest)) {
            for (size_t d = 0; d < dim; ++d)
                if (!std::isfinite(x[d]))
                    throw Error(ErrorKind::NonFinite, "dense " + row() + ", column " + std::to_string(d) + " is " +
                                                          std::to_string(x[d]) +
                                                          "; every value must be finite: drop or repair that row");
            throw Error(ErrorKind::NonFinite,
                        "dense " + row() + " is so long that its scores overflow; rescale the vectors");
        }
        const SparseRow sparse = batch.sparse_row(i);
        for (size_t j = 0; j < sparse.size; ++j) {
            if (!std::isfinite(sparse.values[j]))
                throw Error(ErrorKind::NonFinite, "sparse " + row() + ", term " + std::to_string(sparse.terms[j]) +
                                                      " has weight " + std::to_string(sparse.values[j]) +
                                                      "; every weight must be finite: drop or repair it");
            if (j > 0 && sparse.terms[j] == sparse.terms[j - 1])
                throw Error(ErrorKind::SparseFormat,
                            "sparse " + row() + " has term " + std::to_string(sparse.terms[j]) +
                                " twice; terms of a row must be distinct: call sum_duplicates() first");
            if (j > 0 && sparse.terms[j] < sparse.terms[j - 1])
                throw Error(ErrorKind::SparseFormat,
                            "sparse " + row() + " is not sorted: term " + std::to_string(sparse.terms[j]) +
                                " follows " + std::to_string(sparse.terms[j - 1]) + "; call sort_indices() first");
        }
        if (squared_length(sparse.values, sparse.size) > kLongest)
            throw Error(ErrorKind::NonFinite,
                        "sparse " + row() + " is so long that its scores overflow; rescale the weights");
    }
}

Storage::Storage(const Config &c) : config(c) {
    layout.dense = c.dense_code;
    layout.dim = c.dim;
    layout.terms = static_cast<uint32_t>((c.doc_terms + kValueGroup - 1) / kValueGroup * kValueGroup);
    layout.sketch = c.two_stage;
    row_begin.push_back(0);
    links.stride = c.degree;
    seeds.per_term = c.seeds_per_term;
}

void Storage::append(const ItemBatch &batch, const int64_t *new_ids, const std::vector<uint32_t> &order,
                     int num_threads) {
    const size_t first = size(), count = order.size(), dim = config.dim;
    if (first == 0) set_center(count, [&](size_t i) { return batch.dense_row(order[i], dim); });
    const size_t head_stride = layout.head_stride(), tail_stride = layout.tail_stride();
    Buffer<uint8_t> new_heads(count * head_stride), new_tails(count * tail_stride);
    uint8_t *const to_heads = new_heads.data(), *const to_tails = new_tails.data();
    parallel_for(count, num_threads, 64, [&](int, size_t i) {
        encode_item(layout, center.span(), batch.dense_row(order[i], dim), batch.sparse_row(order[i]),
                    to_heads + i * head_stride, to_tails + i * tail_stride);
    });
    ids.reserve(first + count); // all memory first: running out leaves the storage as it was
    deleted.reserve(first + count);
    heads.reserve((first + count) * head_stride);
    tails.reserve((first + count) * tail_stride);
    row_begin.reserve(first + count + 1);
    if (config.similarity != Similarity::InnerProduct) norms.reserve(first + count);
    links.data.reserve((first + count) * links.stride);
    const size_t nonzeros = batch.row_begin == nullptr ? 0 : batch.row_begin[batch.size];
    dense.prepare(batch.dense, batch.dense == nullptr ? 0 : batch.size * dim);
    dense.reserve((first + count) * dim);
    terms.prepare(batch.terms, nonzeros);
    values.prepare(batch.values, nonzeros);
    heads.append(new_heads.data(), new_heads.size());
    tails.append(new_tails.data(), new_tails.size());
    const std::vector<float> absent(dim, 0.F);
    for (const uint32_t item : order) {
        const float *row = batch.dense_row(item, dim);
        const SparseRow sparse = batch.sparse_row(item);
        double dense_norm = 0, sparse_norm = 0;
        for (size_t d = 0; row != nullptr && d < dim; ++d) dense_norm += double{row[d]} * row[d];
        for (size_t j = 0; j < sparse.size; ++j) sparse_norm += double{sparse.values[j]} * sparse.values[j];
        ids.push_back(new_ids[item]);
        deleted.push_back(0);
        dense.append(row != nullptr ? row : absent.data(), dim);
        terms.append(sparse.terms, sparse.size);
        values.append(sparse.values, sparse.size);
        row_begin.push_back(terms.size());
        if (config.similarity != Similarity::InnerProduct)
            norms.push_back(static_cast<float>(config.dense_weight * dense_norm +
                                               double{config.sparse_weight} * config.scale * sparse_norm));
    }
    links.data.resize((first + count) * links.stride, kNoItem);
}

void Storage::encode() {
    const size_t n = size(), dim = config.dim, head_stride = layout.head_stride(), tail_stride = layout.tail_stride();
    heads = Buffer<uint8_t>(n * head_stride);
    tails = Buffer<uint8_t>(n * tail_stride);
    std::vector<float> vector(dim);
    RowMemory memory;
    set_center(n, [&](size_t i) {
        dense.read(i * dim, dim, vector.data());
        return vector.data();
    });
    for (size_t i = 0; i < n; ++i) {
        dense.read(i * dim, dim, vector.data());
        SparseRow row = sparse_row(i, memory);
        if (!std::isfinite(squared_length(row.values, row.size))) row = {};
        encode_item(layout, center.span(), vector.data(), row, heads.data() + i * head_stride,
                    tails.data() + i * tail_stride);
    }
}

void Storage::set_center(size_t count, const std::function<const float *(size_t)> &row) {
    const std::vector<float> found = center_of(count, config.dim, row);
    center = Buffer<float>::copy_of(found.data(), found.size());
}

void Storage::truncate(size_t count) {
    ids.resize(count);
    deleted.resize(count);
    heads.resize(count * layout.head_stride());
    tails.resize(count * layout.tail_stride());
    dense.resize(count * config.dim);
    row_begin.resize(count + 1);
    terms.resize(row_begin[count]);
    values.resize(row_begin[count]);
    if (!norms.empty()) norms.resize(count);
    links.data.resize(count * links.stride);
    for (size_t i = 0; i < count; ++i) {
        uint32_t *row = links.row(i);
        uint32_t *end = std::remove_if(row, row + links.stride, [&](uint32_t item) { return item >= count; });
        std::fill(end, row + links.stride, kNoItem);
    }
}

Storage Storage::select(const std::vector<uint32_t> &order) const {
    Storage out(config);
    const size_t count = order.size(), dim = config.dim;
    std::vector<uint32_t> renumbered(size(), kNoItem);
    size_t nonzeros = 0;
    for (size_t i = 0; i < count; ++i) {
        renumbered[order[i]] = static_cast<uint32_t>(i);
        nonzeros += row_begin[order[i] + 1] - row_begin[order[i]];
    }
    out.center = Buffer<float>::copy_of(center.data(), center.size());
    out.ids.reserve(count);
    out.heads.reserve(count * layout.head_stride());
    out.tails.reserve(count * layout.tail_stride());
    out.dense = dense.empty_like();
    out.terms = terms.empty_like();
    out.values = values.empty_like();
    out.dense.reserve(count * dim);
    out.terms.reserve(nonzeros);
    out.values.reserve(nonzeros);
    out.links.data.resize(count * links.stride, kNoItem);
    for (size_t i = 0; i < count; ++i) {
        const size_t item = order[i];
        const size_t begin = row_begin[item], size = row_begin[item + 1] - begin;
        out.ids.push_back(ids[item]);
        out.deleted.push_back(deleted[item]);
        out.heads.append(head(item), layout.head_stride());
        out.tails.append(tail(item), layout.tail_stride());
        out.dense.append(dense, item * dim, dim);
        out.terms.append(terms, begin, size);
        out.values.append(values, begin, size);
        out.row_begin.push_back(out.terms.size());
        if (!norms.empty()) out.norms.push_back(norms[item]);
        uint32_t *to = out.links.row(i);
        for (size_t j = 0; j < links.stride && links.row(item)[j] != kNoItem; ++j)
            if (const uint32_t target = renumbered[links.row(item)[j]]; target != kNoItem) *to++ = target;
    }
    out.refresh_entries(0);
    return out;
}

void Storage::refresh_entries(size_t first) {
    const size_t n = size();
    entries = Buffer<uint32_t>();
    const size_t count = std::min<size_t>(n, config.num_entries);
    for (size_t i = 0; i < count; ++i) entries.push_back(static_cast<uint32_t>((2 * i + 1) * n / (2 * count)));
    const auto wanted = static_cast<uint32_t>(std::clamp<size_t>(std::bit_ceil(n / 2 + 1), 1024, 65536));
    if (first == 0 || wanted > seeds.num_buckets || seed_weights.size() != seeds.items.size()) {
        seeds.num_buckets = std::max(wanted, first == 0 ? 0U : seeds.num_buckets);
        seeds.items = Buffer<uint32_t>(size_t{seeds.num_buckets} * seeds.per_term, kNoItem);
        seed_weights = Buffer<float>(seeds.items.size(), 0.F);
        first = 0;
    }
    RowMemory memory;
    for (size_t i = first; i < n && seeds.per_term != 0; ++i) {
        const SparseRow row = sparse_row(i, memory);
        for (size_t j = 0; j < row.size; ++j) {
            const size_t begin = size_t{fingerprint(row.terms[j]) & (seeds.num_buckets - 1)} * seeds.per_term;
            const float weight = std::fabs(row.values[j]);
            if (weight <= seed_weights[begin + seeds.per_term - 1]) continue;
            size_t at = begin + seeds.per_term - 1;
            for (; at > begin && seed_weights[at - 1] < weight; --at) {
                seed_weights[at] = seed_weights[at - 1];
                seeds.items[at] = seeds.items[at - 1];
            }
            seed_weights[at] = weight;
            seeds.items[at] = static_cast<uint32_t>(i);
        }
    }
}

} // namespace sparing
