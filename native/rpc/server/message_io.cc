#include "rpc/server/message_io.h"

#include <cstring>

namespace droid::rpc {

MessageIo::Header MessageIo::read_header() {
    Header header = {};
    uint8_t bytes[1 + sizeof header.size];
    if (!stream_.read(bytes, sizeof bytes)) throw Disconnected();
    header.command = bytes[0];
    std::memcpy(&header.size, bytes + 1, sizeof header.size);
    counters_.bytes_received += sizeof bytes;
    counters_.messages_received++;
    return header;
}

void MessageIo::read(void * data, uint64_t size) {
    if (size == 0) return;
    if (!stream_.read(data, size)) throw Disconnected();
    counters_.bytes_received += size;
}

void MessageIo::answer_bytes(const void * head, uint64_t head_size, const void * data, uint64_t data_size) {
    begin_answer(head, head_size, data, data_size, data_size);
}

void MessageIo::begin_answer(const void * head, uint64_t head_size, const void * data, uint64_t data_size,
                             uint64_t all_size) {
    uint64_t size = head_size + all_size;
    const iovec pieces[] = {
        {&size, sizeof size},
        {const_cast<void *>(head), static_cast<size_t>(head_size)},
        {const_cast<void *>(data), static_cast<size_t>(data_size)},
    };
    counters_.bytes_sent += sizeof size + head_size + data_size;
    counters_.messages_sent++;
    if (!stream_.write(pieces, 3)) throw Disconnected();
}

void MessageIo::answer_more(const void * data, uint64_t size) {
    const iovec piece = {const_cast<void *>(data), static_cast<size_t>(size)};
    counters_.bytes_sent += size;
    if (!stream_.write(&piece, 1)) throw Disconnected();
}

Refusal MessageIo::wrong_size(const Header & header) {
    return Refusal("its payload has " + std::to_string(header.size) + " bytes");
}

}  // namespace droid::rpc
