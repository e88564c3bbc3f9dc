// Rounding to bytes: the choice of level, threads, and the sums between the passes.
#include "sparing/int8.hpp"
#include "int8_impl.hpp"
#include "sparing/error.hpp"
#include "sparing/pool.hpp"

namespace sparing {

namespace int8 {

Kernels portable_kernels();
#if defined(SPARING_X86)
Kernels avx2_kernels();
Kernels avx512_kernels();
#endif

} // namespace int8

namespace {

using namespace int8;

/// Values for which more than one thread is worth waking.
constexpr size_t kValuesForThreads = size_t{1} << 16;
/// Pixels a stretch: float32 sums over so many keep their digits.
constexpr size_t kStretch = 256;

bool has(const std::string &level) {
    if (level == "portable") return true;
#if defined(SPARING_X86)
    __builtin_cpu_init();
    if (level == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
    return false;
}

Kernels kernels_of(const std::string &level) {
    if (!has(level)) throw Error(ErrorKind::Argument, "level: '" + level + "' cannot run on this CPU");
#if defined(SPARING_X86)
    if (level == "avx2") return avx2_kernels();
    if (level == "avx512") return avx512_kernels();
#endif
    return portable_kernels();
}

/// Calls body(begin, end, scratch) for stretches of [0, count); scratch holds `width` floats.
template <class Body>
void in_stretches(size_t count, size_t stretch, size_t width, int threads, Body &&body) {
    const size_t stretches = (count + stretch - 1) / stretch;
    const int workers = count * width < kValuesForThreads ? 1 : resolve_threads(threads);
    std::vector<std::vector<float>> scratch(static_cast<size_t>(workers));
    pool_for(stretches, workers, [&](int worker, size_t i) {
        auto &mine = scratch[static_cast<size_t>(worker)];
        mine.resize(width);
        body(i, i * stretch, std::min((i + 1) * stretch, count), mine.data());
    });
}

/// Factors a and b of every channel, norm(x) = a·x + b.
void normalise(const ImageTask &task, const Kernels &level, int threads, std::vector<float> &a, std::vector<float> &b) {
    const size_t channels = task.channels, stretches = (task.pixels + kStretch - 1) / kStretch;
    std::vector<Moments> parts(stretches * channels);
    in_stretches(task.pixels, kStretch, 4 * channels, threads, [&](size_t i, size_t begin, size_t end, float *scratch) {
        level.moments(task, begin, end, scratch, parts.data() + i * channels);
    });
    const size_t size = channels / task.groups;
    const double count = static_cast<double>(task.pixels) * static_cast<double>(size);
    for (size_t group = 0; group < task.groups; ++group) {
        const auto over_parts = [&](auto &&term) {
            double total = 0;
            for (size_t i = 0; i < stretches; ++i) {
                const auto pixels = static_cast<double>(std::min(kStretch, task.pixels - i * kStretch));
                for (size_t c = group * size; c < (group + 1) * size; ++c)
                    total += term(parts[i * channels + c], pixels);
            }
            return total / count;
        };
        const double mean = over_parts([](const Moments &part, double pixels) { return pixels * part.mean; });
        const double variance = over_parts([mean](const Moments &part, double pixels) {
            return part.squares + pixels * (part.mean - mean) * (part.mean - mean);
        });
        const double inverse = 1 / std::sqrt(std::max(variance, 0.0) + double{task.eps});
        for (size_t c = group * size; c < (group + 1) * size; ++c) {
            a[c] = static_cast<float>(inverse * double{task.weight[c]});
            b[c] = static_cast<float>(double{task.bias[c]} - mean * inverse * double{task.weight[c]});
        }
    }
}

} // namespace

std::vector<std::string> available_int8() {
    std::vector<std::string> found;
    for (const char *level : {"portable", "avx2", "avx512"})
        if (has(level)) found.emplace_back(level);
    return found;
}

void quantize_rows(const RowsTask &task, const std::string &level, int num_threads) {
    const Kernels kernels = kernels_of(level);
    in_stretches(task.rows, 8, task.columns, num_threads, [&](size_t, size_t begin, size_t end, float *scratch) {
        kernels.round_rows(task, begin, end, scratch);
    });
}

void finish_rows(const FinishTask &task, const std::string &level, int num_threads) {
    const Kernels kernels = kernels_of(level);
    in_stretches(task.rows, 8, task.columns, num_threads,
                 [&](size_t, size_t begin, size_t end, float *scratch) { kernels.finish(task, begin, end, scratch); });
}

ByteRange quantize_image(const ImageTask &task, const std::string &level, int num_threads) {
    const Kernels kernels = kernels_of(level);
    if (task.pixels == 0 || task.channels == 0) return {};
    std::vector<float> a(task.channels), b(task.channels);
    if (task.groups != 0) normalise(task, kernels, num_threads, a, b);
    std::vector<Extremes> parts((task.pixels + kStretch - 1) / kStretch);
    in_stretches(task.pixels, kStretch, task.channels, num_threads,
                 [&](size_t i, size_t begin, size_t end, float *scratch) {
                     parts[i] = kernels.extremes(task, a.data(), b.data(), begin, end, scratch);
                 });
    Extremes all;
    for (const Extremes &part : parts) add(all, part);
    ByteRange range;
    if (all.poison != all.poison) {
        range.step = all.poison;
        std::fill_n(task.codes, task.pixels * task.channels, uint8_t{0});
        return range;
    }
    // Halves: the difference of two large numbers may be infinite.
    range.step = std::max((all.largest / 2 - all.least / 2) / 127.5F, FLT_MIN);
    range.zero_point = static_cast<int32_t>(std::clamp(rounded(-all.least / range.step), 0.0F, 255.0F));
    in_stretches(task.pixels, kStretch, task.channels, num_threads,
                 [&](size_t, size_t begin, size_t end, float *scratch) {
                     kernels.round_image(task, a.data(), b.data(), range, begin, end, scratch);
                 });
    return range;
}

} // namespace sparing
