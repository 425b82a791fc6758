// Records a conversation of our client with our server: `seeds <directory>` writes what each side sent to
// <directory>/session and <directory>/connection, in the form that the fuzz targets take.
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "drive.h"
#include "errors.h"
#include "messages.h"
#include "op_graphs.h"
#include "pipe_worker.h"
#include "script.h"

using namespace droid::fuzz;
using namespace droid::rpc;

namespace {

using Bytes = std::vector<uint8_t>;

void save(const std::filesystem::path & path, const Bytes & bytes) {
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(reinterpret_cast<const char *>(bytes.data()), std::streamsize(bytes.size()));
}

struct Conversation {
    Bytes requests;
    std::vector<Bytes> answers;
};

// What the worker says of the extension.
enum class Dialect { plain, extended, level1 };

Conversation record(Dialect dialect, const std::function<void(Worker &)> & use) {
    Conversation conversation;
    PipeWorker worker;
    worker.expect(
        [&](int fd, const iovec * pieces, int count) {
            Bytes answer;
            for (int i = 0; i < count; i++) {
                const auto * bytes = static_cast<const uint8_t *>(pieces[i].iov_base);
                answer.insert(answer.end(), bytes, bytes + pieces[i].iov_len);
            }
            if (conversation.answers.empty()) {
                const auto capabilities = answer.end() - sizeof(Capabilities);
                if (dialect == Dialect::plain) std::fill(capabilities, answer.end(), uint8_t(0));
                if (dialect == Dialect::extended) capabilities[offsetof(Capabilities, level)] = 0;
            }
            conversation.answers.push_back(answer);
            const iovec piece = {answer.data(), answer.size()};
            return send_pieces(fd, &piece, 1);
        },
        [&](const void * data, size_t size) {
            const auto * bytes = static_cast<const uint8_t *>(data);
            conversation.requests.insert(conversation.requests.end(), bytes, bytes + size);
        });
    {
        Worker client("seeds", {"127.0.0.1", worker.port()}, {}, nullptr);
        try {
            use(client);
        } catch (const droid::CodedError & error) {
            // Halves, of a worker that does not say it knows them.
            if (dialect == Dialect::level1 || error.code() != "DROID_INVALID_ARGUMENT") throw;
        }
    }
    worker.wait();
    return conversation;
}

void append_action(Bytes & input, uint8_t action, const Bytes & bytes) {
    input.push_back(action);
    input.push_back(uint8_t(bytes.size()));
    input.push_back(uint8_t(bytes.size() >> 8));
    input.insert(input.end(), bytes.begin(), bytes.end());
}

// The same for a worker that has the weights already.
std::vector<Message> without_weights(std::vector<Message> messages) {
    for (Message & message : messages) {
        if (message.command != uint8_t(Command::put_weight)) continue;
        message.command = uint8_t(Command::use_weight);
        message.payload.resize(sizeof(WeightRequest));
    }
    return messages;
}

void append(std::vector<Message> & messages, const std::vector<Message> & more) {
    messages.insert(messages.end(), more.begin(), more.end());
}

// A second master that finds the weights of the first one, who is still there; and one that comes after a restart.
void save_pairs(const std::filesystem::path & directory, const Bytes & requests) {
    const std::vector<Message> first = parse_messages(requests.data(), requests.size());
    const std::vector<Message> second = without_weights(first);
    std::vector<Message> shared(first.begin(), first.end() - 1);
    append(shared, {{other_master, {}}});
    append(shared, second);
    append(shared, {{other_master, {}}, first.back()});
    save(directory / "session" / "shared", join_messages(shared));
    std::vector<Message> restarted = first;
    append(restarted, {{restart, {}}});
    append(restarted, second);
    save(directory / "session" / "restarted", join_messages(restarted));
}

// An upstream master whose weights are large enough to be cached, and asked for by their hash after a restart.
void save_upstream_cache(const std::filesystem::path & directory, const Bytes & requests) {
    std::vector<Message> first = parse_messages(requests.data(), requests.size());
    std::vector<Message> second = first;
    for (size_t i = 0; i < first.size(); i++) {
        Message & message = first[i];
        if (message.command != uint8_t(Command::set_tensor) || message.payload.size() <= sizeof(SetTensorHeader))
            continue;
        SetTensorHeader header;
        std::memcpy(&header, message.payload.data(), sizeof header);
        header.cache = 1;
        std::memcpy(message.payload.data(), &header, sizeof header);
        const uint8_t * const data = message.payload.data() + sizeof header;
        const SetTensorHashRequest request = {header.tensor, header.offset,
                                              fnv1a(data, message.payload.size() - sizeof header)};
        const auto * bytes = reinterpret_cast<const uint8_t *>(&request);
        second[i] = {uint8_t(Command::set_tensor_hash), Bytes(bytes, bytes + sizeof request)};
    }
    append(first, {{restart, {}}});
    append(first, second);
    save(directory / "session" / "upstream-cache", join_messages(first));
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: seeds <directory>\n");
        return 2;
    }
    const std::filesystem::path directory = argv[1];
    try {
        for (const Dialect dialect : {Dialect::plain, Dialect::extended, Dialect::level1}) {
            const std::string kind = dialect == Dialect::plain      ? "plain"
                                     : dialect == Dialect::extended ? "extended"
                                                                    : "level1";
            const Conversation conversation = record(dialect, drive);
            save(directory / "session" / kind, conversation.requests);
            if (dialect == Dialect::plain) save_upstream_cache(directory, conversation.requests);
            if (dialect == Dialect::extended) save_pairs(directory, conversation.requests);
            Bytes replaced;
            for (const Bytes & answer : conversation.answers) append_action(replaced, 1, answer);
            save(directory / "connection" / kind, replaced);
            // Each kind of lie at each answer.
            for (size_t i = 0; i < conversation.answers.size(); i++) {
                for (uint8_t action = 2; action < 8; action++) {
                    Bytes input;
                    append_action(input, 1, conversation.answers[0]);
                    for (size_t honest = 1; honest < i; honest++) append_action(input, 0, {});
                    append_action(input, action, {1, 0, 255, 255, 255, 255});
                    save(directory / "connection" / (kind + "-" + std::to_string(i) + "-" + std::to_string(action)),
                         input);
                }
            }
        }
        for (size_t i = 0; i < op_graphs().size(); i++) {
            const auto compute = [&](Worker & client) {
                try {
                    if (compute_op_graph(client, op_graphs()[i])) return;
                    std::fprintf(stderr, "op %zu: not supported\n", i);
                } catch (const droid::CodedError & error) {
                    std::fprintf(stderr, "op %zu: %s\n", i, error.what());
                }
            };
            save(directory / "session" / ("op-" + std::to_string(i)), record(Dialect::extended, compute).requests);
        }
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
