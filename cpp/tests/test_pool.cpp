// pool_for: each index once, by no more workers than threads, errors passed on; with threads of our own and on
// OpenMP's.
#include "check.hpp"
#include "sparing/pool.hpp"

#include <stdexcept>
#include <string>

using namespace sparing;

namespace {

void visits_each_index_once() {
    for (const size_t n : {0, 1, 2, 3, 100, 5000})
        for (const int threads : {1, 2, 7}) {
            std::vector<std::atomic<int>> visits(n);
            std::atomic<bool> known_workers{true};
            pool_for(n, threads, [&](int worker, size_t i) {
                visits[i].fetch_add(1);
                if (worker < 0 || worker >= threads) known_workers = false;
            });
            bool once = true;
            for (const auto &count : visits) once = once && count == 1;
            CHECK_FOR(std::to_string(n) + " on " + std::to_string(threads), once && known_workers);
        }
}

void workers_do_not_meet() {
    // What a worker keeps to itself is never touched by two threads at once.
    std::vector<std::atomic<int>> inside(7);
    std::atomic<bool> met{false};
    pool_for(5000, 7, [&](int worker, size_t) {
        auto &mine = inside[static_cast<size_t>(worker)];
        if (mine.fetch_add(1) != 0) met = true;
        mine.fetch_sub(1);
    });
    CHECK(!met);
}

void errors_come_out() {
    for (const int threads : {1, 2, 7})
        for (const size_t bad : {0, 57, 99}) {
            std::atomic<size_t> visits{0};
            std::string message;
            try {
                pool_for(100, threads, [&](int, size_t i) {
                    visits.fetch_add(1);
                    if (i == bad) throw std::runtime_error("at " + std::to_string(i));
                });
            } catch (const std::runtime_error &error) {
                message = error.what();
            }
            CHECK_FOR(message, message == "at " + std::to_string(bad) && visits <= 100);
        }
    CHECK(check::throws(ErrorKind::Argument,
                        [] { pool_for(9, 3, [](int, size_t) { throw Error(ErrorKind::Argument, "all of them"); }); }));
    visits_each_index_once(); // and the next loop is whole again
}

void all() {
    visits_each_index_once();
    workers_do_not_meet();
    errors_come_out();
}

} // namespace

int main() {
    all();
#if defined(__unix__) || defined(__APPLE__)
    // PyTorch brings GNU's or LLVM's; where there is neither, threads of our own are all there is.
    const bool was_there = find_openmp() != nullptr;
    for (const char *name : {"libgomp.so.1", "libomp.so", "libomp.dylib"})
        if (find_openmp() == nullptr) dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (!was_there && find_openmp() != nullptr) all();
#endif
    return check::report();
}
