#pragma once

#include <stdexcept>
#include <string>

namespace droid {

// An error with one of the DROID_* codes of lib/errors.ts. Cores throw it; bindings turn it into a JS error.
class CodedError : public std::runtime_error {
  public:
    CodedError(std::string code, const std::string & message) : std::runtime_error(message), code_(std::move(code)) {}

    const std::string & code() const { return code_; }

  private:
    std::string code_;
};

}  // namespace droid
