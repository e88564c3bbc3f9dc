// The scoring loops, written once over an instruction-set class and compiled once for each of them.
// All of it has internal linkage: a copy compiled for a newer CPU must never be linked into the path of an older one.
#pragma once
#include "sparing/kernels.hpp"

#include <algorithm>
#include <cstring>

namespace sparing {
namespace {

template <class Isa>
struct Scoring {
    static constexpr size_t kAhead = 8; ///< items fetched ahead of the one being scored

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
            __builtin_prefetch(reinterpret_cast<const void *>(line * 64), 0, 2);
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

    /// Records of one kind.
    struct Records {
        const uint8_t *begin;
        size_t stride;
        Lines lines;
        SPARING_INLINE const uint8_t *operator[](uint32_t id) const { return begin + id * stride; }
    };
    SPARING_INLINE static Records heads_of(const ItemView &view, const Query &query) {
        return {view.heads, view.layout.head_stride(), head_lines(view.layout, query)};
    }
    SPARING_INLINE static Records tails_of(const ItemView &view, const Query &query) {
        return {view.tails, view.layout.tail_stride(), tail_lines(view.layout, query)};
    }

    /// Calls body(i, group, records) for items in groups of four, whose sums are reduced side by side, where one alone
    /// would wait on itself; the records ahead are fetched meanwhile. A last group is filled up with its first item.
    template <class Body>
    SPARING_INLINE static void by_four(const Records &all, const uint32_t *ids, size_t count, Body &&body) {
        for (size_t i = 0; i < kAhead && i < count; ++i) all.lines.template prefetch<3>(all[ids[i]]);
        for (size_t i = 0; i < count; i += 4) {
            const size_t group = count - i < 4 ? count - i : 4;
            const uint8_t *records[4];
            for (size_t j = 0; j < 4; ++j) {
                records[j] = all[ids[i + (j < group ? j : 0)]];
                if (i + j + kAhead < count) all.lines.template prefetch<3>(all[ids[i + j + kAhead]]);
            }
            body(i, group, records);
        }
    }

    /// Asks for records a few at a time, evenly over the groups of `count` others: a processor that is asked for all at
    /// once stops until most are under way.
    class Asking {
      public:
        SPARING_INLINE Asking(const Records &all, std::span<const uint32_t> ids, size_t count)
            : all_(all), ids_(ids), share_(count == 0 ? ids.size() : (4 * ids.size() + count - 1) / count) {}
        SPARING_INLINE void ask() {
            for (const size_t end = std::min(asked_ + share_, ids_.size()); asked_ < end; ++asked_)
                all_.lines.template prefetch<2>(all_[ids_[asked_]]);
        }

      private:
        Records all_;
        std::span<const uint32_t> ids_;
        size_t share_, asked_ = 0;
    };

    /// What the loops read of a layout and a query, by value: written scores cannot change it.
    struct Plan {
        Plan(const CodeLayout &layout, const Query &query)
            : dim(layout.padded_dim()), head_stride(layout.head_stride()), tail_stride(layout.tail_stride()),
              steps(layout.steps_offset()), offset_at(layout.offset_offset()), level(layout.level_offset()),
              values(layout.values_offset()), head_terms(layout.head_terms_offset()),
              tail_terms(layout.tail_terms_offset()), num_head_terms(layout.head_terms()),
              num_tail_terms(layout.terms - layout.head_terms()), dense(query.dense_int8.data()),
              rounds(query.table.rounds.data()), num_rounds(query.table.num_rounds), multiplier(query.table.multiplier),
              sum(query.dense_sum), sign_factor(query.sign_factor), dense_factor(query.dense_factor),
              offset_weight(query.offset_weight), offset(query.offset), sparse_factor(query.sparse_factor) {}
        size_t dim, head_stride, tail_stride, steps, offset_at, level, values, head_terms, tail_terms, num_head_terms,
            num_tail_terms;
        const int8_t *dense;
        const TermTable::Round *rounds;
        size_t num_rounds;
        uint16_t multiplier;
        int32_t sum;
        float sign_factor, dense_factor, offset_weight, offset, sparse_factor;
    };

    SPARING_INLINE static float load_float(const uint8_t *from) {
        float value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    SPARING_INLINE static float load_step(const uint8_t *from) {
        Bits16 bits;
        std::memcpy(&bits, from, sizeof bits);
        return widen_bits(bits);
    }

    /// Adds `sign` times the estimates from signs: factor * step * size of a sign * (positive ones - negative ones).
    SPARING_INLINE static void add_estimates(const Plan &plan, const uint8_t *const *heads, float sign, float *out) {
        int32_t positive[4];
        Isa::dot_signs(heads, plan.dense, plan.dim, positive);
        for (size_t j = 0; j < 4; ++j) {
            const float size = load_step(heads[j] + plan.steps) * static_cast<float>(heads[j][plan.level]);
            out[j] += sign * plan.sign_factor * size * static_cast<float>(2 * positive[j] - plan.sum);
        }
    }

    /// Adds `sign` times what the products of dense codes leave out.
    SPARING_INLINE static void add_offsets(const Plan &plan, const uint8_t *const *heads, float sign, float *out) {
        for (size_t j = 0; j < 4; ++j)
            out[j] += sign * (plan.offset_weight * load_float(heads[j] + plan.offset_at) + plan.offset);
    }

    /// Adds the products of `count` terms of each record, from the kept terms' `first` on.
    SPARING_INLINE static void add_terms(const Plan &plan, const uint8_t *const *heads, const uint8_t *const *records,
                                         size_t offset, size_t first, size_t count, float *out) {
        int32_t sums[4];
        auto match = [&](size_t j) {
            return Isa::match_codes(
                plan.rounds, plan.num_rounds, plan.multiplier, reinterpret_cast<const uint16_t *>(records[j] + offset),
                reinterpret_cast<const int8_t *>(heads[j] + plan.values + first / kValueGroup), count);
        };
        Isa::sum4(match, sums);
        for (size_t j = 0; j < 4; ++j)
            out[j] +=
                plan.sparse_factor * load_step(heads[j] + plan.steps + sizeof(Bits16)) * static_cast<float>(sums[j]);
    }

    static void score_heads(const ItemView &view, const Query &query, const uint32_t *ids, size_t count, float *out) {
        const CodeLayout &layout = view.layout;
        const bool dense = query.sign_factor != 0 && layout.has_signs();
        const bool sparse = query.sparse_factor != 0 && layout.terms != 0;
        if (!dense && !sparse) {
            std::fill(out, out + count, 0.F);
            return;
        }
        const Plan plan(layout, query);
        by_four(heads_of(view, query), ids, count,
                [&](size_t i, size_t group, const uint8_t *const *heads) __attribute__((always_inline)) {
                    float score[4] = {};
                    if (dense) {
                        add_estimates(plan, heads, 1, score);
                        add_offsets(plan, heads, 1, score);
                    }
                    if (sparse) add_terms(plan, heads, heads, plan.head_terms, 0, plan.num_head_terms, score);
                    for (size_t j = 0; j < group; ++j) out[i + j] = score[j];
                });
    }

    static void score_tails(const ItemView &view, const Query &query, const uint32_t *ids, size_t count,
                            std::span<const uint32_t> coming, float *scores) {
        const CodeLayout &layout = view.layout;
        const DenseCode code = layout.dense;
        const bool dense = query.dense_factor != 0;
        const bool full = query.sparse_factor != 0 && layout.terms == 0;
        const bool sparse = query.sparse_factor != 0 && layout.terms > kHeadTerms;
        const size_t scored = dense || sparse || full ? count : 0;
        Asking heads_to_come(heads_of(view, query), coming, scored);
        if (scored == 0) return heads_to_come.ask();
        const Plan plan(layout, query);
        // In int4 a sign is 8 of 15 steps, estimated as 4 on either side of 0: the other bits are added to that.
        const bool replaces = dense && code != DenseCode::Int4 && layout.has_signs();
        // Offsets came with the signs, if there are any; products of floats leave nothing out.
        const float offsets = !dense || layout.has_signs() == (code != DenseCode::Float32) ? 0.F
                              : layout.has_signs()                                         ? -1.F
                                                                                           : 1.F;
        const float zero = (code == DenseCode::Int4 ? 3.5F : 128.F) * static_cast<float>(plan.sum);
        if (full)
            for (size_t i = 0; i < 2 && i < count; ++i) prefetch_row(view, ids[i]);
        by_four(tails_of(view, query), ids, count,
                [&](size_t i, size_t group, const uint8_t *const *tails) __attribute__((always_inline)) {
                    heads_to_come.ask();
                    const uint8_t *heads[4];
                    for (size_t j = 0; j < 4; ++j)
                        heads[j] = view.heads + ids[i + (j < group ? j : 0)] * plan.head_stride;
                    float more[4] = {};
                    if (replaces) add_estimates(plan, heads, -1, more);
                    if (offsets != 0) add_offsets(plan, heads, offsets, more);
                    if (dense && code == DenseCode::Float32) {
                        for (size_t j = 0; j < group; ++j)
                            more[j] += plan.dense_factor * Isa::dot_float(reinterpret_cast<const float *>(tails[j]),
                                                                          query.dense_float.data(), plan.dim);
                    } else if (dense) {
                        int32_t sums[4];
                        if (code == DenseCode::Int8)
                            Isa::sum4([&](size_t j) { return Isa::dot_int8(tails[j], plan.dense, plan.dim); }, sums);
                        else
                            Isa::dot_planes(tails, plan.dense, plan.dim, sums);
                        for (size_t j = 0; j < 4; ++j)
                            more[j] += plan.dense_factor * load_step(heads[j] + plan.steps) *
                                       (static_cast<float>(sums[j]) - zero);
                    }
                    if (full) {
                        for (size_t j = 0; j < group; ++j) {
                            if (i + j + kAhead < count) __builtin_prefetch(view.row_begin + ids[i + j + kAhead]);
                            if (i + j + 2 < count) prefetch_row(view, ids[i + j + 2]);
                            more[j] += query.sparse_weight * full_sparse(view, query, ids[i + j]);
                        }
                    } else if (sparse) {
                        add_terms(plan, heads, tails, plan.tail_terms, kHeadTerms, plan.num_tail_terms, more);
                    }
                    for (size_t j = 0; j < group; ++j) scores[i + j] += more[j];
                });
    }

    static void score_exact(const ItemView &view, const Query &query, const uint32_t *ids, size_t count, size_t coming,
                            float *out) {
        const size_t dim = view.layout.dim;
        const bool dense = query.dense_weight != 0, sparse = query.sparse_weight != 0;
        auto prefetch = [&](uint32_t id) {
            if (sparse) prefetch_row(view, id);
            if (dense) prefetch_column(*view.dense, id * dim, (id + 1) * dim);
        };
        constexpr size_t kRows = 3; ///< whole rows are long: fetch few ahead
        if (sparse)
            for (size_t i = 0; i < count + coming; ++i) __builtin_prefetch(view.row_begin + ids[i]);
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
    static int32_t dot_bits(const uint8_t *bits, const int8_t *query, size_t n) {
        int32_t sum = 0;
        for (size_t i = 0; i < n; ++i) sum += (bits[i / 8] >> (i % 8) & 1) * int32_t{query[i]};
        return sum;
    }
    /// Of four records: sum of the query where a bit is set.
    static void dot_signs(const uint8_t *const *bits, const int8_t *query, size_t n, int32_t *sums) {
        for (size_t j = 0; j < 4; ++j) sums[j] = dot_bits(bits[j], query, n);
    }
    /// Of four records: the same for three planes of n bits that count 4, 2 and 1.
    static void dot_planes(const uint8_t *const *planes, const int8_t *query, size_t n, int32_t *sums) {
        for (size_t j = 0; j < 4; ++j)
            sums[j] = 4 * dot_bits(planes[j], query, n) + 2 * dot_bits(planes[j] + n / 8, query, n) +
                      dot_bits(planes[j] + n / 4, query, n);
    }
    static int32_t match_codes(const TermTable::Round *rounds, size_t num_rounds, uint16_t multiplier,
                               const uint16_t *prints, const int8_t *values, size_t n) {
        int32_t sum = 0;
        for (size_t r = 0; r < num_rounds; ++r) {
            const TermTable::Round &round = rounds[r];
            for (size_t i = 0; i < n; ++i) {
                const size_t b = TermTable::bucket(prints[i], multiplier);
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
