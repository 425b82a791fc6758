#pragma once

#include <stdexcept>
#include <string>

#include "rpc/protocol.h"

namespace droid::rpc {

// Ends the session of the client that caused it; its text is for the log and for that client.
class Refusal : public std::runtime_error {
  public:
    explicit Refusal(const std::string & text, NoticeReason reason = NoticeReason::refused)
        : std::runtime_error(text), reason_(reason) {}

    NoticeReason reason() const { return reason_; }

  private:
    NoticeReason reason_;
};

inline Refusal out_of_memory(const std::string & text) {
    return Refusal(text, NoticeReason::out_of_memory);
}

}  // namespace droid::rpc
