// Chooses the kernels for this CPU.
#include "sparing/kernels.hpp"

#include <cstdlib>

namespace sparing {

extern const Kernels kScalarKernels;
#if defined(SPARING_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

namespace {

std::vector<const Kernels *> runnable() {
    std::vector<const Kernels *> found{&kScalarKernels};
#if defined(SPARING_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        found.push_back(&kAvx512Kernels);
#endif
    return found;
}

} // namespace

std::vector<std::string> available_kernels() {
    std::vector<std::string> names;
    for (const Kernels *k : runnable()) names.emplace_back(k->name);
    return names;
}

const Kernels &kernels(const std::string &name) {
    std::string known;
    for (const Kernels *k : runnable()) {
        if (name == k->name) return *k;
        known += (known.empty() ? "" : ", ") + std::string(k->name);
    }
    throw Error(ErrorKind::Argument, "SIMD level '" + name + "' cannot run on this CPU; choose one of: " + known);
}

const Kernels &kernels() {
    static const Kernels &chosen = [&]() -> const Kernels & {
        const char *name = std::getenv("SPARING_SIMD");
        return name != nullptr && *name != '\0' ? kernels(name) : *runnable().back();
    }();
    return chosen;
}

} // namespace sparing
