// The loops of int8.hpp, plain so that compilers turn them into vectors; included once for each instruction set.
#pragma once
#include "sparing/int8.hpp"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

namespace sparing::int8 {

constexpr size_t kLanes = 16;
constexpr float kMagic = 12582912.0F; ///< 1.5 · 2^23: adding it leaves no bits behind the point

/// Least, largest, and 0 or not a number; lane by lane, so that no order of a sum is left open.
struct Extremes {
    float least = 0, largest = 0, poison = 0;
};

/// Mean over a stretch's pixels, and sum of squared distances from it, for each channel.
struct Moments {
    double mean = 0, squares = 0;
};

/// What a level does to a stretch of the work.
struct Kernels {
    void (*round_rows)(const RowsTask &, size_t begin, size_t end, float *scratch);
    void (*finish)(const FinishTask &, size_t begin, size_t end, float *scratch);
    void (*moments)(const ImageTask &, size_t begin, size_t end, float *scratch, Moments *);
    Extremes (*extremes)(const ImageTask &, const float *a, const float *b, size_t begin, size_t end, float *scratch);
    void (*round_image)(const ImageTask &, const float *a, const float *b, ByteRange range, size_t begin, size_t end,
                        float *scratch);
};

namespace {

inline void add(Extremes &all, const Extremes &other) {
    all.least = std::min(all.least, other.least);
    all.largest = std::max(all.largest, other.largest);
    all.poison += other.poison;
}

inline float rounded(float x) { return (x + kMagic) - kMagic; }

/// e^x within one part in 10^5 for x in [−87, 87]; beyond, the value at the end. Clamped by its bits: GCC would turn a
/// comparison of floats into branches around what follows. Not a number counts as beyond.
inline float exp_of(float x) {
    const auto bits = std::bit_cast<int32_t>(x);
    const int32_t magnitude = std::min(bits & std::numeric_limits<int32_t>::max(), std::bit_cast<int32_t>(87.0F));
    x = std::bit_cast<float>(magnitude | (bits & std::numeric_limits<int32_t>::min()));
    const float t = x * 1.44269504F;
    const float shifted = t + kMagic;
    const float rest = t - (shifted - kMagic);
    float p = 1.33335581e-3F;
    p = p * rest + 9.61812910e-3F;
    p = p * rest + 5.55041087e-2F;
    p = p * rest + 2.40226507e-1F;
    p = p * rest + 6.93147182e-1F;
    p = p * rest + 1.0F;
    // The whole part stands in the lowest bits of `shifted`.
    const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kMagic) + 127U) << 23;
    return p * std::bit_cast<float>(exponent);
}

inline float silu_of(float x) { return x / (1.0F + exp_of(-x)); }

inline float gelu_of(float x) {
    const float inner = 1.5957691216F * (x + 0.044715F * x * x * x);
    return x / (1.0F + exp_of(-inner));
}

/// The lowest byte of the rounded number as an int8 code, plus 128.
inline uint8_t byte_of(float code) {
    return static_cast<uint8_t>((std::bit_cast<uint32_t>(code + kMagic) & 0xFFU) ^ 0x80U);
}

inline uint8_t unsigned_byte_of(float code) {
    return static_cast<uint8_t>(std::bit_cast<uint32_t>(code + kMagic) & 0xFFU);
}

inline void widen(const Reals &x, size_t at, size_t count, float *out) {
    if (x.wide != nullptr) {
        std::copy_n(x.wide + at, count, out);
        return;
    }
    const Bits16 *half = x.half + at;
    for (size_t i = 0; i < count; ++i) out[i] = widen_bits(half[i]);
}

inline Extremes extremes_of(const float *x, size_t count) {
    float least[kLanes] = {}, largest[kLanes] = {}, poison[kLanes] = {};
    const size_t whole = count / kLanes * kLanes;
    const auto take = [&](size_t i, size_t lane) {
        least[lane] = x[i] < least[lane] ? x[i] : least[lane];
        largest[lane] = x[i] > largest[lane] ? x[i] : largest[lane];
        poison[lane] += x[i] - x[i];
    };
    for (size_t i = 0; i < whole; i += kLanes)
        for (size_t lane = 0; lane < kLanes; ++lane) take(i + lane, lane);
    for (size_t i = whole; i < count; ++i) take(i, i - whole);
    Extremes all;
    for (size_t lane = 0; lane < kLanes; ++lane) add(all, {least[lane], largest[lane], poison[lane]});
    return all;
}

void round_rows(const RowsTask &task, size_t begin, size_t end, float *scratch) {
    const size_t columns = task.columns;
    for (size_t row = begin; row < end; ++row) {
        widen(task.x, row * columns, columns, scratch);
        const Extremes found = extremes_of(scratch, columns);
        const float largest = std::max(found.largest, -found.least);
        const float step = std::max(largest / 127.0F, FLT_MIN);
        uint8_t *codes = task.codes + row * columns;
        for (size_t i = 0; i < columns; ++i) codes[i] = byte_of(scratch[i] / step);
        task.steps[row] = step + found.poison;
    }
}

void finish(const FinishTask &task, size_t begin, size_t end, float *scratch) {
    const size_t columns = task.columns;
    for (size_t row = begin; row < end; ++row) {
        const float *sums = task.sums + row * columns;
        const float step = task.steps[row];
        float *out = task.out.wide != nullptr ? task.out.wide + row * columns : scratch;
        if (task.bias != nullptr)
            for (size_t i = 0; i < columns; ++i) out[i] = sums[i] * step + task.bias[i];
        else
            for (size_t i = 0; i < columns; ++i) out[i] = sums[i] * step;
        if (task.gelu)
            for (size_t i = 0; i < columns; ++i) out[i] = gelu_of(out[i]);
        if (task.out.wide != nullptr) continue;
        Bits16 *half = task.out.half + row * columns;
        for (size_t i = 0; i < columns; ++i) half[i] = narrow_bits(out[i]);
    }
}

/// scratch: 4 · channels. Distances from the stretch's first pixel keep the digits of a small spread about a large
/// mean.
void moments(const ImageTask &task, size_t begin, size_t end, float *scratch, Moments *out) {
    const size_t channels = task.channels;
    float *x = scratch, *pivot = x + channels, *sum = pivot + channels, *square = sum + channels;
    widen(task.x, begin * channels, channels, pivot);
    std::fill_n(sum, 2 * channels, 0.0F);
    for (size_t pixel = begin; pixel < end; ++pixel) {
        widen(task.x, pixel * channels, channels, x);
        for (size_t c = 0; c < channels; ++c) {
            const float d = x[c] - pivot[c];
            sum[c] += d;
            square[c] += d * d;
        }
    }
    const auto pixels = static_cast<double>(end - begin);
    for (size_t c = 0; c < channels; ++c) {
        const double total = sum[c], mean = total / pixels;
        out[c] = {double{pivot[c]} + mean, double{square[c]} - total * mean};
    }
}

inline void activated(const ImageTask &task, const float *a, const float *b, size_t pixel, float *y) {
    const size_t channels = task.channels;
    widen(task.x, pixel * channels, channels, y);
    if (task.groups != 0)
        for (size_t c = 0; c < channels; ++c) y[c] = y[c] * a[c] + b[c];
    if (task.silu)
        for (size_t c = 0; c < channels; ++c) y[c] = silu_of(y[c]);
}

Extremes extremes(const ImageTask &task, const float *a, const float *b, size_t begin, size_t end, float *scratch) {
    Extremes all;
    for (size_t pixel = begin; pixel < end; ++pixel) {
        activated(task, a, b, pixel, scratch);
        add(all, extremes_of(scratch, task.channels));
    }
    return all;
}

void round_image(const ImageTask &task, const float *a, const float *b, ByteRange range, size_t begin, size_t end,
                 float *scratch) {
    const float inverse = 1.0F / range.step, zero = static_cast<float>(range.zero_point);
    const size_t channels =
        task.channels; // bytes may alias anything: the task is not read again while they are written
    for (size_t pixel = begin; pixel < end; ++pixel) {
        activated(task, a, b, pixel, scratch);
        uint8_t *codes = task.codes + pixel * channels;
        for (size_t c = 0; c < channels; ++c) {
            float code = scratch[c] * inverse + zero;
            code = code > 0.0F ? code : 0.0F;
            code = code < 255.0F ? code : 255.0F;
            codes[c] = unsigned_byte_of(code);
        }
    }
}

constexpr Kernels kKernels{round_rows, finish, moments, extremes, round_image};

} // namespace

} // namespace sparing::int8
