#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "rpc/protocol.h"
#include "rpc/server/compute.h"
#include "rpc/server/memory.h"
#include "rpc/server/server.h"
#include "rpc/server/stream.h"
#include "rpc/server/weights.h"

namespace droid::rpc {

// What the clients of a server have in common.
struct SessionShared {
    Compute & compute;
    WeightStore & weights;
    Budget & budget;
    uint64_t client_limit;  // bytes for one client
    ServerCounters & counters;
};

// One client: its requests are carried out one after the other, until it leaves or sends something that it must not.
class Session {
  public:
    // on_command gets a line for each command; may be empty.
    Session(Stream & stream, const SessionShared & shared, EventFn on_command);
    ~Session();
    Session(const Session &) = delete;
    Session & operator=(const Session &) = delete;

    // Reads HELLO; false when something else came.
    bool greet();

    // Whether the client speaks the extension; after greet().
    bool extended() const;

    // Answers HELLO; with anything but ok only an extended client can be told why, so nothing is sent to others.
    bool welcome(HelloStatus status);

    // Carries out commands; returns why it ended. The client of a session that was not left by itself has been told.
    std::string serve();

    // Whether serve() ended for something that the client sent.
    bool dropped() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// A Notice as it is on the wire; the text is cut and made printable.
std::string make_notice(NoticeReason reason, const std::string & text);

}  // namespace droid::rpc
