// How a connection ends: what is said, and who is told.

#include <cstdio>
#include <utility>

#include "rpc/client/connection.h"
#include "rpc/socket.h"

namespace droid::rpc {

namespace {

std::string words(const Asked & asked) {
    std::string text = command_name(static_cast<uint8_t>(asked.command));
    if (asked.amount == 0) return text;
    return text + " of " + std::to_string(asked.amount) + (computes(asked.command) ? " nodes" : " bytes");
}

// A text of the worker's for our messages and logs.
std::string printable(const std::string & text) {
    std::string clean;
    for (const char c : text) clean += c >= ' ' && c <= '~' ? c : '?';
    return clean.empty() ? "it gave no reason" : clean;
}

}  // namespace

std::string seconds(std::chrono::milliseconds time) {
    char text[32];
    const double value = static_cast<double>(time.count()) / 1000;
    std::snprintf(text, sizeof text, value < 10 ? "%.1f s" : "%.0f s", value);
    return text;
}

std::string Connection::last_asked() const {
    if (!last_ && !last_graph_) return "connecting";
    if (!last_graph_) return words(*last_);
    return last_ ? words(*last_graph_) + ", then " + words(*last_) : words(*last_graph_);
}

std::optional<CodedError> Connection::failure() const {
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    return failure_;
}

void Connection::check() const {
    if (!failed_) return;
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    throw *failure_;
}

void Connection::fail(const std::string & code, const std::string & message) {
    // The code is repeated in the text: it is all that llama.cpp passes on.
    const CodedError error(code, message + " (" + code + ")");
    {
        const std::lock_guard<std::mutex> lock(failure_mutex_);
        failure_ = error;
    }
    failed_ = true;
    shutdown_socket(fd_);
    pending_.clear();
    outgoing_.clear();
    if (on_lost_ && code != "DROID_CLOSED") {
        try {
            on_lost_(error);
        } catch (...) {
            // The listener's own trouble must not replace the failure.
        }
    }
    throw error;
}

void Connection::fail_lost(const std::string & why) {
    fail("DROID_WORKER_LOST", "The worker " + endpoint_ + " was lost " +
                                  (idle_ ? "between two commands, after " : "in ") + last_asked() + ": " + why);
}

void Connection::fail_silent(std::chrono::milliseconds waited) {
    fail_lost("no answer within " + seconds(waited));
}

void Connection::fail_protocol(const Asked & asked, const std::string & problem) {
    fail("DROID_WORKER_PROTOCOL", "The worker " + endpoint_ + " answered nonsense to " + words(asked) + ": " + problem);
}

void Connection::fail_notice() {
    const std::string text = printable(notice_text_);
    switch (static_cast<NoticeReason>(notice_.reason)) {
        case NoticeReason::refused:
            fail("DROID_WORKER_REFUSED", "The worker " + endpoint_ + " refused " + last_asked() + ": " + text);
        case NoticeReason::out_of_memory:
            fail("DROID_WORKER_OUT_OF_MEMORY",
                 "The worker " + endpoint_ + " has too little memory for " + last_asked() + ": " + text);
        case NoticeReason::shutting_down: fail_lost("it is shutting down");
    }
    fail_protocol(last_.value_or(Asked{Command::hello}), "its notice has an unknown reason");
}

// After a send that failed: the reason may lie among what the worker sent before it hung up.
void Connection::hung_up(const std::string & how) {
    while (receive()) {}
    fail_lost(how);
}

void Connection::on_idle_hangup() noexcept {
    try {
        // Whoever is in a call sees it there; this waits until that is over.
        const std::lock_guard<std::mutex> lock(mutex_);
        if (failed_) return;
        idle_ = true;
        for (Pending & pending : pending_) pending.answer.destination = nullptr;
        hung_up("it closed the connection");
    } catch (...) {
        // It was recorded.
    }
}

}  // namespace droid::rpc
