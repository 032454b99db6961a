/* SPDX-License-Identifier: Apache-2.0 */
/* One engine, and a coordinator, other sites and a link that spoil a run. The engine must not fail
 * an assertion, never act without end, change nothing in the state before a commit, and give it
 * back when it ends. Its training thread behaves. */
#include "recorded_run.h"

static const run_settings runs[] = {
    {.sites = 1, .ranks = 1, .tensors = 3, .overlap = DLX_OVERLAP_NONE, .bits = 4},
    {.sites = 2,
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_CARRY,
     .adaptation = DLX_ADAPTATION_PAPER,
     .bits = 4,
     .elsewhere = true,
     .me = 1},
    {.sites = 2,
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 32,
     .elsewhere = true,
     .busy_ms = 200},
    {.sites = 3, .ranks = 1, .tensors = 2, .overlap = DLX_OVERLAP_ALLREDUCE, .bits = 32, .me = 2},
    {.sites = 3,
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_DELAYED,
     .adaptation = DLX_ADAPTATION_LINK,
     .bits = 4,
     .busy_ms = 200,
     .me = 1},
    {.sites = 2, .ranks = 2, .tensors = 0, .overlap = DLX_OVERLAP_NONE, .bits = 4},
    {.sites = 2,
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_EAGER,
     .bits = 4,
     .elsewhere = true,
     .me = 1,
     .lose = 9},
    {.sites = 2,
     .ranks = 1,
     .tensors = 2,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 4,
     .lose = 13,
     .fail = 7},
    {.sites = 3, /* follows */
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 4,
     .me = 2,
     .late = 120},
    {.sites = 3, /* is asked */
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_CARRY,
     .bits = 32,
     .me = 0,
     .late = 120},
};
enum { RUNS = sizeof runs / sizeof *runs };

typedef struct trainer {
    lone *l;
    uint64_t rounds; /* submitted */
    uint64_t hash;   /* of the state as submitted */
    uint64_t at;     /* its rounds then: others may be followed meanwhile */
    bool submitted, reported;
} trainer;

static void outcome_check(trainer *t) {
    lone *l = t->l;
    if (l->last.committed && t->submitted) {
        DLXI_ASSERT(l->state != NULL && l->state->rounds >= t->rounds);
        t->submitted = false;
    } else if (l->state != NULL && t->submitted &&
               l->state->rounds == t->at) { /* on loan, or back for good */
        DLXI_ASSERT(dlxi_state_hash(l->state, DLXI_STATE_ALL) == t->hash);
    }
}

static void submit_or_give_back(trainer *t) {
    lone *l = t->l;
    if (!l->last.joined || l->state == NULL || l->last.ended || t->reported) return;
    if (t->submitted) {
        dlxi_request q = {.state = l->state};
        l->state = NULL;
        dlxi_engine_on_request(l->engine, &q, l->now_ms);
        return;
    }
    if (l->last.committed && l->last.round.commit.finished) return;
    l->last.committed = false;
    run_train(l, ++t->rounds);
    t->hash = dlxi_state_hash(l->state, DLXI_STATE_ALL);
    t->at = l->state->rounds;
    t->submitted = true;
    lone_submit(l);
}

static void report(trainer *t) {
    if (!t->l->last.committed || !t->l->last.round.commit.finished || t->reported) return;
    dlxi_request q = {.report = strdup("done"), .parts = UINT64_MAX};
    t->reported = true;
    dlxi_engine_on_request(t->l->engine, &q, t->l->now_ms);
}

static void hear(lone *l, uint32_t peer, const dlxi_frame *frame) {
    dlxi_frame *copy = frame_copy(frame);
    dlxi_engine_on_frame(l->engine, peer, copy, l->now_ms);
    free(copy);
}

static void replay(trainer *t, const record *r) {
    static const dlx_status answers[] = {DLX_OK, DLX_AGAIN, DLX_PEER_LOST, DLX_SYSTEM};
    static const dlx_error broken = {.status = DLX_SYSTEM, .message = "the link broke"};
    lone *l = t->l;
    dlxi_request recall = {.recalls = true};
    switch (r->event) {
    case RECORD_TURN:
        lone_turn(l, r->frame.attempt % (2 * LONE_TIMEOUT_MS));
        outcome_check(t);
        break;
    case RECORD_FRAME:
        hear(l, DLXI_SITE_COORDINATOR, &r->frame);
        break;
    case RECORD_DATA:
        hear(l, r->peer, &r->frame);
        break;
    case RECORD_SUBMIT:
        submit_or_give_back(t);
        break;
    case RECORD_RECALL:
        if (l->last.joined) dlxi_engine_on_request(l->engine, &recall, l->now_ms);
        break;
    case RECORD_REPORT:
        report(t);
        break;
    case RECORD_LINK:
        l->link = answers[r->peer % 4];
        dlxi_engine_on_room(l->engine);
        break;
    default:
        dlxi_engine_on_link_failure(l->engine, &broken);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const run_settings *s;
    if (bytes < 1) return 0;
    const recording *r = run_spoilt(data, bytes, runs, RUNS, false, &s);
    trainer t = {.l = run_lone_open(s, s->me, 0)};
    t.l->busy_ms = s->busy_ms;
    for (size_t i = 0; i < r->count; i++) replay(&t, &r->records[i]);
    lone_turn(t.l, 1);
    outcome_check(&t);
    lone_close(t.l);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    return run_seed(data, index, RUNS);
}
