// Names of hosts, with bionic's order of members and constants.
#pragma once

#include <netinet/in.h>
#include <sys/cdefs.h>
#include <sys/socket.h>

struct addrinfo {
    int ai_flags, ai_family, ai_socktype, ai_protocol;
    socklen_t ai_addrlen;
    char * ai_canonname;
    struct sockaddr * ai_addr;
    struct addrinfo * ai_next;
};

struct hostent {
    char * h_name;
    char ** h_aliases;
    int h_addrtype, h_length;
    char ** h_addr_list;
};

#define AI_PASSIVE 0x0001
#define AI_CANONNAME 0x0002
#define AI_NUMERICHOST 0x0004
#define AI_NUMERICSERV 0x0008
#define AI_ALL 0x0100
#define AI_ADDRCONFIG 0x0400
#define AI_V4MAPPED 0x0800

#define EAI_ADDRFAMILY 1
#define EAI_AGAIN 2
#define EAI_BADFLAGS 3
#define EAI_FAIL 4
#define EAI_FAMILY 5
#define EAI_MEMORY 6
#define EAI_NODATA 7
#define EAI_NONAME 8
#define EAI_SERVICE 9
#define EAI_SOCKTYPE 10
#define EAI_SYSTEM 11
#define EAI_OVERFLOW 14

#define NI_MAXHOST 1025
#define NI_MAXSERV 32
#define NI_NOFQDN 0x01
#define NI_NUMERICHOST 0x02
#define NI_NAMEREQD 0x04
#define NI_NUMERICSERV 0x08
#define NI_DGRAM 0x10

__BEGIN_DECLS

int getaddrinfo(const char * host, const char * service, const struct addrinfo * hints, struct addrinfo ** list);
void freeaddrinfo(struct addrinfo * list);
int getnameinfo(const struct sockaddr * address, socklen_t length, char * host, size_t host_size, char * service,
                size_t service_size, int flags);
const char * gai_strerror(int status);
struct hostent * gethostbyname(const char * host);

__END_DECLS
