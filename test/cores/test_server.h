#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "raw_client.h"
#include "rpc/server/server.h"

namespace droid::test {

// A server on loopback, or one that only adopts, and what it said.
struct TestServer {
    enum class Port { any, none };

    std::mutex mutex;
    std::vector<std::string> lines;
    Server server;

    explicit TestServer(ServerOptions options = {}, Port port = Port::any)
        : server(with_events(std::move(options), port)) {}

    ServerOptions with_events(ServerOptions options, Port port) {
        if (port == Port::any && options.host.empty()) options.host = "127.0.0.1";
        options.on_event = [this](const std::string & line) {
            std::lock_guard<std::mutex> lock(mutex);
            lines.push_back(line);
        };
        return options;
    }
    uint64_t free_memory() const { return server.devices()[0].memory_free; }
    bool said(const std::string & part) {
        for (int i = 0; i < 500; i++) {
            {
                std::lock_guard<std::mutex> lock(mutex);
                for (const std::string & line : lines) {
                    if (line.find(part) != std::string::npos) return true;
                }
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        return false;
    }
};

inline ServerOptions small() {
    ServerOptions options;
    options.memory_limit = 64 << 20;
    return options;
}

template <typename Condition>
bool eventually(Condition condition) {
    for (int i = 0; i < 500; i++) {
        if (condition()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
}

// The server refuses that message, with those words, and goes on with everybody else.
inline void refuses(TestServer & server, const std::string & part, const std::function<void(RawClient &)> & provoke,
                    NoticeReason reason = NoticeReason::refused) {
    RawClient other(server.server.port()), client(server.server.port());
    CHECK(other.hello());
    CHECK(client.hello());
    const uint64_t before = server.server.counters().clients_dropped;
    provoke(client);
    const std::string text = client.refusal();
    if (text.find(part) == std::string::npos) throw Failure("\"" + text + "\" does not say \"" + part + "\"");
    CHECK(client.reason == reason);
    CHECK_EQUAL(other.ask<uint32_t>(Command::device_count, {}), 1u);
    CHECK(eventually([&] { return server.server.counters().clients_dropped == before + 1; }));
    CHECK(server.said(part));
}

}  // namespace droid::test
