/* SPDX-License-Identifier: Apache-2.0 */
/* The `mem` link: sites and a coordinator that are threads of one process.
 *
 * Every endpoint owns one bounded queue for each endpoint that ever sent to it. The sender keeps a
 * pointer to it, valid while the receiver is open. Queues that have frames wait in a line, and give
 * one frame each in turn; a site takes the coordinator's frames first. A frame from a site that
 * this one has not yet connected to waits in its queue. Frames are encoded and decoded as on a real
 * link, so that bytes are counted the same.
 *
 * One mutex, the hub's, guards all queues and flags; each endpoint has a condition variable that
 * its owner waits on. Endpoints know each other by a number that the hub never gives twice, so that
 * a site that comes back is not taken for the one that left. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/panic.h"
#include "link/common.h"
#include "link/links.h"

enum { ENDPOINTS_MAX = 65536, QUEUE_FRAMES_MAX = 65536 };
static const uint32_t NOBODY = UINT32_MAX;

typedef struct packet {
    uint8_t *bytes;
    size_t count_bytes;
} packet;

typedef struct queue {
    uint32_t sender; /* hub's number */
    uint32_t from;   /* the receiver's number for it; NOBODY before the first frame, or connect */
    uint32_t first, count;
    bool refused, in_line; /* refused: the sender got DLX_AGAIN and waits for room */
    struct queue *next;    /* in line */
    packet packets[];      /* [queue_frames], a ring */
} queue;

typedef struct peer {
    uint32_t endpoint; /* hub's number, or NOBODY */
    queue *out;        /* that endpoint's, for what is sent to it; NULL before the first frame */
    char name[DLXI_NAME_BYTES];
} peer;

typedef struct mem_hub mem_hub;

typedef struct mem_endpoint {
    dlxi_link link; /* first */
    mem_hub *hub;
    uint32_t number;
    bool coordinator, woken, room;
    char name[DLXI_NAME_BYTES];
    pthread_cond_t changed;
    queue **queues; /* [queue_count] */
    size_t queue_count;
    queue *line_first, *line_last;
    queue *control; /* a site's: the coordinator's frames, not in line */
    /* [peer_count]; site: by index, DLXI_SITES_MAX; coordinator: by number, as many as it gave */
    peer *peers;
    uint32_t peer_count;
    peer to_coordinator;
    packet current; /* the frame that the last receive returned */
} mem_endpoint;

struct mem_hub {
    dlx_hub hub; /* first */
    pthread_mutex_t mutex;
    uint32_t queue_frames;
    mem_endpoint **endpoints; /* [endpoint_count], NULL if closed */
    uint32_t endpoint_count;
    uint32_t coordinator; /* the last one opened, or NOBODY */
};

/* ---- hub ------------------------------------------------------------------------------------- */

static void hub_close(dlx_hub *base) {
    mem_hub *hub = (mem_hub *)base;
    for (uint32_t i = 0; i < hub->endpoint_count; i++) DLXI_ASSERT(hub->endpoints[i] == NULL);
    pthread_mutex_destroy(&hub->mutex);
    free(hub->endpoints);
    free(hub);
}

/* NULL if it is closed or never was. */
static mem_endpoint *endpoint_at(const mem_hub *hub, uint32_t number) {
    return number < hub->endpoint_count ? hub->endpoints[number] : NULL;
}

/* ---- queues (the hub's mutex is held) -------------------------------------------------------- */

static queue *queue_find(const mem_endpoint *receiver, uint32_t sender) {
    for (size_t i = 0; i < receiver->queue_count; i++)
        if (receiver->queues[i]->sender == sender) return receiver->queues[i];
    return NULL;
}

static dlx_status queue_add(queue **out, mem_endpoint *receiver, const mem_endpoint *sender,
                            dlx_error *error) {
    queue **grown = realloc(receiver->queues, (receiver->queue_count + 1) * sizeof *grown);
    if (grown == NULL) DLX_FAIL(error, MEMORY, "out of memory: a queue of the mem link");
    receiver->queues = grown;
    queue *q = calloc(1, sizeof *q + receiver->hub->queue_frames * sizeof *q->packets);
    if (q == NULL) DLX_FAIL(error, MEMORY, "out of memory: a queue of the mem link");
    q->sender = sender->number;
    q->from = NOBODY;
    if (sender->coordinator) receiver->control = q;
    for (uint32_t i = 0; !receiver->coordinator && i < receiver->peer_count; i++)
        if (receiver->peers[i].endpoint == sender->number) q->from = i;
    *out = grown[receiver->queue_count++] = q;
    return DLX_OK;
}

static void queue_remove(mem_endpoint *receiver, queue *q) {
    size_t i = 0;
    while (receiver->queues[i] != q) i++;
    receiver->queues[i] = receiver->queues[--receiver->queue_count];
    if (receiver->control == q) receiver->control = NULL;
    free(q);
}

/* Puts a queue that has frames in line, if its frames may be received. */
static void line_append(mem_endpoint *receiver, queue *q) {
    bool known = receiver->coordinator || q->from != NOBODY;
    if (q->in_line || q->count == 0 || !known) return;
    q->in_line = true;
    q->next = NULL;
    *(receiver->line_first == NULL ? &receiver->line_first : &receiver->line_last->next) = q;
    receiver->line_last = q;
}

static queue *line_pop(mem_endpoint *receiver) {
    queue *q = receiver->line_first;
    if (q == NULL) return NULL;
    receiver->line_first = q->next;
    q->in_line = false;
    return q;
}

static packet queue_pop(mem_endpoint *receiver, queue *q) {
    packet p = q->packets[q->first];
    q->first = (q->first + 1) % receiver->hub->queue_frames;
    q->count--;
    mem_endpoint *sender = endpoint_at(receiver->hub, q->sender);
    if (q->refused && sender != NULL) {
        q->refused = false;
        sender->room = true;
        pthread_cond_signal(&sender->changed);
    }
    if (q->count == 0 && sender == NULL) queue_remove(receiver, q);
    return p;
}

/* ---- send ------------------------------------------------------------------------------------ */

/* The queue that a frame to `to` goes to, if there is room in it. */
static dlx_status room_find(queue **out, mem_endpoint **receiver, mem_endpoint *me, uint32_t to,
                            dlx_error *error) {
    mem_hub *hub = me->hub;
    peer *p = NULL;
    if (!me->coordinator && to == DLXI_SITE_COORDINATOR) {
        p = &me->to_coordinator;
        if (hub->coordinator == NOBODY) return DLX_AGAIN; /* its opening wakes all sites */
        if (p->endpoint != hub->coordinator) *p = (peer){.endpoint = hub->coordinator};
    } else if (to < me->peer_count) {
        p = &me->peers[to];
    }
    if (p == NULL || p->endpoint == NOBODY)
        DLX_FAIL(error, STATE, "mem link: send to %u, which is not connected", to);
    *receiver = endpoint_at(hub, p->endpoint);
    if (*receiver == NULL) DLX_FAIL(error, PEER_LOST, "peer %u has closed its endpoint", to);
    if (p->out == NULL) p->out = queue_find(*receiver, me->number);
    if (p->out == NULL) DLX_TRY(queue_add(&p->out, *receiver, me, error));
    *out = p->out;
    if (p->out->count < hub->queue_frames) return DLX_OK;
    p->out->refused = true;
    return DLX_AGAIN;
}

static dlx_status mem_send(dlxi_link *link, uint32_t to, const dlxi_frame *frame,
                           dlx_error *error) {
    mem_endpoint *me = (mem_endpoint *)link, *receiver = NULL;
    queue *q = NULL;
    pthread_mutex_lock(&me->hub->mutex);
    dlx_status status = room_find(&q, &receiver, me, to, error);
    pthread_mutex_unlock(&me->hub->mutex);
    if (status != DLX_OK) return status;

    /* Encoded without the mutex; only this thread fills this queue, so the room stays unless the
     * receiver closes. */
    packet p = {.count_bytes = (size_t)DLXI_FRAME_HEADER_BYTES + frame->payload_bytes};
    p.bytes = malloc(p.count_bytes);
    if (p.bytes == NULL)
        DLX_FAIL(error, MEMORY, "out of memory: a frame of %zu bytes", p.count_bytes);
    dlxi_frame_encode(p.bytes, frame);

    pthread_mutex_lock(&me->hub->mutex);
    status = room_find(&q, &receiver, me, to, error);
    if (status == DLX_OK) {
        q->packets[(q->first + q->count) % me->hub->queue_frames] = p;
        q->count++;
        line_append(receiver, q);
        pthread_cond_signal(&receiver->changed);
    }
    pthread_mutex_unlock(&me->hub->mutex);
    if (status != DLX_OK) {
        free(p.bytes);
        return status;
    }
    dlxi_count_sent(link, p.count_bytes);
    return DLX_OK;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* Gives a sender the coordinator's next number; NOBODY without memory. */
static uint32_t peer_add(mem_endpoint *me, uint32_t sender) {
    peer *grown = realloc(me->peers, (me->peer_count + 1) * sizeof *grown);
    if (grown == NULL) return NOBODY;
    me->peers = grown;
    peer *fresh = &me->peers[me->peer_count];
    *fresh = (peer){.endpoint = sender};
    mem_endpoint *known = endpoint_at(me->hub, sender);
    snprintf(fresh->name, sizeof fresh->name, "%s", known != NULL ? known->name : "");
    return me->peer_count++;
}

/* Takes the next frame. */
static bool frame_take(mem_endpoint *me, uint32_t *from) {
    queue *q = me->control;
    if (q != NULL && q->count != 0 && q->sender == me->hub->coordinator) {
        me->current = queue_pop(me, q);
        *from = DLXI_SITE_COORDINATOR;
        return true;
    }
    while ((q = line_pop(me)) != NULL) {
        if (me->coordinator && q->from == NOBODY) q->from = peer_add(me, q->sender);
        *from = q->from;
        if (*from == NOBODY && !me->coordinator) continue; /* connected to another since */
        bool more = q->count > 1;
        me->current = queue_pop(me, q);
        if (more) line_append(me, q);
        return true;
    }
    return false;
}

/* Waits on the endpoint's condition until `deadline_ns` (< 0: for ever). False once it has passed.
 */
static bool endpoint_wait(mem_endpoint *me, int64_t deadline_ns) {
    if (deadline_ns < 0) return pthread_cond_wait(&me->changed, &me->hub->mutex) == 0;
    if (dlxi_clock_ns() >= deadline_ns) return false;
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                             .tv_nsec = (long)(deadline_ns % 1000000000)};
    pthread_cond_timedwait(&me->changed, &me->hub->mutex, &until);
    return true;
}

static dlx_status mem_receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from,
                              dlxi_frame *frame, dlx_error *error) {
    mem_endpoint *me = (mem_endpoint *)link;
    int64_t deadline_ns = dlxi_link_deadline_ns(timeout_ms);
    for (;;) {
        free(me->current.bytes);
        me->current = (packet){0};
        pthread_mutex_lock(&me->hub->mutex);
        bool taken = false, again = false;
        do {
            again = me->woken || me->room;
            me->woken = me->room = false;
            if (!again) taken = frame_take(me, from);
        } while (!again && !taken && endpoint_wait(me, deadline_ns));
        pthread_mutex_unlock(&me->hub->mutex);
        if (again) return DLX_AGAIN;
        if (!taken) return DLX_TIMEOUT;
        if (*from != NOBODY &&
            dlxi_frame_decode(frame, me->current.bytes, me->current.count_bytes, error) == DLX_OK) {
            dlxi_count_received(link, me->current.count_bytes);
            return DLX_OK;
        }
        dlxi_count_dropped(link);
    }
}

static void mem_wake(dlxi_link *link) {
    mem_endpoint *me = (mem_endpoint *)link;
    pthread_mutex_lock(&me->hub->mutex);
    me->woken = true;
    pthread_cond_signal(&me->changed);
    pthread_mutex_unlock(&me->hub->mutex);
}

/* ---- peers ----------------------------------------------------------------------------------- */

static dlx_status mem_listen(dlxi_link *link, uint32_t own_index, uint32_t index, const char *name,
                             const char *public_key, char endpoint[DLXI_ENDPOINT_BYTES],
                             dlx_error *error) {
    (void)public_key;
    mem_endpoint *me = (mem_endpoint *)link;
    endpoint[0] = '\0';
    DLXI_ASSERT(!me->coordinator);
    DLX_TRY(dlxi_link_check_pair(link, own_index, index, error));
    pthread_mutex_lock(&me->hub->mutex);
    snprintf(me->peers[index].name, sizeof me->peers[index].name, "%s", name);
    pthread_mutex_unlock(&me->hub->mutex);
    snprintf(endpoint, DLXI_ENDPOINT_BYTES, "mem:%u", me->number);
    return DLX_OK;
}

/* From now on site `index` is this endpoint, whose frames may be waiting. */
static void peer_set(mem_endpoint *me, uint32_t index, uint32_t endpoint) {
    peer *p = &me->peers[index];
    queue *before = queue_find(me, p->endpoint), *q = queue_find(me, endpoint);
    if (before != NULL) before->from = NOBODY;
    if (p->endpoint != endpoint) p->out = NULL;
    p->endpoint = endpoint;
    if (q == NULL) return;
    q->from = index;
    line_append(me, q);
}

static dlx_status mem_connect(dlxi_link *link, uint32_t index, const char *endpoint,
                              dlx_error *error) {
    mem_endpoint *me = (mem_endpoint *)link;
    DLXI_ASSERT(!me->coordinator);
    DLX_TRY(dlxi_link_check_index(link, index, error));
    unsigned number = 0;
    int used = 0;
    if (strlen(endpoint) > 15 || sscanf(endpoint, "mem:%9u%n", &number, &used) != 1 ||
        endpoint[used] != '\0')
        DLX_FAIL(error, DATA, "mem link: '%.32s' is not an endpoint of this link", endpoint);
    pthread_mutex_lock(&me->hub->mutex);
    bool known = number < me->hub->endpoint_count && number != me->number;
    if (known) peer_set(me, index, number);
    pthread_mutex_unlock(&me->hub->mutex);
    if (!known) DLX_FAIL(error, DATA, "mem link: this hub has no endpoint '%s'", endpoint);
    return DLX_OK;
}

/* The hub knows who opened an endpoint, so the name needs no proof. */
static const char *mem_peer_name(dlxi_link *link, uint32_t index) {
    mem_endpoint *me = (mem_endpoint *)link;
    return index < me->peer_count ? me->peers[index].name : "";
}

static const char *mem_peer_key(dlxi_link *link, uint32_t index) {
    (void)link, (void)index;
    return "";
}

/* ---- open and close -------------------------------------------------------------------------- */

static void mem_close(dlxi_link *link) {
    mem_endpoint *me = (mem_endpoint *)link;
    mem_hub *hub = me->hub;
    pthread_mutex_lock(&hub->mutex);
    hub->endpoints[me->number] = NULL;
    for (uint32_t i = 0; i < hub->endpoint_count; i++) {
        queue *sent = hub->endpoints[i] != NULL ? queue_find(hub->endpoints[i], me->number) : NULL;
        if (sent != NULL && sent->count == 0) queue_remove(hub->endpoints[i], sent);
    }
    for (size_t i = 0; i < me->queue_count; i++) {
        queue *q = me->queues[i];
        mem_endpoint *sender = endpoint_at(hub, q->sender);
        if (sender != NULL && q->refused) { /* it tries again and gets DLX_PEER_LOST */
            sender->room = true;
            pthread_cond_signal(&sender->changed);
        }
        for (; q->count != 0; q->count--, q->first = (q->first + 1) % hub->queue_frames)
            free(q->packets[q->first].bytes);
        free(q);
    }
    pthread_mutex_unlock(&hub->mutex);
    free(me->queues);
    free(me->peers);
    free(me->current.bytes);
    pthread_cond_destroy(&me->changed);
    free(me);
}

static const dlxi_link_operations mem_operations = {
    .name = "mem",
    .send = mem_send,
    .receive = mem_receive,
    .wake = mem_wake,
    .listen = mem_listen,
    .connect = mem_connect,
    .peer_name = mem_peer_name,
    .peer_key = mem_peer_key,
    .close = mem_close,
};

static bool condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return false;
    bool done = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(condition, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return done;
}

/* Gives the endpoint its number. The hub's mutex is held. */
static dlx_status endpoint_enter(mem_hub *hub, mem_endpoint *me, dlx_error *error) {
    if (me->coordinator && endpoint_at(hub, hub->coordinator) != NULL)
        DLX_FAIL(error, STATE, "hub: it has a coordinator already");
    if (hub->endpoint_count == ENDPOINTS_MAX)
        DLX_FAIL(error, STATE, "hub: %d endpoints have been opened, the maximum of one hub",
                 ENDPOINTS_MAX);
    mem_endpoint **grown = realloc(hub->endpoints, (hub->endpoint_count + 1) * sizeof *grown);
    if (grown == NULL) DLX_FAIL(error, MEMORY, "out of memory: an endpoint of the mem link");
    hub->endpoints = grown;
    me->number = hub->endpoint_count++;
    grown[me->number] = me;
    if (!me->coordinator) return DLX_OK;
    hub->coordinator = me->number;
    for (uint32_t i = 0; i < me->number; i++) {
        if (grown[i] == NULL) continue;
        grown[i]->room = true;
        pthread_cond_signal(&grown[i]->changed);
    }
    return DLX_OK;
}

static dlx_status endpoint_open(dlxi_link **out, mem_hub *hub, const char *name, bool coordinator,
                                dlx_error *error) {
    *out = NULL;
    if (strlen(name) >= DLXI_NAME_BYTES)
        DLX_FAIL(error, ARGUMENT, "site.name: '%.80s' is longer than %d characters", name,
                 DLXI_NAME_BYTES - 1);
    mem_endpoint *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    dlx_status status = coordinator ? DLX_OK : DLXI_NEW(&me->peers, DLXI_SITES_MAX, error);
    if (status != DLX_OK) {
        free(me);
        return status;
    }
    me->peer_count = coordinator ? 0 : DLXI_SITES_MAX;
    me->link.op = &mem_operations;
    me->hub = hub;
    me->coordinator = coordinator;
    snprintf(me->name, sizeof me->name, "%s", name);
    for (uint32_t i = 0; i < me->peer_count; i++) me->peers[i].endpoint = NOBODY;
    if (!condition_init(&me->changed)) {
        free(me->peers);
        free(me);
        DLX_FAIL(error, SYSTEM, "mem link: cannot create a condition variable");
    }
    pthread_mutex_lock(&hub->mutex);
    status = endpoint_enter(hub, me, error);
    pthread_mutex_unlock(&hub->mutex);
    if (status != DLX_OK) {
        pthread_cond_destroy(&me->changed);
        free(me->peers);
        free(me);
        return status;
    }
    *out = &me->link;
    return DLX_OK;
}

/* The rank is not needed: an endpoint is found by its number. */
static dlx_status hub_open_site(dlx_hub *hub, dlxi_link **out, const char *site, uint16_t rank,
                                dlx_error *error) {
    (void)rank;
    return endpoint_open(out, (mem_hub *)hub, site, false, error);
}

static dlx_status hub_open_coordinator(dlx_hub *hub, dlxi_link **out, dlx_error *error) {
    return endpoint_open(out, (mem_hub *)hub, "", true, error);
}

dlx_status dlxi_mem_hub_open(dlx_hub **out, uint32_t queue_frames, dlx_error *error) {
    *out = NULL;
    if (queue_frames < 1 || queue_frames > QUEUE_FRAMES_MAX)
        DLX_FAIL(error, ARGUMENT, "hub: queue of %u frames, allowed are 1 to %d", queue_frames,
                 QUEUE_FRAMES_MAX);
    mem_hub *hub = NULL;
    DLX_TRY(DLXI_NEW(&hub, 1, error));
    if (pthread_mutex_init(&hub->mutex, NULL) != 0) {
        free(hub);
        DLX_FAIL(error, SYSTEM, "hub: cannot create a mutex");
    }
    hub->hub = (dlx_hub){hub_open_site, hub_open_coordinator, hub_close};
    hub->queue_frames = queue_frames;
    hub->coordinator = NOBODY;
    *out = &hub->hub;
    return DLX_OK;
}
