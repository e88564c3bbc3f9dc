// Rounding to bytes for AVX-512.
#include "int8_impl.hpp"

namespace sparing::int8 {

Kernels avx512_kernels() { return kKernels; }

} // namespace sparing::int8
