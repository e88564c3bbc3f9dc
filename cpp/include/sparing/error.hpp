// Errors that the core raises on purpose; the bindings turn each kind into the Python class of the same name.
#pragma once
#include <stdexcept>
#include <string>

namespace sparing {

enum class ErrorKind { Argument, NonFinite, SparseFormat, DuplicateId, UnknownId, Format, ReadOnly };

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string &message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const noexcept { return kind_; }

  private:
    ErrorKind kind_;
};

} // namespace sparing
