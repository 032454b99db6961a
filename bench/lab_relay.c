/* SPDX-License-Identifier: Apache-2.0 */
/* Carries IPv4 packets between TUN devices, as links of a given rate, delay, jitter and loss would.
 * It is started by bench/lab.py, which has opened the devices, and ends with it (end of input).
 *
 *     lab_relay DELAY_NS JITTER_NS LOSS QUEUE_NS SEED (FD ADDRESS BITS_PER_S)...
 *
 * A place is a device, the address of what is behind it, and the rate of its access link, both up
 * and down; 0: without limit. A packet may be lost where it enters; it waits for its turn on the
 * link up, is on its way for DELAY ± JITTER (uniform; packets between two places stay in order),
 * waits for its turn on the link down, and is delivered. A link drops what would wait longer than
 * QUEUE. At SIGUSR1 it prints what each place has sent and received. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PLACES_MAX = 128, PACKET_MAX = 65536, READS_AT_ONCE = 64, HEAP_MAX = 1 << 20 };

typedef struct place {
    int fd;
    uint32_t address; /* network order */
    double ns_per_byte;
    int64_t up_free_ns, down_free_ns; /* when its links have sent all that waits */
    uint64_t random; /* its own, so that what it loses does not depend on what others send */
    uint64_t sent, received, lost, dropped, sent_bytes, received_bytes;
} place;

typedef struct packet {
    int64_t due_ns;
    uint64_t number; /* of equal times the first comes first */
    uint16_t to;
    bool delivered; /* then it is through, else it arrives at the link down */
    uint32_t bytes;
    uint8_t data[];
} packet;

static struct {
    int64_t delay_ns, jitter_ns, queue_ns;
    double loss;
    uint64_t number;
    place places[PLACES_MAX];
    uint16_t count;
    int64_t last_ns[PLACES_MAX][PLACES_MAX]; /* arrival of the newest packet, [from][to] */
    packet *heap[HEAP_MAX];
    uint32_t heap_count;
} relay;

static volatile sig_atomic_t asked;

static void on_signal(int number) {
    (void)number;
    asked = 1;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Uniform in [0, 1): splitmix64 (Steele, Lea, Flood 2014). */
static double draw(place *p) {
    uint64_t z = p->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* ---- what is due ----------------------------------------------------------------------------- */

static bool before(const packet *a, const packet *b) {
    return a->due_ns < b->due_ns || (a->due_ns == b->due_ns && a->number < b->number);
}

static bool push(packet *p, int64_t due_ns) {
    if (relay.heap_count == HEAP_MAX) return false;
    p->due_ns = due_ns;
    p->number = relay.number++;
    uint32_t at = relay.heap_count++;
    for (; at > 0 && before(p, relay.heap[(at - 1) / 2]); at = (at - 1) / 2)
        relay.heap[at] = relay.heap[(at - 1) / 2];
    relay.heap[at] = p;
    return true;
}

static packet *pop(void) {
    packet *first = relay.heap[0], *last = relay.heap[--relay.heap_count];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < relay.heap_count; at = child) {
        if (child + 1 < relay.heap_count && before(relay.heap[child + 1], relay.heap[child]))
            child++;
        if (!before(relay.heap[child], last)) break;
        relay.heap[at] = relay.heap[child];
    }
    relay.heap[at] = last;
    return first;
}

/* ---- a packet's way -------------------------------------------------------------------------- */

/* When a link that is free at *free_ns has sent it; or −1: it would wait for too long. */
static int64_t link_take(const place *p, int64_t *free_ns, uint32_t bytes, int64_t now) {
    int64_t begin_ns = *free_ns > now ? *free_ns : now;
    if (p->ns_per_byte > 0 && begin_ns - now > relay.queue_ns) return -1;
    return *free_ns = begin_ns + (int64_t)((double)bytes * p->ns_per_byte);
}

static int32_t place_of(uint32_t address) {
    for (uint16_t i = 0; i < relay.count; i++)
        if (relay.places[i].address == address) return i;
    return -1;
}

static void drop(place *p, packet *of) {
    p->dropped++;
    free(of);
}

static void enter(uint16_t from, const uint8_t *data, uint32_t bytes, int64_t now) {
    enum { DESTINATION_AT = 16, HEADER_BYTES = 20 };
    place *p = &relay.places[from];
    uint32_t address;
    if (bytes < HEADER_BYTES || data[0] >> 4 != 4) return;
    memcpy(&address, data + DESTINATION_AT, sizeof address);
    int32_t to = place_of(address);
    if (to < 0) return;
    p->sent++;
    p->sent_bytes += bytes;
    if (draw(p) < relay.loss) {
        p->lost++;
        return;
    }
    packet *fresh = malloc(sizeof *fresh + bytes);
    int64_t up_ns = fresh != NULL ? link_take(p, &p->up_free_ns, bytes, now) : -1;
    if (up_ns < 0) {
        drop(p, fresh);
        return;
    }
    *fresh = (packet){.to = (uint16_t)to, .bytes = bytes};
    memcpy(fresh->data, data, bytes);
    int64_t *last_ns = &relay.last_ns[from][to];
    int64_t moved_ns = (int64_t)((2 * draw(p) - 1) * (double)relay.jitter_ns);
    int64_t due_ns = up_ns + relay.delay_ns + moved_ns;
    *last_ns = due_ns > *last_ns ? due_ns : *last_ns;
    if (!push(fresh, *last_ns)) drop(p, fresh);
}

static void deliver(packet *p, place *to) {
    /* a device that is full loses it, as a card would */
    if (write(to->fd, p->data, p->bytes) == (ssize_t)p->bytes) {
        to->received++;
        to->received_bytes += p->bytes;
        free(p);
    } else
        drop(to, p);
}

static void advance(int64_t now) {
    while (relay.heap_count > 0 && relay.heap[0]->due_ns <= now) {
        packet *p = pop();
        place *to = &relay.places[p->to];
        if (p->delivered) {
            deliver(p, to);
            continue;
        }
        p->delivered = true;
        int64_t down_ns = link_take(to, &to->down_free_ns, p->bytes, p->due_ns);
        if (down_ns < 0 || !push(p, down_ns)) drop(to, p);
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void print_counts(void) {
    for (uint16_t i = 0; i < relay.count; i++) {
        const place *p = &relay.places[i];
        printf("%u sent %llu %llu received %llu %llu lost %llu dropped %llu\n", i,
               (unsigned long long)p->sent, (unsigned long long)p->sent_bytes,
               (unsigned long long)p->received, (unsigned long long)p->received_bytes,
               (unsigned long long)p->lost, (unsigned long long)p->dropped);
    }
    fflush(stdout);
}

static void read_some(uint16_t from) {
    static uint8_t data[PACKET_MAX];
    for (int i = 0; i < READS_AT_ONCE; i++) {
        ssize_t got = read(relay.places[from].fd, data, sizeof data);
        if (got <= 0) return;
        enter(from, data, (uint32_t)got, now_ns());
    }
}

static int run(const sigset_t *waiting) {
    struct pollfd fds[PLACES_MAX + 1] = {{.fd = STDIN_FILENO, .events = POLLIN}};
    for (uint16_t i = 0; i < relay.count; i++)
        fds[i + 1] = (struct pollfd){.fd = relay.places[i].fd, .events = POLLIN};
    for (;;) {
        advance(now_ns());
        int64_t left_ns = relay.heap_count > 0 ? relay.heap[0]->due_ns - now_ns() : 0;
        left_ns = left_ns < 0 ? 0 : left_ns;
        struct timespec left = {.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
        int ready = ppoll(fds, relay.count + 1u, relay.heap_count > 0 ? &left : NULL, waiting);
        if (ready < 0 && errno != EINTR) return 1;
        if (asked) {
            asked = 0;
            print_counts();
        }
        if (ready <= 0) continue;
        if (fds[0].revents != 0) return 0;
        for (uint16_t i = 0; i < relay.count; i++)
            if (fds[i + 1].revents != 0) read_some(i);
    }
}

int main(int count, char **words) {
    enum { SETTINGS = 6, OF_PLACE = 3 };
    if (count < SETTINGS + OF_PLACE || (count - SETTINGS) % OF_PLACE != 0 ||
        (count - SETTINGS) / OF_PLACE > PLACES_MAX) {
        fputs("lab_relay: it is bench/lab that starts this\n", stderr);
        return 2;
    }
    relay.delay_ns = strtoll(words[1], NULL, 10);
    relay.jitter_ns = strtoll(words[2], NULL, 10);
    relay.loss = strtod(words[3], NULL);
    relay.queue_ns = strtoll(words[4], NULL, 10);
    uint64_t seed = strtoull(words[5], NULL, 10);
    for (int i = SETTINGS; i < count; i += OF_PLACE) {
        double bits_per_s = strtod(words[i + 2], NULL);
        place *p = &relay.places[relay.count++];
        p->fd = (int)strtol(words[i], NULL, 10);
        p->random = seed << 32 | relay.count;
        p->ns_per_byte = bits_per_s > 0 ? 8e9 / bits_per_s : 0;
        if (inet_pton(AF_INET, words[i + 1], &p->address) != 1) {
            fprintf(stderr, "lab_relay: '%s' is not an address\n", words[i + 1]);
            return 2;
        }
    }
    /* what it carries is timed; a machine that does not allow it is a little less exact */
    (void)sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    sigset_t blocked, waiting;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, &waiting);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
    signal(SIGINT, SIG_IGN); /* the lab's, which ends this after its commands */
    return run(&waiting);
}
