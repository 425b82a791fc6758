#pragma once

#include <string>

namespace droid {

// llama.cpp has one log sink for the whole process; this file owns it.

enum class LogLevel { none = 0, error = 1, warn = 2, info = 3, debug = 4 };

// Lines at or above the level go to stderr. Process-wide; the default is none.
void set_log_level(LogLevel level);

// Collects the error lines that the calling thread logs while it exists, so that a failed load can say why.
class ErrorLines {
  public:
    ErrorLines();
    ~ErrorLines();
    ErrorLines(const ErrorLines &) = delete;
    ErrorLines & operator=(const ErrorLines &) = delete;

    // The lines joined by "; ", or an empty string.
    std::string text() const;
};

// Installs the sink and initialises llama.cpp's backends; safe to call from every environment.
void init_llama_process();

}  // namespace droid
