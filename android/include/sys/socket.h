#pragma once

#include <sys/cdefs.h>

// Its lengths are of 64 bits in bionic, as the kernel has them, and of 32 and a gap in musl.
#define msghdr msghdr_of_musl
#define cmsghdr cmsghdr_of_musl
#define sendmsg sendmsg_of_musl
#define recvmsg recvmsg_of_musl
#define mmsghdr mmsghdr_of_musl
#define sendmmsg sendmmsg_of_musl
#define recvmmsg recvmmsg_of_musl
#include_next <sys/socket.h>
#undef msghdr
#undef cmsghdr
#undef sendmsg
#undef recvmsg
#undef mmsghdr
#undef sendmmsg
#undef recvmmsg

struct msghdr {
    void * msg_name;
    socklen_t msg_namelen;
    struct iovec * msg_iov;
    size_t msg_iovlen;
    void * msg_control;
    size_t msg_controllen;
    int msg_flags;
};

__BEGIN_DECLS

ssize_t sendmsg(int socket, const struct msghdr * message, int flags);
ssize_t recvmsg(int socket, struct msghdr * message, int flags);

__END_DECLS
