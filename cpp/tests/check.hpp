// The whole of a test framework: CHECK counts and names what does not hold, report() is what main returns.
#pragma once
#include "sparing/error.hpp"

#include <cstdio>
#include <string>

namespace check {

inline int failures = 0;

inline void hold(bool holds, const char *what, const char *file, int line, const std::string &detail = {}) {
    if (holds) return;
    ++failures;
    if (failures <= 20) std::fprintf(stderr, "%s:%d: expected %s %s\n", file, line, what, detail.c_str());
}

/// Whether body throws a sparing::Error of this kind.
template <class Body>
bool throws(sparing::ErrorKind kind, Body &&body) {
    try {
        body();
    } catch (const sparing::Error &error) {
        return error.kind() == kind;
    }
    return false;
}

inline int report() {
    if (failures != 0) std::fprintf(stderr, "%d checks failed\n", failures);
    return failures == 0 ? 0 : 1;
}

} // namespace check

#define CHECK(...) check::hold(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define CHECK_FOR(detail, ...)                                                                                         \
    check::hold(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__, "for " + std::string(detail))
