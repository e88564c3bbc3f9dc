// Buffer<T>: a growable, 64-byte aligned array that either owns its memory or views memory kept alive by somebody else.
#pragma once
#include "error.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparing {

/// 64-byte aligned memory; large pieces ask for huge pages, since a random walk otherwise spends its time on page-table
/// look-ups.
inline void *allocate_pages(size_t bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    const size_t alignment = bytes >= 2 * kHuge ? kHuge : 64;
    void *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHuge) madvise(memory, (bytes + alignment - 1) / alignment * alignment, MADV_HUGEPAGE);
#endif
    return memory;
}

/// Allocator for std::vector storage that SIMD loads may treat as 64-byte aligned.
template <class T>
struct AlignedAllocator {
    using value_type = T;
    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U> &) noexcept {}
    T *allocate(size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), std::align_val_t{64})); }
    void deallocate(T *p, size_t) noexcept { ::operator delete(p, std::align_val_t{64}); }
    template <class U>
    bool operator==(const AlignedAllocator<U> &) const noexcept {
        return true;
    }
};

template <class T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    Buffer() = default;
    explicit Buffer(size_t size, T fill = T{}) { resize(size, fill); }
    Buffer(Buffer &&) noexcept = default;
    Buffer &operator=(Buffer &&) noexcept = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    /// A read-only view; `owner` keeps the memory alive.
    static Buffer view(const T *data, size_t size, std::shared_ptr<const void> owner) {
        Buffer buffer;
        buffer.data_ = std::shared_ptr<T>(std::move(owner), const_cast<T *>(data));
        buffer.size_ = buffer.capacity_ = size;
        buffer.writable_ = false;
        return buffer;
    }

    static Buffer copy_of(const T *data, size_t size) {
        Buffer buffer;
        buffer.append(data, size);
        return buffer;
    }

    const T *data() const noexcept { return data_.get(); }
    T *data() {
        require_writable();
        return data_.get();
    }
    size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    size_t bytes() const noexcept { return size_ * sizeof(T); }
    const T &operator[](size_t i) const noexcept { return data_.get()[i]; }
    T &operator[](size_t i) noexcept { return data_.get()[i]; }
    std::span<const T> span() const noexcept { return {data_.get(), size_}; }

    void reserve(size_t capacity) {
        require_writable();
        if (capacity <= capacity_) return;
        void *memory = allocate_pages(capacity * sizeof(T));
        if (size_ != 0) std::memcpy(memory, data_.get(), size_ * sizeof(T));
        data_ = std::shared_ptr<T>(static_cast<T *>(memory), [](T *p) { std::free(p); });
        capacity_ = capacity;
    }

    void resize(size_t size, T fill = T{}) {
        require_writable();
        if (size > capacity_) reserve(size > capacity_ + capacity_ / 2 ? size : capacity_ + capacity_ / 2);
        for (size_t i = size_; i < size; ++i) data_.get()[i] = fill;
        size_ = size;
    }

    void push_back(T value) { resize(size_ + 1, value); }

    void append(const T *values, size_t count) {
        if (count == 0) return;
        const size_t old = size_;
        require_writable();
        if (old + count > capacity_) reserve(std::max(old + count, capacity_ + capacity_ / 2));
        std::memcpy(data_.get() + old, values, count * sizeof(T));
        size_ = old + count;
    }

  private:
    void require_writable() const {
        if (!writable_)
            throw Error(ErrorKind::ReadOnly,
                        "this index was opened with mmap=True and is read-only; open it with mmap=False to change it");
    }

    std::shared_ptr<T> data_;
    size_t size_ = 0;
    size_t capacity_ = 0;
    bool writable_ = true;
};

} // namespace sparing
