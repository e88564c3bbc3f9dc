// Column<Wide>: numbers kept in 16 bits while every one of them fits exactly, in 32 bits from the first that does not.
// Encoders often write float16 and vocabularies are often small: then exact scores read half the memory.
#pragma once
#include "buffer.hpp"

#include <bit>
#include <cstdint>
#include <variant>

namespace sparing {

#define SPARING_INLINE                                                                                                 \
    [[gnu::always_inline]] inline ///< never emitted on its own, so never linked across instruction sets

/// An IEEE 754 half; its own type, so that it is never taken for a number.
struct Half {
    uint16_t bits;
    SPARING_INLINE float value() const {
        const float magnitude = std::bit_cast<float>(static_cast<uint32_t>(bits & 0x7FFFU) << 13) * 0x1p112F;
        return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
    }
};

/// Sets `out` to x; false where a half cannot hold it exactly.
inline bool narrow(float x, Half &out) {
    const auto bits = std::bit_cast<uint32_t>(x);
    const float scaled = std::bit_cast<float>(bits & 0x7FFFFFFFU) * 0x1p-112F;
    out.bits = static_cast<uint16_t>((bits >> 16 & 0x8000U) | (std::bit_cast<uint32_t>(scaled) >> 13 & 0x7FFFU));
    return out.value() == x && (out.bits & 0x7C00U) != 0x7C00U;
}
inline bool narrow(uint32_t x, uint16_t &out) {
    out = static_cast<uint16_t>(x);
    return out == x;
}
SPARING_INLINE float widen(float x) { return x; }
SPARING_INLINE float widen(Half x) { return x.value(); }
SPARING_INLINE uint32_t widen(uint32_t x) { return x; }
SPARING_INLINE uint32_t widen(uint16_t x) { return x; }

template <class Wide>
class Column {
  public:
    using Narrow = std::conditional_t<std::is_same_v<Wide, float>, Half, uint16_t>;

    bool is_narrow() const { return std::holds_alternative<Buffer<Narrow>>(data_); }
    size_t size() const {
        return visit([](const auto &buffer) { return buffer.size(); });
    }
    size_t bytes() const {
        return visit([](const auto &buffer) { return buffer.bytes(); });
    }
    const Narrow *narrow_data() const { return is_narrow() ? std::get<Buffer<Narrow>>(data_).data() : nullptr; }
    const Wide *wide_data() const { return is_narrow() ? nullptr : std::get<Buffer<Wide>>(data_).data(); }
    /// body(buffer) with the buffer in use.
    template <class Body>
    auto visit(Body &&body) const {
        return std::visit(std::forward<Body>(body), data_);
    }

    void reserve(size_t capacity) {
        std::visit([&](auto &buffer) { buffer.reserve(capacity); }, data_);
    }
    void resize(size_t size) {
        std::visit([&](auto &buffer) { buffer.resize(size); }, data_);
    }
    /// Makes room for `count` more, in 32 bits if one of them needs it.
    void prepare(const Wide *values, size_t count) {
        Narrow ignored;
        for (size_t i = 0; is_narrow() && i < count; ++i)
            if (!narrow(values[i], ignored)) become_wide(size() + count);
        reserve(size() + count);
    }
    /// Appends what `prepare` has seen.
    void append(const Wide *values, size_t count) {
        if (!is_narrow()) {
            std::get<Buffer<Wide>>(data_).append(values, count);
            return;
        }
        auto &buffer = std::get<Buffer<Narrow>>(data_);
        const size_t begin = buffer.size();
        buffer.resize(begin + count);
        for (size_t i = 0; i < count; ++i) narrow(values[i], buffer[begin + i]);
    }
    /// Appends part of another column of the same width.
    void append(const Column &other, size_t begin, size_t count) {
        std::visit(
            [&](auto &buffer) {
                const auto &from = std::get<std::decay_t<decltype(buffer)>>(other.data_);
                buffer.append(from.data() + begin, count);
            },
            data_);
    }
    /// An empty column of the same width.
    Column empty_like() const {
        Column out;
        if (!is_narrow()) out.data_ = Buffer<Wide>();
        return out;
    }
    void read(size_t begin, size_t count, Wide *out) const {
        visit([&](const auto &buffer) {
            for (size_t i = 0; i < count; ++i) out[i] = widen(buffer[begin + i]);
        });
    }
    template <class T>
    void hold(Buffer<T> &&buffer) {
        data_ = std::move(buffer);
    }

  private:
    void become_wide(size_t capacity) {
        const Buffer<Narrow> &from = std::get<Buffer<Narrow>>(data_);
        Buffer<Wide> wide;
        wide.reserve(capacity);
        wide.resize(from.size());
        for (size_t i = 0; i < from.size(); ++i) wide[i] = widen(from[i]);
        data_ = std::move(wide);
    }

    std::variant<Buffer<Narrow>, Buffer<Wide>> data_;
};

} // namespace sparing
