// bfloat16 as its bits, to float32 and back.
#pragma once
#include <bit>
#include <cstdint>

namespace sparing {

using Bits16 = uint16_t; ///< a bfloat16 as its bits

// Static: compiled for several instruction sets, and no linker may take one for the other.

static inline float widen_bits(Bits16 bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// Rounds to nearest, ties to even. Not a number stays one.
static inline Bits16 narrow_bits(float value) {
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    const uint32_t nearest = (wide + 0x7FFFU + ((wide >> 16) & 1U)) >> 16;
    return static_cast<Bits16>(value != value ? (wide >> 16) | 0x40U : nearest);
}

} // namespace sparing
