/* SPDX-License-Identifier: Apache-2.0 */
/* One rank's part in the exchange of a round: projections, the AllReduces, and what a commit does
 * to the state. Pure: it owns no link, thread or clock, and no state: the state's owner lends it to
 * each call that needs it.
 *
 *   begin → trip 0: P factors of low-rank tensors, the rest whole → trip 1: Q factors → staged →
 *   commit | abort → begin
 *
 * or, for a round in which this site was not:
 *
 *   follow → entries of all trips, as they were committed → followed → commit
 *
 * Statistics travel beside trip 0, unquantised, as trip 2. Until commit nothing in the state
 * changes. */
#ifndef DLXI_SYNC_EXCHANGE_H
#define DLXI_SYNC_EXCHANGE_H

#include "outer/diagnosis.h"
#include "sync/allreduce.h"
#include "sync/history.h"
#include "sync/state.h"
#include "wire/messages.h"

typedef struct dlxi_exchange dlxi_exchange;

/* Sized for states of this one's shape. `rank`: within the site; frames carry it, and those of
 * another rank are refused. */
dlx_status dlxi_exchange_open(dlxi_exchange **out, const dlxi_state *shape, uint16_t rank,
                              dlx_error *error);
void dlxi_exchange_close(dlxi_exchange **exchange);

/* Called between tensors of long computations, so that the owner can send keepalives. */
void dlxi_exchange_set_keepalive(dlxi_exchange *x, void (*keepalive)(void *context), void *context);

/* Starts an attempt of state's M with the view's members, of which `site` is one; an earlier
 * attempt is dropped. A state without tensors is staged at once. DLX_NUMERIC: M is not finite. */
dlx_status dlxi_exchange_begin(dlxi_exchange *x, const dlxi_state *state, const dlxi_view *view,
                               uint16_t site, uint32_t term, uint64_t round, uint32_t attempt,
                               dlx_error *error);
void dlxi_exchange_abort(dlxi_exchange *x);

/* The next frame for that site, as dlxi_allreduce_peek and _advance; when staged too, until the
 * commit: others may lack frames. */
bool dlxi_exchange_peek(dlxi_exchange *x, uint16_t site, dlxi_frame *frame);
bool dlxi_exchange_advance(dlxi_exchange *x, uint16_t site);

/* A contribution or result from another site. Frames of attempts and trips to come are kept
 * (bounded) until then; those of past ones are dropped. *moved: it is no repetition.
 * DLX_PEER_LOST: frames before it were lost, and are to be asked for. DLX_DATA: it is malformed,
 * and the attempt can't go on. */
dlx_status dlxi_exchange_on_frame(dlxi_exchange *x, const dlxi_frame *frame, bool *moved,
                                  dlx_error *error);

/* How far the attempt's trips are with that site, both ways, written to greeting->trips; false
 * outside an attempt, or if the site is not in it. */
bool dlxi_exchange_offsets(const dlxi_exchange *x, uint16_t site, dlxi_greeting *greeting);
/* Sends again what that site, by its greeting in this attempt, has not received. */
void dlxi_exchange_go_back(dlxi_exchange *x, uint16_t site, const dlxi_greeting *theirs);

/* Goes on to the next trip once the present one is done. *staged is true when the last one is. */
dlx_status dlxi_exchange_poll(dlxi_exchange *x, const dlxi_state *state, bool *staged,
                              dlx_error *error);
uint64_t dlxi_exchange_staged_hash(const dlxi_exchange *x);
/* 0, 1, or −1 outside an attempt and when staged. */
int dlxi_exchange_trip(const dlxi_exchange *x);
bool dlxi_exchange_is_staged(const dlxi_exchange *x);

/* What an attempt still lacks from a site. */
dlxi_awaited dlxi_exchange_awaits(const dlxi_exchange *x, uint16_t site);

/* The round after the state's was committed by this view, without this site: its results come as
 * entries. */
dlx_status dlxi_exchange_follow(dlxi_exchange *x, const dlxi_state *state, const dlxi_view *view,
                                uint64_t round, dlx_error *error);
bool dlxi_exchange_is_following(const dlxi_exchange *x);
/* What is missing, as a FETCH frame says it; false: nothing, commit may be called. */
bool dlxi_exchange_wants(const dlxi_exchange *x, dlxi_frame *fetch);
/* An ENTRY frame of this round: as dlxi_allreduce_on_entry. */
dlx_status dlxi_exchange_on_entry(dlxi_exchange *x, const dlxi_frame *frame, bool *moved,
                                  dlx_error *error);

/* Adds the results of a staged attempt, or a round that is followed, to the history. Without memory
 * it is not kept. */
void dlxi_exchange_keep(const dlxi_exchange *x, uint32_t lineage, dlxi_history *history);
/* e, v, θ and the bases of a staged attempt; then ranks and H for the rounds to come. Of a round
 * that is followed the same, but M stays what it is. Can't fail. */
void dlxi_exchange_commit(dlxi_exchange *x, dlxi_state *state);

/* Payload bytes of one site's whole vectors in the last round that began. */
uint64_t dlxi_exchange_bytes(const dlxi_exchange *x, const dlxi_state *state);

/* This site's weight in the last view; 0 if it was not in it. */
float dlxi_exchange_weight(const dlxi_exchange *x);

/* Of the last committed round; zeros if this site was not in it, or it had gradients. */
const dlxi_diagnosis *dlxi_exchange_diagnosis(const dlxi_exchange *x);

#endif
