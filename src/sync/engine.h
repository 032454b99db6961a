/* SPDX-License-Identifier: Apache-2.0 */
/* One rank's side of a run as one pure machine: membership (member/site.h), the ways to the other
 * sites, the starting anchor, and the exchange of each round. In: frames, requests, time. Out:
 * actions, one at a time, and one outcome. It owns every deadline, but no socket, thread or clock.
 *
 *   open → hello … → LISTEN, CONNECT → greetings on every way, θ to sites that start elsewhere
 *   → outcome.joined → request.submits … BEGIN, frames, COMMIT → outcome.committed → …
 *   → request.report → outcome.ended
 *
 * A round that commits without this site is followed: its results are fetched from a site that has
 * them, and applied; what was submitted stays, and is submitted for the next round. Each site keeps
 * the results of the last rounds for others (history.h).
 *
 * The state is lent to the engine: at open, until joined; and from submit to commit. The training
 * thread may recall it meanwhile; the engine then waits for it where it needs it.
 *
 * Ways. Each pair of sites exchanges GREETING frames: four per second while sites join, an attempt
 * is under way or the sender computes, else one. A greeting says whether the other side's were
 * received, and how much of the present attempt was sent and received. So the pair itself notices
 * silence, and frames that a broken connection lost; these are sent again. An attempt without
 * progress for timeout_ms is aborted, naming the pair, and begun again from the same M. A way that
 * the coordinator left this site out for is tried with larger greetings. */
#ifndef DLXI_SYNC_ENGINE_H
#define DLXI_SYNC_ENGINE_H

#include "member/site.h"
#include "sync/exchange.h"

typedef struct dlxi_engine dlxi_engine;

/* What the training thread wants: everything since the last request. */
typedef struct dlxi_request {
    dlxi_state *state; /* handed over, or NULL */
    bool submits;      /* state's M, with `ready` */
    dlxi_ready ready;  /* exchange_* are the engine's to fill in */
    bool recalls;      /* the training thread needs the state for a while */
    char *report;      /* handed over, or NULL */
    uint64_t parts;    /* with report: as in dlxi_report */
    uint16_t part_count;
    bool closes; /* the engine ends; the others get `why` unless its status is DLX_OK */
    dlx_error why;
} dlxi_request;

typedef struct dlxi_joined {
    uint16_t site_index, site_count;
    bool returns; /* into a run that lives; the state is its present one */
    uint64_t tokens_target, run_id;
    dlxi_lease leases[2]; /* of the next two submissions */
} dlxi_joined;

typedef struct dlxi_committed {
    dlxi_commit commit;
    uint64_t view_tokens, own_tokens; /* of all members, and of this site */
    float weight;                     /* this site's */
    dlxi_diagnosis diagnosis;
    double speed; /* its inner steps in the time of one of the median member; 0: not known */
    uint16_t member_index, member_count; /* this site's place among the view's members */
} dlxi_committed;

/* What the training thread gets: everything since the last outcome. */
typedef struct dlxi_outcome {
    bool joined, committed, ended;
    dlxi_state *state;    /* handed back, or NULL */
    dlx_error failure;    /* with ended; status DLX_OK: the run ended well */
    dlxi_joined join;     /* with joined */
    dlxi_committed round; /* with committed */
    /* always */
    uint64_t parts; /* of the work at the end, as in dlxi_ping */
    uint16_t part_count;
    bool saves;
    uint64_t attempts, repairs; /* repairs: how often lost frames were sent again to a site */
    uint64_t exchange_ns, exchange_bytes; /* of the last committed round */
} dlxi_outcome;

typedef enum dlxi_engine_action_kind {
    DLXI_ENGINE_SEND,      /* `frame` to `peer` */
    DLXI_ENGINE_LISTEN,    /* for site `peer`, as link.h's listen: fills in `endpoint` */
    DLXI_ENGINE_CONNECT,   /* to site `peer` at `endpoint` */
    DLXI_ENGINE_RECONNECT, /* to `peer`, a site or the coordinator */
    DLXI_ENGINE_LOG        /* `text`, for the operator */
} dlxi_engine_action_kind;

typedef struct dlxi_engine_action {
    dlxi_engine_action_kind kind;
    uint32_t me, peer;
    dlxi_frame frame; /* its payload is valid until the next call */
    const char *name, *public_key, *text;
    char endpoint[DLXI_ENDPOINT_BYTES];
} dlxi_engine_action;

/* `options` are read now, and `state` is lent; on failure too it stays the caller's. incarnation:
 * random, of this process. */
dlx_status dlxi_engine_open(dlxi_engine **out, const dlx_sync_config *options, uint64_t incarnation,
                            dlxi_state *state, int64_t now_ms, dlx_error *error);
/* Does not close a state that is still lent: dlxi_engine_outcome first. */
void dlxi_engine_close(dlxi_engine **engine);

/* Called between tensors of long computations; it may call dlxi_engine_keep_alive and _next. */
void dlxi_engine_set_keepalive(dlxi_engine *e, void (*keepalive)(void *context), void *context);

/* `peer`: a site's index, or DLXI_SITE_COORDINATOR. */
void dlxi_engine_on_frame(dlxi_engine *e, uint32_t peer, const dlxi_frame *frame, int64_t now_ms);
/* Takes everything in the request over. */
void dlxi_engine_on_request(dlxi_engine *e, dlxi_request *request, int64_t now_ms);
/* The link has room again for what it did not take. */
void dlxi_engine_on_room(dlxi_engine *e);
/* The link itself failed. */
void dlxi_engine_on_link_failure(dlxi_engine *e, const dlx_error *why);
/* After all frames that have arrived: continues the exchange, judges deadlines. */
void dlxi_engine_on_tick(dlxi_engine *e, int64_t now_ms);
/* In the middle of a long computation. */
void dlxi_engine_keep_alive(dlxi_engine *e, int64_t now_ms);

/* The next action, or false if there is none now. Each is followed by dlxi_engine_done. */
bool dlxi_engine_next(dlxi_engine *e, dlxi_engine_action *action, int64_t now_ms);
/* What became of it; `error` says more if it failed. DLX_AGAIN, DLX_PEER_LOST: not sent. */
void dlxi_engine_done(dlxi_engine *e, const dlxi_engine_action *action, dlx_status status,
                      const dlx_error *error);

/* Takes the outcome; false if nothing has happened since the last. */
bool dlxi_engine_outcome(dlxi_engine *e, dlxi_outcome *outcome);
/* It has ended, and nothing waits to be sent to the coordinator. */
bool dlxi_engine_is_over(const dlxi_engine *e);

#endif
