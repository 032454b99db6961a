/* SPDX-License-Identifier: Apache-2.0 */
/* The `mpi` link between six ranks of one job, three sites of two: order, bounds, waking, malformed
 * frames, the count of bytes, and endings. In each rank another thread trains, which here means
 * that it sums numbers over MPI; in rank 0 the coordinator is one more, and answers what it
 * receives.
 *
 * Sites are numbered in reverse order of their ranks, as a coordinator may: site i has ranks 2 (2 −
 * i) and 2 (2 − i) + 1.
 *
 * mpirun -n 6 test_link_mpi */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "link/links.h"
#include "mpi_job.h"

enum {
    SITES = 3,
    SITE_RANKS = 2,
    RANKS = SITES * SITE_RANKS,
    DATA_FRAMES = 8,
    CONTROL_FRAMES = 64
};
enum {
    REPORTS = 6,
    REPORT_BYTES = 65536,
    ANSWERED = 1 + CONTROL_FRAMES + REPORTS + 1 /* of each rank */
};
enum { HEADER = DLXI_FRAME_HEADER_BYTES, PAYLOAD_MAX = DLXI_FRAME_PAYLOAD_MAX, FOREVER = -1 };

static dlx_hub *hub;
static dlxi_link *site;
static dlxi_grid *grid;
static uint32_t own_index;

static int rank_of(uint32_t index) {
    return (int)(SITES - 1 - index) * SITE_RANKS + cluster->rank % SITE_RANKS;
}

static dlx_status send_to(dlxi_link *link, uint32_t to, dlxi_frame_kind kind, uint64_t round,
                          const uint8_t *payload, uint32_t payload_bytes) {
    dlxi_frame frame = {.kind = kind,
                        .round = round,
                        .site = (uint16_t)own_index,
                        .rank = (uint16_t)cluster->rank,
                        .payload = payload,
                        .payload_bytes = payload_bytes};
    return link->op->send(link, to, &frame, &error);
}

static dlx_status receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from, dlxi_frame *frame) {
    return link->op->receive(link, timeout_ms, from, frame, &error);
}

static void barrier(void) {
    MUST(dlxi_grid_barrier(grid, &error));
}

/* ---- the coordinator's thread ---------------------------------------------------------------- */

typedef struct coordinator {
    dlxi_link *link;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool paused, pausing; /* wanted; obeyed */
    dlxi_link_statistics statistics;
} coordinator;

static void rest_while_paused(coordinator *c) {
    pthread_mutex_lock(&c->mutex);
    c->pausing = c->paused;
    pthread_cond_broadcast(&c->changed);
    while (c->paused) pthread_cond_wait(&c->changed, &c->mutex);
    c->pausing = false;
    pthread_mutex_unlock(&c->mutex);
}

/* Answers each frame with one of the same payload, until every rank has sent FINISHED. */
static void *coordinate(void *context) {
    coordinator *c = context;
    dlx_error trouble;
    for (int finished = 0; finished < RANKS;) {
        rest_while_paused(c);
        uint32_t from;
        dlxi_frame frame;
        dlx_status status = c->link->op->receive(c->link, FOREVER, &from, &frame, &trouble);
        if (status == DLX_AGAIN) continue;
        CHECK(status == DLX_OK, "coordinator: %s", trouble.message);
        EQUAL(from, frame.rank); /* as the sender says */
        CHECK(c->link->op->peer_name(c->link, from)[0] == '\0', "a name without a proof");
        finished += frame.kind == DLXI_FRAME_FINISHED;
        if (frame.kind == DLXI_FRAME_PING) continue;
        frame.site = DLXI_SITE_COORDINATOR;
        /* a queue is never asked for more */
        status = c->link->op->send(c->link, from, &frame, &trouble);
        CHECK(status == DLX_OK, "coordinator: %s", trouble.message);
    }
    dlxi_link_statistics_read(c->link, &c->statistics);
    dlxi_link_close(&c->link);
    return NULL;
}

static void coordinator_start(coordinator *c) {
    *c = (coordinator){0};
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, NULL);
    MUST(hub->open_coordinator(hub, &c->link, &error));
    CHECK(pthread_create(&c->thread, NULL, coordinate, c) == 0, "no thread");
}

static void coordinator_pause(coordinator *c, bool paused) {
    pthread_mutex_lock(&c->mutex);
    c->paused = paused;
    c->link->op->wake(c->link);
    pthread_cond_broadcast(&c->changed);
    while (c->pausing != paused) pthread_cond_wait(&c->changed, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
}

/* ---- the training thread --------------------------------------------------------------------- */

static atomic_bool trained_enough;

static void *train(void *context) {
    dlxi_grid *own = context;
    dlx_error trouble;
    for (long step = 0;; step++) {
        double values[2] = {(double)(step + own->rank), atomic_load(&trained_enough) ? 1 : 0};
        dlx_status status = dlxi_grid_sum(own, values, 2, &trouble);
        CHECK(status == DLX_OK, "training: %s", trouble.message);
        EQUAL(values[0], RANKS * step + RANKS * (RANKS - 1) / 2);
        if (values[1] == RANKS) return NULL;
    }
}

/* ---- joining --------------------------------------------------------------------------------- */

static void opening_is_checked(void) {
    dlx_hub *none;
    dlxi_link *second;
    EQUAL(dlxi_mpi_hub_open(&none, cluster, 4, &error), DLX_ARGUMENT);
    EQUAL(dlxi_mpi_hub_open(&none, cluster, 0, &error), DLX_ARGUMENT);
    MUST(dlxi_mpi_hub_open(&hub, cluster, SITE_RANKS, &error));
    uint16_t rank = (uint16_t)(cluster->rank % SITE_RANKS);
    EQUAL(hub->open_site(hub, &second, "delft", (uint16_t)(1 - rank), &error), DLX_ARGUMENT);
    MUST(hub->open_site(hub, &site, "delft", rank, &error));
    EQUAL(hub->open_site(hub, &second, "delft", rank, &error), DLX_STATE);
    if (cluster->rank != 0) EQUAL(hub->open_coordinator(hub, &second, &error), DLX_STATE);
    CHECK(second == NULL, "a link in spite of the errors");
}

/* Ranks of the first site connect and send before the others do. */
static void sites_join(void) {
    char own[SITES][DLXI_ENDPOINT_BYTES] = {{0}}, all[RANKS][SITES][DLXI_ENDPOINT_BYTES];
    for (uint32_t i = 0; i < SITES; i++)
        if (i != own_index) MUST(site->op->listen(site, own_index, i, "oslo", "", own[i], &error));
    MUST(dlxi_grid_gather(grid, all, own, sizeof own, &error));
    EQUAL(send_to(site, own_index == 0, DLXI_FRAME_GREETING, 0, NULL, 0), DLX_STATE);
    static const char *const wrong[] = {
        "", "mpi:", "mpi:6", "mpi:-1", "mpi:1x", "tcp:2", "mpi:99999999999999999999"};
    uint32_t other = own_index == 0;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(site->op->connect(site, other, wrong[i], &error) == DLX_DATA, "connected to '%s'",
              wrong[i]);
    char not_mine[DLXI_ENDPOINT_BYTES];
    snprintf(not_mine, sizeof not_mine, "mpi:%d", rank_of(other) ^ 1);
    EQUAL(site->op->connect(site, other, not_mine, &error), DLX_DATA);
    bool early = cluster->rank < SITE_RANKS;
    if (!early) barrier();
    for (uint32_t i = 0; i < SITES; i++) {
        if (i == own_index) continue;
        MUST(site->op->connect(site, i, all[rank_of(i)][own_index], &error));
        MUST(site->op->connect(site, i, all[rank_of(i)][own_index], &error));
        if (early) MUST(send_to(site, i, DLXI_FRAME_GREETING, 17, NULL, 0));
    }
    if (early) barrier();
    uint32_t from;
    dlxi_frame frame;
    if (!early) {
        MUST(receive(site, FOREVER, &from, &frame));
        EQUAL(from, SITES - 1);
        EQUAL(frame.round, 17);
    }
    barrier();
}

/* ---- frames ---------------------------------------------------------------------------------- */

/* Of frame k from one rank to another: sizes 0 to the largest, and bytes that fit no other frame.
 */
static uint32_t payload_of(uint8_t *payload, int sender, int receiver, uint32_t k) {
    static const uint32_t sizes[] = {0,     1, 4000,        PAYLOAD_MAX,
                                     65536, 8, PAYLOAD_MAX, PAYLOAD_MAX - 1};
    uint32_t bytes = sizes[(k + (uint32_t)sender) % (sizeof sizes / sizeof *sizes)];
    uint32_t state = (uint32_t)(sender * 64 + receiver) * 1000003u + k * 7919u + 1;
    for (uint32_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        payload[i] = (uint8_t)(state >> 24);
    }
    return bytes;
}

/* All pairs both ways at once, each to each in order and unchanged. */
static void large_frames_travel_in_order(void) {
    enum { FRAMES = 24 };
    static uint8_t payload[PAYLOAD_MAX];
    uint32_t sent[SITES] = {0}, received[SITES] = {0};
    uint64_t bytes_to = 0, bytes_from = 0;
    dlxi_link_statistics before, after;
    dlxi_link_statistics_read(site, &before);
    for (uint32_t to_do = 2 * 2 * FRAMES; to_do != 0;) {
        bool blocked = true;
        for (uint32_t i = 0; i < SITES; i++) {
            if (i == own_index || sent[i] == FRAMES) continue;
            uint32_t bytes = payload_of(payload, cluster->rank, rank_of(i), sent[i]);
            dlx_status status = send_to(site, i, DLXI_FRAME_CONTRIBUTION, sent[i], payload, bytes);
            if (status == DLX_AGAIN) continue;
            MUST(status);
            bytes_to += HEADER + bytes;
            sent[i]++;
            to_do--;
            blocked = false;
        }
        uint32_t from;
        dlxi_frame frame;
        dlx_status status = receive(site, blocked ? FOREVER : 0, &from, &frame);
        if (status == DLX_AGAIN || (status == DLX_TIMEOUT && !blocked)) continue;
        MUST(status);
        CHECK(from < SITES && from != own_index && received[from] < FRAMES, "a frame from %u",
              from);
        EQUAL(frame.round, received[from]);
        EQUAL(frame.rank, rank_of(from));
        uint32_t bytes = payload_of(payload, rank_of(from), cluster->rank, received[from]);
        EQUAL(frame.payload_bytes, bytes);
        CHECK(memcmp(frame.payload, payload, bytes) == 0, "frame %u from %u is changed",
              received[from], from);
        bytes_from += HEADER + bytes;
        received[from]++;
        to_do--;
    }
    dlxi_link_statistics_read(site, &after);
    EQUAL(after.bytes_sent - before.bytes_sent, bytes_to);
    EQUAL(after.bytes_received - before.bytes_received, bytes_from);
    EQUAL(after.frames_sent - before.frames_sent, 2 * FRAMES);
    EQUAL(after.frames_received - before.frames_received, 2 * FRAMES);
    EQUAL(after.frames_dropped, before.frames_dropped);
    barrier();
}

/* Rank 0 sends rank 2 more than it receives. */
static void a_full_queue_refuses_until_there_is_room(void) {
    static const uint8_t payload[100] = {1};
    uint32_t from, other = own_index - 1;
    dlxi_frame frame;
    if (cluster->rank == 0) {
        for (uint64_t i = 0; i < DATA_FRAMES; i++)
            MUST(send_to(site, other, DLXI_FRAME_RESULT, i, payload, sizeof payload));
        EQUAL(send_to(site, other, DLXI_FRAME_RESULT, 99, payload, sizeof payload), DLX_AGAIN);
        EQUAL(receive(site, 0, &from, &frame), DLX_TIMEOUT);
        EQUAL(send_to(site, other, DLXI_FRAME_RESULT, 99, payload, sizeof payload), DLX_AGAIN);
        MUST(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_PING, 0, NULL, 0)); /* another queue */
    }
    barrier();
    if (cluster->rank == SITE_RANKS) {
        MUST(receive(site, FOREVER, &from, &frame));
        EQUAL(frame.round, 0);
    }
    if (cluster->rank == 0) {
        EQUAL(receive(site, FOREVER, &from, &frame), DLX_AGAIN);
        EQUAL(receive(site, 0, &from, &frame), DLX_TIMEOUT); /* once per refusal */
        MUST(send_to(site, other, DLXI_FRAME_RESULT, DATA_FRAMES, payload, sizeof payload));
    }
    barrier();
    for (uint64_t i = 1; cluster->rank == SITE_RANKS && i <= DATA_FRAMES; i++) {
        MUST(receive(site, FOREVER, &from, &frame));
        EQUAL(frame.round, i);
    }
    barrier();
}

static void control_has_its_own_queue(coordinator *c) {
    uint32_t from;
    dlxi_frame frame;
    MUST(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_READY, 0, NULL, 0));
    /* all that was sent before has been received: the queue is empty */
    MUST(receive(site, FOREVER, &from, &frame));
    barrier();
    if (cluster->rank == 0) coordinator_pause(c, true);
    barrier();
    for (uint64_t i = 0; i < CONTROL_FRAMES; i++)
        MUST(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_READY, i, NULL, 0));
    EQUAL(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_READY, 99, NULL, 0), DLX_AGAIN);
    barrier();
    if (cluster->rank == 0) coordinator_pause(c, false);
    bool room = false;
    for (uint64_t i = 0; i < CONTROL_FRAMES;) {
        dlx_status status = receive(site, FOREVER, &from, &frame);
        if (status == DLX_AGAIN) {
            room = true;
            continue;
        }
        MUST(status);
        EQUAL(from, DLXI_SITE_COORDINATOR);
        EQUAL(frame.round, i++);
    }
    CHECK(room, "the queue was full, and no room was signalled");
    barrier();
}

/* All ranks report at once, and each gets its own back. */
static void the_coordinator_answers_each(void) {
    static uint8_t report[REPORT_BYTES];
    memset(report, cluster->rank + 1, sizeof report);
    for (uint64_t i = 0; i < REPORTS; i++)
        MUST(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_REPORT, i, report, sizeof report));
    for (uint64_t i = 0; i < REPORTS; i++) {
        uint32_t from;
        dlxi_frame frame;
        MUST(receive(site, FOREVER, &from, &frame));
        EQUAL(from, DLXI_SITE_COORDINATOR);
        EQUAL(frame.round, i);
        EQUAL(frame.payload_bytes, REPORT_BYTES);
        CHECK(memcmp(frame.payload, report, sizeof report) == 0, "another rank's report");
    }
    barrier();
}

/* ---- malformed frames ------------------------------------------------------------------------ */

static MPI_Request send_raw(const void *bytes, size_t count_bytes) {
    enum { TAG_DATA = 3 };
    MPI_Request request;
    int code =
        MPI_Issend(bytes, (int)count_bytes, MPI_BYTE, SITE_RANKS, TAG_DATA, cluster->wan, &request);
    CHECK(code == MPI_SUCCESS, "not sent");
    return request;
}

/* Too long, empty, too short, long enough but not a frame, and one whose payload was changed. */
static void malformed_frames_are_dropped(void) {
    enum { TOO_LONG = HEADER + PAYLOAD_MAX + 1, SHAPELESS = 500, CHANGED_PAYLOAD = 300 };
    static uint8_t zeros[TOO_LONG], changed[HEADER + CHANGED_PAYLOAD];
    MPI_Request too_long;
    if (cluster->rank == 0) {
        too_long = send_raw(zeros, TOO_LONG);
        MPI_Request requests[] = {send_raw(zeros, 0), send_raw(zeros, HEADER - 1),
                                  send_raw(zeros, SHAPELESS), MPI_REQUEST_NULL};
        dlxi_frame frame = {
            .kind = DLXI_FRAME_RESULT, .payload = zeros, .payload_bytes = CHANGED_PAYLOAD};
        size_t whole = dlxi_frame_encode(changed, &frame);
        changed[HEADER + 200] ^= 1;
        requests[3] = send_raw(changed, whole);
        MUST(send_to(site, own_index - 1, DLXI_FRAME_RESULT, 5, NULL, 0));
        MUST(dlxi_mpi_wait(requests, 4, NULL, &error));
    } else if (cluster->rank == SITE_RANKS) {
        uint32_t from;
        dlxi_frame frame;
        dlxi_link_statistics before, after;
        dlxi_link_statistics_read(site, &before);
        MUST(receive(site, FOREVER, &from, &frame));
        EQUAL(frame.round, 5);
        dlxi_link_statistics_read(site, &after);
        EQUAL(after.frames_dropped - before.frames_dropped, 5);
        EQUAL(after.bytes_received - before.bytes_received, HEADER);
    }
    barrier();
    int taken = 0;
    if (cluster->rank == 0 && MPI_Test(&too_long, &taken, MPI_STATUS_IGNORE) == MPI_SUCCESS)
        CHECK(!taken, "a message longer than a frame was received");
}

static void *wake_site(void *context) {
    (void)context;
    site->op->wake(site);
    return NULL;
}

static void a_wait_ends_when_woken(void) {
    uint32_t from;
    dlxi_frame frame;
    pthread_t waker;
    for (int i = 0; i < 20; i++) {
        CHECK(pthread_create(&waker, NULL, wake_site, NULL) == 0, "no thread");
        EQUAL(receive(site, FOREVER, &from, &frame), DLX_AGAIN);
        pthread_join(waker, NULL);
    }
    site->op->wake(site);
    site->op->wake(site);
    EQUAL(receive(site, FOREVER, &from, &frame), DLX_AGAIN);
    EQUAL(receive(site, 1, &from, &frame), DLX_TIMEOUT);
    barrier();
}

/* ---- endings --------------------------------------------------------------------------------- */

/* Every rank leaves large frames that no rank receives; all close at once, and the job still ends.
 */
static void closing_waits_for_nobody(coordinator *c) {
    static uint8_t payload[PAYLOAD_MAX];
    uint32_t from;
    dlxi_frame frame;
    MUST(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_FINISHED, 0, NULL, 0));
    MUST(receive(site, FOREVER, &from, &frame));
    EQUAL(frame.kind, DLXI_FRAME_FINISHED);
    barrier();
    for (uint32_t i = 0; i < SITES; i++)
        if (i != own_index)
            for (uint64_t k = 0; k < 3; k++)
                MUST(send_to(site, i, DLXI_FRAME_RESULT, k, payload, sizeof payload));
    if (cluster->rank == 0) { /* the coordinator has left */
        pthread_join(c->thread, NULL);
        EQUAL(c->statistics.frames_received, RANKS * ANSWERED + 1);
        EQUAL(c->statistics.frames_sent, RANKS * ANSWERED);
        EQUAL(c->statistics.bytes_received,
              (RANKS * ANSWERED + 1) * HEADER + RANKS * REPORTS * REPORT_BYTES);
        EQUAL(c->statistics.frames_dropped, 0);
    }
    barrier();
    MUST(send_to(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_PING, 0, NULL, 0));
    dlxi_link_close(&site);
    CHECK(site == NULL, "not nulled");
    hub->close(hub);
}

int main(void) {
    MUST(dlxi_cluster_open(&cluster, &error));
    EQUAL(cluster->ranks, RANKS);
    own_index = (uint32_t)(SITES - 1 - cluster->rank / SITE_RANKS);
    MUST(dlxi_grid_open(&grid, cluster, 1, 1, RANKS, &error));
    dlxi_grid *training_grid;
    MUST(dlxi_grid_open(&training_grid, cluster, 1, 1, RANKS, &error));
    opening_is_checked();
    coordinator c;
    if (cluster->rank == 0) coordinator_start(&c);
    pthread_t training;
    CHECK(pthread_create(&training, NULL, train, training_grid) == 0, "no thread");
    sites_join();
    large_frames_travel_in_order();
    a_full_queue_refuses_until_there_is_room();
    control_has_its_own_queue(&c);
    the_coordinator_answers_each();
    malformed_frames_are_dropped();
    a_wait_ends_when_woken();
    closing_waits_for_nobody(&c);
    atomic_store(&trained_enough, true);
    pthread_join(training, NULL);
    dlxi_grid_close(&training_grid);
    dlxi_grid_close(&grid);
    dlxi_cluster_close(&cluster);
    return 0;
}
