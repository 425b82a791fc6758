#include "rpc/server/connections.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "rpc/socket.h"

namespace droid::rpc {

bool Connections::start(int fd, std::string peer, size_t limit, std::function<void(ClientConnection &)> serve) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto open =
        std::count_if(list_.begin(), list_.end(), [](const auto & connection) { return !connection->done; });
    if (stopping_ || static_cast<size_t>(open) >= limit) {
        close_socket(fd);
        return false;
    }
    OwnedSocket socket(fd);
    const size_t before = list_.size();
    try {
        auto owned = std::make_unique<ClientConnection>(fd, std::move(peer));
        ClientConnection & connection = *list_.emplace_back(std::move(owned));
        connection.thread = std::thread([this, &connection, serve = std::move(serve)] {
            serve(connection);
            {
                // Under the mutex, so that stop() never touches a descriptor that is somebody else's by then.
                std::lock_guard<std::mutex> lock(mutex_);
                close_socket(connection.fd);
                connection.done = true;
            }
            on_end_();
        });
    } catch (const std::exception &) {
        list_.resize(before);
        return false;
    }
    socket.release();
    return true;
}

void Connections::reap() {
    std::list<std::unique_ptr<ClientConnection>> ended;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        for (auto connection = list_.begin(); connection != list_.end();) {
            const auto next = std::next(connection);
            if ((*connection)->done) ended.splice(ended.end(), list_, connection);
            connection = next;
        }
    }
    for (const auto & connection : ended) connection->thread.join();
}

void Connections::stop(const std::string & notice) {
    std::list<std::unique_ptr<ClientConnection>> all;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        for (const auto & connection : list_) {
            if (connection->done) continue;
            if (connection->told) connection->stream.try_write(notice.data(), notice.size());
            connection->stream.stop();
        }
        all.swap(list_);
    }
    for (const auto & connection : all) connection->thread.join();
}

}  // namespace droid::rpc
