// Python bindings of the core: arrays in, arrays out, the GIL released around every loop.
#include "sparing/attention.hpp"
#include "sparing/index.hpp"
#include "sparing/int8.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>

namespace nb = nanobind;
using namespace sparing;

namespace {

template <class T>
using Array1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const char *kind_name(ErrorKind kind) {
    switch (kind) {
    case ErrorKind::NonFinite:
        return "NonFiniteError";
    case ErrorKind::SparseFormat:
        return "SparseFormatError";
    case ErrorKind::DuplicateId:
        return "DuplicateIdError";
    case ErrorKind::UnknownId:
        return "UnknownIdError";
    case ErrorKind::Format:
        return "FormatError";
    case ErrorKind::ReadOnly:
        return "ReadOnlyError";
    default:
        return "ArgumentError";
    }
}

template <class T>
std::span<const T> span_of(const Array1<T> &array) {
    return {array.data(), array.size()};
}

template <class T>
nb::ndarray<nb::numpy, T> to_numpy(std::vector<T> &&values, std::initializer_list<size_t> shape) {
    auto *held = new std::vector<T>(std::move(values));
    nb::capsule owner(held, [](void *p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return nb::ndarray<nb::numpy, T>(held->data(), shape, owner);
}

template <class T>
nb::ndarray<nb::numpy, T> copy_out(const Buffer<T> &buffer) {
    return to_numpy(std::vector<T>(buffer.data(), buffer.data() + buffer.size()), {buffer.size()});
}

/// A column as it is stored: halves as their bits, which Python views as float16.
template <class Wide>
nb::object copy_out(const Column<Wide> &column) {
    return column.visit([](const auto &buffer) {
        using T = std::decay_t<decltype(buffer[0])>;
        using Plain = std::conditional_t<std::is_same_v<T, Half>, uint16_t, T>;
        const auto *data = reinterpret_cast<const Plain *>(buffer.data());
        return nb::cast(to_numpy(std::vector<Plain>(data, data + buffer.size()), {buffer.size()}));
    });
}

/// A saved column of either width, held by `arrays`.
template <class Narrow, class Wide>
void span_of(const nb::dict &arrays, const char *name,
             std::variant<std::span<const Narrow>, std::span<const Wide>> &out) {
    Array1<Wide> wide;
    if (nb::try_cast(arrays[name], wide, false)) {
        out = span_of(wide);
        return;
    }
    const auto array = nb::cast<Array1<uint16_t>>(arrays[name]);
    out = std::span<const Narrow>(reinterpret_cast<const Narrow *>(array.data()), array.size());
}

ItemBatch batch_of(size_t size, const std::optional<Array2<float>> &dense,
                   const std::optional<Array1<uint64_t>> &row_begin, const std::optional<Array1<uint32_t>> &terms,
                   const std::optional<Array1<float>> &values) {
    ItemBatch batch;
    batch.size = size;
    if (dense) batch.dense = dense->data();
    if (row_begin) {
        batch.row_begin = row_begin->data();
        batch.terms = terms->data();
        batch.values = values->data();
    }
    return batch;
}

/// Reports to Python where it wants to know, and lets Ctrl-C stop a build between batches.
BuildProgress progress_of(const std::optional<nb::callable> &callback) {
    return [&callback](size_t done, size_t total) {
        const nb::gil_scoped_acquire acquire;
        if (callback) (*callback)(done, total);
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
    };
}

/// Waits for changes without holding up the rest of Python.
std::shared_lock<std::shared_mutex> locked(const Index &index) {
    const nb::gil_scoped_release released;
    return index.reader();
}

/// Bytes of each array, and the number of links.
nb::dict sizes_of(const Index &index) {
    const auto lock = locked(index);
    const Storage &s = index.storage();
    nb::dict out;
    out["ids"] = s.ids.bytes();
    out["deleted"] = s.deleted.bytes();
    out["center"] = s.center.bytes();
    out["heads"] = s.heads.bytes();
    out["tails"] = s.tails.bytes();
    out["dense"] = s.dense.bytes();
    out["row_begin"] = s.row_begin.bytes();
    out["terms"] = s.terms.bytes();
    out["values"] = s.values.bytes();
    out["norms"] = s.norms.bytes();
    out["links"] = s.links.data.bytes();
    out["entries"] = s.entries.bytes();
    out["seeds"] = s.seeds.items.bytes();
    out["num_nonzeros"] = s.terms.size();
    size_t num_links = 0;
    for (size_t i = 0; i < s.size(); ++i) num_links += s.links.count(i);
    out["num_links"] = num_links;
    return out;
}

nb::dict arrays_of(const Index &index) {
    const auto lock = locked(index);
    const Storage &s = index.storage();
    nb::dict out;
    out["ids"] = copy_out(s.ids);
    out["deleted"] = copy_out(s.deleted);
    out["center"] = copy_out(s.center);
    out["heads"] = copy_out(s.heads);
    out["tails"] = copy_out(s.tails);
    out["dense"] = copy_out(s.dense);
    out["row_begin"] = copy_out(s.row_begin);
    out["terms"] = copy_out(s.terms);
    out["values"] = copy_out(s.values);
    out["norms"] = copy_out(s.norms);
    out["links"] = copy_out(s.links.data);
    out["entries"] = copy_out(s.entries);
    out["seeds"] = copy_out(s.seeds.items);
    out["seed_buckets"] = s.seeds.num_buckets;
    return out;
}

template <class T>
using Heads = nb::ndarray<T, nb::ndim<4>, nb::device::cpu>;

template <class T>
HeadsView<T> heads_view(const Heads<T> &array, const char *name, size_t rows, size_t heads, size_t tokens) {
    const bool fits = array.shape(0) == rows && array.shape(1) == heads && array.shape(2) == tokens &&
                      array.shape(3) == kHeadDim && array.stride(3) == 1;
    if (!fits || array.stride(0) < 0 || array.stride(1) < 0 || array.stride(2) < 0)
        throw Error(ErrorKind::Argument, std::string(name) + ": expected (" + std::to_string(rows) + ", " +
                                             std::to_string(heads) + ", " + std::to_string(tokens) + ", " +
                                             std::to_string(kHeadDim) + ") with a contiguous last axis");
    return {array.data(), static_cast<size_t>(array.stride(0)), static_cast<size_t>(array.stride(1)),
            static_cast<size_t>(array.stride(2))};
}

void attend_arrays(const Heads<const Bits16> &q, const Heads<const Bits16> &k, const Heads<const Bits16> &v,
                   const Heads<Bits16> &out, const Array2<int32_t> &segments, const Array2<int32_t> &widths,
                   int32_t sink, float scale, const std::string &level, int num_threads) {
    AttentionTask task;
    const size_t queries = q.shape(2), keys = k.shape(2);
    constexpr size_t limit = size_t{1} << 24;
    if (queries == 0 || keys == 0 || queries > limit || keys > limit)
        throw Error(ErrorKind::Argument, "q, k: expected 1 to 2^24 tokens");
    task.rows = q.shape(0);
    task.heads = q.shape(1);
    task.q = heads_view(q, "q", task.rows, task.heads, queries);
    task.k = heads_view(k, "k", task.rows, task.heads, keys);
    task.v = heads_view(v, "v", task.rows, task.heads, keys);
    task.out = heads_view(out, "out", task.rows, task.heads, queries);
    task.queries = static_cast<int32_t>(queries);
    task.keys = static_cast<int32_t>(keys);
    if (segments.shape(1) != 2 || widths.shape(0) != task.heads || widths.shape(1) != segments.shape(0))
        throw Error(ErrorKind::Argument, "segments, widths: expected (segments, 2) and (heads, segments)");
    std::vector<KeySegment> list;
    for (size_t s = 0; s < segments.shape(0); ++s) list.push_back({segments.data()[2 * s], segments.data()[2 * s + 1]});
    task.segments = list;
    task.widths = widths.data();
    task.sink = sink;
    task.scale = scale;
    const nb::gil_scoped_release released;
    attend(task, level, num_threads);
}

using RealRows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableRealRows = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Rows>
bool is_half(const Rows &array) {
    if (array.dtype() != nb::dtype<float>() && array.dtype() != nb::dtype<Bits16>())
        throw Error(ErrorKind::Argument, "expected float32, or bfloat16 as uint16");
    return array.dtype() == nb::dtype<Bits16>();
}

Reals reals_of(const RealRows &array) {
    const void *data = array.data();
    if (is_half(array)) return {nullptr, static_cast<const Bits16 *>(data)};
    return {static_cast<const float *>(data), nullptr};
}

void expect(bool fits, const char *message) {
    if (!fits) throw Error(ErrorKind::Argument, message);
}

void quantize_rows_arrays(const RealRows &x, const MutableBytes &codes,
                          const nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu> &steps,
                          const std::string &level, int num_threads) {
    expect(codes.shape(0) == x.shape(0) && codes.shape(1) == x.shape(1) && steps.shape(0) == x.shape(0),
           "codes, steps: expected the shape of x, and its rows");
    const RowsTask task{x.shape(0), x.shape(1), reals_of(x), codes.data(), steps.data()};
    const nb::gil_scoped_release released;
    quantize_rows(task, level, num_threads);
}

void finish_rows_arrays(const Array2<float> &sums, const Array1<float> &steps, const std::optional<Array1<float>> &bias,
                        bool gelu, const MutableRealRows &out, const std::string &level, int num_threads) {
    expect(out.shape(0) == sums.shape(0) && out.shape(1) == sums.shape(1) && steps.shape(0) == sums.shape(0) &&
               (!bias || bias->shape(0) == sums.shape(1)),
           "steps, bias, out: expected the rows, the columns and the shape of sums");
    FinishTask task{sums.shape(0), sums.shape(1), sums.data(), steps.data(), bias ? bias->data() : nullptr, gelu, {}};
    void *data = out.data();
    if (is_half(out))
        task.out.half = static_cast<Bits16 *>(data);
    else
        task.out.wide = static_cast<float *>(data);
    const nb::gil_scoped_release released;
    finish_rows(task, level, num_threads);
}

std::pair<float, int32_t> quantize_image_arrays(const RealRows &x, const MutableBytes &codes, size_t groups,
                                                const std::optional<Array1<float>> &weight,
                                                const std::optional<Array1<float>> &bias, float eps, bool silu,
                                                const std::string &level, int num_threads) {
    const size_t channels = x.shape(1);
    expect(codes.shape(0) == x.shape(0) && codes.shape(1) == channels, "codes: expected the shape of x");
    expect(groups == 0 ||
               (channels % groups == 0 && weight && bias && weight->shape(0) == channels && bias->shape(0) == channels),
           "groups, weight, bias: expected groups that divide the channels, and a number for each channel");
    ImageTask task{x.shape(0), channels, reals_of(x), groups, nullptr, nullptr, eps, silu, codes.data()};
    if (groups != 0) {
        task.weight = weight->data();
        task.bias = bias->data();
    }
    const nb::gil_scoped_release released;
    const ByteRange range = quantize_image(task, level, num_threads);
    return {range.step, range.zero_point};
}

} // namespace

NB_MODULE(_core, m) {
    m.doc() = "Compiled core of sparing; use sparing.hybrid.HybridIndex and sparing.var.VARPipeline.";
    nb::register_exception_translator([](const std::exception_ptr &p, void *) {
        try {
            std::rethrow_exception(p);
        } catch (const Error &e) {
            const nb::object type = nb::module_::import_("sparing.errors").attr(kind_name(e.kind()));
            PyErr_SetString(type.ptr(), e.what());
        }
    });

    // What is filled is never converted: the results would be lost in a copy.
    m.def("available_attention", &available_attention, "Levels of windowed attention, slowest first.");
    m.def("attend", &attend_arrays, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out").noconvert(),
          nb::arg("segments"), nb::arg("widths"), nb::arg("sink"), nb::arg("scale"), nb::arg("level"),
          nb::arg("num_threads"), "Windowed attention of bfloat16 bits into `out`.");
    m.def("available_int8", &available_int8, "Levels of rounding to bytes, slowest first.");
    m.def("quantize_rows", &quantize_rows_arrays, nb::arg("x"), nb::arg("codes").noconvert(),
          nb::arg("steps").noconvert(), nb::arg("level"), nb::arg("num_threads"),
          "Codes around 128 and a step for each row, of float32 or of bfloat16 bits.");
    m.def("finish_rows", &finish_rows_arrays, nb::arg("sums"), nb::arg("steps"), nb::arg("bias").none(),
          nb::arg("gelu"), nb::arg("out").noconvert(), nb::arg("level"), nb::arg("num_threads"),
          "Sums times each row's step, plus the bias, through GELU if wanted, into `out`.");
    m.def("quantize_image", &quantize_image_arrays, nb::arg("x"), nb::arg("codes").noconvert(), nb::arg("groups"),
          nb::arg("weight").none(), nb::arg("bias").none(), nb::arg("eps"), nb::arg("silu"), nb::arg("level"),
          nb::arg("num_threads"),
          "Codes, step and zero point of one image (pixels, channels), after group norm and SiLU if wanted.");

    nb::enum_<DenseCode>(m, "DenseCode")
        .value("INT4", DenseCode::Int4)
        .value("INT8", DenseCode::Int8)
        .value("FLOAT32", DenseCode::Float32);
    nb::enum_<Similarity>(m, "Similarity")
        .value("INNER_PRODUCT", Similarity::InnerProduct)
        .value("L2", Similarity::L2)
        .value("COSINE", Similarity::Cosine);
    nb::class_<Config>(m, "Config")
        .def(nb::init<>())
        .def_rw("dim", &Config::dim)
        .def_rw("dense_code", &Config::dense_code)
        .def_rw("doc_terms", &Config::doc_terms)
        .def_rw("query_terms", &Config::query_terms)
        .def_rw("degree", &Config::degree)
        .def_rw("build_beam", &Config::build_beam)
        .def_rw("similarity", &Config::similarity)
        .def_rw("dense_weight", &Config::dense_weight)
        .def_rw("sparse_weight", &Config::sparse_weight)
        .def_rw("scale", &Config::scale)
        .def_rw("num_entries", &Config::num_entries)
        .def_rw("seeds_per_term", &Config::seeds_per_term)
        .def_rw("seed_terms", &Config::seed_terms)
        .def_rw("two_stage", &Config::two_stage)
        .def_rw("seed", &Config::seed);

    nb::class_<Index>(m, "Index")
        .def(nb::init<const Config &>(), nb::arg("config"))
        .def("__len__", &Index::size, nb::call_guard<nb::gil_scoped_release>())
        .def("__contains__", &Index::contains, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("num_deleted", &Index::num_deleted, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("record_bytes",
                     [](const Index &index) {
                         const CodeLayout &layout = index.storage().layout;
                         return layout.head_stride() + layout.tail_stride();
                     })
        .def(
            "add",
            [](Index &index, Array1<int64_t> ids, std::optional<Array2<float>> dense,
               std::optional<Array1<uint64_t>> row_begin, std::optional<Array1<uint32_t>> terms,
               std::optional<Array1<float>> values, int num_threads, std::optional<nb::callable> progress) {
                const ItemBatch batch = batch_of(ids.size(), dense, row_begin, terms, values);
                const BuildProgress callback = progress_of(progress);
                const nb::gil_scoped_release release;
                index.add(batch, ids.data(), num_threads, callback);
            },
            nb::arg("ids"), nb::arg("dense").none(), nb::arg("row_begin").none(), nb::arg("terms").none(),
            nb::arg("values").none(), nb::arg("num_threads"), nb::arg("progress").none())
        .def(
            "update",
            [](Index &index, Array1<int64_t> ids, std::optional<Array2<float>> dense,
               std::optional<Array1<uint64_t>> row_begin, std::optional<Array1<uint32_t>> terms,
               std::optional<Array1<float>> values, int num_threads) {
                const ItemBatch batch = batch_of(ids.size(), dense, row_begin, terms, values);
                const nb::gil_scoped_release release;
                index.update(batch, ids.data(), num_threads);
            },
            nb::arg("ids"), nb::arg("dense").none(), nb::arg("row_begin").none(), nb::arg("terms").none(),
            nb::arg("values").none(), nb::arg("num_threads"))
        .def(
            "delete",
            [](Index &index, Array1<int64_t> ids) {
                const nb::gil_scoped_release release;
                index.remove(ids.data(), ids.size());
            },
            nb::arg("ids"))
        .def("compact", &Index::compact, nb::arg("num_threads"), nb::call_guard<nb::gil_scoped_release>())
        .def(
            "search",
            [](const Index &index, size_t count, std::optional<Array2<float>> dense,
               std::optional<Array1<uint64_t>> row_begin, std::optional<Array1<uint32_t>> terms,
               std::optional<Array1<float>> values, Array2<float> weights, size_t k, size_t beam, size_t query_terms,
               std::optional<Array1<int64_t>> filter, bool exact, int num_threads) {
                const QueryBatch queries{batch_of(count, dense, row_begin, terms, values), weights.data(), query_terms};
                std::vector<int64_t> ids(count * k);
                std::vector<float> scores(count * k);
                SearchOutput out{ids.data(), scores.data(), {}};
                {
                    const nb::gil_scoped_release release;
                    out = index.search(queries, k, beam, filter ? filter->data() : nullptr, filter ? filter->size() : 0,
                                       filter.has_value(), exact, num_threads, out);
                }
                return nb::make_tuple(to_numpy(std::move(ids), {count, k}), to_numpy(std::move(scores), {count, k}),
                                      out.counts.hops, out.counts.heads, out.counts.dense, out.counts.sparse,
                                      out.counts.exact);
            },
            nb::arg("count"), nb::arg("dense").none(), nb::arg("row_begin").none(), nb::arg("terms").none(),
            nb::arg("values").none(), nb::arg("weights"), nb::arg("k"), nb::arg("beam"), nb::arg("query_terms"),
            nb::arg("filter").none(), nb::arg("exact"), nb::arg("num_threads"))
        .def("arrays", &arrays_of)
        .def("sizes", &sizes_of)
        .def_static(
            "open",
            [](const Config &config, nb::dict arrays, bool borrow) {
                SavedArrays saved;
                auto ids = nb::cast<Array1<int64_t>>(arrays["ids"]);
                auto deleted = nb::cast<Array1<uint8_t>>(arrays["deleted"]);
                saved.has_records = arrays.contains("heads");
                Array1<uint8_t> heads, tails;
                Array1<float> center;
                if (saved.has_records) {
                    center = nb::cast<Array1<float>>(arrays["center"]);
                    saved.center = span_of(center);
                    heads = nb::cast<Array1<uint8_t>>(arrays["heads"]);
                    tails = nb::cast<Array1<uint8_t>>(arrays["tails"]);
                    saved.heads = span_of(heads);
                    saved.tails = span_of(tails);
                }
                auto norms = nb::cast<Array1<float>>(arrays["norms"]);
                auto row_begin = nb::cast<Array1<uint64_t>>(arrays["row_begin"]);
                auto links = nb::cast<Array1<uint32_t>>(arrays["links"]),
                     entries = nb::cast<Array1<uint32_t>>(arrays["entries"]),
                     seeds = nb::cast<Array1<uint32_t>>(arrays["seeds"]);
                saved.ids = span_of(ids);
                saved.deleted = span_of(deleted);
                span_of(arrays, "dense", saved.dense);
                span_of(arrays, "values", saved.values);
                span_of(arrays, "terms", saved.terms);
                saved.norms = span_of(norms);
                saved.row_begin = span_of(row_begin);
                saved.links = span_of(links);
                saved.entries = span_of(entries);
                saved.seeds = span_of(seeds);
                saved.seed_buckets = nb::cast<uint32_t>(arrays["seed_buckets"]);
                std::shared_ptr<const void> owner;
                if (borrow) {
                    auto *held = new nb::dict(arrays);
                    owner = std::shared_ptr<const void>(static_cast<const void *>(held), [](const void *p) {
                        const nb::gil_scoped_acquire acquire;
                        delete static_cast<const nb::dict *>(p);
                    });
                }
                return Index::open(config, saved, owner, borrow);
            },
            nb::arg("config"), nb::arg("arrays"), nb::arg("borrow"));
    m.def("simd_levels", &available_kernels);
    m.def("simd_level", [] { return std::string(kernels().name); });
}
