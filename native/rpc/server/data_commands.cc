#include "rpc/server/data_commands.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "rpc/half.h"
#include "rpc/packing.h"
#include "rpc/server/graph_reader.h"
#include "rpc/server/refusal.h"

namespace droid::rpc {

namespace {

// Halves are converted in pieces of that many.
constexpr uint64_t piece = 16 * 1024;

std::string text_of(uint64_t buffer, uint64_t offset, uint64_t size, const char * form) {
    return "buffer: " + std::to_string(buffer) + ", offset: " + std::to_string(offset) +
           ", size: " + std::to_string(size) + form;
}

// The requests of one message, each with its data behind it; data_size is that of the data on the wire. use() reads it.
template <typename Request, typename DataSize, typename Use>
void for_each_request(MessageIo & io, const MessageIo::Header & header, DataSize data_size, const Use & use) {
    uint64_t left = header.size;
    do {
        if (left < sizeof(Request)) throw MessageIo::wrong_size(header);
        Request request;
        io.read(&request, sizeof request);
        left -= sizeof request;
        if (request.*data_size > left) throw MessageIo::wrong_size(header);
        left -= request.*data_size;
        use(request);
    } while (left > 0);
}

void check_floats(const void * data, uint64_t size) {
    if (reinterpret_cast<uintptr_t>(data) % alignof(float) != 0 || size % sizeof(float) != 0) {
        throw Refusal("floats do not lie like that");
    }
}

}  // namespace

void DataCommands::write(const MessageIo::Header & header, const Say & say) {
    for_each_request<WriteRequest>(io_, header, &WriteRequest::size, [&](const WriteRequest & request) {
        Buffer & buffer = buffers_.at(request.buffer);
        buffer.check_range(request.offset, request.size);
        io_.read(buffer.writable(request.offset, request.size), request.size);
        say(text_of(request.buffer, request.offset, request.size, ""));
    });
}

void DataCommands::update(const MessageIo::Header & header, const Say & say) {
    for_each_request<UpdateRequest>(io_, header, &UpdateRequest::encoded_size, [&](const UpdateRequest & request) {
        Buffer & buffer = buffers_.at(request.buffer);
        buffer.check_range(request.offset, request.size);
        uint8_t * target = buffer.writable(request.offset, request.size);
        switch (static_cast<Form>(request.form)) {
            case Form::plain:
                if (request.encoded_size != request.size) throw Refusal("plain data is as long as it is");
                io_.read(target, request.size);
                break;
            case Form::packed:
                if (request.encoded_size > max_packed_update) throw Refusal("packed data is too long");
                read_packed(request, target);
                break;
            case Form::half:
                check_floats(target, request.size);
                if (request.encoded_size != request.size / 2) throw Refusal("a half is not half as long");
                if (request.exponent > max_half_exponent) throw Refusal("no float needs such an exponent");
                read_halves(request, target);
                break;
            default: throw Refusal("there is no form " + std::to_string(request.form) + " of data");
        }
        static const char * const forms[] = {"", ", packed", ", f16"};
        say(text_of(request.buffer, request.offset, request.size, forms[request.form]));
    });
}

void DataCommands::read_packed(const UpdateRequest & request, uint8_t * data) {
    packed_.resize(request.encoded_size);
    io_.read(packed_.data(), packed_.size());
    if (!unpack(packed_.data(), packed_.size(), data, request.size)) throw Refusal("its data cannot be unpacked");
}

void DataCommands::read_halves(const UpdateRequest & request, uint8_t * data) {
    ggml_fp16_t halves[piece];
    auto * floats = reinterpret_cast<float *>(data);
    for (uint64_t left = request.size / sizeof(float); left > 0;) {
        const uint64_t n = std::min(left, piece);
        io_.read(halves, n * sizeof *halves);
        from_half(halves, n, request.exponent, floats);
        floats += n;
        left -= n;
    }
}

void DataCommands::read(const MessageIo::Header & header, uint64_t compute_us, const Say & say) {
    const auto request = io_.request<ReadRequest>(header);
    Buffer & buffer = buffers_.at(request.buffer);
    buffer.check_range(request.offset, request.size);
    const Buffer::Data data = buffer.readable(request.offset, request.size);
    io_.answer_bytes(&compute_us, sizeof compute_us, data.data, request.size);
    say(text_of(request.buffer, request.offset, request.size, ""));
}

void DataCommands::read_half(const MessageIo::Header & header, uint64_t compute_us, const Say & say) {
    const auto request = io_.request<ReadRequest>(header);
    Buffer & buffer = buffers_.at(request.buffer);
    buffer.check_range(request.offset, request.size);
    const Buffer::Data data = buffer.readable(request.offset, request.size);
    check_floats(data.data, request.size);
    const auto * floats = reinterpret_cast<const float *>(data.data);
    uint64_t left = request.size / sizeof(float);
    const int exponent = half_exponent(floats, left);
    const HalfAnswer answer = {compute_us, exponent};
    ggml_fp16_t halves[piece];
    for (bool first = true; first || left > 0; first = false) {
        const uint64_t n = std::min(left, piece);
        to_half(floats, n, exponent, halves);
        if (first) {
            io_.begin_answer(&answer, sizeof answer, halves, n * sizeof *halves, request.size / 2);
        } else {
            io_.answer_more(halves, n * sizeof *halves);
        }
        floats += n;
        left -= n;
    }
    say(text_of(request.buffer, request.offset, request.size, ", f16"));
}

std::vector<uint8_t> DataCommands::unpack_graph(const MessageIo::Header & header,
                                                const std::function<void(uint64_t size)> & charge) {
    uint64_t size = 0;
    if (header.size < sizeof size) throw MessageIo::wrong_size(header);
    io_.read(&size, sizeof size);
    const uint64_t packed_size = header.size - sizeof size;
    if (size > max_graph_size || packed_size >= size) throw Refusal("a packed graph is of the wrong size");
    charge(packed_size + size);
    std::vector<uint8_t> packed(packed_size), message(size);
    io_.read(packed.data(), packed.size());
    if (!unpack(packed.data(), packed.size(), message.data(), message.size())) {
        throw Refusal("its graph cannot be unpacked");
    }
    return message;
}

}  // namespace droid::rpc
