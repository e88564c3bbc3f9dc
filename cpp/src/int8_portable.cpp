// Rounding to bytes for any CPU.
#include "int8_impl.hpp"

namespace sparing::int8 {

Kernels portable_kernels() { return kKernels; }

} // namespace sparing::int8
