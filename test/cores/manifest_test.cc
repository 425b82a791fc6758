#include "rpc/client/manifest.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>

#include "check.h"

using namespace droid::rpc;

namespace {

// A file of pseudo-random bytes.
class ModelFile {
  public:
    explicit ModelFile(size_t size, uint32_t seed = 1) : bytes(size, '\0') {
        uint32_t x = seed;
        for (char & byte : bytes) {
            x = x * 1664525 + 1013904223;
            byte = char(x >> 24);
        }
        char name[] = "/tmp/manifest-XXXXXX";
        const int fd = mkstemp(name);
        CHECK(fd >= 0);
        close(fd);
        path = name;
        std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(size));
    }
    ~ModelFile() { unlink(path.c_str()); }
    ModelFile(const ModelFile &) = delete;
    ModelFile & operator=(const ModelFile &) = delete;

    TensorInFile tensor(const std::string & name, uint64_t offset, uint64_t size) const {
        return {name, path, offset, size};
    }
    Sha256 hash(uint64_t offset, uint64_t size) const { return sha256(bytes.data() + offset, size); }

    std::string path;
    std::string bytes;
};

constexpr uint64_t mib = 1 << 20;

}  // namespace

TEST(manifest_holds_every_tensors_hash) {
    const ModelFile one(5 * mib + 77), other(3 * mib, 2);
    std::vector<TensorInFile> tensors;
    tensors.push_back(one.tensor("whole", 0, one.bytes.size()));
    tensors.push_back(one.tensor("one block", 32, mib));
    tensors.push_back(one.tensor("a block and a byte", 33, mib + 1));
    tensors.push_back(one.tensor("end", one.bytes.size() - 5, 5));
    tensors.push_back(one.tensor("empty", 100, 0));
    tensors.push_back(other.tensor("of the other file", 7, 2 * mib));
    for (int i = 0; i < 50; i++) tensors.push_back(other.tensor("small " + std::to_string(i), i * 100, 99 + i));
    for (const int threads : {-1, 0, 1, 2, 7, 200}) {
        const Manifest manifest = make_manifest(tensors, threads);
        CHECK_EQUAL(manifest.entries.size(), tensors.size());
        for (const TensorInFile & tensor : tensors) {
            const Manifest::Entry & entry = manifest.entries.at(tensor.name);
            CHECK_EQUAL(entry.size, tensor.size);
            CHECK(entry.hash == (tensor.path == one.path ? one : other).hash(tensor.offset, tensor.size));
        }
    }
    CHECK(make_manifest({}, 4).entries.empty());
}

TEST(manifest_leaves_out_what_cannot_be_read) {
    const ModelFile file(2 * mib);
    std::vector<TensorInFile> tensors;
    tensors.push_back(file.tensor("good", 0, mib));
    tensors.push_back(file.tensor("half beyond the end", mib + 1, mib));
    tensors.push_back(file.tensor("beyond the end", 3 * mib, 10));
    tensors.push_back(file.tensor("at no offset there is", ~0ull, 10));
    tensors.push_back(file.tensor("of no size there is", 10, ~0ull - 5));
    tensors.push_back({"no file", file.path + ".not-there", 0, 10});
    tensors.push_back({"a directory", "/tmp", 0, 10});
    std::atomic<uint64_t> last{0};
    const Manifest manifest = make_manifest(tensors, 3, [&](uint64_t done, uint64_t) {
        last = done;
        return true;
    });
    CHECK_EQUAL(manifest.entries.size(), 1u);
    CHECK(manifest.entries.at("good").hash == file.hash(0, mib));
}

TEST(manifest_counts_progress_up_to_the_total) {
    const ModelFile file(4 * mib);
    std::vector<TensorInFile> tensors;
    for (int i = 0; i < 4; i++) tensors.push_back(file.tensor(std::to_string(i), i * mib, mib));
    tensors.push_back(file.tensor("cannot be read", 10 * mib, mib));
    for (const int threads : {1, 4}) {
        std::mutex mutex;
        std::multiset<uint64_t> seen;
        make_manifest(tensors, threads, [&](uint64_t done, uint64_t total) {
            const std::lock_guard<std::mutex> lock(mutex);
            CHECK_EQUAL(total, 5 * mib);
            seen.insert(done);
            return true;
        });
        CHECK_EQUAL(seen.size(), 5u);
        for (uint64_t i = 1; i <= 5; i++) CHECK_EQUAL(seen.count(i * mib), 1u);
    }
}

TEST(manifest_stops_when_told) {
    const ModelFile file(8 * mib);
    std::vector<TensorInFile> tensors;
    for (int i = 0; i < 8; i++) tensors.push_back(file.tensor(std::to_string(i), i * mib, mib));
    std::atomic<int> calls{0};
    const Manifest manifest = make_manifest(tensors, 2, [&](uint64_t, uint64_t) { return ++calls < 3; });
    CHECK(manifest.entries.size() < tensors.size());
    CHECK(calls <= 4);
    for (const auto & [name, entry] : manifest.entries) CHECK(entry.hash == file.hash(std::stoi(name) * mib, mib));
}

TEST(manifest_passes_on_what_progress_throws) {
    const ModelFile file(4 * mib);
    std::vector<TensorInFile> tensors;
    for (int i = 0; i < 4; i++) tensors.push_back(file.tensor(std::to_string(i), i * mib, mib));
    for (const int threads : {1, 3}) {
        bool caught = false;
        try {
            make_manifest(tensors, threads, [](uint64_t, uint64_t) -> bool { throw std::runtime_error("enough"); });
        } catch (const std::runtime_error & error) {
            caught = std::string(error.what()) == "enough";
        }
        CHECK(caught);
    }
}

// A download that is restarted, or an editor: an error, not a signal.
TEST(manifest_survives_a_file_that_shrinks) {
    const ModelFile file(16 * mib);
    const std::vector<TensorInFile> tensors = {file.tensor("first", 0, 8 * mib), file.tensor("last", 8 * mib, 8 * mib)};
    const Manifest manifest = make_manifest(tensors, 1, [&](uint64_t done, uint64_t) {
        if (done == 2 * mib) std::filesystem::resize_file(file.path, mib);
        return true;
    });
    CHECK(manifest.entries.empty());
}
