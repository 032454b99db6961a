/* SPDX-License-Identifier: Apache-2.0 */
/* After the last round: the sites evaluate, save and report, whoever is there. */
#include <stdlib.h>
#include <string.h>

#include "member/coordinator_internal.h"

/* Once all that are present have answered `finished`. */
static void done_consider(dlxi_coordinator *c) {
    for (const dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;)
        if (!DLXI_ALL(s, finished)) return;
    c->phase = DLXI_COORDINATOR_DONE;
}

/* Present sites without a report are lost in the end. One that has not got the last round's results
 * gets them soon or not at all. One that has them may be slow: it gets several times as long as the
 * others took, once one of those has reported. */
static void end_judge(dlxi_coordinator *c) {
    enum { SLOWER = 4 };
    bool works = false, any = false;
    uint64_t late = 0; /* bits */
    for (dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;) {
        bool reported = DLXI_ALL(s, reported);
        any = any || reported;
        late |= (uint64_t)!reported << (s - c->sites);
        works = works || (!reported && !dlxi_presence_is_behind(c, s));
    }
    if (works && (!any || c->settings.sites_min == 0)) {
        c->waits_since_ms = 0;
        return;
    }
    if (c->waits_since_ms == 0) c->waits_since_ms = c->now_ms;
    int64_t waited_ms = c->now_ms - c->waits_since_ms, most_ms = c->settings.patience_ms;
    if (works) most_ms += SLOWER * (c->waits_since_ms - c->ending_ms);
    if (waited_ms < most_ms) return;
    c->waits_since_ms = 0;
    for (dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;) {
        char text[sizeof(dlxi_label) + 96];
        bool is_late = (late >> (s - c->sites) & 1u) != 0; /* it may have got the work of another */
        if (!is_late || c->phase != DLXI_COORDINATOR_ENDING) continue;
        snprintf(text, sizeof text,
                 dlxi_presence_is_behind(c, s)
                     ? "site '%s' has not taken over the last round's results for %lld s"
                     : "site '%s' has not reported for %lld s after the others",
                 s->name, (long long)waited_ms / 1000);
        dlxi_presence_lose(c, s, NULL, DLX_PEER_LOST, text);
    }
}

/* A part for each site that is present, in order; the first one saves. */
static void parts_cut(dlxi_coordinator *c) {
    if (c->part_count > 0 || dlxi_presence_is_expecting(c)) return;
    c->ending_ms = c->now_ms;
    for (dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;) {
        if (c->part_count == 0) c->saver = (uint16_t)(s - c->sites);
        s->parts = UINT64_C(1) << c->part_count++;
    }
}

/* To another one, which reports anew. */
static void work_pass_on(dlxi_coordinator *c, dlxi_run_site *from) {
    bool saves = c->saver == (uint16_t)(from - c->sites), reported = DLXI_ALL(from, reported);
    dlxi_run_site *to = dlxi_run_site_next(c, NULL);
    if (reported || to == NULL || c->part_count == 0 || (from->parts == 0 && !saves)) return;
    to->parts |= from->parts;
    from->parts = 0;
    if (saves) c->saver = (uint16_t)(to - c->sites);
    for (uint16_t r = 0; r < to->rank_count; r++) to->ranks[r].reported = false;
    c->ending_ms = c->now_ms;
    c->waits_since_ms = 0;
}

/* Once all that are present have reported, if any has. */
static void end_consider(dlxi_coordinator *c) {
    bool any = false, waits = dlxi_presence_is_expecting(c);
    if (waits) return;
    for (const dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL; any = true)
        waits = waits || !DLXI_ALL(s, reported);
    if (waits) {
        end_judge(c);
        return;
    }
    if (!any) {
        if (c->waits_since_ms == 0) c->waits_since_ms = c->now_ms;
        if (c->now_ms - c->waits_since_ms < c->settings.patience_ms) return;
        c->leaves_run = true; /* nobody hears that it is over */
        dlxi_coordinator_fail(c, DLX_PEER_LOST, NULL,
                              "all tokens are committed, but no site came to report for %u s "
                              "(wan.patience_s); a coordinator that is started again goes on",
                              c->settings.patience_ms / 1000);
        return;
    }
    c->waits_since_ms = 0;
    (void)dlxi_coordinator_compose(c, DLXI_FRAME_FINISHED);
    dlxi_coordinator_put_all(c);
    if (c->phase != DLXI_COORDINATOR_ENDING) return;
    c->phase = DLXI_COORDINATOR_CLOSING;
    c->closing_ms = c->now_ms;
}

void dlxi_end_on_report(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                        const dlxi_report *report) {
    if (c->phase != DLXI_COORDINATOR_ENDING || p->reported) return;
    bool whole = report->part_count == c->part_count && c->part_count > 0 &&
                 (s->parts & ~report->parts) == 0;
    if (!whole && report->parts != UINT64_MAX) return; /* it has not heard of all of them yet */
    if (p == &s->ranks[0]) {
        free(s->report);
        s->report = strdup(report->text);
        if (s->report == NULL) {
            dlxi_coordinator_fail_memory(c);
            return;
        }
    }
    p->reported = true;
    c->waits_since_ms = 0;
    end_consider(c);
}

void dlxi_end_on_finished(dlxi_coordinator *c, dlxi_run_rank *p) {
    if (c->phase != DLXI_COORDINATOR_CLOSING || p->finished || !p->reported) return;
    p->finished = true;
    done_consider(c);
}

void dlxi_end_on_presence(dlxi_coordinator *c, dlxi_run_site *s) {
    (void)s; /* it may be the first to come back: then it takes over from all that have not */
    for (uint16_t i = 0; i < c->count && c->phase == DLXI_COORDINATOR_ENDING; i++)
        if (c->sites[i].presence != DLXI_PRESENT) work_pass_on(c, &c->sites[i]);
    if (c->phase == DLXI_COORDINATOR_ENDING) end_consider(c);
    if (c->phase == DLXI_COORDINATOR_CLOSING) done_consider(c);
}

void dlxi_end_on_tick(dlxi_coordinator *c) {
    if (c->phase != DLXI_COORDINATOR_ENDING) return;
    parts_cut(c);
    end_consider(c);
}
