// Windowed attention: checks, the choice of level, and threads.
#include "sparing/attention.hpp"
#include "attention_impl.hpp"
#include "sparing/error.hpp"
#include "sparing/pool.hpp"

#include <memory>

namespace sparing {

namespace attention {

void attend_portable(const AttentionTask &task, size_t row, size_t head, Scratch &scratch);
#if defined(SPARING_X86)
void attend_avx512bf16(const AttentionTask &task, size_t row, size_t head, Scratch &scratch);
#endif

} // namespace attention

namespace {

/// Pairs of query and key for which more than one thread is worth waking.
constexpr size_t kPairsForThreads = size_t{1} << 14;

bool has_avx512bf16() {
#if defined(SPARING_X86)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

void check(const AttentionTask &task) {
    int64_t end = task.sink;
    for (const KeySegment &segment : task.segments) {
        if (segment.start < end || segment.size < 1)
            throw Error(ErrorKind::Argument, "segments: expected segments of at least one key, one behind the other, "
                                             "behind the sink");
        end = int64_t{segment.start} + segment.size;
    }
    if (task.sink < 1 || end > task.keys)
        throw Error(ErrorKind::Argument, "sink, segments: expected a sink of at least one key and segments among the " +
                                             std::to_string(task.keys) + " keys");
}

} // namespace

std::vector<std::string> available_attention() {
    std::vector<std::string> levels{"portable"};
    if (has_avx512bf16()) levels.emplace_back("avx512bf16");
    return levels;
}

void attend(const AttentionTask &task, const std::string &level, int num_threads) {
    check(task);
    auto *head = &attention::attend_portable;
#if defined(SPARING_X86)
    if (level == "avx512bf16" && has_avx512bf16()) head = &attention::attend_avx512bf16;
#endif
    if (head == &attention::attend_portable && level != "portable")
        throw Error(ErrorKind::Argument, "level: '" + level + "' cannot run on this CPU");
    const size_t units = task.rows * task.heads;
    const size_t pairs = units * static_cast<size_t>(task.queries) * static_cast<size_t>(task.keys);
    const int threads = pairs < kPairsForThreads ? 1 : resolve_threads(num_threads);
    std::vector<std::unique_ptr<attention::Scratch>> scratch(static_cast<size_t>(threads));
    pool_for(units, threads, [&](int worker, size_t unit) {
        auto &mine = scratch[static_cast<size_t>(worker)];
        if (!mine) mine = std::make_unique<attention::Scratch>(task.keys);
        head(task, unit / task.heads, unit % task.heads, *mine);
    });
}

} // namespace sparing
