// Rounding to bytes: every level against plain double arithmetic, and against "portable" bit by bit; odd sizes,
// extremes.
#include "check.hpp"
#include "sparing/int8.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

using namespace sparing;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
/// Half a step, and float32's rounding of a number of up to 255 steps.
constexpr double kHalfStep = 0.5 + 1e-4;
/// The same after an exponential, or sums of squares, that are right to one part in 10^5.
constexpr double kHalfStepAndMore = 0.5 + 0.01;

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float widen(Bits16 half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::vector<float> normal(size_t count, float mean, float spread, uint32_t seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> draw(mean, spread);
    std::vector<float> out(count);
    for (float &value : out) value = draw(engine);
    return out;
}

/// The upper halves of float32 numbers, which are then those numbers exactly.
std::vector<Bits16> halves(std::vector<float> &values) {
    std::vector<Bits16> out(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        out[i] = static_cast<Bits16>(bits_of(values[i]) >> 16);
        values[i] = widen(out[i]);
    }
    return out;
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

/// Calls body(level, threads) for every level, fewer and more threads than cores.
template <class Body>
void everywhere(Body &&body) {
    for (const auto &level : available_int8())
        for (const int threads : {1, 2, 7}) body(level, threads);
}

std::string name(const std::string &what, const std::string &level, int threads) {
    return what + ", " + level + ", " + std::to_string(threads) + " threads";
}

// --- rows

struct Rows {
    std::vector<uint8_t> codes;
    std::vector<float> steps;
};

Rows rounded_rows(Reals x, size_t rows, size_t columns, const std::string &level, int threads) {
    Rows out{std::vector<uint8_t>(rows * columns), std::vector<float>(rows)};
    quantize_rows({rows, columns, x, out.codes.data(), out.steps.data()}, level, threads);
    return out;
}

void compare_rows(size_t rows, size_t columns, bool half) {
    auto x = normal(rows * columns, 0.3F, 2, 1);
    for (size_t r = 0; r < rows; ++r) // from tiny to large
        for (size_t i = 0; i < columns; ++i) x[r * columns + i] *= std::pow(10.0F, static_cast<float>(r % 9) - 4);
    const auto bits = halves(x);
    const Reals values = half ? Reals{nullptr, bits.data()} : Reals{x.data(), nullptr};
    const Rows first = rounded_rows(values, rows, columns, "portable", 1);
    const std::string size = std::to_string(rows) + " × " + std::to_string(columns);
    for (size_t r = 0; r < rows; ++r) {
        double largest = 0, worst = 0;
        for (size_t i = 0; i < columns; ++i) largest = std::max(largest, std::abs(double{x[r * columns + i]}));
        CHECK_FOR(size, std::abs(first.steps[r] - largest / 127) <= 1e-7 * first.steps[r]);
        for (size_t i = 0; i < columns; ++i)
            worst = std::max(
                worst, std::abs(x[r * columns + i] / double{first.steps[r]} - first.codes[r * columns + i] + 128));
        CHECK_FOR(size + ", worst " + std::to_string(worst), worst <= kHalfStep);
    }
    everywhere([&](const std::string &level, int threads) {
        const Rows other = rounded_rows(values, rows, columns, level, threads);
        CHECK_FOR(name(size, level, threads), other.codes == first.codes && same_bits(other.steps, first.steps));
    });
}

void rows() {
    for (const bool half : {false, true})
        for (const size_t columns : {1, 2, 15, 16, 17, 64, 1000})
            for (const size_t count : {1, 8, 9}) compare_rows(count, columns, half);
    compare_rows(700, 131, false); // enough for threads
    compare_rows(0, 5, false);
}

void ties_go_to_even() {
    const std::vector<float> x{127, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F, 126.5F, -126.5F, -127};
    const std::vector<uint8_t> expected{255, 128, 130, 130, 128, 126, 126, 254, 2, 1};
    everywhere([&](const std::string &level, int threads) {
        CHECK_FOR(level, rounded_rows({x.data(), nullptr}, 1, x.size(), level, threads).codes == expected);
    });
}

void rows_of_extremes() {
    constexpr size_t columns = 21;
    std::vector<float> x(8 * columns, 1);
    const auto fill = [&](size_t row, float value) { std::fill_n(x.data() + row * columns, columns, value); };
    fill(0, 0);
    fill(1, -0.0F);
    fill(2, 1e-45F);
    fill(3, -FLT_MAX);
    x[4 * columns + 20] = kNaN;
    x[5 * columns + 3] = kInf;
    x[6 * columns] = -kInf;
    everywhere([&](const std::string &level, int threads) {
        const Rows out = rounded_rows({x.data(), nullptr}, 8, columns, level, threads);
        const auto all = [&](size_t row, uint8_t code) {
            const auto *begin = out.codes.data() + row * columns;
            return std::all_of(begin, begin + columns, [code](uint8_t c) { return c == code; });
        };
        CHECK_FOR(level, all(0, 128) && all(1, 128) && all(2, 128) && all(3, 1) && all(7, 255));
        for (const size_t row : {0, 1, 2}) CHECK_FOR(level, out.steps[row] == FLT_MIN);
        CHECK_FOR(level, out.steps[3] == FLT_MAX / 127 && out.steps[7] == 1.0F / 127);
        for (const size_t row : {4, 5, 6}) CHECK_FOR(level, std::isnan(out.steps[row]));
    });
}

// --- what follows a product

double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x))); }

struct Finished {
    std::vector<float> wide;
    std::vector<Bits16> half;
};

Finished finished(const std::vector<float> &sums, const std::vector<float> &steps, const float *bias, bool with_gelu,
                  const std::string &level, int threads) {
    const size_t rows = steps.size(), columns = rows == 0 ? 0 : sums.size() / rows;
    Finished out{std::vector<float>(sums.size()), std::vector<Bits16>(sums.size())};
    FinishTask task{rows, columns, sums.data(), steps.data(), bias, with_gelu, {}};
    task.out.wide = out.wide.data();
    finish_rows(task, level, threads);
    task.out = {nullptr, out.half.data()};
    finish_rows(task, level, threads);
    return out;
}

/// Nearest bfloat16, ties to even, by way of double.
bool is_nearest(float wide, Bits16 half) {
    if (std::isnan(wide)) return std::isnan(widen(half));
    const auto distance = [wide](Bits16 h) { return std::abs(double{widen(h)} - wide); };
    const auto above = static_cast<Bits16>(half + 1), below = static_cast<Bits16>(half - 1);
    const bool tie = distance(half) == distance(above) || ((half & 0x7FFFU) != 0 && distance(half) == distance(below));
    return !(distance(above) < distance(half)) && ((half & 0x7FFFU) == 0 || !(distance(below) < distance(half))) &&
           (!tie || (half & 1U) == 0);
}

void finishes() {
    for (const size_t columns : {1, 7, 16, 33, 500})
        for (const bool with_bias : {false, true})
            for (const bool with_gelu : {false, true}) {
                const size_t count = columns == 500 ? 150 : 5;
                const auto sums = normal(count * columns, 0, 900, 3), bias = normal(columns, 0, 1, 4);
                auto steps = normal(count, 0, 0.004F, 5);
                for (float &step : steps) step = std::abs(step) + 1e-4F;
                const float *added = with_bias ? bias.data() : nullptr;
                const Finished first = finished(sums, steps, added, with_gelu, "portable", 1);
                for (size_t i = 0; i < sums.size(); ++i) {
                    const double product = double{sums[i]} * steps[i / columns];
                    const double before = product + (with_bias ? bias[i % columns] : 0);
                    const double expected = with_gelu ? gelu(before) : before;
                    // Where product and bias cancel, their own rounding stays.
                    const double allowed = 2e-7 * (std::abs(product) + std::abs(expected)) + 2e-5 * with_gelu;
                    CHECK_FOR(std::to_string(before), std::abs(first.wide[i] - expected) <= allowed);
                    CHECK_FOR(std::to_string(first.wide[i]), is_nearest(first.wide[i], first.half[i]));
                }
                everywhere([&](const std::string &level, int threads) {
                    const Finished other = finished(sums, steps, added, with_gelu, level, threads);
                    CHECK_FOR(name(std::to_string(columns), level, threads),
                              same_bits(other.wide, first.wide) && other.half == first.half);
                });
            }
}

void gelu_far_out() {
    std::vector<float> x{0, -0.0F, FLT_MIN, -FLT_MIN, FLT_MAX, -FLT_MAX};
    for (float size = 1e-4F; size < 1e30F; size *= 1.37F) {
        x.push_back(size);
        x.push_back(-size);
    }
    const std::vector<float> step{1};
    everywhere([&](const std::string &level, int threads) {
        const auto out = finished(x, step, nullptr, true, level, threads).wide;
        for (size_t i = 0; i < x.size(); ++i) {
            // The tanh formula itself loses its digits in float32 where it is next to nothing.
            const double expected = std::abs(x[i]) < 10 ? gelu(x[i]) : std::max(x[i], 0.0F);
            const double size = std::abs(double{x[i]});
            // What the exponential leaves of −3e38 is −6.
            const double allowed =
                2e-5 * std::abs(expected) + (x[i] < 0 ? 1e-6 * std::min(1.0, size) + 2e-38 * size : 0);
            CHECK_FOR(std::to_string(x[i]) + " gave " + std::to_string(out[i]), std::abs(out[i] - expected) <= allowed);
        }
    });
    const std::vector<float> bad{kNaN, kInf, -kInf};
    everywhere([&](const std::string &level, int threads) {
        const auto plain = finished(bad, step, nullptr, false, level, threads);
        CHECK_FOR(level, std::isnan(plain.wide[0]) && plain.wide[1] == kInf && plain.wide[2] == -kInf);
        CHECK_FOR(level,
                  std::isnan(widen(plain.half[0])) && widen(plain.half[1]) == kInf && widen(plain.half[2]) == -kInf);
        const auto through = finished(bad, step, nullptr, true, level, threads);
        CHECK_FOR(level, std::isnan(through.wide[0]) && through.wide[1] == kInf && !(std::abs(through.wide[2]) < kInf));
    });
}

// --- images

struct Picture {
    size_t pixels, channels, groups;
    bool silu;
    std::vector<float> x, weight{}, bias{};
    float eps = 1e-6F;

    ImageTask task(uint8_t *codes) const {
        return {pixels, channels, {x.data(), nullptr}, groups, weight.data(), bias.data(), eps, silu, codes};
    }
};

struct Coded {
    std::vector<uint8_t> codes;
    ByteRange range;
};

Coded coded(const Picture &picture, const std::string &level, int threads) {
    Coded out{std::vector<uint8_t>(picture.pixels * picture.channels, 7), {}};
    out.range = quantize_image(picture.task(out.codes.data()), level, threads);
    return out;
}

Picture picture_of(size_t pixels, size_t channels, size_t groups, bool silu, float mean = 0.5F, float spread = 2) {
    Picture out{pixels, channels, groups, silu, normal(pixels * channels, mean, spread, 6)};
    out.weight = normal(channels, 1, 0.2F, 7);
    out.bias = normal(channels, 0, 0.3F, 8);
    return out;
}

struct Activated {
    std::vector<double> y;
    double rounding = 0; ///< of float32 in norm(x) = a·x + b, whose parts may be larger than their sum
};

/// Group norm in two passes, then SiLU.
Activated activated(const Picture &p) {
    Activated out{{p.x.begin(), p.x.end()}};
    auto &y = out.y;
    const size_t size = p.groups == 0 ? 0 : p.channels / p.groups;
    for (size_t group = 0; group < p.groups; ++group) {
        const auto each = [&](auto &&body) {
            for (size_t pixel = 0; pixel < p.pixels; ++pixel)
                for (size_t c = group * size; c < (group + 1) * size; ++c) body(y[pixel * p.channels + c], c);
        };
        const auto count = static_cast<double>(p.pixels * size);
        double mean = 0, variance = 0;
        each([&](double value, size_t) { mean += value / count; });
        each([&](double value, size_t) { variance += (value - mean) * (value - mean) / count; });
        const double inverse = 1 / std::sqrt(variance + double{p.eps});
        each([&](double &value, size_t c) {
            const double parts = (std::abs(value) + std::abs(mean)) * inverse * std::abs(p.weight[c]);
            out.rounding = std::max(out.rounding, (parts + std::abs(p.bias[c])) * FLT_EPSILON);
            value = (value - mean) * inverse * p.weight[c] + p.bias[c];
        });
    }
    if (p.silu)
        for (double &value : y) value /= 1 + std::exp(-value);
    return out;
}

void compare_picture(const Picture &picture, const std::string &what, double half_step) {
    const auto [y, rounding] = activated(picture);
    const double least = std::min(0.0, *std::min_element(y.begin(), y.end()));
    const double largest = std::max(0.0, *std::max_element(y.begin(), y.end()));
    const Coded first = coded(picture, "portable", 1);
    const double step = first.range.step;
    half_step += 2 * rounding / step;
    CHECK_FOR(what, std::abs(step * 255 - (largest - least)) <= 2 * (half_step - 0.5) * step);
    CHECK_FOR(what, first.range.zero_point >= 0 && first.range.zero_point <= 255);
    double worst = 0;
    for (size_t i = 0; i < y.size(); ++i)
        worst = std::max(worst, std::abs(y[i] / step + first.range.zero_point - first.codes[i]));
    CHECK_FOR(what + ", worst " + std::to_string(worst) + " of " + std::to_string(half_step), worst <= half_step);
    everywhere([&](const std::string &level, int threads) {
        const Coded other = coded(picture, level, threads);
        CHECK_FOR(name(what, level, threads), other.codes == first.codes &&
                                                  bits_of(other.range.step) == bits_of(first.range.step) &&
                                                  other.range.zero_point == first.range.zero_point);
    });
}

void pictures() {
    struct Size {
        size_t pixels, channels, groups;
    };
    const std::vector<Size> sizes{{1, 1, 1},     {1, 16, 4},   {5, 1, 1},    {7, 3, 3},   {100, 17, 1},
                                  {255, 24, 24}, {256, 16, 2}, {257, 33, 3}, {600, 6, 2}, {1031, 160, 32}};
    for (const Size &size : sizes)
        for (const bool silu : {false, true})
            for (const size_t groups : {size_t{0}, size.groups})
                compare_picture(picture_of(size.pixels, size.channels, groups, silu),
                                std::to_string(size.pixels) + " pixels of " + std::to_string(size.channels) + ", " +
                                    std::to_string(groups) + " groups",
                                silu ? kHalfStepAndMore : kHalfStep);
    for (const float sign : {-1.0F, 1.0F}) // all of one sign: zero is still a code
        compare_picture(picture_of(40, 5, 0, false, 9 * sign, 1), "one sign", kHalfStep);
}

void bfloat16_pictures() {
    for (const size_t groups : {0, 4})
        for (const bool silu : {false, true}) {
            Picture picture = picture_of(300, 20, groups, silu);
            const auto bits = halves(picture.x);
            compare_picture(picture, "whole halves", kHalfStepAndMore);
            const Coded wide = coded(picture, "portable", 1);
            everywhere([&](const std::string &level, int threads) {
                std::vector<uint8_t> codes(bits.size());
                ImageTask task = picture.task(codes.data());
                task.x = {nullptr, bits.data()};
                const ByteRange range = quantize_image(task, level, threads);
                CHECK_FOR(level, codes == wide.codes && range.step == wide.range.step &&
                                     range.zero_point == wide.range.zero_point);
            });
        }
}

void norms_keep_their_digits() {
    // Spreads of a few units in float32's last place of the mean.
    for (const float mean : {1e3F, -1e4F, 3e5F}) {
        const float spread = std::abs(mean) * 2e-5F;
        compare_picture(picture_of(1000, 12, 3, false, mean, spread), "mean " + std::to_string(mean), kHalfStep);
    }
    // Channels far apart in one group.
    Picture apart = picture_of(700, 8, 2, true);
    for (size_t i = 0; i < apart.x.size(); ++i) apart.x[i] += static_cast<float>(i % 8) * 1e3F;
    compare_picture(apart, "channels apart", kHalfStepAndMore);
    // A first pixel unlike all others: distances from it would drown them.
    Picture first = picture_of(1 << 14, 4, 1, false, 1, 0.01F);
    std::fill_n(first.x.data(), 4, 1e4F);
    compare_picture(first, "an outlier first", 2 * kHalfStep);
}

void pictures_of_extremes() {
    for (const size_t groups : {0, 2})
        for (const float value : {0.0F, -0.0F, 1e-45F, -3.0F, 5.0F, 1e30F}) {
            if (groups != 0 && value == 1e30F) continue; // mean · 1/√eps loses all digits
            Picture same = picture_of(30, 6, groups, false);
            std::fill(same.x.begin(), same.x.end(), value);
            std::fill(same.bias.begin(), same.bias.end(), value);
            everywhere([&](const std::string &level, int threads) {
                const Coded out = coded(same, level, threads);
                CHECK_FOR(level, std::isfinite(out.range.step) && out.range.step > 0);
                for (const uint8_t code : out.codes)
                    CHECK_FOR(level + " " + std::to_string(value),
                              std::abs((code - out.range.zero_point) * double{out.range.step} - value) <=
                                  0.501 * out.range.step);
            });
        }
    Picture wide = picture_of(2, 3, 0, false);
    wide.x = {FLT_MAX, -FLT_MAX, 0, 1, -1, FLT_MAX / 2};
    compare_picture(wide, "the whole range of float32", kHalfStep);
    Picture far = picture_of(20, 5, 0, true); // SiLU of large numbers
    for (size_t i = 0; i < far.x.size(); ++i)
        far.x[i] = std::pow(7.0F, static_cast<float>(i % 40) - 2) * (i % 2 ? 1 : -1);
    compare_picture(far, "SiLU far out", kHalfStepAndMore);
}

void pictures_that_are_not_finite() {
    for (const float bad : {kNaN, kInf, -kInf})
        for (const size_t groups : {0, 3})
            for (const bool silu : {false, true})
                for (const size_t where : {0, 500, 2099}) {
                    Picture picture = picture_of(350, 6, groups, silu);
                    picture.x[where] = bad;
                    everywhere([&](const std::string &level, int threads) {
                        const Coded out = coded(picture, level, threads);
                        CHECK_FOR(level, std::isnan(out.range.step));
                        CHECK_FOR(level,
                                  std::all_of(out.codes.begin(), out.codes.end(), [](uint8_t c) { return c == 0; }));
                    });
                }
}

void nothing_to_do() {
    Picture empty{0, 4, 2, true, {}};
    Picture narrow{4, 0, 0, true, {}};
    everywhere([&](const std::string &level, int threads) {
        for (const Picture &picture : {empty, narrow}) CHECK(coded(picture, level, threads).range.step == 1);
        CHECK(rounded_rows({}, 0, 9, level, threads).steps.empty());
        CHECK(finished({}, {}, nullptr, true, level, threads).wide.empty());
    });
}

void refusals() {
    const Picture picture = picture_of(2, 2, 0, false);
    for (const char *level : {"sse9", "", "PORTABLE"}) {
        CHECK(check::throws(ErrorKind::Argument, [&] { coded(picture, level, 1); }));
        CHECK(check::throws(ErrorKind::Argument, [&] { rounded_rows({picture.x.data(), nullptr}, 2, 2, level, 1); }));
        CHECK(check::throws(ErrorKind::Argument, [&] { finished({1}, {1}, nullptr, false, level, 1); }));
    }
    CHECK(available_int8().front() == "portable");
}

} // namespace

int main() {
    rows();
    ties_go_to_even();
    rows_of_extremes();
    finishes();
    gelu_far_out();
    pictures();
    bfloat16_pictures();
    norms_keep_their_digits();
    pictures_of_extremes();
    pictures_that_are_not_finite();
    nothing_to_do();
    refusals();
    return check::report();
}
