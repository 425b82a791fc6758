// A wireless network between network namespaces, in one process: every phone has a tun device, and this is the access
// point in the middle. Each phone's link has a one-way delay, a rate in each direction and a loss, and may drop TCP
// connections that come in or go out, as Android does. Kernels without netem and netfilter can do it too.
//
//   linkemu PHONE...   with PHONE = namespace,interface,ipv4,delay_ms,mbit,loss_percent,flags
//   flags: i drops incoming TCP SYN, o drops outgoing ones, m drops incoming multicast (no multicast lock), - none
//
// Prints `up` once the devices are there, then obeys lines on stdin with `ok` or `error ...`; phones count from 0:
//   cut N | restore N       drops every packet both ways, those on their way included, and nobody is told
//   capture N FILE | release N   writes the packets of a phone's link to a pcap file of raw IP packets
//   link N DELAY_MS MBIT LOSS_PERCENT   another delay, rate and loss for what is sent from here on
// Ends with its stdin, so that it never outlives a test.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PHONES = 16, MAX_NEIGHBOURS = 64, QUEUE_PACKETS = 4096, QUEUE_BYTES = 512 * 1024, MTU = 2048 };
enum { PROTOCOL_TCP = 6, TCP_FLAGS_AT = 13, TCP_SYN = 0x02, TCP_ACK = 0x10 };

struct packet {
    uint64_t due;
    int length;
    unsigned char bytes[MTU];
};

// One direction of a phone's link.
struct pipe {
    struct packet * queue;
    int head, count, bytes;
    uint64_t busy_until;
};

struct phone {
    int tun;
    uint64_t delay;
    double bytes_per_second, loss;
    int drops_incoming, drops_outgoing, drops_multicast, cut;
    struct pipe up, down;
    FILE * capture;
};

// Who has which address; IPv6 addresses are learnt from what a phone sends, as a switch learns them.
struct neighbour {
    unsigned char address[16];
    int length, phone;
};

static struct phone phones[MAX_PHONES];
static int phone_count;
static struct neighbour neighbours[MAX_NEIGHBOURS];
static int neighbour_count;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void fail(const char * what) {
    perror(what);
    exit(1);
}

static int open_tun(const char * namespace, const char * name) {
    char path[256];
    snprintf(path, sizeof path, "/var/run/netns/%s", namespace);
    int entry = open(path, O_RDONLY | O_CLOEXEC);
    if (entry < 0 || setns(entry, CLONE_NEWNET)) fail(namespace);
    close(entry);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq request = {0};
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) fail("tun");
    return fd;
}

static int owner(const unsigned char * address, int length) {
    for (int i = 0; i < neighbour_count; i++) {
        if (neighbours[i].length == length && memcmp(neighbours[i].address, address, (size_t)length) == 0) {
            return neighbours[i].phone;
        }
    }
    return -1;
}

static void learn(const unsigned char * address, int length, int phone) {
    if (owner(address, length) >= 0 || neighbour_count == MAX_NEIGHBOURS) return;
    struct neighbour * n = &neighbours[neighbour_count++];
    memcpy(n->address, address, (size_t)length);
    n->length = length;
    n->phone = phone;
}

static int is_ip6(const struct packet * p) {
    return p->bytes[0] >> 4 == 6;
}

static int is_multicast(const struct packet * p) {
    return is_ip6(p) ? p->bytes[24] == 0xff : p->bytes[16] >= 224 || p->bytes[19] == 255;
}

// The first packet of a connection.
static int is_syn(const struct packet * p) {
    int at = is_ip6(p) ? 40 : (p->bytes[0] & 15) * 4;
    int protocol = is_ip6(p) ? p->bytes[6] : p->bytes[9];
    if (protocol != PROTOCOL_TCP || p->length < at + 20) return 0;
    return (p->bytes[at + TCP_FLAGS_AT] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static void record(FILE * file, const struct packet * p) {
    if (!file) return;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint32_t head[4] = {(uint32_t)t.tv_sec, (uint32_t)(t.tv_nsec / 1000), (uint32_t)p->length, (uint32_t)p->length};
    fwrite(head, sizeof head, 1, file);
    fwrite(p->bytes, (size_t)p->length, 1, file);
}

static void enqueue(struct phone * f, struct pipe * x, const struct packet * p, uint64_t t) {
    if (x->count == QUEUE_PACKETS || x->bytes + p->length > QUEUE_BYTES) return;
    if (f->loss > 0 && drand48() < f->loss) return;
    if (x->busy_until < t) x->busy_until = t;
    x->busy_until += (uint64_t)(p->length / f->bytes_per_second * 1e9);
    struct packet * slot = &x->queue[(x->head + x->count) % QUEUE_PACKETS];
    slot->due = x->busy_until + f->delay;
    slot->length = p->length;
    memcpy(slot->bytes, p->bytes, (size_t)p->length);
    x->count++;
    x->bytes += p->length;
}

// From the access point to everybody it is meant for.
static void forward(int from, const struct packet * p) {
    int multicast = is_multicast(p);
    int to = multicast ? -1 : owner(p->bytes + (is_ip6(p) ? 24 : 16), is_ip6(p) ? 16 : 4);
    // A device that is not there: nothing answers. Unknown IPv6 addresses are asked of all, as a switch does.
    if (to < 0 && !multicast && !is_ip6(p)) return;
    for (int i = 0; i < phone_count; i++) {
        if (i == from || (to >= 0 && i != to) || (multicast && phones[i].drops_multicast)) continue;
        enqueue(&phones[i], &phones[i].down, p, p->due);
    }
}

static void deliver(struct phone * f, const struct packet * p) {
    if (f->cut) return;
    record(f->capture, p);
    if (f->drops_incoming && is_syn(p)) return;
    (void)!write(f->tun, p->bytes, (size_t)p->length);
}

static void receive(int from) {
    struct phone * f = &phones[from];
    struct packet p;
    for (;;) {
        ssize_t length = read(f->tun, p.bytes, MTU);
        if (length <= 0) return;
        p.length = (int)length;
        if (f->cut || length < 20 || (is_ip6(&p) && length < 40)) continue;
        record(f->capture, &p);
        if (f->drops_outgoing && is_syn(&p)) continue;
        if (is_ip6(&p)) learn(p.bytes + 8, 16, from);
        enqueue(f, &f->up, &p, now());
    }
}

// Moves what is due; returns when the next packet is.
static uint64_t move_packets(void) {
    uint64_t t = now(), next = UINT64_MAX;
    for (int i = 0; i < 2 * phone_count; i++) {
        // All ways up before the ways down, so that a packet needs one round at a link without delay.
        struct phone * f = &phones[i % phone_count];
        struct pipe * x = i < phone_count ? &f->up : &f->down;
        for (; x->count && x->queue[x->head].due <= t; x->head = (x->head + 1) % QUEUE_PACKETS, x->count--) {
            struct packet * p = &x->queue[x->head];
            x->bytes -= p->length;
            if (x == &f->down)
                deliver(f, p);
            else if (!f->cut)
                forward(i, p);
        }
        if (x->count && x->queue[x->head].due < next) next = x->queue[x->head].due;
    }
    return next;
}

static void release(struct phone * f) {
    if (f->capture) fclose(f->capture);
    f->capture = NULL;
}

static const char * start_capture(struct phone * f, const char * path) {
    release(f);
    f->capture = fopen(path, "wb");
    if (!f->capture) return "error cannot write the file";
    // pcap 2.4, packets of up to 64 KiB, link type 101: raw IP.
    struct {
        uint32_t magic;
        uint16_t major, minor;
        uint32_t zone, accuracy, longest, type;
    } head = {0xa1b2c3d4, 2, 4, 0, 0, 65535, 101};
    fwrite(&head, sizeof head, 1, f->capture);
    return "ok";
}

static void set_link(struct phone * f, double delay_ms, double mbit, double loss_percent) {
    f->delay = (uint64_t)(delay_ms * 1e6);
    f->bytes_per_second = mbit * 1e6 / 8;
    f->loss = loss_percent / 100;
}

static const char * change_link(struct phone * f, const char * text) {
    double delay_ms, mbit, loss_percent;
    if (sscanf(text, "%lf %lf %lf", &delay_ms, &mbit, &loss_percent) != 3 || delay_ms < 0 || mbit <= 0)
        return "error a link needs a delay, a rate and a loss";
    set_link(f, delay_ms, mbit, loss_percent);
    return "ok";
}

static const char * obey(const char * line) {
    char verb[16] = "", path[1024] = "";
    int n = -1;
    if (sscanf(line, "%15s %d %1023[^\n]", verb, &n, path) < 2 || n < 0 || n >= phone_count)
        return "error no such phone";
    struct phone * f = &phones[n];
    if (!strcmp(verb, "cut"))
        f->cut = 1;
    else if (!strcmp(verb, "restore"))
        f->cut = 0;
    else if (!strcmp(verb, "capture"))
        return start_capture(f, path);
    else if (!strcmp(verb, "link"))
        return change_link(f, path);
    else if (!strcmp(verb, "release"))
        release(f);
    else
        return "error no such command";
    return "ok";
}

static void read_commands(void) {
    static char buffer[4096];
    static size_t used;
    ssize_t length = read(STDIN_FILENO, buffer + used, sizeof buffer - 1 - used);
    if (length <= 0) exit(0);
    used += (size_t)length;
    buffer[used] = '\0';
    for (char * end; (end = strchr(buffer, '\n'));) {
        *end = '\0';
        printf("%s\n", obey(buffer));
        fflush(stdout);
        used -= (size_t)(end + 1 - buffer);
        memmove(buffer, end + 1, used + 1);
    }
}

static void add_phone(char * text) {
    struct phone * f = &phones[phone_count];
    char * field[7];
    for (int i = 0; i < 7; i++) {
        field[i] = strsep(&text, ",");
        if (!field[i]) fail("a phone needs seven fields");
    }
    unsigned char address[4];
    if (inet_pton(AF_INET, field[2], address) != 1) fail(field[2]);
    learn(address, 4, phone_count);
    set_link(f, atof(field[3]), atof(field[4]), atof(field[5]));
    f->drops_incoming = strchr(field[6], 'i') != NULL;
    f->drops_outgoing = strchr(field[6], 'o') != NULL;
    f->drops_multicast = strchr(field[6], 'm') != NULL;
    f->up.queue = malloc(sizeof(struct packet) * QUEUE_PACKETS);
    f->down.queue = malloc(sizeof(struct packet) * QUEUE_PACKETS);
    if (!f->up.queue || !f->down.queue) fail("memory");
    f->tun = open_tun(field[0], field[1]);
    phone_count++;
}

int main(int count, char ** arguments) {
    if (count < 2 || count > MAX_PHONES + 1) return 2;
    // Timers to the nanosecond: the default slack of 50 us is a good part of a short delay.
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, 15, 0, 0, 0);
    srand48(1);
    for (int i = 1; i < count; i++) add_phone(arguments[i]);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    printf("up\n");
    fflush(stdout);
    for (;;) {
        uint64_t next = move_packets();
        struct itimerspec at = {0};
        if (next != UINT64_MAX) {
            at.it_value.tv_sec = (time_t)(next / 1000000000ull);
            at.it_value.tv_nsec = (long)(next % 1000000000ull);
        }
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        struct pollfd wait[MAX_PHONES + 2];
        for (int i = 0; i < phone_count; i++) wait[i] = (struct pollfd){phones[i].tun, POLLIN, 0};
        wait[phone_count] = (struct pollfd){timer, POLLIN, 0};
        wait[phone_count + 1] = (struct pollfd){STDIN_FILENO, POLLIN, 0};
        poll(wait, (nfds_t)phone_count + 2, -1);
        for (int i = 0; i < phone_count; i++) {
            if (wait[i].revents & POLLIN) receive(i);
        }
        if (wait[phone_count + 1].revents) read_commands();
    }
}
