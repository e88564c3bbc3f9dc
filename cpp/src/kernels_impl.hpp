// The scoring loops, written once over an instruction-set class and compiled once for each of them.
// All of it has internal linkage: a copy compiled for a newer CPU must never be linked into the path of an older one.
#pragma once
#include "sparing/kernels.hpp"

#include <cstring>

namespace sparing {
namespace {

template <class Isa>
struct Scoring {
    static constexpr size_t kAhead = 8; ///< items fetched ahead of the one being scored

    SPARING_INLINE static void prefetch_record(const ItemView &view, uint32_t id, size_t lines) {
        const uint8_t *record = view.records + size_t{id} * view.layout.stride();
        for (size_t line = 0; line < lines; ++line) __builtin_prefetch(record + 64 * line);
    }

    SPARING_INLINE static void prefetch_row(const ItemView &view, uint32_t id) {
        const uint64_t begin = view.row_begin[id], end = view.row_begin[id + 1];
        prefetch_column(*view.terms, begin, end);
        prefetch_column(*view.values, begin, end);
    }

    template <class Wide>
    SPARING_INLINE static void prefetch_column(const Column<Wide> &column, uint64_t begin, uint64_t end) {
        if (column.is_narrow())
            prefetch_bytes(column.narrow_data() + begin, column.narrow_data() + end);
        else
            prefetch_bytes(column.wide_data() + begin, column.wide_data() + end);
    }

    SPARING_INLINE static void prefetch_bytes(const void *begin, const void *end) {
        for (auto line = reinterpret_cast<uintptr_t>(begin) / 64; line * 64 < reinterpret_cast<uintptr_t>(end); ++line)
            __builtin_prefetch(reinterpret_cast<const void *>(line * 64));
    }

    static float full_sparse(const ItemView &view, const Query &query, uint32_t id) {
        const uint64_t begin = view.row_begin[id], size = view.row_begin[id + 1] - begin;
        auto match = [&](const auto *terms) {
            return view.values->is_narrow()
                       ? Isa::match_full(query.table, terms + begin, view.values->narrow_data() + begin, size)
                       : Isa::match_full(query.table, terms + begin, view.values->wide_data() + begin, size);
        };
        return view.terms->is_narrow() ? match(view.terms->narrow_data()) : match(view.terms->wide_data());
    }

    /// Four items together: their sums are reduced side by side, where one alone would wait on itself.
    static void score_codes(const ItemView &view, const Query &query, Stage stage, const uint32_t *ids, size_t count,
                            float *out) {
        const CodeLayout &layout = view.layout;
        const bool dense = query.dense_factor != 0;
        const bool sparse = stage == Stage::Hybrid && query.sparse_factor != 0;
        const bool full = sparse && layout.terms == 0;
        const size_t lines = sparse && !full ? layout.stride() / 64 : (layout.dense_bytes() + 63) / 64;
        const float zero = layout.zero() * static_cast<float>(query.dense_sum);
        for (size_t i = 0; i < kAhead && i < count; ++i) prefetch_record(view, ids[i], lines);
        if (full)
            for (size_t i = 0; i < 2 && i < count; ++i) prefetch_row(view, ids[i]);
        for (size_t i = 0; i < count; i += 4) {
            const size_t group = count - i < 4 ? count - i : 4;
            const uint8_t *records[4];
            for (size_t j = 0; j < 4; ++j) {
                records[j] = view.records + size_t{ids[i + (j < group ? j : 0)]} * layout.stride();
                if (i + j + kAhead >= count) continue;
                prefetch_record(view, ids[i + j + kAhead], lines);
                if (full) __builtin_prefetch(view.row_begin + ids[i + j + kAhead]);
            }
            float step[4][2], score[4] = {};
            for (size_t j = 0; j < 4; ++j) std::memcpy(step[j], records[j] + layout.steps_offset(), sizeof step[j]);
            int32_t sums[4];
            if (dense && layout.dense == DenseCode::Float32) {
                for (size_t j = 0; j < group; ++j)
                    score[j] = query.dense_factor * Isa::dot_float(reinterpret_cast<const float *>(records[j]),
                                                                   query.dense_float.data(), layout.padded_dim());
            } else if (dense) {
                const int8_t *const q = query.dense_int8.data();
                if (layout.dense == DenseCode::Int4)
                    Isa::sum4([&](size_t j) { return Isa::dot_int4(records[j], q, layout.padded_dim()); }, sums);
                else
                    Isa::sum4([&](size_t j) { return Isa::dot_int8(records[j], q, layout.padded_dim()); }, sums);
                for (size_t j = 0; j < 4; ++j)
                    score[j] = query.dense_factor * step[j][0] * (static_cast<float>(sums[j]) - zero);
            }
            if (full) {
                for (size_t j = 0; j < group; ++j) {
                    if (i + j + 2 < count) prefetch_row(view, ids[i + j + 2]);
                    score[j] += query.sparse_weight * full_sparse(view, query, ids[i + j]);
                }
            } else if (sparse) {
                auto match = [&](size_t j) {
                    return Isa::match_codes(
                        query.table, reinterpret_cast<const uint16_t *>(records[j] + layout.terms_offset()),
                        reinterpret_cast<const int8_t *>(records[j] + layout.values_offset()), layout.terms);
                };
                Isa::sum4(match, sums);
                for (size_t j = 0; j < 4; ++j)
                    score[j] += query.sparse_factor * step[j][1] * static_cast<float>(sums[j]);
            }
            for (size_t j = 0; j < group; ++j) out[i + j] = score[j];
        }
    }

    static void score_exact(const ItemView &view, const Query &query, const uint32_t *ids, size_t count, size_t coming,
                            float *out) {
        const size_t dim = view.layout.dim;
        const bool dense = query.dense_weight != 0, sparse = query.sparse_weight != 0;
        auto prefetch = [&](uint32_t id) {
            if (sparse) prefetch_row(view, id);
            if (dense) prefetch_column(*view.dense, id * dim, (id + 1) * dim);
        };
        constexpr size_t kRows = 2; ///< whole rows are long: fetch few ahead
        for (size_t i = 0; i < count; ++i) {
            if (i + kRows < count + coming) prefetch(ids[i + kRows]);
            float score = 0;
            if (dense)
                score += query.dense_weight *
                         (view.dense->is_narrow()
                              ? Isa::dot_float(view.dense->narrow_data() + ids[i] * dim, query.dense_float.data(), dim)
                              : Isa::dot_float(view.dense->wide_data() + ids[i] * dim, query.dense_float.data(), dim));
            if (sparse) score += query.sparse_weight * full_sparse(view, query, ids[i]);
            out[i] = score;
        }
    }
};

/// Portable forms, written so that a compiler vectorises the dense loops. Integer forms give the partial sums that
/// `sum4` reduces: here whole sums.
struct Portable {
    template <class Partial>
    SPARING_INLINE static void sum4(Partial &&partial, int32_t *sums) {
        for (size_t j = 0; j < 4; ++j) sums[j] = partial(j);
    }
    template <class T>
    static float dot_float(const T *a, const float *b, size_t n) {
        float lane[16] = {};
        size_t i = 0;
        for (; i + 16 <= n; i += 16)
            for (size_t j = 0; j < 16; ++j) lane[j] += widen(a[i + j]) * b[i + j];
        float sum = 0;
        for (; i < n; ++i) sum += widen(a[i]) * b[i];
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
                sum += round.prints[b] == prints[i] ? int32_t{round.weights[b]} * values[i / kValueGroup] : 0;
            }
        }
        return sum;
    }
    template <class Term, class Value>
    static float match_full(const TermTable &table, const Term *terms, const Value *values, size_t n) {
        float sum = 0;
        for (size_t i = 0; i < n; ++i) {
            const uint16_t print = fingerprint(terms[i]);
            const size_t b = TermTable::bucket(print, table.multiplier);
            for (size_t r = 0; r < table.num_rounds; ++r)
                if (table.rounds[r].prints[b] == print && table.rounds[r].terms[b] == terms[i])
                    sum += table.rounds[r].exact[b] * widen(values[i]);
        }
        return sum;
    }
};

} // namespace
} // namespace sparing
