/* SPDX-License-Identifier: Apache-2.0 */
/* How a coordinator without the run's store takes the run over: it asks the sites where they are,
 * and goes on from the newest copy of the coordinator's state that one of them keeps. A pure state
 * machine: it owns no socket, thread or clock.
 *
 * It asks until all ranks of the sites that may know of a later round have answered, and none of
 * them hears its coordinator; then it claims the run, until they obey this one and nobody else.
 *
 * Those sites are the members of the last record, and of any attempt that one of them is in. A
 * later round has a member of the last one, which has staged it, and so names the others; so if all
 * of them obey this coordinator and none has a later round, nobody can have one, or get it. A site
 * that is given up may have made a round with anybody: then all others are needed. */
#ifndef DLXI_MEMBER_TAKEOVER_H
#define DLXI_MEMBER_TAKEOVER_H

#include "member/coordinator.h"

typedef struct dlxi_takeover dlxi_takeover;

typedef struct dlxi_takeover_settings {
    dlxi_coordinator_settings run; /* life_id: of another lineage than the run's */
    const char *without;           /* names of sites, with commas: they are given up; NULL: none */
} dlxi_takeover_settings;

/* Texts are copied. */
dlx_status dlxi_takeover_open(dlxi_takeover **out, const dlxi_takeover_settings *settings,
                              int64_t now_ms, dlx_error *error);
void dlxi_takeover_close(dlxi_takeover **takeover);

/* As dlxi_coordinator_on_frame. */
void dlxi_takeover_on_frame(dlxi_takeover *t, uint32_t peer, const char *name,
                            const dlxi_frame *frame, int64_t now_ms);
void dlxi_takeover_on_tick(dlxi_takeover *t, int64_t now_ms);
/* Takes the oldest line for the operator. */
bool dlxi_takeover_pop_log(dlxi_takeover *t, char *text, size_t text_bytes);
dlxi_outbox *dlxi_takeover_outbox(dlxi_takeover *t);
/* Whether sites may have been told to obey it: they obey no other one that is older. */
bool dlxi_takeover_has_claimed(const dlxi_takeover *t);

bool dlxi_takeover_is_done(const dlxi_takeover *t);
/* After that. *out ← the coordinator, the caller's, which has sent nothing yet; or why it failed:
 * DLX_TIMEOUT: after patience_ms; DLX_CONFIG: its settings are not the run's; DLX_DATA. */
dlx_status dlxi_takeover_result(dlxi_takeover *t, dlxi_coordinator **out, dlx_error *error);

#endif
