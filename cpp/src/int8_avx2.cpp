// Rounding to bytes for AVX2.
#include "int8_impl.hpp"

namespace sparing::int8 {

Kernels avx2_kernels() { return kKernels; }

} // namespace sparing::int8
