#include "link.h"

#include <map>
#include <mutex>

#include "socket.h"

namespace droid::rpc {

namespace {

struct Entry {
    bool in_use = false;
    bool taken = false;  // by the transport, which closes it
    int fd = -1;
    std::shared_ptr<LinkCounters> counters;
};

std::mutex mutex;

// Never destroyed: engine threads may still close links while the process exits.
std::map<std::string, Entry> & entries() {
    static auto * map = new std::map<std::string, Entry>();
    return *map;
}

std::string key_of(const std::string & host, unsigned slot) {
    std::string key = host;
    for (char & c : key) {
        if (c == ':') c = '_';  // ggml-rpc splits at the first colon; an IPv6 address must not have one
    }
    return key + "#" + std::to_string(slot);
}

}  // namespace

Link::Link(const std::string & endpoint, const std::string & host, uint16_t port)
    : counters_(std::make_shared<LinkCounters>()) {
    const int fd = connect_tcp(endpoint, host, port);
    std::lock_guard<std::mutex> lock(mutex);
    for (unsigned slot = 0;; slot++) {
        const std::string key = key_of(host + "-" + std::to_string(port), slot);
        Entry & entry = entries()[key];
        if (entry.in_use) continue;
        entry.in_use = true;
        entry.fd = fd;
        entry.counters = counters_;
        name_ = key + ":" + std::to_string(port);
        return;
    }
}

Link::~Link() {
    std::lock_guard<std::mutex> lock(mutex);
    Entry & entry = entries()[host_part()];
    if (entry.fd >= 0 && !entry.taken) close_socket(entry.fd);
    entry = Entry{};
}

std::string Link::host_part() const {
    return name_.substr(0, name_.rfind(':'));
}

void Link::interrupt() {
    std::lock_guard<std::mutex> lock(mutex);
    const Entry & entry = entries()[host_part()];
    if (entry.fd >= 0) shutdown_socket(entry.fd);
}

void Link::set_receive_timeout(int seconds) {
    std::lock_guard<std::mutex> lock(mutex);
    const Entry & entry = entries()[host_part()];
    if (entry.fd >= 0) set_socket_receive_timeout(entry.fd, seconds);
}

int take_link_socket(const std::string & host, std::shared_ptr<LinkCounters> & counters) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = entries().find(host);
    if (found == entries().end() || found->second.taken) return -1;
    counters = found->second.counters;
    found->second.taken = true;
    return found->second.fd;
}

void close_link_socket(const std::string & host, int fd) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = entries().find(host);
    // Under the lock, so that interrupt() never reaches a descriptor that is somebody else's by then.
    if (found != entries().end() && found->second.fd == fd) found->second.fd = -1;
    close_socket(fd);
}

}  // namespace droid::rpc
