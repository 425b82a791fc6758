#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace droid {

struct UploadedFile {
    std::vector<uint8_t> data;
    std::string filename;
    std::string content_type;
};

struct HttpRequest {
    std::string method;
    std::string route;  // one of the engine's routes, e.g. "/slots/:id_slot"
    std::string path;
    std::string query_string;
    std::map<std::string, std::string> params;  // of path and query
    std::map<std::string, std::string> headers;
    std::string body;
    std::map<std::string, UploadedFile> files;
};

struct ResponseHead {
    int status = 500;
    std::map<std::string, std::string> headers;  // lower-case names
};

// One request on its way through the engine. The engine produces a chunk only when one is asked for, so whoever does
// not read slows generation down. Callbacks come on an engine thread.
class Request {
  public:
    struct Chunk {
        enum Kind { data_chunk, end, cancelled } kind = end;
        std::string data;
    };
    using HeadFn = std::function<void(const ResponseHead *)>;  // null when cancelled first; called once
    using ChunkFn = std::function<void(Chunk)>;

    Request(HttpRequest request, HeadFn on_head) : data(std::move(request)), on_head_(std::move(on_head)) {}

    // Asks for the next chunk; only one may be asked for at a time. After the end or a cancellation it says so at once.
    void next(ChunkFn on_chunk);

    // Asks the engine to stop; a head and a chunk that are waited for come at once and say so.
    void cancel();

    bool cancelled() const { return *cancelled_; }

    // Set once cancelled; outlives the request.
    const std::shared_ptr<std::atomic<bool>> & cancel_flag() const { return cancelled_; }

    // The engine's side.
    const HttpRequest data;
    void set_wake(std::function<void()> wake);  // called once by cancel(), from any thread
    void head(const ResponseHead & head);
    bool wait_for_reader();  // false when cancelled
    void deliver(std::string data);
    void finish();

  private:
    HeadFn on_head_;
    const std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
    std::mutex mutex_;
    std::condition_variable reader_;
    ChunkFn pending_;
    bool head_sent_ = false;
    bool finished_ = false;
    std::function<void()> wake_;
};

}  // namespace droid
