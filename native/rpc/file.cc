#include "rpc/file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace droid::rpc {

File & File::operator=(File && other) noexcept {
    if (this != &other) {
        reset();
        fd_ = other.release();
    }
    return *this;
}

int File::release() {
    return std::exchange(fd_, -1);
}

void File::reset() {
    const int error = errno;
    if (fd_ >= 0) close(release());
    errno = error;
}

ssize_t read_at(const File & file, void * data, size_t size, uint64_t offset) {
    size_t done = 0;
    while (done < size) {
        const ssize_t n = pread(file.fd(), static_cast<char *>(data) + done, size - done, off_t(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += size_t(n);
    }
    return ssize_t(done);
}

bool write_all(const File & file, const void * data, uint64_t size) {
    constexpr uint64_t at_once = 16 << 20;  // macOS refuses 2 GiB and more
    const char * p = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t n = write(file.fd(), p, size_t(std::min(size, at_once)));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        size -= uint64_t(n);
    }
    return true;
}

}  // namespace droid::rpc
