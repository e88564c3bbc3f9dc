// parallel_for: runs body(worker, i) for i in [0, n) on num_threads threads; which thread takes which i never changes a
// result.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace sparing {

inline int resolve_threads(int num_threads) {
    if (num_threads > 0) return num_threads;
    const unsigned hardware = std::thread::hardware_concurrency();
    return hardware == 0 ? 1 : static_cast<int>(hardware);
}

template <class Body>
void parallel_for(size_t n, int num_threads, size_t chunk, Body &&body) {
    const int workers =
        static_cast<int>(std::min<size_t>(static_cast<size_t>(resolve_threads(num_threads)), (n + chunk - 1) / chunk));
    if (workers <= 1) {
        for (size_t i = 0; i < n; ++i) body(0, i);
        return;
    }
    std::atomic<size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    auto work = [&](int worker) {
        try {
            for (;;) {
                const size_t begin = next.fetch_add(chunk);
                if (begin >= n) return;
                for (size_t i = begin; i < std::min(begin + chunk, n); ++i) body(worker, i);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failure_mutex);
            if (!failure) failure = std::current_exception();
            next.store(n);
        }
    };
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(workers - 1));
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(work, worker);
    work(0);
    for (auto &thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

} // namespace sparing
