// The scoring loops, written once over an instruction-set class and compiled once for each of them.
// All of it has internal linkage: a copy compiled for a newer CPU must never be linked into the path of an older one.
#pragma once
#include "sparing/kernels.hpp"

#include <cstring>

namespace sparing {
namespace {

template <class Isa>
struct Scoring {
    static constexpr size_t kAhead = 6; ///< items fetched ahead of the one being scored

    SPARING_INLINE static void prefetch_record(const ItemView &view, uint32_t id, size_t lines) {
        const uint8_t *record = view.records + size_t{id} * view.layout.stride();
        for (size_t line = 0; line < lines; ++line) __builtin_prefetch(record + 64 * line);
    }

    SPARING_INLINE static void prefetch_row(const ItemView &view, uint32_t id) {
        const uint64_t begin = view.row_begin[id], end = view.row_begin[id + 1];
        for (uint64_t i = begin; i < end; i += 16) {
            __builtin_prefetch(view.terms + i);
            __builtin_prefetch(view.values + i);
        }
    }

    static float dense_score(const CodeLayout &layout, const Query &query, const uint8_t *record, float step) {
        if (layout.dense == DenseCode::Float32)
            return query.dense_factor * Isa::dot_float(reinterpret_cast<const float *>(record),
                                                       query.dense_float.data(), layout.padded_dim());
        const int32_t sum = layout.dense == DenseCode::Int4
                                ? Isa::dot_int4(record, query.dense_int8.data(), layout.padded_dim())
                                : Isa::dot_int8(record, query.dense_int8.data(), layout.padded_dim());
        return query.dense_factor * step *
               (static_cast<float>(sum) - layout.zero() * static_cast<float>(query.dense_sum));
    }

    static float full_sparse(const ItemView &view, const Query &query, uint32_t id) {
        const uint64_t begin = view.row_begin[id];
        return Isa::match_full(query.table, view.terms + begin, view.values + begin, view.row_begin[id + 1] - begin);
    }

    static void score_codes(const ItemView &view, const Query &query, Stage stage, const uint32_t *ids, size_t count,
                            float *out) {
        const CodeLayout &layout = view.layout;
        const bool dense = query.dense_factor != 0;
        const bool sparse = stage == Stage::Hybrid && query.sparse_factor != 0;
        const bool full = sparse && layout.terms == 0;
        const size_t lines = sparse && !full ? layout.stride() / 64 : (layout.dense_bytes() + 63) / 64;
        const size_t steps = layout.steps_offset();
        for (size_t i = 0; i < kAhead && i < count; ++i) prefetch_record(view, ids[i], lines);
        if (full)
            for (size_t i = 0; i < 2 && i < count; ++i) prefetch_row(view, ids[i]);
        for (size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) {
                prefetch_record(view, ids[i + kAhead], lines);
                if (full) __builtin_prefetch(view.row_begin + ids[i + kAhead]);
            }
            if (full && i + 2 < count) prefetch_row(view, ids[i + 2]);
            const uint8_t *record = view.records + size_t{ids[i]} * layout.stride();
            float step[2];
            std::memcpy(step, record + steps, sizeof step);
            float score = dense ? dense_score(layout, query, record, step[0]) : 0.F;
            if (full)
                score += query.sparse_weight * full_sparse(view, query, ids[i]);
            else if (sparse)
                score += query.sparse_factor * step[1] *
                         static_cast<float>(Isa::match_codes(
                             query.table, reinterpret_cast<const uint16_t *>(record + layout.terms_offset()),
                             reinterpret_cast<const int8_t *>(record + layout.values_offset()), layout.terms));
            out[i] = score;
        }
    }

    static void score_exact(const ItemView &view, const Query &query, const uint32_t *ids, size_t count, float *out) {
        const size_t dim = view.layout.dim;
        const bool dense = query.dense_weight != 0, sparse = query.sparse_weight != 0;
        auto prefetch = [&](uint32_t id) {
            if (dense)
                for (size_t d = 0; d < dim; d += 16) __builtin_prefetch(view.dense + size_t{id} * dim + d);
            if (sparse) prefetch_row(view, id);
        };
        constexpr size_t kRows = 2; ///< whole rows are long: fetch few ahead
        for (size_t i = 0; i < count; ++i) __builtin_prefetch(view.row_begin + ids[i]);
        for (size_t i = 0; i < kRows && i < count; ++i) prefetch(ids[i]);
        for (size_t i = 0; i < count; ++i) {
            if (i + kRows < count) prefetch(ids[i + kRows]);
            float score = 0;
            if (dense)
                score += query.dense_weight *
                         Isa::dot_float(view.dense + size_t{ids[i]} * dim, query.dense_float.data(), dim);
            if (sparse) score += query.sparse_weight * full_sparse(view, query, ids[i]);
            out[i] = score;
        }
    }
};

/// Exact weight of `term` in the table, 0 if absent.
inline float exact_weight(const TermTable &table, uint32_t term) {
    const uint16_t print = fingerprint(term);
    const size_t b = TermTable::bucket(print, table.multiplier);
    for (size_t r = 0; r < table.num_rounds; ++r)
        if (table.rounds[r].prints[b] == print && table.rounds[r].terms[b] == term) return table.rounds[r].exact[b];
    return 0;
}

/// Portable forms, written so that a compiler vectorises the dense loops.
struct Portable {
    static float dot_float(const float *a, const float *b, size_t n) {
        float lane[16] = {};
        size_t i = 0;
        for (; i + 16 <= n; i += 16)
            for (size_t j = 0; j < 16; ++j) lane[j] += a[i + j] * b[i + j];
        float sum = 0;
        for (; i < n; ++i) sum += a[i] * b[i];
        for (const float x : lane) sum += x;
        return sum;
    }
    static int32_t dot_int8(const uint8_t *codes, const int8_t *query, size_t n) {
        int32_t sum = 0;
        for (size_t i = 0; i < n; ++i) sum += int32_t{codes[i]} * query[i];
        return sum;
    }
    static int32_t dot_int4(const uint8_t *codes, const int8_t *query, size_t n) {
        int32_t sum = 0;
        for (size_t block = 0; block < n; block += 128, codes += 64, query += 128)
            for (size_t j = 0; j < 64; ++j)
                sum += int32_t{codes[j] & 15} * query[j] + int32_t{codes[j] >> 4} * query[j + 64];
        return sum;
    }
    static int32_t match_codes(const TermTable &table, const uint16_t *prints, const int8_t *values, size_t n) {
        int32_t sum = 0;
        for (size_t r = 0; r < table.num_rounds; ++r) {
            const TermTable::Round &round = table.rounds[r];
            for (size_t i = 0; i < n; ++i) {
                const size_t b = TermTable::bucket(prints[i], table.multiplier);
                sum += round.prints[b] == prints[i] ? int32_t{round.weights[b]} * values[i] : 0;
            }
        }
        return sum;
    }
    static float match_full(const TermTable &table, const uint32_t *terms, const float *values, size_t n) {
        float sum = 0;
        for (size_t i = 0; i < n; ++i) {
            const uint16_t print = fingerprint(terms[i]);
            const size_t b = TermTable::bucket(print, table.multiplier);
            for (size_t r = 0; r < table.num_rounds; ++r)
                if (table.rounds[r].prints[b] == print && table.rounds[r].terms[b] == terms[i])
                    sum += table.rounds[r].exact[b] * values[i];
        }
        return sum;
    }
};

} // namespace
} // namespace sparing
