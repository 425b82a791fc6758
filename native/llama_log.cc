#include "llama_log.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "llama.h"

#include "log.h"

namespace droid {

namespace {

std::mutex sink_mutex;
LogLevel sink_level = LogLevel::none;

thread_local std::vector<std::string> * error_lines = nullptr;
constexpr size_t max_error_lines = 8;
constexpr int reader_patience_ms = 2000;

LogLevel level_of(ggml_log_level level) {
    switch (level) {
        case GGML_LOG_LEVEL_ERROR: return LogLevel::error;
        case GGML_LOG_LEVEL_WARN: return LogLevel::warn;
        case GGML_LOG_LEVEL_INFO: return LogLevel::info;
        default: return LogLevel::debug;
    }
}

// To stderr, which Node makes non-blocking where it is a pipe: a reader that is slow for a moment must not lose lines,
// and one that has stopped reading must not hold up the engine. sink_mutex is held.
void print(const char * text) {
    static bool nobody_reads = false;
    size_t left = std::strlen(text);
    while (left > 0) {
        const ssize_t n = write(STDERR_FILENO, text, left);
        if (n > 0) {
            nobody_reads = false;
            text += n;
            left -= static_cast<size_t>(n);
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK) || nobody_reads) return;
        pollfd writable = {STDERR_FILENO, POLLOUT, 0};
        nobody_reads = poll(&writable, 1, reader_patience_ms) == 0;
    }
}

void sink(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && error_lines && error_lines->size() < max_error_lines) {
        std::string line = text;
        while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) {
            line.pop_back();
        }
        if (!line.empty()) {
            error_lines->push_back(line);
        }
    }
    std::lock_guard<std::mutex> lock(sink_mutex);
    // A continuation has no level of its own; it belongs to a line that passed or not with debug's.
    if (level_of(level) <= sink_level) print(text);
}

}  // namespace

void set_log_level(LogLevel level) {
    {
        std::lock_guard<std::mutex> lock(sink_mutex);
        sink_level = level;
    }
    // llama.cpp's server code logs through common, which has a sink and levels of its own (trace lies below info).
    const int verbosity = level == LogLevel::debug ? LOG_LEVEL_DEBUG : static_cast<int>(level);
    common_log_set_verbosity_thold(level == LogLevel::none ? -1 : verbosity);
}

ErrorLines::ErrorLines() {
    error_lines = new std::vector<std::string>();
}

ErrorLines::~ErrorLines() {
    delete error_lines;
    error_lines = nullptr;
}

std::string ErrorLines::text() const {
    std::string joined;
    for (const auto & line : *error_lines) {
        joined += (joined.empty() ? "" : "; ") + line;
    }
    return joined;
}

void init_llama_process() {
    static std::once_flag once;
    std::call_once(once, [] {
        set_log_level(LogLevel::none);
        llama_log_set(sink, nullptr);
        llama_backend_init();
    });
}

}  // namespace droid
