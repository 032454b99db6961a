/* SPDX-License-Identifier: Apache-2.0 */
/* Control messages: the payloads of the frames between a site and the coordinator; and what a
 * greeting between two sites says. One function per message both writes and reads it, so that the
 * two can't disagree. Everything read is bounded here; what it means is checked by its reader. */
#ifndef DLXI_WIRE_MESSAGES_H
#define DLXI_WIRE_MESSAGES_H

#include "base/limits.h"
#include "wire/frame.h"

typedef struct dlxi_range {
    uint64_t first;
    uint32_t count;
} dlxi_range;

/* Positions in the global order of training windows that one site may use for one submission. */
typedef struct dlxi_lease {
    uint64_t submission;
    uint32_t range_count;
    dlxi_range ranges[DLXI_LEASE_RANGES_MAX]; /* disjoint, count ≥ 1 */
} dlxi_lease;

/* What a coordinator needs to go on with the run, as the one of this term had it after this round;
 * sites do not interpret it. */
typedef struct dlxi_copy {
    uint32_t term;
    uint64_t round;
    uint32_t bytes;      /* up to DLXI_COPY_MAX; 0: none */
    const uint8_t *data; /* decode: points into the frame's payload */
} dlxi_copy;

enum { DLXI_COPY_MAX = 32768 };

static inline bool dlxi_copy_is_newer(const dlxi_copy *a, const dlxi_copy *b) {
    return a->term > b->term || (a->term == b->term && a->round > b->round);
}

/* site → coordinator: who I am and what I would train. */
typedef struct dlxi_hello {
    char site[DLXI_SITE_NAME_MAX + 1];
    uint16_t rank, ranks;  /* as sent: a coordinator says what is wrong with them */
    uint64_t tensors_hash; /* of ids, names, shapes, and settings that replicas share */
    uint64_t anchor_hash;
    uint64_t windows, tokens_per_window, data_hash;
    uint32_t lease_windows; /* wanted a round */
    uint64_t incarnation;   /* of this process; random */
    bool keeps_history;     /* it can serve, and take, a round's results later: not allreduce */
    /* it goes on with this run, which it left when `round` was the next one, with so many
     * submissions in committed rounds: anchor_hash is then of all that sites have in common.
     * resumed_run 0: it starts anew */
    uint64_t resumed_run, round, counted;
    dlxi_copy copy; /* of the round before, if it resumes; without data if there was none */
    char shared_text[DLXI_TEXT_MAX + 1];
} dlxi_hello;

/* coordinator → site: the run. */
typedef struct dlxi_welcome {
    uint16_t site, sites;
    uint64_t tokens_target;
    uint64_t run_id;
    struct {
        char name[DLXI_SITE_NAME_MAX + 1];
        char public_key[DLXI_KEY_TEXT_MAX + 1];
        bool needs_anchor;
    } members[DLXI_SITES_MAX]; /* [sites] */
    uint64_t counted;          /* submissions of this site in committed rounds */
    dlxi_lease leases[2];      /* of the next two */
} dlxi_welcome;

/* site → coordinator: where I listen for each site; coordinator → site: where each site listens for
 * you. */
typedef struct dlxi_endpoints {
    uint16_t sites;
    char endpoint[DLXI_SITES_MAX][DLXI_ENDPOINT_MAX + 1];
} dlxi_endpoints;

/* site → coordinator: a pseudo-gradient is submitted, for the frame's round. A round that commits
 * without it leaves it as it is, for the next. */
typedef struct dlxi_ready {
    uint64_t submission;   /* its number, from 1 */
    uint64_t base_round;   /* the round that it was made for */
    uint64_t tokens;       /* trained on; the site's weight */
    uint32_t windows_used; /* of the submission's lease */
    uint64_t anchor_hash;  /* after the last commit; 0 if replicas need not be equal */
    double norm;           /* of M */
    uint64_t step_ns;      /* an inner step takes */
    uint64_t exchange_ns;  /* the last exchange took, of exchange_bytes; 0: none yet */
    uint64_t exchange_bytes;
    uint32_t grace_ms; /* this site can wait so long for others without losing time */
} dlxi_ready;

/* coordinator → site: the view of an attempt. */
typedef struct dlxi_view {
    uint16_t members;
    struct {
        uint16_t site;
        uint64_t tokens;
        uint64_t step_ns, exchange_ns, exchange_bytes;
        bool voided;          /* its submission counts for nothing, and is forgotten */
    } member[DLXI_SITES_MAX]; /* [members], by site */
} dlxi_view;

typedef struct dlxi_staged {
    uint64_t hash; /* of the results as received */
} dlxi_staged;

/* coordinator → site: the frame's round counts, by the attempt that the frame names, of this
 * coordinator. Members have staged it; the others fetch its results from one of them. */
typedef struct dlxi_commit {
    uint32_t term;
    uint64_t coordinator;
    uint64_t committed_tokens; /* of the run */
    bool finished;
    dlxi_lease lease; /* the receiver's newest */
    dlxi_view view;
    dlxi_copy copy; /* of this round or a later one */
} dlxi_commit;

/* In the `trip` of a rank's control frames. */
enum { DLXI_SITE_LINKED = 1, DLXI_SITE_ENTERED = 2 };

/* Four times a second, both ways. */
typedef struct dlxi_ping {
    uint64_t run_id, incarnation; /* incarnation: the rank's */
    int64_t stamp; /* the coordinator's clock; from a rank, the newest received; 0: it can't say */
    /* by site: from a rank, the sites that it exchanges frames with; from the coordinator, those
     * that it left this one out for, to be tried with larger frames */
    uint64_t sites;
    uint64_t
        submission; /* from the coordinator: the last that it has of this rank, for the round */
    /* from the coordinator, at the end: the work is cut into part_count parts; bits of this site's;
     * whether it saves the results. part_count 0: not yet */
    uint64_t parts;
    uint16_t part_count;
    bool saves;
} dlxi_ping;

/* abort, failed, stop: why. */
typedef struct dlxi_reason {
    uint16_t status; /* a dlx_status; of an abort: TIMEOUT (nothing moves), DATA (a malformed
                        frame), ABORTED */
    uint16_t about;  /* of an abort: the site at the other end; DLXI_SITE_NONE: none */
    char text[DLXI_REASON_MAX + 1];
} dlxi_reason;

/* A coordinator that is to take the run over → site: who are you; and, if the frame has a term,
 * obey this coordinator from now on. */
typedef struct dlxi_claim {
    uint64_t run_id; /* 0: any */
    bool wants_copy;
} dlxi_claim;

/* The answer. The frame has whom the rank obeys, and the round that it has not got yet. */
typedef struct dlxi_position {
    uint64_t run_id, incarnation;
    bool hears;     /* its coordinator, at present */
    uint64_t view;  /* sites of the attempt that is under way or staged; 0: none */
    dlxi_copy copy; /* its newest; without data if that is not asked for */
} dlxi_position;

typedef struct dlxi_report {
    uint64_t parts; /* that it is about, of part_count; all bits if the site asks for none */
    uint16_t part_count;
    char text[DLXI_TEXT_MAX + 1];
} dlxi_report;

enum { DLXI_TRIPS = 3, DLXI_GREETING_BYTES = 8 + DLXI_TRIPS * 16 };
#define DLXI_NOT_BEGUN UINT64_MAX /* received of a trip that the sender has not begun */

/* site → site, in a greeting during an attempt: how far its AllReduces are between the two. */
typedef struct dlxi_greeting {
    uint32_t asks;    /* number of the newest request to send again what follows `received` */
    uint32_t answers; /* number of the other side's request that was answered last */
    struct {
        uint64_t sent, received; /* groups, as in dlxi_allreduce_offsets */
    } trips[DLXI_TRIPS];
} dlxi_greeting;

/* A message to write, or the place to read one to, is the member that `kind` names. Large: allocate
 * it. */
typedef struct dlxi_message {
    dlxi_frame_kind kind;
    union {
        dlxi_hello hello;
        dlxi_welcome welcome;
        dlxi_endpoints endpoints; /* LISTENING, PEERS */
        dlxi_ready ready;
        dlxi_view view; /* BEGIN */
        dlxi_staged staged;
        dlxi_commit commit;
        dlxi_reason reason; /* ABORT, FAILED, STOP */
        dlxi_report report;
        dlxi_ping ping;
        dlxi_claim claim;
        dlxi_position position;
    } as; /* FINISHED is empty */
} dlxi_message;

/* Writes at most capacity_bytes and sets *used_bytes. DLX_ARGUMENT if it does not fit or a field
 * is out of range. */
dlx_status dlxi_message_encode(uint8_t *dst, size_t capacity_bytes, size_t *used_bytes,
                               const dlxi_message *message, dlx_error *error);
/* The payload of a control frame. DLX_DATA if it is malformed or the frame is no control frame.
 */
dlx_status dlxi_message_decode(dlxi_message *message, const dlxi_frame *frame, dlx_error *error);

void dlxi_greeting_encode(uint8_t dst[DLXI_GREETING_BYTES], const dlxi_greeting *greeting);
/* False: the frame says nothing of this. */
bool dlxi_greeting_decode(dlxi_greeting *greeting, const dlxi_frame *frame);

#endif
