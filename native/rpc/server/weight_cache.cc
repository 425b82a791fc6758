#include "rpc/server/weight_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <random>
#include <unordered_set>
#include <vector>

#include "errors.h"
#include "rpc/file.h"

namespace droid::rpc {

namespace {

// A layout that older versions cannot read gets another name.
constexpr char layout[] = "v1";
constexpr char fnv_bucket[] = "fnv";
constexpr char temporary_suffix[] = ".tmp";
// In place of a hash: data with two different SHA-256 had this FNV-1a, so that it stands for neither.
constexpr char ambiguous[] = "ambiguous\n";
constexpr time_t temporary_lifetime_s = 3600;
constexpr uint64_t disk_block = 4096;
constexpr size_t io_block = 1 << 20;
constexpr uint64_t limit_without_statvfs = 1ull << 30;

// Otherwise a client could fill a disk with entries of one byte, far below a limit in bytes.
uint64_t disk_size(uint64_t size) {
    return size > UINT64_MAX - disk_block ? size
                                          : std::max<uint64_t>(1, (size + disk_block - 1) / disk_block) * disk_block;
}

File open_directory(int parent, const char * name) {
    return File(openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

File open_to_read(int parent, const std::string & name) {
    // Non-blocking, so that a FIFO of that name does not hold us up.
    return File(openat(parent, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
}

bool regular_file(const File & file, struct stat & info) {
    return fstat(file.fd(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size >= 0;
}

void mark_used(int parent, const std::string & name) {
    const timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_NOW}};
    utimensat(parent, name.c_str(), times, AT_SYMLINK_NOFOLLOW);
}

timespec modified(const struct stat & info) {
#ifdef __APPLE__
    return info.st_mtimespec;
#else
    return info.st_mtim;
#endif
}

bool hex_digits(const std::string & text) {
    return text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string bucket_of(const std::string & hex) {
    return hex.substr(0, 2);
}

std::string fnv_name(uint64_t fnv) {
    char name[17];
    std::snprintf(name, sizeof(name), "%016llx", static_cast<unsigned long long>(fnv));
    return name;
}

std::string fnv_text(const WeightCache::Entry & entry) {
    return to_hex(entry.hash) + ' ' + std::to_string(entry.size) + '\n';
}

std::optional<WeightCache::Entry> parse_fnv_text(const std::string & text) {
    WeightCache::Entry entry{};
    if (text.size() < 67 || !from_hex(text.substr(0, 64), entry.hash)) return std::nullopt;
    entry.size = std::strtoull(text.c_str() + 65, nullptr, 10);
    // What strtoull() and we were lenient about does not come out again.
    if (fnv_text(entry) != text) return std::nullopt;
    return entry;
}

// mkdir -p, private.
bool make_directories(const std::string & path) {
    for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
        const std::string part = path.substr(0, end);
        if (mkdir(part.c_str(), 0700) != 0 && errno != EEXIST && end == std::string::npos) return false;
        if (end == std::string::npos) return true;
    }
}

struct Listed {
    std::string bucket;
    std::string name;
    uint64_t disk_bytes;
    timespec used;
};

}  // namespace

struct WeightCache::Impl {
    std::string root;  // absolute
    uint64_t limit = 0;
    std::function<void(const std::string & line)> on_problem;

    std::atomic<uint64_t> hits{0};
    std::atomic<uint64_t> misses{0};
    std::atomic<uint64_t> evictions{0};
    std::atomic<uint64_t> damaged{0};
    std::atomic<bool> said{false};
    std::atomic<uint32_t> temporaries{0};
    uint32_t instance = 0;  // so that processes with the same pid (containers) name their temporary files apart

    // What is on disk as of the last scan and our own doing since; other processes' doing shows at the next scan.
    std::mutex mutex;
    uint64_t files = 0;
    uint64_t bytes = 0;
    uint64_t reserved = 0;  // for files being written
    uint64_t written_since_scan = 0;
    std::unordered_set<Sha256, Sha256Hash> writing;

    // Runs a public function's body; whatever it throws (memory) is a miss.
    template <typename Result, typename Body>
    Result guarded(Result otherwise, Body body) noexcept {
        try {
            return body();
        } catch (...) {
            return otherwise;
        }
    }

    void problem(const std::string & what, int error) {
        if (said.exchange(true) || !on_problem) return;
        on_problem("weight cache " + root + ": cannot " + what + ": " + std::strerror(error));
    }

    // Opened anew each time, so that a cache somebody deletes while we run comes back.
    File open_root(bool create) {
        File dir = open_directory(AT_FDCWD, root.c_str());
        if (dir || !create || errno != ENOENT || !make_directories(root)) return dir;
        return open_directory(AT_FDCWD, root.c_str());
    }

    File open_bucket(const std::string & name, bool create) {
        const File dir = open_root(create);
        if (!dir) return File();
        File bucket = open_directory(dir.fd(), name.c_str());
        if (bucket || !create || errno != ENOENT) return bucket;
        if (mkdirat(dir.fd(), name.c_str(), 0700) != 0 && errno != EEXIST) return File();
        return open_directory(dir.fd(), name.c_str());
    }

    std::string temporary_name(const std::string & name) {
        char number[32];
        std::snprintf(number, sizeof(number), ".%ld-%08x-%u", long(getpid()), instance, temporaries++);
        return name + number + temporary_suffix;
    }

    // 0 or an errno. Not synced: what a power cut leaves behind is found out when it is read.
    int store(int bucket, const std::string & name, const void * data, uint64_t size) {
        const std::string temporary = temporary_name(name);
        const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
        const File file(openat(bucket, temporary.c_str(), flags, 0600));
        if (!file) return errno;
        if (write_all(file, data, size) && renameat(bucket, temporary.c_str(), bucket, name.c_str()) == 0) return 0;
        const int error = errno;
        unlinkat(bucket, temporary.c_str(), 0);
        return error;
    }

    std::vector<Listed> list() {
        std::vector<Listed> listed;
        const File dir = open_root(false);
        if (!dir) return listed;
        list_bucket(dir.fd(), fnv_bucket, listed);
        for (int i = 0; i < 256; i++) {
            char name[3];
            std::snprintf(name, sizeof(name), "%02x", unsigned(i));
            list_bucket(dir.fd(), name, listed);
        }
        return listed;
    }

    // Names that are not ours stay; temporary files go when whoever wrote them is gone for sure.
    void list_bucket(int root_fd, const std::string & bucket, std::vector<Listed> & listed) {
        File dir = open_directory(root_fd, bucket.c_str());
        if (!dir) return;
        const int fd = dir.fd();
        const std::unique_ptr<DIR, int (*)(DIR *)> entries(fdopendir(fd), closedir);
        if (!entries) return;
        dir.release();
        const time_t now = time(nullptr);
        while (const dirent * found = readdir(entries.get())) {
            const std::string name = found->d_name;
            struct stat info;
            if (fstatat(fd, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(info.st_mode)) continue;
            if (ends_with(name, temporary_suffix)) {
                // A clock that was set back would keep them for ever.
                const time_t age = now - info.st_mtime;
                if (age > temporary_lifetime_s || age < -temporary_lifetime_s) unlinkat(fd, name.c_str(), 0);
                continue;
            }
            const bool alias = bucket == fnv_bucket;
            if (!hex_digits(name) || name.size() != (alias ? 16 : 64)) continue;
            if (!alias && bucket_of(name) != bucket) continue;
            listed.push_back({bucket, name, disk_size(uint64_t(info.st_size)), modified(info)});
        }
    }

    // Removes the least recently used until what is on disk is at most that; with the mutex held.
    void scan(uint64_t allowed) {
        std::vector<Listed> listed = list();
        bytes = 0;
        files = 0;
        written_since_scan = 0;
        for (const Listed & file : listed) {
            bytes += file.disk_bytes;
            files += file.bucket != fnv_bucket;
        }
        if (bytes <= allowed) return;
        std::sort(listed.begin(), listed.end(), [](const Listed & a, const Listed & b) {
            if (a.used.tv_sec != b.used.tv_sec) return a.used.tv_sec < b.used.tv_sec;
            if (a.used.tv_nsec != b.used.tv_nsec) return a.used.tv_nsec < b.used.tv_nsec;
            return a.name < b.name;
        });
        for (const Listed & file : listed) {
            if (bytes <= allowed) break;
            const File bucket = open_bucket(file.bucket, false);
            if (!bucket) continue;
            if (unlinkat(bucket.fd(), file.name.c_str(), 0) != 0 && errno != ENOENT) {
                problem("remove " + file.name, errno);
                continue;
            }
            bytes -= file.disk_bytes;
            if (file.bucket == fnv_bucket) continue;
            files--;
            evictions++;
        }
    }

    // Room for a file of that size on disk. Scans when it seems full, or when it is time to see what others wrote.
    bool reserve(uint64_t size) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (size > limit || reserved > limit - size) return false;
        const uint64_t allowed = limit - size - reserved;
        if (bytes > allowed || written_since_scan > limit / 8) scan(allowed);
        if (bytes > allowed) return false;  // files that cannot be removed
        reserved += size;
        return true;
    }

    void settle(uint64_t size, bool stored, bool entry) {
        const std::lock_guard<std::mutex> lock(mutex);
        reserved -= size;
        if (!stored) return;
        bytes += size;
        files += entry;
        written_since_scan += size;
    }

    void removed(uint64_t size) {
        const std::lock_guard<std::mutex> lock(mutex);
        bytes -= std::min(bytes, size);
        files -= std::min<uint64_t>(files, 1);
    }

    bool read(const Sha256 & hash, void * data, uint64_t size) {
        const std::string name = to_hex(hash);
        const File bucket = open_bucket(bucket_of(name), false);
        if (!bucket) return false;
        const File file = open_to_read(bucket.fd(), name);
        struct stat info;
        if (!file || !regular_file(file, info)) return false;
        // Of another size it is either damaged or not what the caller means; only the first is removed.
        const bool wanted = uint64_t(info.st_size) == size;
        std::vector<uint8_t> scratch(wanted ? 0 : io_block);
        Sha256Hasher hasher;
        for (uint64_t offset = 0; offset < uint64_t(info.st_size);) {
            const size_t part = size_t(std::min<uint64_t>(io_block, uint64_t(info.st_size) - offset));
            uint8_t * to = wanted ? static_cast<uint8_t *>(data) + offset : scratch.data();
            const ssize_t n = read_at(file, to, part, offset);
            if (n < 0) {
                problem("read " + name, errno);
                return false;
            }
            hasher.update(to, size_t(n));
            if (size_t(n) < part) break;
            offset += part;
        }
        if (hasher.finish() == hash) {
            if (wanted) mark_used(bucket.fd(), name);
            return wanted;
        }
        damaged++;
        if (unlinkat(bucket.fd(), name.c_str(), 0) == 0) removed(disk_size(uint64_t(info.st_size)));
        return false;
    }

    void write(const Sha256 & hash, const void * data, uint64_t size) {
        const std::string name = to_hex(hash);
        const uint64_t on_disk = disk_size(size);
        // The size is not part of the name: a file that was cut off is replaced.
        if (on_disk > limit || contains(name, size) || !reserve(on_disk)) return;
        const int error = guarded(ENOMEM, [&] {
            const File bucket = open_bucket(bucket_of(name), true);
            return bucket ? store(bucket.fd(), name, data, size) : errno;
        });
        settle(on_disk, error == 0, true);
        if (error) problem("write " + name, error);
    }

    bool contains(const std::string & name, uint64_t size) {
        const File bucket = open_bucket(bucket_of(name), false);
        struct stat info;
        if (!bucket || fstatat(bucket.fd(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return false;
        if (!S_ISREG(info.st_mode) || uint64_t(info.st_size) != size) return false;
        mark_used(bucket.fd(), name);
        return true;
    }

    std::string read_fnv(int bucket, const std::string & name) {
        char text[128];
        const File file = open_to_read(bucket, name);
        struct stat info;
        if (!file || !regular_file(file, info)) return "";
        const ssize_t n = read_at(file, text, sizeof(text), 0);
        return n > 0 ? std::string(text, size_t(n)) : "";
    }

    std::optional<Entry> find_fnv(uint64_t fnv) {
        const std::string name = fnv_name(fnv);
        const File bucket = open_bucket(fnv_bucket, false);
        if (!bucket) return std::nullopt;
        const std::optional<Entry> entry = parse_fnv_text(read_fnv(bucket.fd(), name));
        if (!entry) return std::nullopt;
        if (contains(to_hex(entry->hash), entry->size)) {
            mark_used(bucket.fd(), name);
            return entry;
        }
        unlinkat(bucket.fd(), name.c_str(), 0);  // counted until the next scan
        return std::nullopt;
    }

    void add_fnv(uint64_t fnv, const Entry & entry) {
        const std::string name = fnv_name(fnv);
        const File bucket = open_bucket(fnv_bucket, true);
        if (!bucket) return problem("create " + name, errno);
        const std::string before = read_fnv(bucket.fd(), name);
        std::string text = fnv_text(entry);
        if (before == text || before == ambiguous) return mark_used(bucket.fd(), name);
        if (parse_fnv_text(before)) text = ambiguous;
        if (!reserve(disk_block)) return;
        const int error = guarded(ENOMEM, [&] { return store(bucket.fd(), name, text.data(), text.size()); });
        settle(disk_block, error == 0, false);
        if (error) problem("write " + name, error);
    }
};

namespace {

[[noreturn]] void refuse(const std::string & dir, const char * what, int error) {
    throw CodedError("DROID_INVALID_ARGUMENT",
                     "the cache directory " + dir + " cannot be " + what + ": " + std::strerror(error));
}

// A full disk is no reason to refuse: what the cache already holds can be used.
bool disk_full(int error) {
    return error == ENOSPC || error == EDQUOT;
}

}  // namespace

WeightCache::WeightCache(std::string dir, uint64_t limit, std::function<void(const std::string & line)> on_problem)
    : impl_(std::make_unique<Impl>()) {
    impl_->on_problem = std::move(on_problem);
    impl_->instance = std::random_device()();
    if (dir.empty()) refuse("''", "opened", ENOENT);
    if (!make_directories(dir)) refuse(dir, "created", errno);
    char absolute[PATH_MAX];
    if (!realpath(dir.c_str(), absolute)) refuse(dir, "opened", errno);
    impl_->root = std::string(absolute) + "/" + layout;
    if (mkdir(impl_->root.c_str(), 0700) != 0 && errno != EEXIST && !disk_full(errno)) refuse(dir, "written", errno);
    const File root = impl_->open_root(false);
    if (!root && errno != ENOENT) refuse(dir, "opened", errno);
    if (root) {
        const std::string probe = impl_->temporary_name("probe");
        const File file(openat(root.fd(), probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
        if (!file && !disk_full(errno)) refuse(dir, "written", errno);
        unlinkat(root.fd(), probe.c_str(), 0);
    }
    impl_->scan(limit ? limit : UINT64_MAX);
    if (limit == 0) {
        struct statvfs disk;
        const bool known = statvfs(absolute, &disk) == 0;
        limit = impl_->bytes + (known ? uint64_t(disk.f_bavail) * disk.f_frsize / 2 : limit_without_statvfs);
    }
    impl_->limit = limit;
}

WeightCache::~WeightCache() = default;

uint64_t WeightCache::limit() const {
    return impl_->limit;
}

bool WeightCache::contains(const Sha256 & hash, uint64_t size) const {
    return impl_->guarded(false, [&] { return impl_->contains(to_hex(hash), size); });
}

bool WeightCache::read(const Sha256 & hash, void * data, uint64_t size) {
    const bool hit = impl_->guarded(false, [&] { return impl_->read(hash, data, size); });
    hit ? impl_->hits++ : impl_->misses++;
    return hit;
}

void WeightCache::write(const Sha256 & hash, const void * data, uint64_t size) {
    impl_->guarded(false, [&] {
        {
            const std::lock_guard<std::mutex> lock(impl_->mutex);
            if (!impl_->writing.insert(hash).second) return false;
        }
        impl_->guarded(false, [&] {
            impl_->write(hash, data, size);
            return true;
        });
        const std::lock_guard<std::mutex> lock(impl_->mutex);
        impl_->writing.erase(hash);
        return true;
    });
}

std::optional<WeightCache::Entry> WeightCache::find_fnv(uint64_t fnv) const {
    return impl_->guarded(std::optional<Entry>(), [&] { return impl_->find_fnv(fnv); });
}

void WeightCache::add_fnv(uint64_t fnv, const Entry & entry) {
    impl_->guarded(false, [&] {
        impl_->add_fnv(fnv, entry);
        return true;
    });
}

WeightCacheCounters WeightCache::counters() const {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    return {impl_->files, impl_->bytes, impl_->hits, impl_->misses, impl_->evictions, impl_->damaged};
}

}  // namespace droid::rpc
