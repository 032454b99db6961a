/* SPDX-License-Identifier: Apache-2.0 */
/* Control messages: the payloads of the frames between a site and the coordinator. One function a
 * message both writes and reads it, so that the two can't disagree. Everything read is bounded
 * here; what it means is checked by its reader. */
#ifndef DLXI_WIRE_MESSAGES_H
#define DLXI_WIRE_MESSAGES_H

#include "base/limits.h"
#include "wire/frame.h"

typedef struct dlxi_range {
    uint64_t first;
    uint32_t count;
} dlxi_range;

/* Positions in the global order of training windows that one site may use in one round. */
typedef struct dlxi_lease {
    uint64_t round;
    uint32_t range_count;
    dlxi_range ranges[DLXI_LEASE_RANGES_MAX]; /* disjoint, count ≥ 1 */
} dlxi_lease;

/* site → coordinator: who I am and what I would train. */
typedef struct dlxi_hello {
    char site[DLXI_SITE_NAME_MAX + 1];
    uint16_t rank, ranks;  /* as sent: a coordinator says what is wrong with them */
    uint64_t tensors_hash; /* of ids, names, shapes, and settings that replicas share */
    uint64_t anchor_hash;
    uint64_t windows, tokens_per_window, data_hash;
    uint32_t lease_windows; /* wanted a round */
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
    dlxi_lease leases[2];      /* of rounds 1 and 2 */
} dlxi_welcome;

/* site → coordinator: where I listen for each site; coordinator → site: where each site listens for
 * you. */
typedef struct dlxi_endpoints {
    uint16_t sites;
    char endpoint[DLXI_SITES_MAX][DLXI_ENDPOINT_MAX + 1];
} dlxi_endpoints;

/* site → coordinator: a round's pseudo-gradient is submitted. */
typedef struct dlxi_ready {
    uint64_t tokens;       /* trained on; the site's weight */
    uint32_t windows_used; /* of the round's lease */
    uint64_t anchor_hash;  /* after the last commit; 0 if replicas need not be equal */
    double norm;           /* of M */
    uint64_t step_ns;      /* an inner step takes */
    uint64_t exchange_ns;  /* the last exchange took, of exchange_bytes; 0: none yet */
    uint64_t exchange_bytes;
} dlxi_ready;

/* coordinator → site: the view of an attempt. */
typedef struct dlxi_view {
    uint16_t members;
    struct {
        uint16_t site;
        uint64_t tokens;
        uint64_t step_ns, exchange_ns, exchange_bytes;
    } member[DLXI_SITES_MAX]; /* [members], by site */
} dlxi_view;

typedef struct dlxi_staged {
    uint64_t hash; /* of the results as received */
} dlxi_staged;

/* coordinator → site: the round counts. */
typedef struct dlxi_commit {
    uint64_t committed_tokens; /* of the run */
    bool finished;
    dlxi_lease lease; /* of the round after next */
} dlxi_commit;

/* abort, failed, stop: why. */
typedef struct dlxi_reason {
    uint16_t status; /* a dlx_status */
    char text[DLXI_REASON_MAX + 1];
} dlxi_reason;

typedef struct dlxi_report {
    char text[DLXI_TEXT_MAX + 1];
} dlxi_report;

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
    } as; /* FINISHED and PING are empty */
} dlxi_message;

/* Writes at most capacity_bytes and sets *used_bytes. DLX_ARGUMENT if it does not fit or a field
 * is out of range. */
dlx_status dlxi_message_encode(uint8_t *dst, size_t capacity_bytes, size_t *used_bytes,
                               const dlxi_message *message, dlx_error *error);
/* The payload of a control frame. DLX_DATA if it is malformed or the frame is no control frame.
 */
dlx_status dlxi_message_decode(dlxi_message *message, const dlxi_frame *frame, dlx_error *error);

#endif
