#include "rpc/server/connections.h"

#include <system_error>
#include <vector>

#include "rpc/socket.h"

namespace droid::rpc {

bool Connections::start(int fd, std::string peer, size_t limit, std::function<void(ClientConnection &)> serve) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_ || list_.size() >= limit) {
        close_socket(fd);
        return false;
    }
    ClientConnection & connection = *list_.emplace_back(std::make_unique<ClientConnection>(fd, std::move(peer)));
    try {
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
    } catch (const std::system_error &) {
        close_socket(fd);
        list_.pop_back();
        return false;
    }
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
            shutdown_socket(connection->fd);
        }
        all.swap(list_);
    }
    for (const auto & connection : all) connection->thread.join();
}

}  // namespace droid::rpc
