/* SPDX-License-Identifier: Apache-2.0 */
/* One site's part in the exchange of a round: projections, two AllReduces, and what a commit does
 * to the shard. Pure: it owns no link, thread or clock.
 *
 * begin → trip 0: P factors of low-rank tensors, the rest whole → trip 1: Q factors → staged →
 * commit | abort → begin
 *
 * Until commit nothing of θ, v, e or the bases changes. */
#ifndef DLXI_SYNC_EXCHANGE_H
#define DLXI_SYNC_EXCHANGE_H

#include "sync/shard.h"
#include "wire/messages.h"

typedef struct dlxi_exchange dlxi_exchange;

/* Borrows the shard. */
dlx_status dlxi_exchange_open(dlxi_exchange **out, dlxi_shard *shard, dlx_error *error);
void dlxi_exchange_close(dlxi_exchange **exchange);

/* The number, within its site, of the rank that this is; 0 unless set. Frames carry it, and those
 * of another rank are refused. */
void dlxi_exchange_set_rank(dlxi_exchange *x, uint16_t rank);

/* Called between tensors of the long computations, so that the owner can say that it is alive. */
void dlxi_exchange_set_keepalive(dlxi_exchange *x, void (*keepalive)(void *context), void *context);

/* Starts an attempt with the view's members, of which `site` is one; an earlier attempt is dropped.
 * A shard without tensors is staged at once. DLX_NUMERIC where M is not finite. */
dlx_status dlxi_exchange_begin(dlxi_exchange *x, const dlxi_view *view, uint16_t site,
                               uint32_t term, uint64_t round, uint32_t attempt, dlx_error *error);
void dlxi_exchange_abort(dlxi_exchange *x);

/* The next frame for that site, as dlxi_allreduce_peek and _advance. */
bool dlxi_exchange_peek(dlxi_exchange *x, uint16_t site, dlxi_frame *frame);
void dlxi_exchange_advance(dlxi_exchange *x, uint16_t site);

/* A contribution or result from another site. Frames of attempts and trips to come are kept
 * (bounded) until then; those of past ones are dropped. DLX_DATA: malformed, the attempt can't go
 * on. */
dlx_status dlxi_exchange_on_frame(dlxi_exchange *x, const dlxi_frame *frame, dlx_error *error);

/* Goes on to the next trip once the present one is done. *staged is true when the last one is. */
dlx_status dlxi_exchange_poll(dlxi_exchange *x, bool *staged, dlx_error *error);
uint64_t dlxi_exchange_staged_hash(const dlxi_exchange *x);
int dlxi_exchange_trip(const dlxi_exchange *x); /* 0, 1, or −1 outside an attempt or when staged */

/* e, v, θ and the bases of a staged attempt; then ranks and H for the rounds to come. Can't fail.
 */
void dlxi_exchange_commit(dlxi_exchange *x);

/* This site's weight in the last view. */
float dlxi_exchange_weight(const dlxi_exchange *x);

#endif
