// Buffer: growth, alignment, moves, read-only views; parallel_for: every index once, errors come through.
#include "check.hpp"
#include "sparing/buffer.hpp"
#include "sparing/parallel.hpp"

#include <cstdint>
#include <utility>

using namespace sparing;

namespace {

void growth() {
    Buffer<uint32_t> buffer;
    CHECK(buffer.empty() && buffer.size() == 0 && buffer.bytes() == 0);
    for (uint32_t i = 0; i < 10'000; ++i) buffer.push_back(i);
    CHECK(buffer.size() == 10'000 && buffer.bytes() == 40'000);
    CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
    bool same = true;
    for (uint32_t i = 0; i < 10'000; ++i) same = same && buffer[i] == i;
    CHECK(same);
    buffer.resize(20'000, 7);
    CHECK(buffer[9'999] == 9'999 && buffer[10'000] == 7 && buffer[19'999] == 7);
    buffer.resize(3);
    CHECK(buffer.size() == 3 && buffer[2] == 2);
    const uint32_t more[] = {5, 6};
    buffer.append(more, 2);
    buffer.append(more, 0);
    CHECK(buffer.size() == 5 && buffer[4] == 6);
    const Buffer<uint32_t> moved = std::move(buffer);
    CHECK(moved.size() == 5 && moved[3] == 5);
    const Buffer<uint8_t> large(size_t{5} << 20, 3); // the path of huge pages
    CHECK(large[0] == 3 && large[large.size() - 1] == 3 && reinterpret_cast<uintptr_t>(large.data()) % 64 == 0);
}

void views() {
    bool alive = true;
    const float values[] = {1, 2, 3};
    {
        const std::shared_ptr<const void> owner(values, [&](const void *) { alive = false; });
        auto view = Buffer<float>::view(values, 3, owner);
        CHECK(std::as_const(view).data() == values && view.size() == 3);
        CHECK(check::throws(ErrorKind::ReadOnly, [&] { view.push_back(4); }));
        CHECK(check::throws(ErrorKind::ReadOnly, [&] { view.resize(1); }));
        CHECK(check::throws(ErrorKind::ReadOnly, [&] { view.reserve(9); }));
        CHECK(check::throws(ErrorKind::ReadOnly, [&] { view.append(values, 1); }));
        CHECK(check::throws(ErrorKind::ReadOnly, [&] { (void)view.data(); }));
        const auto copy = Buffer<float>::copy_of(values, 3);
        CHECK(copy.data() != values && copy[2] == 3);
        const Buffer<float> moved = std::move(view);
        CHECK(alive && moved[1] == 2);
    }
    CHECK(!alive);
}

void loops() {
    for (const int threads : {1, 2, 5, 64})
        for (const size_t n : {size_t{0}, size_t{1}, size_t{7}, size_t{1000}}) {
            std::vector<std::atomic<int>> seen(n);
            std::atomic<bool> inside{true};
            parallel_for(n, threads, 3, [&](int worker, size_t i) {
                if (worker < 0 || worker >= threads) inside = false;
                ++seen[i];
            });
            bool once = inside;
            for (const auto &count : seen) once = once && count == 1;
            CHECK_FOR(std::to_string(threads) + " threads, n " + std::to_string(n), once);
        }
    CHECK(check::throws(ErrorKind::Argument, [] {
        parallel_for(1000, 4, 1, [](int, size_t i) {
            if (i == 500) throw Error(ErrorKind::Argument, "stop");
        });
    }));
    CHECK(resolve_threads(3) == 3 && resolve_threads(0) >= 1);
}

} // namespace

int main() {
    growth();
    views();
    loops();
    return check::report();
}
