#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace droid::rpc {

// Traffic of one master with one worker. Written by the link's threads, read by any.
struct LinkCounters {
    std::atomic<uint64_t> graphs{0};
    std::atomic<uint64_t> messages_sent{0};
    std::atomic<uint64_t> messages_received{0};
    std::atomic<uint64_t> bytes_sent{0};
    std::atomic<uint64_t> bytes_received{0};
    std::atomic<uint64_t> wait_us{0};  // spent waiting for answers
};

// A context's connection to one worker.
//
// ggml-rpc keys everything it keeps by endpoint string and shares one connection between all users of an endpoint,
// including the memory of which graph was sent last; two contexts on one worker would then run each other's graphs.
// So each link goes by a name of its own ("192.168.43.2#0:60000"), which the transport resolves. Names are reused
// once free, because ggml-rpc never forgets one.
class Link {
  public:
    // Connects; throws CodedError DROID_ENDPOINT_* naming endpoint.
    Link(const std::string & endpoint, const std::string & host, uint16_t port);
    ~Link();
    Link(const Link &) = delete;
    Link & operator=(const Link &) = delete;

    const std::string & name() const { return name_; }

    // Makes every wait for the worker fail at once, for good; from any thread.
    void interrupt();
    // How long a wait for an answer may take; 0 for ever.
    void set_receive_timeout(int seconds);

    const LinkCounters & counters() const { return *counters_; }

  private:
    std::string host_part() const;

    std::string name_;
    std::shared_ptr<LinkCounters> counters_;
};

// For the transport: the connected socket waiting under a link's host part, or -1. It is handed over once and given
// back with close_link_socket().
int take_link_socket(const std::string & host, std::shared_ptr<LinkCounters> & counters);
void close_link_socket(const std::string & host, int fd);

}  // namespace droid::rpc
