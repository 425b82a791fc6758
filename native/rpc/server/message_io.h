#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "rpc/protocol.h"
#include "rpc/server/refusal.h"
#include "rpc/server/server.h"
#include "rpc/server/stream.h"

namespace droid::rpc {

// The client has gone.
struct Disconnected {};

// Requests in and answers out of a stream, counted. All throw Disconnected.
class MessageIo {
  public:
    MessageIo(Stream & stream, ServerCounters & counters) : stream_(stream), counters_(counters) {}

    struct Header {
        uint8_t command;
        uint64_t size;  // of the payload, which is still to be read
    };
    Header read_header();

    // Part of the payload of the last header.
    void read(void * data, uint64_t size);

    // A payload of exactly that size. Throws Refusal for another one.
    template <typename Request>
    Request request(const Header & header) {
        if (header.size != sizeof(Request)) throw wrong_size(header);
        Request request;
        read(&request, sizeof request);
        return request;
    }

    // The part of the payload before data, whose size becomes data_size. Throws Refusal when it is shorter.
    template <typename Request>
    Request request_before_data(const Header & header, uint64_t & data_size) {
        if (header.size < sizeof(Request)) throw wrong_size(header);
        Request request;
        read(&request, sizeof request);
        data_size = header.size - sizeof request;
        return request;
    }

    template <typename Answer>
    void answer(const Answer & answer) {
        answer_bytes(&answer, sizeof answer, nullptr, 0);
    }
    // Two pieces, sent as one answer.
    void answer_bytes(const void * head, uint64_t head_size, const void * data, uint64_t data_size);
    // The same when more of the data is to follow, with answer_more(): data_size of all_size.
    void begin_answer(const void * head, uint64_t head_size, const void * data, uint64_t data_size, uint64_t all_size);
    void answer_more(const void * data, uint64_t size);

    static Refusal wrong_size(const Header & header);

  private:
    Stream & stream_;
    ServerCounters & counters_;
};

}  // namespace droid::rpc
