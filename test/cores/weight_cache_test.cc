#include "rpc/server/weight_cache.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <thread>
#include <vector>

#include "check.h"
#include "errors.h"
#include "rpc/protocol.h"
#ifdef __linux__
#include <sys/mount.h>
#endif

namespace fs = std::filesystem;
using droid::CodedError;
using namespace droid::rpc;

namespace {

class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        char name[] = "/tmp/weight-cache-XXXXXX";
        CHECK(mkdtemp(name) != nullptr);
        path = name;
    }
    ~TemporaryDirectory() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }

    std::string path;
};

using Bytes = std::vector<uint8_t>;

// Distinct content for each seed.
Bytes content(uint32_t seed, size_t size = 10000) {
    Bytes bytes(size);
    uint32_t x = seed * 2654435761u + 1;
    for (uint8_t & byte : bytes) {
        x = x * 1664525 + 1013904223;
        byte = uint8_t(x >> 24);
    }
    return bytes;
}

Sha256 hash_of(const Bytes & bytes) {
    return sha256(bytes.data(), bytes.size());
}

fs::path file_of(const std::string & dir, const Sha256 & hash) {
    const std::string hex = to_hex(hash);
    return fs::path(dir) / "v1" / hex.substr(0, 2) / hex;
}

fs::path fnv_file(const std::string & dir, const std::string & digits) {
    return fs::path(dir) / "v1" / "fnv" / digits;
}

void put(WeightCache & cache, const Bytes & bytes) {
    cache.write(hash_of(bytes), bytes.data(), bytes.size());
}

bool get(WeightCache & cache, const Bytes & bytes) {
    Bytes read(bytes.size());
    if (!cache.read(hash_of(bytes), read.data(), read.size())) return false;
    CHECK(read == bytes);
    return true;
}

void overwrite(const fs::path & path, const Bytes & bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(reinterpret_cast<const char *>(bytes.data()), std::streamsize(bytes.size()));
}

void set_age(const fs::path & path, time_t seconds) {
    const time_t now = time(nullptr);
    const timespec times[2] = {{now - seconds, 0}, {now - seconds, 0}};
    CHECK(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
}

size_t count_temporaries(const std::string & dir) {
    size_t count = 0;
    for (const auto & entry : fs::recursive_directory_iterator(dir)) count += entry.path().extension() == ".tmp";
    return count;
}

mode_t mode_of(const fs::path & path) {
    struct stat info;
    CHECK(lstat(path.c_str(), &info) == 0);
    return info.st_mode & 0777;
}

// In a process of its own, so that limits and users do not stay; the body's result is its exit code.
int in_child(const std::function<int()> & body) {
    std::fflush(stdout);
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int code = 99;
        try {
            code = body();
        } catch (const std::exception & error) {
            std::fprintf(stderr, "%s\n", error.what());
        }
        _exit(code);
    }
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string code_of(const std::string & dir) {
    try {
        WeightCache cache(dir, 1 << 20);
        return "no error";
    } catch (const CodedError & error) {
        CHECK(std::string(error.what()).find(dir) != std::string::npos);
        return error.code();
    }
}

}  // namespace

TEST(cache_gives_back_what_was_written) {
    TemporaryDirectory dir;
    const Bytes one = content(1), other = content(2), empty;
    {
        WeightCache cache(dir.path, 1 << 20);
        CHECK(!get(cache, one));
        put(cache, one);
        put(cache, empty);
        CHECK(get(cache, one));
        CHECK(get(cache, empty));
        CHECK(!get(cache, other));
        CHECK(cache.contains(hash_of(one), one.size()));
        CHECK(!cache.contains(hash_of(one), one.size() + 1));
        CHECK(!cache.contains(hash_of(other), other.size()));
        const WeightCacheCounters counters = cache.counters();
        CHECK_EQUAL(counters.files, 2u);
        CHECK_EQUAL(counters.bytes, 3u * 4096 + 4096);
        CHECK_EQUAL(counters.hits, 2u);
        CHECK_EQUAL(counters.misses, 2u);
        CHECK_EQUAL(cache.limit(), 1u << 20);
    }
    WeightCache again(dir.path, 1 << 20);
    CHECK(get(again, one));
    CHECK_EQUAL(again.counters().files, 2u);
    CHECK_EQUAL(again.counters().bytes, 4u * 4096);
    put(again, one);
    CHECK_EQUAL(again.counters().bytes, 4u * 4096);
}

TEST(cache_is_for_its_owner_only) {
    TemporaryDirectory dir;
    const mode_t before = umask(0);
    WeightCache cache(dir.path + "/not/yet/there", 1 << 20);
    const Bytes one = content(1);
    put(cache, one);
    cache.add_fnv(5, {hash_of(one), one.size()});
    umask(before);
    const std::string made = dir.path + "/not/yet/there";
    const fs::path file = file_of(made, hash_of(one));
    CHECK_EQUAL(mode_of(made), 0700u);
    CHECK_EQUAL(mode_of(made + "/v1"), 0700u);
    CHECK_EQUAL(mode_of(file.parent_path()), 0700u);
    CHECK_EQUAL(mode_of(file), 0600u);
    CHECK_EQUAL(mode_of(fnv_file(made, "0000000000000005")), 0600u);
}

TEST(cache_finds_a_flipped_byte_and_removes_the_file) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 64 << 20);
    for (const size_t size : {size_t(1), size_t(10000), size_t(3 << 20) + 5}) {
        for (const size_t at : {size_t(0), size / 2, size - 1}) {
            const Bytes bytes = content(uint32_t(size), size);
            put(cache, bytes);
            CHECK(get(cache, bytes));
            const uint64_t damaged = cache.counters().damaged;
            Bytes flipped = bytes;
            flipped[at] ^= 1;
            overwrite(file_of(dir.path, hash_of(bytes)), flipped);
            CHECK(!get(cache, bytes));
            CHECK(!fs::exists(file_of(dir.path, hash_of(bytes))));
            CHECK_EQUAL(cache.counters().damaged, damaged + 1);
            CHECK_EQUAL(cache.counters().files, 0u);
            CHECK_EQUAL(cache.counters().bytes, 0u);
        }
    }
}

TEST(cache_finds_a_truncated_file) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 1 << 20);
    const Bytes one = content(1);
    put(cache, one);
    CHECK(truncate(file_of(dir.path, hash_of(one)).c_str(), 100) == 0);
    CHECK(!cache.contains(hash_of(one), one.size()));
    CHECK(!get(cache, one));
    CHECK_EQUAL(cache.counters().damaged, 1u);
    CHECK(!fs::exists(file_of(dir.path, hash_of(one))));

    put(cache, one);
    CHECK(truncate(file_of(dir.path, hash_of(one)).c_str(), 0) == 0);
    put(cache, one);
    CHECK(get(cache, one));
}

TEST(cache_keeps_a_file_that_was_asked_for_with_a_wrong_size) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 1 << 20);
    const Bytes one = content(1);
    put(cache, one);
    Bytes wrong(one.size() * 2);
    CHECK(!cache.read(hash_of(one), wrong.data(), one.size() - 1));
    CHECK(!cache.read(hash_of(one), wrong.data(), one.size() * 2));
    CHECK_EQUAL(cache.counters().damaged, 0u);
    CHECK(get(cache, one));
}

TEST(cache_does_not_believe_a_files_name) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 1 << 20);
    const Bytes one = content(1), other = content(2);
    put(cache, one);
    fs::create_directories(file_of(dir.path, hash_of(other)).parent_path());
    fs::rename(file_of(dir.path, hash_of(one)), file_of(dir.path, hash_of(other)));
    CHECK(!get(cache, one));
    CHECK(!get(cache, other));
    CHECK_EQUAL(cache.counters().damaged, 1u);
    CHECK(!fs::exists(file_of(dir.path, hash_of(other))));
}

TEST(cache_removes_what_interrupted_writes_left) {
    TemporaryDirectory dir;
    const Bytes one = content(1);
    const fs::path bucket = file_of(dir.path, hash_of(one)).parent_path();
    fs::create_directories(bucket);
    const fs::path old = bucket / (to_hex(hash_of(one)) + ".123-0-0.tmp");
    const fs::path young = bucket / (to_hex(hash_of(one)) + ".124-0-0.tmp");
    overwrite(old, one);
    overwrite(young, one);
    set_age(old, 3700);
    WeightCache cache(dir.path, 1 << 20);
    CHECK(!fs::exists(old));
    CHECK(fs::exists(young));
    CHECK_EQUAL(cache.counters().files, 0u);
    CHECK(!get(cache, one));
    put(cache, one);
    CHECK(get(cache, one));
}

TEST(cache_leaves_foreign_files_alone) {
    TemporaryDirectory dir;
    fs::create_directories(dir.path + "/v1/ab");
    const Bytes one = content(1, 100000);
    const std::vector<std::string> foreign = {"/notes", "/v1/notes", "/v1/ab/notes", "/v1/ab/" + std::string(64, 'c')};
    for (const std::string & name : foreign) overwrite(dir.path + name, one);
    WeightCache cache(dir.path, 8192);
    put(cache, content(2, 4000));
    put(cache, content(3, 4000));
    put(cache, content(4, 4000));
    CHECK_EQUAL(cache.counters().files, 2u);
    CHECK_EQUAL(cache.counters().evictions, 1u);
    for (const std::string & name : foreign) CHECK(fs::exists(dir.path + name));
}

TEST(cache_removes_the_least_recently_used) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 4 * 4096);
    std::vector<Bytes> all;
    for (uint32_t i = 0; i < 5; i++) all.push_back(content(i, 4000));
    for (uint32_t i = 0; i < 4; i++) {
        put(cache, all[i]);
        set_age(file_of(dir.path, hash_of(all[i])), 1000 - i);
    }
    CHECK(get(cache, all[0]));                              // read
    CHECK(cache.contains(hash_of(all[1]), all[1].size()));  // promised
    put(cache, all[2]);                                     // written again
    put(cache, all[4]);
    CHECK(!get(cache, all[3]));
    for (const uint32_t i : {0u, 1u, 2u, 4u}) CHECK(get(cache, all[i]));
    CHECK_EQUAL(cache.counters().evictions, 1u);
    CHECK_EQUAL(cache.counters().files, 4u);
    CHECK_EQUAL(cache.counters().bytes, 4u * 4096);

    // A smaller limit holds from the start.
    for (const uint32_t i : {0u, 1u, 2u, 4u}) set_age(file_of(dir.path, hash_of(all[i])), 1000 - i);
    WeightCache smaller(dir.path, 2 * 4096 + 100);
    CHECK_EQUAL(smaller.counters().files, 2u);
    CHECK(get(smaller, all[2]) && get(smaller, all[4]));
}

TEST(cache_refuses_what_is_larger_than_its_limit) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 3 * 4096);
    const Bytes small = content(1, 4000), large = content(2, 3 * 4096 + 1);
    put(cache, small);
    put(cache, large);
    CHECK(!get(cache, large));
    CHECK(get(cache, small));
    CHECK_EQUAL(cache.counters().evictions, 0u);
}

TEST(cache_takes_half_of_what_is_free_unless_told) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 0);
    const uint64_t free = fs::space(dir.path).available;
    CHECK(cache.limit() > free / 2 - free / 8);
    CHECK(cache.limit() < free / 2 + free / 8);
}

// Written by another process meanwhile, which this one learns of when it scans.
TEST(cache_counts_what_others_wrote) {
    TemporaryDirectory dir;
    constexpr uint64_t limit = 64 * 4096;
    WeightCache one(dir.path, limit), other(dir.path, limit);
    for (uint32_t i = 0; i < 200; i++) put(i % 2 ? one : other, content(i, 4000));
    uint64_t on_disk = 0;
    for (const auto & entry : fs::recursive_directory_iterator(dir.path)) on_disk += entry.is_regular_file() ? 4096 : 0;
    CHECK(on_disk <= limit + limit / 8 + 4096);
    CHECK(on_disk >= limit / 2);
    CHECK(get(one, content(199, 4000)));
    CHECK(get(other, content(199, 4000)));
}

TEST(cache_does_not_follow_links) {
    TemporaryDirectory dir, outside;
    const Bytes one = content(1), other = content(2);
    overwrite(outside.path + "/secret", one);
    WeightCache cache(dir.path, 1 << 20);

    // A link in place of an entry.
    fs::create_directories(file_of(dir.path, hash_of(one)).parent_path());
    fs::create_symlink(outside.path + "/secret", file_of(dir.path, hash_of(one)));
    CHECK(!cache.contains(hash_of(one), one.size()));
    CHECK(!get(cache, one));

    // A link in place of a bucket.
    fs::create_directory_symlink(outside.path, file_of(dir.path, hash_of(other)).parent_path());
    put(cache, other);
    CHECK(!get(cache, other));
    CHECK_EQUAL(size_t(std::distance(fs::directory_iterator(outside.path), fs::directory_iterator())), 1u);

    // A link in place of the whole.
    TemporaryDirectory linked;
    fs::create_directory_symlink(outside.path, linked.path + "/v1");
    CHECK_EQUAL(code_of(linked.path), "DROID_INVALID_ARGUMENT");
}

TEST(cache_is_not_held_up_by_what_is_no_file) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 1 << 20);
    const Bytes one = content(1), other = content(2);
    fs::create_directories(file_of(dir.path, hash_of(one)).parent_path());
    CHECK(mkfifo(file_of(dir.path, hash_of(one)).c_str(), 0600) == 0);
    CHECK(!get(cache, one));
    fs::create_directories(file_of(dir.path, hash_of(other)));
    put(cache, other);
    CHECK(!get(cache, other));
    CHECK_EQUAL(count_temporaries(dir.path), 0u);
}

TEST(cache_comes_back_after_somebody_removed_it) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path + "/cache", 1 << 20);
    const Bytes one = content(1);
    put(cache, one);
    fs::remove_all(dir.path + "/cache");
    CHECK(!get(cache, one));
    put(cache, one);
    CHECK(get(cache, one));
}

TEST(cache_resolves_fnv_hashes) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 1 << 20);
    const Bytes one = content(1), other = content(2);
    const uint64_t fnv = fnv1a(one.data(), one.size());
    CHECK(!cache.find_fnv(fnv));
    cache.add_fnv(fnv, {hash_of(one), one.size()});
    CHECK(!cache.find_fnv(fnv));  // its data is not there
    put(cache, one);
    cache.add_fnv(fnv, {hash_of(one), one.size()});
    cache.add_fnv(fnv, {hash_of(one), one.size()});
    const auto found = cache.find_fnv(fnv);
    CHECK(found && found->hash == hash_of(one) && found->size == one.size());
    CHECK_EQUAL(cache.counters().files, 1u);

    // Goes with its data.
    fs::remove(file_of(dir.path, hash_of(one)));
    CHECK(!cache.find_fnv(fnv));
    char name[17];
    std::snprintf(name, sizeof(name), "%016llx", static_cast<unsigned long long>(fnv));
    CHECK(!fs::exists(fnv_file(dir.path, name)));

    // Two data with one hash: which of them a client means, nobody knows.
    put(cache, one);
    put(cache, other);
    cache.add_fnv(7, {hash_of(one), one.size()});
    CHECK(cache.find_fnv(7));
    cache.add_fnv(7, {hash_of(other), other.size()});
    CHECK(!cache.find_fnv(7));
    cache.add_fnv(7, {hash_of(one), one.size()});
    CHECK(!cache.find_fnv(7));
}

TEST(cache_ignores_garbage_in_fnv_files) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 1 << 20);
    const Bytes one = content(1);
    put(cache, one);
    cache.add_fnv(9, {hash_of(one), one.size()});
    const std::string hex = to_hex(hash_of(one)), good = hex + " 10000\n";
    const fs::path path = fnv_file(dir.path, "0000000000000009");
    const auto found_with = [&](const std::string & text) {
        overwrite(path, Bytes(text.begin(), text.end()));
        return cache.find_fnv(9).has_value();
    };
    CHECK(found_with(good));
    for (const std::string & text :
         {std::string(), hex, hex + " ", hex + " \n", hex + " 10000", hex + " 10000\n\n", hex + " +10000\n",
          hex + " 010000\n", hex + " 10001\n", hex + "  10000\n", hex + " 18446744073709561616\n", hex + " -1\n",
          "x" + good, good + std::string(200, 'x'), std::string(64, 'z') + " 10000\n", std::string(300, '\0')}) {
        CHECK(!found_with(text));
    }
    CHECK(found_with(good));
}

TEST(cache_counts_fnv_files_to_its_limit) {
    TemporaryDirectory dir;
    WeightCache cache(dir.path, 16 * 4096);
    const Bytes one = content(1, 4000);
    put(cache, one);
    for (uint64_t i = 0; i < 100; i++) cache.add_fnv(i, {hash_of(one), one.size()});
    CHECK(size_t(std::distance(fs::directory_iterator(dir.path + "/v1/fnv"), fs::directory_iterator())) <= 16);
    CHECK(cache.counters().bytes <= 16 * 4096);
}

TEST(cache_lives_with_a_write_that_fails) {
    TemporaryDirectory dir;
    // Written to at most 64 KiB a file: as a disk that is full in the middle of it.
    const int code = in_child([&] {
        std::signal(SIGXFSZ, SIG_IGN);
        const rlimit small{65536, 65536};
        if (setrlimit(RLIMIT_FSIZE, &small) != 0) return 1;
        std::vector<std::string> problems;
        WeightCache cache(dir.path, 64 << 20, [&](const std::string & line) { problems.push_back(line); });
        put(cache, content(1, 1 << 20));
        put(cache, content(2, 1 << 20));
        if (get(cache, content(1, 1 << 20)) || count_temporaries(dir.path) != 0) return 2;
        if (problems.size() != 1 || problems[0].find(dir.path) == std::string::npos) return 3;
        put(cache, content(3, 1000));
        if (!get(cache, content(3, 1000))) return 4;
        return cache.counters().bytes == 4096 ? 0 : 5;
    });
    CHECK_EQUAL(code, 0);
}

#ifdef __linux__
TEST(cache_lives_with_a_full_disk) {
    TemporaryDirectory dir;
    // Where nobody may mount, the test above has to do.
    if (mount("tmpfs", dir.path.c_str(), "tmpfs", 0, "size=256k") != 0) return;
    std::vector<std::string> problems;
    bool kept = false, missed = false, works = false;
    uint64_t limit = 0;
    size_t temporaries = 0;
    try {
        WeightCache cache(dir.path, 64 << 20, [&](const std::string & line) { problems.push_back(line); });
        put(cache, content(1, 100000));
        put(cache, content(2, 200000));
        put(cache, content(3, 200000));
        kept = get(cache, content(1, 100000));
        missed = !get(cache, content(2, 200000)) && !get(cache, content(3, 200000));
        temporaries = count_temporaries(dir.path);
        std::ofstream(dir.path + "/filler") << std::string(300000, 'x');
        WeightCache full(dir.path, 0);
        limit = full.limit();
        works = get(full, content(1, 100000));
    } catch (...) {}
    umount(dir.path.c_str());
    CHECK(kept);
    CHECK(missed);
    CHECK(works);
    CHECK(limit >= 100000 && limit <= 256 * 1024);
    CHECK_EQUAL(temporaries, 0u);
    CHECK_EQUAL(problems.size(), 1u);
}
#endif

TEST(cache_needs_a_directory_it_can_write) {
    TemporaryDirectory dir;
    overwrite(dir.path + "/file", content(1));
    CHECK_EQUAL(code_of(dir.path + "/file"), "DROID_INVALID_ARGUMENT");
    CHECK_EQUAL(code_of(dir.path + "/file/below"), "DROID_INVALID_ARGUMENT");
    CHECK_EQUAL(code_of(""), "DROID_INVALID_ARGUMENT");
    const std::string locked = dir.path + "/locked";
    for (const mode_t mode : {0500, 0300, 0000}) {
        fs::remove_all(locked);
        CHECK(mkdir(locked.c_str(), 0700) == 0 && mkdir((locked + "/v1").c_str(), 0700) == 0);
        CHECK(chmod((locked + "/v1").c_str(), mode) == 0 && chmod(dir.path.c_str(), 0755) == 0);
        const int code = in_child([&] {
            // For root nothing is locked.
            if (geteuid() == 0) {
                if (chown((locked + "/v1").c_str(), 65534, 65534) != 0) return 1;
                if (chown(locked.c_str(), 65534, 65534) != 0) return 1;
                if (setgid(65534) != 0 || setuid(65534) != 0) return 2;
            }
            return code_of(locked) == "DROID_INVALID_ARGUMENT" ? 0 : 3;
        });
        CHECK_EQUAL(code, 0);
    }
}

namespace {

// Whatever is read must be right; whether it is there is luck.
int use_concurrently(const std::string & dir, uint32_t seed) {
    WeightCache cache(dir, 40 * 4096);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 4; t++) {
        threads.emplace_back([&, t] {
            uint32_t x = seed + t;
            for (int i = 0; i < 400; i++) {
                x = x * 1664525 + 1013904223;
                const uint32_t which = (x >> 16) % 64;
                const Bytes bytes = content(which, 1000 + which * 97);
                const Sha256 hash = hash_of(bytes);
                Bytes read(bytes.size());
                if (cache.read(hash, read.data(), read.size())) {
                    wrong += read != bytes;
                } else {
                    cache.write(hash, bytes.data(), bytes.size());
                    cache.add_fnv(which, {hash, bytes.size()});
                }
                if (const auto found = cache.find_fnv(which))
                    wrong += found->hash != hash || found->size != bytes.size();
            }
        });
    }
    for (std::thread & thread : threads) thread.join();
    return wrong + int(cache.counters().damaged) + (cache.counters().hits > 0 ? 0 : 1);
}

}  // namespace

TEST(cache_is_shared_by_threads_and_processes) {
    TemporaryDirectory dir;
    std::fflush(stdout);
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) _exit(use_concurrently(dir.path, 1));
    const int here = use_concurrently(dir.path, 1000);
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 0);
    CHECK_EQUAL(here, 0);
    CHECK_EQUAL(count_temporaries(dir.path), 0u);
    CHECK(WeightCache(dir.path, 40 * 4096).counters().bytes <= 40 * 4096);
}
