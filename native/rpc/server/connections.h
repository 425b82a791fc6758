#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "rpc/server/socket_stream.h"

namespace droid::rpc {

// An accepted socket and the thread that serves it.
struct ClientConnection {
    ClientConnection(int fd, std::string peer) : fd(fd), peer(std::move(peer)), stream(fd) {}

    const int fd;
    const std::string peer;
    SocketStream stream;
    std::atomic<bool> told{false};  // speaks the extension and is in a session: can be told of a shutdown
    std::thread thread;
    bool done = false;  // under the mutex of the connections; the socket is closed
};

// The connections of a server, from accept() to the end of their threads.
class Connections {
  public:
    // on_end is called by a thread that is about to end, so that somebody calls reap().
    explicit Connections(std::function<void()> on_end) : on_end_(std::move(on_end)) {}
    ~Connections() { stop({}); }
    Connections(const Connections &) = delete;
    Connections & operator=(const Connections &) = delete;

    // Has serve called for a socket in a thread of its own, which closes it. False, and the socket closed, when there
    // are limit open connections already or no thread can be had.
    bool start(int fd, std::string peer, size_t limit, std::function<void(ClientConnection &)> serve);

    // Joins the threads that have ended. Not while stop() runs: it would not know of those.
    void reap();

    // Writes notice to those that can be told, disconnects all and waits for their threads.
    void stop(const std::string & notice);

  private:
    std::function<void()> on_end_;
    std::mutex mutex_;
    std::list<std::unique_ptr<ClientConnection>> list_;
    bool stopping_ = false;
};

}  // namespace droid::rpc
