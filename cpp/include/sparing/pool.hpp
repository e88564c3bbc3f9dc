// pool_for: parallel_for on the OpenMP threads that the process already has, where it has some.
//
// PyTorch's idle OpenMP threads spin for milliseconds after each of its loops. Threads of our own would share the cores
// with them: on two cores that takes three times as long.
#pragma once
#include "sparing/parallel.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace sparing {

/// Entry of GNU's OpenMP runtime, which LLVM's has too: fn(data) on each of num_threads threads.
using OpenMpParallel = void (*)(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags);

/// Null where no OpenMP runtime is visible to the whole process.
inline OpenMpParallel find_openmp() {
#if defined(__unix__) || defined(__APPLE__)
    return reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}

/// Like parallel_for, a chunk of one. Takes all of num_threads or one: OpenMP ends threads that a loop leaves out, and
/// starts them again for the next.
template <class Body>
void pool_for(size_t n, int num_threads, Body &&body) {
    const OpenMpParallel openmp = num_threads > 1 && n > 1 ? find_openmp() : nullptr;
    if (openmp == nullptr) {
        parallel_for(n, num_threads, 1, body);
        return;
    }
    struct Shared {
        Body *body;
        size_t n;
        std::atomic<size_t> next{0};
        std::atomic<int> workers{0};
        std::exception_ptr failure{};
        std::mutex mutex{};
    } shared{&body, n};
    openmp(
        [](void *data) {
            auto &all = *static_cast<Shared *>(data);
            const int worker = all.workers.fetch_add(1);
            try {
                for (size_t i = all.next.fetch_add(1); i < all.n; i = all.next.fetch_add(1)) (*all.body)(worker, i);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(all.mutex);
                if (!all.failure) all.failure = std::current_exception();
                all.next.store(all.n);
            }
        },
        &shared, static_cast<unsigned>(num_threads), 0);
    if (shared.failure) std::rethrow_exception(shared.failure);
}

} // namespace sparing
