/* SPDX-License-Identifier: Apache-2.0 */
/* Inside a coordinator: its sites and their ranks, and who may join. */
#ifndef DLXI_MEMBER_COORDINATOR_INTERNAL_H
#define DLXI_MEMBER_COORDINATOR_INTERNAL_H

#include <stdio.h>

#include "member/coordinator.h"
#include "member/lease.h"

enum { DLXI_COORDINATOR_LEASES = 3 /* rounds t, t+1, t+2 */ };

/* One rank of a site: it joins, hands out and stages by itself; a round counts for all or for none.
 */
typedef struct dlxi_participant {
    bool there; /* it said hello */
    bool listening, ready, staged, reported;
    uint32_t peer;
    uint64_t tensors_hash, anchor_hash;
    int64_t last_seen_ms;
    dlxi_endpoints *endpoints; /* from listening until peers, else NULL */
    dlxi_ready round_ready;
    uint64_t staged_hash;
} dlxi_participant;

typedef struct dlxi_member {
    char name[DLXI_SITE_NAME_MAX + 1];
    char key[DLXI_KEY_TEXT_MAX + 1];
    uint16_t ranks, there;
    dlxi_participant *participants; /* [ranks] */
    uint64_t windows, tokens_per_window, data_hash;
    uint32_t lease_windows;
    uint64_t tokens; /* of the present round, once all its ranks are ready */
    uint32_t windows_used;
    dlxi_lease leases[DLXI_COORDINATOR_LEASES]; /* of round t at t mod DLXI_COORDINATOR_LEASES */
    char *report;                               /* its rank 0's */
} dlxi_member;

/* The last site of several ranks that was refused: its ranks come one by one, and all are told the
 * same. */
typedef struct dlxi_refused_site {
    char name[DLXI_SITE_NAME_MAX + 1]; /* "": none */
    char text[DLXI_REASON_MAX + 1];
    int64_t until_ms;
    bool told[DLXI_RANKS_MAX]; /* one that comes again is of another try */
} dlxi_refused_site;

struct dlxi_coordinator {
    dlxi_coordinator_settings settings;
    dlxi_coordinator_phase phase;
    dlx_error result;
    uint32_t term, attempt;
    uint64_t round, committed_tokens;
    int64_t pinged_ms;
    char *shared_text;
    bool shared_text_is_given; /* or the first site's */
    bool welcomed;
    uint16_t count; /* sites, with all of their ranks or some */
    dlxi_member sites[DLXI_SITES_MAX];
    uint32_t participants; /* of all sites, once welcomed */
    uint32_t listening_count, ready_count, staged_count, reported_count;
    dlxi_refused_site refused;
    dlxi_ledger *ledger;
    dlxi_outbox outbox;
    dlxi_message incoming;
    char notice[DLXI_REASON_MAX + 64];
};

/* "site 'paris'", or "site 'paris' (rank 3)" where a site has several. */
typedef struct dlxi_label {
    char text[DLXI_SITE_NAME_MAX + 32];
} dlxi_label;

static inline dlxi_label dlxi_label_for(const char *name, uint16_t rank, uint16_t ranks) {
    dlxi_label l;
    if (ranks > 1)
        snprintf(l.text, sizeof l.text, "site '%s' (rank %u)", name, rank);
    else
        snprintf(l.text, sizeof l.text, "site '%s'", name);
    return l;
}

static inline bool dlxi_member_is_whole(const dlxi_member *s) {
    return s->there == s->ranks;
}

/* Why there is no place for whoever says this, or false; it is no fault of a site that is there.
 * `s`: what is there of the site of that name, or NULL. */
bool dlxi_coordinator_has_no_place(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                                   const char *proved_name, const dlxi_member *s,
                                   const dlxi_hello *hello);
/* Why this rank makes no whole with its site or the run, or false. */
bool dlxi_coordinator_misfit(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                             const dlxi_member *s, const dlxi_hello *hello);

#endif
