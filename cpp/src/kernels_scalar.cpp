// Portable kernels: the meaning of all others.
#include "kernels_impl.hpp"

namespace sparing {
namespace {
struct Scalar : Portable {};
} // namespace
extern const Kernels kScalarKernels;
const Kernels kScalarKernels{"scalar", Scoring<Scalar>::score_heads, Scoring<Scalar>::score_tails,
                             Scoring<Scalar>::score_exact};
} // namespace sparing
