/* SPDX-License-Identifier: Apache-2.0 */
/* A run that ended early goes on from what its sites have saved: they join as at a start, and say
 * which run they left, and where. One of them brings what its coordinator needs. */
#include <stdlib.h>
#include <string.h>

#include "member/coordinator_internal.h"

/* ---- who may join ---------------------------------------------------------------------------- */

static bool mismatch_of_run(char text[DLXI_REASON_MAX + 1], const dlxi_run_site *first,
                            const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    bool resumes = hello->resumed_run != 0;
    const char *anew = resumes ? first->name : hello->site;
    const char *goes_on = resumes ? hello->site : first->name;
    unsigned long long ours = first->resumed_run, theirs = hello->resumed_run;
    if (theirs == ours) return false;
    if (ours != 0 && theirs != 0)
        return snprintf(text, size,
                        "site '%s' goes on with run %016llx, '%s' with run %016llx; give all of "
                        "them snapshots of one run (--resume=DIR)",
                        hello->site, theirs, first->name, ours);
    return snprintf(text, size,
                    "site '%s' starts a new run, '%s' goes on with run %016llx; start all with "
                    "--resume, or none",
                    anew, goes_on, ours | theirs);
}

bool dlxi_resume_mismatch(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                          const dlxi_run_site *s, const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    const dlxi_run_site *first = &c->sites[0];
    if (hello->resumed_run != 0 && (hello->round == 0 || hello->counted >= hello->round))
        return snprintf(text, size,
                        "site '%s' says that it resumes at round %llu, after %llu of "
                        "its own",
                        hello->site, (unsigned long long)hello->round,
                        (unsigned long long)hello->counted);
    if (c->count == 0) return false;
    if (mismatch_of_run(text, first, hello)) return true;
    if (hello->resumed_run == 0) return false;
    if (s != NULL && s->counted != hello->counted)
        return snprintf(text, size, "the snapshots of the ranks of site '%s' are not of one step",
                        s->name);
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) {
            const dlxi_run_rank *p = &c->sites[i].ranks[r];
            if (p->joined && p->round != hello->round)
                return snprintf(text, size,
                                "the snapshot of site '%s' is of round %llu, that of '%s' of round "
                                "%llu; give one of the same round with --resume=DIR",
                                hello->site, (unsigned long long)hello->round - 1, c->sites[i].name,
                                (unsigned long long)p->round - 1);
            if (p->joined && r == hello->rank && p->anchor_hash != hello->anchor_hash)
                return snprintf(text, size,
                                "the snapshots of sites '%s' and '%s' have different anchors after "
                                "round %llu: a bug or faulty memory; take an earlier one",
                                hello->site, c->sites[i].name,
                                (unsigned long long)hello->round - 1);
        }
    return false;
}

void dlxi_resume_forget(dlxi_coordinator *c) {
    free((uint8_t *)(uintptr_t)c->resumed.data);
    c->resumed = (dlxi_copy){0};
}

bool dlxi_resume_note(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_hello *hello) {
    s->resumed_run = hello->resumed_run;
    if (hello->resumed_run == 0) return true;
    s->counted = hello->counted;
    s->ranks[hello->rank].round = hello->round;
    bool fits = hello->copy.bytes > 0 && hello->copy.round == hello->round - 1;
    if (!fits || (c->resumed.bytes > 0 && c->resumed.round == hello->copy.round)) return true;
    uint8_t *data = malloc(hello->copy.bytes);
    if (data == NULL) return false;
    memcpy(data, hello->copy.data, hello->copy.bytes);
    dlxi_resume_forget(c); /* of sites that have left */
    c->resumed = hello->copy;
    c->resumed.data = data;
    return true;
}

/* ---- the run goes on ------------------------------------------------------------------------- */

/* The windows that a site had and that do not count: for others. */
static void leases_return(dlxi_coordinator *before, const dlxi_run_site *b) {
    for (uint64_t n = b->counted + 1; n <= b->counted + 2; n++)
        if (n > b->voided)
            dlxi_ledger_settle(before->ledger, &b->leases[n % DLXI_COORDINATOR_LEASES], 0);
}

/* Its rounds may be longer now, or its batches larger. */
static void leases_extend(dlxi_coordinator *before, dlxi_run_site *s, const dlxi_run_site *b) {
    for (uint64_t n = b->counted + 1; n <= b->counted + 2; n++) {
        dlxi_lease *lease = &s->leases[n % DLXI_COORDINATOR_LEASES];
        const uint64_t windows = dlxi_lease_windows(lease);
        if (n > b->voided && lease->submission == n && windows < s->lease_windows)
            dlxi_ledger_extend(before->ledger, lease, s->lease_windows - (uint32_t)windows);
    }
}

/* What the run knows of this site, of an earlier start. */
static bool site_adopt(dlxi_coordinator *c, dlxi_run_site *s, dlxi_coordinator *before,
                       const dlxi_run_site *b) {
    if (s == NULL) {
        dlxi_lines_add(&c->log, "site '%s' does not go on with it; its windows are the others'",
                       b->name);
        leases_return(before, b);
        return true;
    }
    if (s->counted == 0 && b->counted > 0) { /* from another site's snapshot */
        leases_return(before, b);
        return true;
    }
    if (s->counted != b->counted) {
        dlxi_coordinator_fail(c, DLX_STATE, s->name,
                              "the snapshot of site '%s' has %llu of its rounds, the run counts "
                              "%llu; give a snapshot of another site, or an earlier one of all "
                              "sites, with --resume=DIR",
                              s->name, (unsigned long long)s->counted,
                              (unsigned long long)b->counted);
        return false;
    }
    s->voided = b->voided;
    s->windows_early = b->windows_early;
    s->left_out_total = b->left_out_total;
    memcpy(s->leases, b->leases, sizeof s->leases);
    leases_extend(before, s, b);
    return true;
}

static bool state_adopt(dlxi_coordinator *c, dlxi_coordinator *before) {
    for (uint16_t i = 0; i < before->count; i++) {
        const dlxi_run_site *b = &before->sites[i];
        if (!site_adopt(c, dlxi_run_site_find(c, b->name), before, b)) return false;
    }
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        const dlxi_run_site *b = dlxi_run_site_find(before, s->name);
        s->was_member = true;
        if (b == NULL || (s->counted == 0 && b->counted > 0))
            dlxi_lines_add(&c->log, "site '%s' begins with another one's state", s->name);
    }
    dlxi_ledger *ledger = c->ledger;
    c->ledger = before->ledger;
    before->ledger = ledger;
    c->round = before->round;
    c->committed_tokens = before->committed_tokens;
    c->term = before->term + 1;
    return true;
}

bool dlxi_resume_adopt(dlxi_coordinator *c) {
    const dlxi_run_site *first = &c->sites[0];
    const uint64_t run_id = first->resumed_run, round = first->ranks[0].round;
    dlxi_coordinator *before;
    dlx_error error;
    if (run_id == 0) return true;
    c->settings.run_id = run_id;
    dlxi_lines_add(&c->log, "goes on with run %016llx at round %llu", (unsigned long long)run_id,
                   (unsigned long long)round);
    if (round == 1) return true; /* nothing was committed: it begins */
    if (c->resumed.bytes == 0) {
        dlxi_coordinator_fail(c, DLX_STATE, NULL,
                              "no snapshot of a site has the coordinator's state after round %llu: "
                              "give the sites earlier ones with --resume=DIR",
                              (unsigned long long)round - 1);
        return false;
    }
    if (dlxi_coordinator_read_copy(&before, &c->settings, &c->resumed, c->now_ms, &error) !=
        DLX_OK) {
        dlxi_coordinator_fail(c, error.status, NULL, "%s", error.message);
        return false;
    }
    bool same = before->settings.run_id == run_id && before->round == round;
    bool unfinished = before->committed_tokens < c->settings.tokens_target;
    if (!same)
        dlxi_coordinator_fail(c, DLX_DATA, NULL,
                              "the coordinator's state in a snapshot is of another round or run");
    else if (!unfinished)
        dlxi_coordinator_fail(c, DLX_STATE, NULL,
                              "the run has all of its %llu tokens; raise train.tokens to go on",
                              (unsigned long long)before->committed_tokens);
    bool adopted = same && unfinished && state_adopt(c, before);
    dlxi_coordinator_close(&before);
    return adopted;
}
