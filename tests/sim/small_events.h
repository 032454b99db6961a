/* SPDX-License-Identifier: Apache-2.0 */
/* What may happen in a small world, and what has to hold after it. */
#ifndef DLXI_TESTS_SMALL_EVENTS_H
#define DLXI_TESTS_SMALL_EVENTS_H

#include "small_world.h"
#include "windows.h"

/* Where a coordinator stops: STOP_SENT + n after it has sent n frames. */
enum { STOP_NOT, STOP_UNSAVED, STOP_SENT };
enum { PING_AFTER_MS = 400 };

static uint32_t last_sent[2]; /* by each coordinator, in its last step */
static bool last_unsaved[2];  /* so it was, in its last step */
static uint64_t target_tokens;

static uint64_t tokens_of(uint16_t i) {
    return i + 1u;
}

static bool is_active(uint16_t i) {
    return !w.owner[i].dead && site[i]->phase != DLXI_SITE_DONE;
}

/* ---- one history ----------------------------------------------------------------------------- */

static uint32_t members_of(const dlxi_view *v) {
    uint32_t bits = 0;
    for (uint16_t i = 0; i < v->members; i++) bits |= 1u << v->member[i].site;
    return bits;
}

/* Round `round` counts by this record, says whoever shows it. */
static void history_note(uint64_t round, uint64_t hash, uint64_t committed, const dlxi_view *v) {
    CHECK(round > 0 && round < ROUNDS, "round %llu\n", (unsigned long long)round);
    if (w.history[round] == 0) {
        w.history[round] = hash;
        w.members[round] = members_of(v);
        w.committed[round] = committed;
    }
    CHECK(w.history[round] == hash, "two records of round %llu\n", (unsigned long long)round);
    uint64_t tokens = w.committed[round - 1];
    for (uint16_t i = 0; i < v->members; i++) tokens += v->member[i].tokens;
    CHECK(tokens == committed, "round %llu: %llu tokens are committed, its members have %llu\n",
          (unsigned long long)round, (unsigned long long)committed, (unsigned long long)tokens);
}

static uint64_t commit_hash(uint32_t attempt, const dlxi_commit *m) {
    uint64_t hash = mix(mix(mix(0, m->term), m->coordinator), attempt);
    return view_hash(mix(hash, m->committed_tokens), &m->view);
}

/* After each step of the coordinator: a view has a member of the last record's, which holds it. */
static void coordinator_judge(void) {
    const dlxi_coordinator *c = coordinator;
    const dlxi_record *last = c->round > 1 ? dlxi_record_of(c, c->round - 1) : NULL;
    uint32_t gone = 0, before = 0, now = 0;
    for (uint16_t i = 0; i < sites; i++)
        if (c->sites[i].presence == DLXI_GONE) gone |= 1u << i;
    CHECK(c->round == 1 || last != NULL, "the last record is lost\n");
    for (uint16_t i = 0; last != NULL && i < last->members; i++)
        before |= 1u << last->member[i].site;
    for (uint16_t i = 0; c->proposal != NULL && i < c->proposal->members; i++) {
        const dlxi_record_member *m = &c->proposal->member[i];
        now |= 1u << m->site;
        CHECK(m->tokens == (m->voided ? 0 : tokens_of(m->site)), "site %u: %llu tokens\n", m->site,
              (unsigned long long)m->tokens);
    }
    CHECK(now == 0 || last == NULL || (now & before) != 0 || (before & ~gone) == 0,
          "round %llu has no member of the one before\n", (unsigned long long)c->round);
    CHECK(windows_unused(c, 1) >= 0, "a window is in two places\n");
    bool taken = c->leaves_run && c->result.status == DLX_STATE && c->term == here->stored_term;
    bool is_newest = whose == 1 || !w.has_second;
    CHECK(!taken || !is_newest, "the newest coordinator gives way: %s\n", c->result.message);
}

/* Nothing is sent that rests on what the store has not. */
static void sent_judge(const dlxi_frame *f, uint32_t to) {
    CHECK(f->term <= here->stored_term && f->round <= here->stored_round,
          "sent before it is saved: kind %d, term %u, round %llu\n", (int)f->kind, f->term,
          (unsigned long long)f->round);
    if (f->kind != DLXI_FRAME_COMMIT) return;
    CHECK(f->round < here->stored_round && here->record_bytes[f->round] > 0,
          "site %u is told of round %llu before it is saved\n", to, (unsigned long long)f->round);
}

/* ---- the coordinator ------------------------------------------------------------------------- */

static void record_put(const dlxi_saved *saved) {
    CHECK(saved->record_bytes <= RECORD_BYTES && saved->round < ROUNDS, "a run without end\n");
    if (saved->record != NULL)
        memcpy(here->record[saved->round], saved->record,
               here->record_bytes[saved->round] = (uint16_t)saved->record_bytes);
}

static void store_write(void) {
    dlxi_saved saved;
    dlxi_view v;
    const dlxi_coordinator *c = coordinator;
    CHECK(dlxi_coordinator_save(coordinator, &saved, NULL) == DLX_OK, "save\n");
    CHECK(saved.state_bytes <= STATE_BYTES, "long\n");
    CHECK(c->round >= here->stored_round && c->term >= here->stored_term, "the store goes back\n");
    memcpy(here->state, saved.state, here->state_bytes = (uint16_t)saved.state_bytes);
    here->stored_round = c->round;
    here->stored_term = c->term;
    here->stored_gone = 0;
    for (uint16_t i = 0; i < sites; i++)
        if (c->sites[i].presence == DLXI_GONE) here->stored_gone |= 1u << i;
    record_put(&saved);
    const dlxi_record *r = dlxi_record_of(c, saved.round);
    /* if the run can be taken over, what counts is what a site has applied */
    if (r != NULL && !copies_count) {
        dlxi_record_view(&v, r, 0);
        history_note(saved.round, record_hash(0, r), r->committed_tokens, &v);
    }
    dlxi_saved_release(&saved);
}

/* A run that is saved as failed is not begun again. */
static void coordinator_stop(void) {
    bool failed = coordinator->result.status != DLX_OK &&
                  !(coordinator->leaves_run && coordinator->result.status == DLX_STATE);
    dlxi_outbox_clear(dlxi_coordinator_outbox(coordinator));
    here->down = true;
    here->over = failed && !dlxi_coordinator_is_unsaved(coordinator);
    here->has_failed = here->over;
    w.stops--;
    here->life++;
}

/* Whether the site's messages go to this coordinator, and back. */
static bool is_reached(uint16_t i) {
    return (w.turned >> i & 1u) == whose;
}

static void frame_send(const dlxi_outbox_item *item) {
    if (is_reached((uint16_t)item->to))
        queue_add(&w.to_site[whose == 0 ? here->life : SECOND][item->to], frame_keep(&item->frame));
}

/* Sends `most` frames; true: that was all. */
static bool coordinator_flush(uint32_t most) {
    dlxi_outbox *outbox = dlxi_coordinator_outbox(coordinator);
    const dlxi_outbox_item *item;
    for (last_sent[whose] = 0; (item = dlxi_outbox_peek(outbox)) != NULL; last_sent[whose]++) {
        if (last_sent[whose] == most) return false;
        if (here->state_bytes > 0) sent_judge(&item->frame, item->to);
        frame_send(item);
        dlxi_outbox_drop(outbox);
    }
    return true;
}

/* As coordinate.c: what is new is saved before anything is sent. */
static void coordinator_finish_step(uint32_t stop) {
    char line[512];
    while (dlxi_coordinator_pop_log(coordinator, line, sizeof line))
        if (verbose) printf("    %s\n", line);
    uint32_t most = stop >= STOP_SENT ? stop - STOP_SENT : UINT32_MAX;
    last_unsaved[whose] = dlxi_coordinator_is_unsaved(coordinator);
    coordinator_judge();
    if (DLXI_PLANTED(14) && stop != STOP_UNSAVED && !coordinator_flush(most)) {
        coordinator_stop();
        return;
    }
    if (stop == STOP_UNSAVED) {
        coordinator_stop();
        return;
    }
    if (last_unsaved[whose]) store_write();
    if (!coordinator_flush(most) || stop != STOP_NOT) {
        coordinator_stop();
        return;
    }
    if (dlxi_coordinator_phase_of(coordinator) != DLXI_COORDINATOR_DONE) return;
    dlx_error why = {.message = ""};
    here->has_succeeded = dlxi_coordinator_result(coordinator, &why) == DLX_OK;
    here->has_failed = !here->has_succeeded && !coordinator->leaves_run;
    CHECK(here->has_succeeded || why.message[0] != '\0', "the run ended without a reason\n");
    if (here->has_succeeded) dlxi_coordinator_set_over(coordinator);
    if (verbose && !here->has_succeeded) printf("    %s\n", why.message);
    here->has_given_up = coordinator->leaves_run && why.status == DLX_PEER_LOST;
    here->down = here->over = true;
}

/* The second one descends from another store. */
static dlxi_coordinator_settings settings_of(uint8_t life) {
    return (dlxi_coordinator_settings){.sites = sites,
                                       .sites_min = 1,
                                       .tokens_target = target_tokens,
                                       .run_id = 7,
                                       .life_id = (uint64_t)(whose == 0 ? 0 : w.lineage) << 32 |
                                                  (100u + life),
                                       .timeout_ms = TIMEOUT_MS,
                                       .join_ms = JOIN_MS,
                                       .patience_ms = PATIENCE_MS,
                                       .attempts_max = 3,
                                       .limbo_ms = LIMBO_MS,
                                       .find_ms = 0};
}

/* From the store: where any site is, the run is. */
static void coordinator_start(void) {
    static coordinator_image fresh;
    dlxi_coordinator *c;
    dlxi_coordinator_settings run = settings_of(here->life);
    dlx_error error = {.message = ""};
    CHECK(dlxi_coordinator_restore(&c, &run, here->state, here->state_bytes, w.now_ms, &error) ==
              DLX_OK,
          "it does not start again: %s\n", error.message);
    for (uint64_t r = 1; r < dlxi_coordinator_round(c); r++)
        CHECK(dlxi_coordinator_restore_record(c, here->record[r], here->record_bytes[r], NULL) ==
                  DLX_OK,
              "record %llu\n", (unsigned long long)r);
    coordinator_store(&fresh, c);
    dlxi_coordinator_close(&c);
    coordinator_load(coordinator, &fresh);
    here->down = false;
    for (uint16_t i = 0; i < sites && (whose == 1 || !w.has_second); i++)
        CHECK(w.owner[i].applied < coordinator->round, "site %u is further\n", i);
    coordinator_finish_step(STOP_NOT);
}

/* ---- taking over ----------------------------------------------------------------------------- */

static void takeover_start(void) {
    w.takeovers--;
    w.lineage++;
    w.has_second = here->taking = true;
    here->over = here->has_given_up = false;
    here->state_bytes = 0; /* if it had taken the run over before, that store is lost, too */
    const dlxi_coordinator_settings run = settings_of(here->life);
    if (takeover == NULL) takeover = takeover_new(&run);
    const takeover_image nothing = {
        .life_id = run.life_id, .now_ms = w.now_ms, .opened_ms = w.now_ms};
    w.best = 0;
    takeover_load(takeover, &nothing);
}

static void takeover_stop(void) {
    here->taking = false;
    here->life++;
    dlxi_outbox_clear(dlxi_takeover_outbox(takeover));
}

/* Nobody may have a round that it does not know, or get one. */
static void takeover_judge(const dlxi_coordinator *c) {
    for (uint16_t i = 0; i < sites; i++)
        CHECK(w.owner[i].applied < c->round,
              "site %u has applied round %llu, and the run is taken over at %llu\n", i,
              (unsigned long long)w.owner[i].applied, (unsigned long long)c->round);
}

/* As coordinate.c: what it took over is saved before anything is sent. */
static void takeover_finish(void) {
    static coordinator_image fresh;
    dlxi_coordinator *c;
    here->taking = false;
    if (dlxi_takeover_result(takeover, &c, NULL) != DLX_OK) {
        here->over = true;
        return;
    }
    takeover_best = 0;
    takeover_judge(c);
    coordinator_store(&fresh, c);
    if (machines[1] != NULL) {
        dlxi_coordinator_close(&c);
    } else {
        machines[1] = c;
        c->peers = realloc(c->peers, SITES * sizeof *c->peers);
        CHECK(c->peers != NULL, "out of memory\n");
        c->peer_room = SITES;
    }
    seat_take(1);
    coordinator_load(coordinator, &fresh);
    here->down = false;
    here->stored_round = here->stored_term = 0;
    memset(here->record_bytes, 0, sizeof here->record_bytes);
    store_write();
    for (uint64_t round = 1; round < coordinator->round - 1; round++) {
        dlxi_saved saved;
        CHECK(dlxi_coordinator_save_round(coordinator, round, &saved, NULL) == DLX_OK, "save\n");
        record_put(&saved);
        dlxi_saved_release(&saved);
    }
    coordinator_finish_step(STOP_NOT);
}

static void takeover_finish_step(void) {
    char line[512];
    dlxi_outbox *outbox = dlxi_takeover_outbox(takeover);
    dlxi_takeover_on_tick(takeover, w.now_ms);
    while (dlxi_takeover_pop_log(takeover, line, sizeof line))
        if (verbose) printf("    %s\n", line);
    if (dlxi_takeover_is_done(takeover)) {
        dlxi_outbox_clear(outbox);
        takeover_finish();
        return;
    }
    for (const dlxi_outbox_item *item; (item = dlxi_outbox_peek(outbox)) != NULL;) {
        frame_send(item);
        dlxi_outbox_drop(outbox);
        last_sent[whose]++;
    }
}

static void takeover_receive(uint16_t from, uint32_t frame) {
    const dlxi_frame *f = &kept[frame].frame;
    dlxi_copy before = takeover->best;
    dlxi_takeover_on_frame(takeover, from, "", f, w.now_ms);
    if (before.term != takeover->best.term || before.round != takeover->best.round) {
        const dlxi_copy *copy = &takeover->incoming.as.position.copy;
        w.best = takeover_best = copy_keep(copy->data, copy->bytes);
    }
    takeover_finish_step();
}

static void coordinator_receive(uint16_t from, uint32_t frame, uint32_t stop) {
    last_sent[whose] = 0;
    last_unsaved[whose] = false;
    if (here->taking) takeover_receive(from, frame);
    if (here->down || here->taking) return;
    dlxi_coordinator_on_frame(coordinator, from, "", "", &kept[frame].frame, w.now_ms);
    coordinator_finish_step(stop);
}

/* ---- a site ---------------------------------------------------------------------------------- */

static void site_flush(uint16_t i) {
    dlxi_outbox *outbox = &site[i]->outbox;
    for (const dlxi_outbox_item *item; (item = dlxi_outbox_peek(outbox)) != NULL;) {
        queue_add(&w.to_coordinator[i], frame_keep(&item->frame));
        dlxi_outbox_drop(outbox);
    }
}

static uint64_t lease_bits(const dlxi_lease *lease) {
    uint64_t bits = 0;
    for (uint64_t k = 0; k < dlxi_lease_windows(lease); k++) {
        uint64_t position = dlxi_lease_position(lease, k);
        CHECK(position < 64, "window %llu\n", (unsigned long long)position);
        bits |= UINT64_C(1) << position;
    }
    return bits;
}

/* A member's windows count now: the lowest of its lease. */
static void windows_count(uint16_t i, uint64_t used) {
    owner *o = &w.owner[i];
    uint64_t left = o->lease[o->submission % 3];
    for (; used > 0; used--) {
        uint64_t lowest = left & (~left + 1);
        CHECK(lowest != 0, "site %u uses more than its lease\n", i);
        CHECK((w.counted & lowest) == 0, "a window is counted twice\n");
        w.counted |= lowest;
        left &= ~lowest;
    }
}

/* A member applies what it has staged, for that attempt; who follows, what it fetched. */
static void site_apply(uint16_t i, uint32_t attempt, bool as_member) {
    owner *o = &w.owner[i];
    const dlxi_commit *m = &site[i]->commit;
    uint64_t round = o->applied + 1;
    history_note(round, commit_hash(attempt, m), m->committed_tokens, &m->view);
    bool saved = false;
    for (int k = 0; k < 2; k++)
        saved = saved || (round < w.seat[k].stored_round && w.seat[k].record_bytes[round] > 0);
    CHECK(saved, "site %u applies round %llu, which is not saved\n", i, (unsigned long long)round);
    o->applied = round;
    o->lineages |= (uint64_t)dlxi_lineage_of(m->coordinator) << 3 * round;
    o->finished = m->finished;
    o->lease[m->lease.submission % 3] = lease_bits(&m->lease);
    for (uint16_t k = 0; as_member && k < m->view.members; k++)
        if (m->view.member[k].site == i) windows_count(i, m->view.member[k].tokens);
}

static void site_commit(uint16_t i, uint32_t attempt) {
    owner *o = &w.owner[i];
    const dlxi_commit *m = &site[i]->commit;
    const held *s = &o->staged;
    CHECK(s->is_set && s->term == m->term && s->coordinator == m->coordinator &&
              s->attempt == attempt && s->round == o->applied + 1 &&
              s->view == view_hash(0, &m->view),
          "site %u applies attempt %u of term %u, having staged %s%u of term %u\n", i, attempt,
          m->term, s->is_set ? "" : "none, not ", s->attempt, s->term);
    site_apply(i, attempt, true);
    o->staged = (held){0};
    dlxi_site_on_applied(site[i]);
}

/* The parts of the work at the end that it is given, once it has the last round. */
static void site_report(uint16_t i) {
    owner *o = &w.owner[i];
    const dlxi_site *s = site[i];
    bool fresh = !o->reported || (s->parts & ~o->parts) != 0 || s->part_count != o->part_count;
    if (!o->finished || s->part_count == 0 || !fresh || s->phase == DLXI_SITE_DONE) return;
    o->reported = true;
    o->parts = s->parts;
    o->part_count = s->part_count;
    dlxi_site_on_report(site[i], s->parts, s->part_count, "r");
}

static void site_act(uint16_t i, dlxi_site_action action, const dlxi_frame *f) {
    dlxi_site *s = site[i];
    owner *o = &w.owner[i];
    const dlxi_endpoints none = {.sites = sites};
    bool current = f == NULL || (f->term == s->term && f->coordinator == s->coordinator_id);
    CHECK(current || action == DLXI_SITE_NOTHING, "site %u obeys term %u, and is at %u\n", i,
          f->term, s->term);
    switch (action) {
    case DLXI_SITE_LISTEN:
        o->lease[1] = lease_bits(&s->welcome.leases[0]);
        o->lease[2] = lease_bits(&s->welcome.leases[1]);
        dlxi_site_on_listening(s, &none);
        break;
    case DLXI_SITE_CONNECT:
        dlxi_site_set_linked(s, true);
        break;
    case DLXI_SITE_BEGIN:
        o->staged = (held){0};
        o->troubled = false;
        break;
    case DLXI_SITE_ABORT: /* what is staged waits for its commit */
        if (!s->staged) o->staged = (held){0};
        o->troubled = false;
        break;
    case DLXI_SITE_COMMIT:
        site_commit(i, f->attempt);
        break;
    case DLXI_SITE_FOLLOW:
        o->staged = (held){.attempt = f->attempt}; /* of the record */
        break;
    case DLXI_SITE_ENDED:
        CHECK(s->result.status != DLX_DATA, "site %u: %s\n", i, s->result.message);
        break;
    case DLXI_SITE_REDIRECT:
    case DLXI_SITE_TELL_LISTENING:
    case DLXI_SITE_NOTHING:
        break;
    }
    if (s->all_linked && !s->entered && s->phase == DLXI_SITE_RUNNING) dlxi_site_on_entered(s);
    s->reached = (1u << sites) - 1;
    site_report(i);
    site_flush(i);
}

static void site_receive(uint16_t i, uint32_t frame) {
    if (!is_active(i)) return;
    site_act(i, dlxi_site_on_frame(site[i], &kept[frame].frame, w.now_ms), &kept[frame].frame);
}

static bool can_submit(uint16_t i) {
    const dlxi_site *s = site[i];
    return is_active(i) && s->entered && !s->submitted && !w.owner[i].finished;
}

static uint64_t anchor_of(uint64_t round) {
    return round == 0 ? 1 : w.history[round];
}

static dlxi_ready ready_of(uint16_t i) {
    return (dlxi_ready){.submission = w.owner[i].submission,
                        .base_round = w.owner[i].base_round,
                        .tokens = tokens_of(i),
                        .windows_used = (uint32_t)tokens_of(i),
                        .anchor_hash = anchor_of(w.owner[i].applied),
                        .step_ns = 1000};
}

static void site_submit(uint16_t i) {
    w.owner[i].submission++;
    w.owner[i].base_round = w.owner[i].applied + 1;
    dlxi_ready ready = ready_of(i);
    dlxi_site_on_ready(site[i], &ready);
    site_flush(i);
}

static bool can_stage(uint16_t i) {
    const dlxi_site *s = site[i];
    return is_active(i) && s->attempting && s->attempt > 0 && !s->staged && !w.owner[i].troubled;
}

/* What all members of the view have, if it is the same view. */
static void site_stage(uint16_t i) {
    dlxi_site *s = site[i];
    uint64_t view = view_hash(0, &s->view);
    w.owner[i].staged = (held){.is_set = true,
                               .term = s->attempt_term,
                               .attempt = s->attempt,
                               .coordinator = s->attempt_coordinator,
                               .round = s->round,
                               .view = view};
    dlxi_site_on_staged(s, mix(view, s->round));
    site_flush(i);
}

/* Somebody else has that record's results, and what was submitted stands for the next round. */
static bool can_follow(uint16_t i) {
    const dlxi_site *s = site[i];
    bool held_by_other = false;
    for (uint16_t k = 0; k < sites; k++) {
        const owner *o = &w.owner[k];
        bool same = (o->lineages >> 3 * s->round & 7u) == dlxi_lineage_of(s->commit.coordinator);
        held_by_other = held_by_other || (k != i && is_active(k) && o->applied >= s->round && same);
    }
    return is_active(i) && s->following && s->submitted && held_by_other;
}

static void site_follow(uint16_t i) {
    owner *o = &w.owner[i];
    site_apply(i, o->staged.attempt, false);
    o->staged = (held){0};
    dlxi_site_on_followed(site[i]);
    dlxi_ready ready = ready_of(i);
    if (!o->finished) dlxi_site_on_ready(site[i], &ready);
    site_report(i);
    site_flush(i);
}

/* Nothing moves between it and another member, or a frame was malformed. */
static void site_complain(uint16_t i, bool malformed) {
    uint32_t others = members_of(&site[i]->view) & ~(1u << i);
    uint16_t about = 0;
    while ((others >> about & 1u) == 0) about++;
    w.troubles--;
    w.owner[i].troubled = true;
    dlxi_site_on_trouble(site[i], malformed ? DLX_DATA : DLX_TIMEOUT, about, "no data");
    site_flush(i);
}

static bool can_complain(uint16_t i) {
    return can_stage(i) && (members_of(&site[i]->view) & ~(1u << i)) != 0;
}

/* Its process is gone, with a word or without. */
static void site_die(uint16_t i, bool says_so) {
    const dlx_error why = {.status = DLX_INTERRUPTED, .message = "interrupted"};
    w.deaths--;
    if (says_so) {
        dlxi_site_fail(site[i], &why);
        site_flush(i);
    }
    w.owner[i].dead = true;
    for (uint8_t life = 0; life <= LATE; life++) w.to_site[life][i] = (queue){0};
}

/* ---- time ------------------------------------------------------------------------------------ */

static void sites_tick(void) {
    for (uint16_t i = 0; i < sites; i++)
        if (is_active(i)) site_act(i, dlxi_site_on_tick(site[i], w.now_ms), NULL);
}

/* Sites ping, and then repeat what waits for an answer. The coordinator `stopping` stops as `stop`
 * says. */
static void time_pass(uint8_t stopping, uint32_t stop) {
    w.now_ms += PING_AFTER_MS;
    sites_tick();
    w.now_ms += STEP_MS - PING_AFTER_MS;
    sites_tick();
    for (uint8_t k = 0; k < 2; k++) {
        seat_take(k);
        last_sent[k] = 0;
        last_unsaved[k] = false;
        if (here->taking) {
            takeover_finish_step();
        } else if (!here->down) {
            dlxi_coordinator_on_tick(coordinator, w.now_ms);
            coordinator_finish_step(k == stopping ? stop : STOP_NOT);
        }
    }
}

#endif
