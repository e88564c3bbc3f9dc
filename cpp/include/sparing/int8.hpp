// Rounding of activations to bytes in few passes over them, and what follows an integer product: steps, bias, GELU.
//
// Every level computes the same expressions in the same order, so the results are the same bits at every level and for
// any number of threads.
#pragma once
#include "sparing/bfloat16.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sparing {

/// Values as float32 or as bfloat16 bits; one of the two is null.
struct Reals {
    const float *wide = nullptr;
    const Bits16 *half = nullptr;
};

struct MutableReals {
    float *wide = nullptr;
    Bits16 *half = nullptr;
};

/// (rows, columns), C order.
struct RowsTask {
    size_t rows = 0, columns = 0;
    Reals x;
    uint8_t *codes = nullptr; ///< 128 + round(x / step), ties to even
    float *steps = nullptr;   ///< (rows): largest magnitude / 127; not a number for a row that is not finite
};

struct FinishTask {
    size_t rows = 0, columns = 0;
    const float *sums = nullptr;
    const float *steps = nullptr; ///< (rows)
    const float *bias = nullptr;  ///< (columns), or null
    bool gelu = false;            ///< GELU by its tanh formula
    MutableReals out;             ///< sums · step + bias, then GELU
};

/// One image, (pixels, channels), C order.
struct ImageTask {
    size_t pixels = 0, channels = 0;
    Reals x;
    size_t groups = 0;                              ///< of a group norm, which divides the channels; 0 for none
    const float *weight = nullptr, *bias = nullptr; ///< (channels) of the norm
    float eps = 0;
    bool silu = false;
    uint8_t *codes = nullptr; ///< zero_point + round(y / step) in 0..255, y = silu(norm(x))
};

struct ByteRange {
    float step = 1; ///< not a number where a value is not finite
    int32_t zero_point = 0;
};

/// Levels that this CPU can run, slowest first: "portable", "avx2", "avx512".
std::vector<std::string> available_int8();

/// All throw Error(Argument) for an unknown level.
void quantize_rows(const RowsTask &task, const std::string &level, int num_threads);
void finish_rows(const FinishTask &task, const std::string &level, int num_threads);
ByteRange quantize_image(const ImageTask &task, const std::string &level, int num_threads);

} // namespace sparing
