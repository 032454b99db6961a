/* SPDX-License-Identifier: Apache-2.0 */
/* For takeover.c, and for tests that copy its state. */
#ifndef DLXI_MEMBER_TAKEOVER_INTERNAL_H
#define DLXI_MEMBER_TAKEOVER_INTERNAL_H

#include "base/lines.h"
#include "member/coordinator_internal.h"
#include "member/takeover.h"

/* A rank as it last answered. */
typedef struct dlxi_heard {
    uint16_t site, rank;
    uint32_t peer;
    char name[DLXI_NAME_BYTES]; /* "" without security */
    bool answered, hears;
    uint64_t coordinator, round, view;
    uint32_t term;
    dlxi_copy copy; /* without data */
    int64_t seen_ms, asked_ms;
} dlxi_heard;

struct dlxi_takeover {
    dlxi_takeover_settings settings;
    char *shared_text, *without;
    bool done;
    dlx_error result;
    uint64_t run_id;   /* 0: not known yet */
    uint32_t term;     /* that is claimed; 0: none */
    dlxi_heard *ranks; /* [count] */
    uint32_t count, room;
    dlxi_copy best;      /* without data */
    dlxi_coordinator *c; /* as the best copy says; NULL: there is none yet */
    uint64_t given_up;   /* bits of its sites */
    int64_t now_ms, opened_ms, told_ms;
    char waits[DLXI_REASON_MAX + 1]; /* what for, as it was last told */
    dlxi_outbox outbox;
    dlxi_message incoming;
    dlxi_lines log;
};

#endif
