/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a site's state machine, fed by hand, and beside a coordinator. */
#include "member_world.h"

#include "member/site.h"

enum { ORPHAN_MS = 60000 };

typedef struct lone {
    dlxi_site *s;
    dlxi_outbox coordinator;
    dlxi_message *message;
} lone;

static lone lone_open(void) {
    lone l = {.message = calloc(1, sizeof(dlxi_message))};
    dlxi_hello *hello = calloc(1, sizeof *hello);
    *hello = (dlxi_hello){.site = "a", .ranks = 1, .keeps_history = true};
    const dlxi_site_settings settings = {.timeout_ms = TIMEOUT_MS,
                                         .join_ms = JOIN_MS,
                                         .orphan_ms = ORPHAN_MS,
                                         .coordinator = "10.0.0.1:4700"};
    assert_int_equal(dlxi_site_open(&l.s, hello, &settings, 0, NULL), DLX_OK);
    free(hello);
    return l;
}

static void lone_close(lone *l) {
    dlxi_site_close(&l->s);
    dlxi_outbox_clear(&l->coordinator);
    free(l->message);
}

/* Of the coordinator's life that has this term. */
static uint64_t id_of(uint32_t term) {
    return 100 + term;
}

static dlxi_site_action tell(lone *l, dlxi_frame_kind kind, uint32_t term, uint64_t round,
                             uint32_t attempt, int64_t now) {
    l->message->kind = kind;
    dlxi_frame header = {.term = term,
                         .coordinator = id_of(term),
                         .round = round,
                         .attempt = attempt,
                         .site = DLXI_SITE_COORDINATOR};
    assert_int_equal(dlxi_outbox_put(&l->coordinator, 0, header, l->message, NULL), DLX_OK);
    dlxi_site_action action =
        dlxi_site_on_frame(l->s, &dlxi_outbox_peek(&l->coordinator)->frame, now);
    dlxi_outbox_drop(&l->coordinator);
    return action;
}

static void welcome_lone(lone *l) {
    l->message->as.welcome = (dlxi_welcome){.site = 0, .sites = 1, .tokens_target = 10};
    assert_int_equal(tell(l, DLXI_FRAME_WELCOME, 4, 1, 0, 0), DLXI_SITE_LISTEN);
    l->message->as.endpoints = (dlxi_endpoints){.sites = 1};
    assert_int_equal(tell(l, DLXI_FRAME_PEERS, 4, 1, 0, 0), DLXI_SITE_CONNECT);
}

/* It has all it needs to train, and does. */
static void submit_lone(lone *l) {
    const dlxi_ready message = {.tokens = 5};
    if (!l->s->entered) dlxi_site_on_entered(l->s);
    dlxi_site_on_ready(l->s, &message);
}

static dlxi_site_action begin_lone(lone *l, uint32_t term, uint64_t round, uint32_t attempt) {
    l->message->as.view = (dlxi_view){.members = 1, .member = {{.tokens = 5}}};
    return tell(l, DLXI_FRAME_BEGIN, term, round, attempt, 0);
}

/* What this site alone staged, in an attempt of that term. */
static dlxi_commit commit_of(uint32_t term) {
    return (dlxi_commit){.term = term,
                         .coordinator = id_of(term),
                         .committed_tokens = 5,
                         .view = {.members = 1, .member = {{.tokens = 5}}}};
}

/* The owner applies it at once. */
static dlxi_site_action commit_lone(lone *l, uint64_t round, uint32_t attempt) {
    l->message->as.commit = commit_of(4);
    dlxi_site_action action = tell(l, DLXI_FRAME_COMMIT, 4, round, attempt, 0);
    if (action == DLXI_SITE_COMMIT) dlxi_site_on_applied(l->s);
    return action;
}

static void a_site_follows_its_coordinator(void **state) {
    (void)state;
    lone l = lone_open();
    assert_int_equal(dlxi_outbox_peek(&l.s->outbox)->frame.kind, DLXI_FRAME_HELLO);
    assert_int_equal(begin_lone(&l, 4, 1, 1), DLXI_SITE_NOTHING); /* not yet running */
    welcome_lone(&l);
    submit_lone(&l);
    assert_int_equal(begin_lone(&l, 4, 2, 1), DLXI_SITE_NOTHING); /* another round */
    assert_int_equal(begin_lone(&l, 4, 1, 0), DLXI_SITE_NOTHING); /* there is no such attempt */
    assert_int_equal(begin_lone(&l, 4, 1, 1), DLXI_SITE_BEGIN);
    assert_int_equal(begin_lone(&l, 4, 1, 1), DLXI_SITE_NOTHING); /* twice */
    l.message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
    assert_int_equal(tell(&l, DLXI_FRAME_ABORT, 4, 1, 1, 0), DLXI_SITE_ABORT);
    assert_int_equal(begin_lone(&l, 4, 1, 2), DLXI_SITE_BEGIN);
    assert_int_equal(begin_lone(&l, 4, 1, 1), DLXI_SITE_NOTHING); /* stale */
    l.message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
    assert_int_equal(tell(&l, DLXI_FRAME_ABORT, 4, 1, 1, 0), DLXI_SITE_NOTHING);
    dlxi_site_on_staged(l.s, 3);
    assert_int_equal(commit_lone(&l, 1, 2), DLXI_SITE_COMMIT);
    assert_int_equal(l.s->round, 2);
    assert_int_equal(commit_lone(&l, 1, 2), DLXI_SITE_NOTHING); /* twice */
    submit_lone(&l);
    assert_int_equal(begin_lone(&l, 3, 2, 1), DLXI_SITE_NOTHING); /* a lower term */
    assert_int_equal(begin_lone(&l, 5, 2, 1), DLXI_SITE_BEGIN);
    assert_int_equal(l.s->term, 5);
    dlxi_site_on_staged(l.s, 3);
    l.message->as.commit = commit_of(5);
    l.message->as.commit.finished = true;
    assert_int_equal(tell(&l, DLXI_FRAME_COMMIT, 5, 2, 1, 0), DLXI_SITE_COMMIT);
    dlxi_site_on_report(l.s, UINT64_MAX, 0, "done");
    assert_int_equal(tell(&l, DLXI_FRAME_FINISHED, 5, 3, 0, 0), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_OK);
    lone_close(&l);
}

static void a_commit_that_was_not_staged_ends_the_site(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    submit_lone(&l);
    begin_lone(&l, 4, 1, 1);
    assert_int_equal(commit_lone(&l, 1, 1), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_DATA);
    lone_close(&l);

    for (int what = 0; what < 4; what++) { /* another attempt, term, id; what it is */
        l = lone_open();
        welcome_lone(&l);
        submit_lone(&l);
        begin_lone(&l, 4, 1, 2);
        dlxi_site_on_staged(l.s, 3);
        l.message->as.commit = commit_of(what == 1 ? 3 : 4);
        l.message->as.commit.coordinator = id_of(what == 2 ? 5 : 4);
        dlxi_site_action action = tell(&l, DLXI_FRAME_COMMIT, 4, 1, what == 0 ? 1 : 2, 0);
        assert_int_equal(action, what < 3 ? DLXI_SITE_ENDED : DLXI_SITE_COMMIT);
        lone_close(&l);
    }
}

/* Nobody would ever send what the attempt waits for. */
static void a_view_of_unknown_sites_ends_the_site(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    submit_lone(&l);
    l.message->as.view = (dlxi_view){.members = 2, .member = {{.tokens = 5}, {1, .tokens = 5}}};
    assert_int_equal(tell(&l, DLXI_FRAME_BEGIN, 4, 1, 1, 0), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_DATA);
    lone_close(&l);
}

/* Else ranks that wait for a commit would wait for ever. */
static void a_run_that_finishes_too_early_fails(void **state) {
    (void)state;
    lone l = lone_open();
    assert_int_equal(tell(&l, DLXI_FRAME_FINISHED, 4, 1, 0, 0), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_DATA);
    lone_close(&l);
    l = lone_open();
    welcome_lone(&l);
    submit_lone(&l);
    begin_lone(&l, 4, 1, 1);
    dlxi_site_on_staged(l.s, 3);
    assert_int_equal(commit_lone(&l, 1, 1), DLXI_SITE_COMMIT);
    assert_int_equal(tell(&l, DLXI_FRAME_FINISHED, 4, 2, 0, 0), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_DATA);
    lone_close(&l);
}

/* What was staged before an abort is void: the exchange has dropped it. */
static void an_abort_takes_staging_back(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    submit_lone(&l);
    begin_lone(&l, 4, 1, 1);
    dlxi_site_on_staged(l.s, 3);
    l.message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
    assert_int_equal(tell(&l, DLXI_FRAME_ABORT, 4, 1, 1, 0), DLXI_SITE_ABORT);
    assert_int_not_equal(commit_lone(&l, 1, 1), DLXI_SITE_COMMIT);
    lone_close(&l);
}

/* How often the site says `kind` in `seconds` of ticks, while the coordinator pings. */
static int says(lone *l, dlxi_frame_kind kind, int64_t from_ms, int seconds) {
    int count = 0;
    for (int64_t now = from_ms; now < from_ms + seconds * 1000; now += 100) {
        tell(l, DLXI_FRAME_PING, 4, 1, 0, now);
        assert_int_equal(dlxi_site_on_tick(l->s, now), DLXI_SITE_NOTHING);
        for (const dlxi_outbox_item *item; (item = dlxi_outbox_peek(&l->s->outbox)) != NULL;) {
            count += item->frame.kind == kind;
            dlxi_outbox_drop(&l->s->outbox);
        }
    }
    return count;
}

/* What waits for an answer is said again twice a second, and no more once the answer is here. */
static void a_site_repeats_what_waits_for_an_answer(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    assert_int_equal(says(&l, DLXI_FRAME_HELLO, 0, 3), 1);
    submit_lone(&l);
    assert_int_equal(says(&l, DLXI_FRAME_READY, 3000, 3), 1 + 6);
    begin_lone(&l, 4, 1, 1);
    assert_int_equal(says(&l, DLXI_FRAME_READY, 6000, 3), 0);
    dlxi_site_on_staged(l.s, 3);
    assert_int_equal(says(&l, DLXI_FRAME_STAGED, 9000, 3), 1 + 6);
    assert_int_equal(commit_lone(&l, 1, 1), DLXI_SITE_COMMIT);
    assert_int_equal(says(&l, DLXI_FRAME_STAGED, 12000, 3), 0);
    lone_close(&l);
}

static void the_reason_of_a_stop_reaches_the_caller(void **state) {
    (void)state;
    lone l = lone_open();
    l.message->as.reason = (dlxi_reason){.status = DLX_REFUSED, .text = "no room"};
    assert_int_equal(tell(&l, DLXI_FRAME_STOP, 1, 1, 0, 0), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_REFUSED);
    assert_string_equal(l.s->result.message, "no room");
    lone_close(&l);
}

static void outbox_drain(lone *l) {
    while (dlxi_outbox_peek(&l->s->outbox) != NULL) dlxi_outbox_drop(&l->s->outbox);
}

static void a_silent_coordinator_ends_the_site(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    /* a pause of this process is not the coordinator's silence */
    assert_int_equal(dlxi_site_on_tick(l.s, 9 * TIMEOUT_MS), DLXI_SITE_NOTHING);
    for (int64_t now = 9 * TIMEOUT_MS; now <= 10 * TIMEOUT_MS; now += 500)
        assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
    assert_int_equal(dlxi_site_on_tick(l.s, 10 * TIMEOUT_MS + 1), DLXI_SITE_ENDED);
    assert_string_equal(l.s->result.message, "no message from the coordinator at 10.0.0.1:4700 for "
                                             "5001 ms (wan.timeout_s)");
    lone_close(&l);
}

static void assert_told(lone *l, const char *text) {
    char line[DLXI_REASON_MAX + 1];
    assert_true(dlxi_site_tell_wait(l->s, line, sizeof line));
    assert_string_equal(line, text);
    assert_false(dlxi_site_tell_wait(l->s, line, sizeof line));
}

/* Much longer than a silence would be; says so at first and once per minute. */
static void a_coordinator_may_start_late(void **state) {
    (void)state;
    char line[DLXI_REASON_MAX + 1];
    lone l = lone_open();
    int lines = 0;
    for (int64_t now = 0; now <= JOIN_MS; now += 500) {
        assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
        if (now == 2000)
            assert_told(&l, "no coordinator at 10.0.0.1:4700 yet after 2 s; waiting up to 3600 s "
                            "(wan.join_s)");
        else
            lines += dlxi_site_tell_wait(l.s, line, sizeof line);
    }
    assert_string_equal(line,
                        "no coordinator at 10.0.0.1:4700 yet after 3542 s; waiting up to 3600 "
                        "s (wan.join_s)");
    assert_int_equal(lines, JOIN_MS / DLXI_WAIT_TELL_MS - 1);
    assert_int_equal(dlxi_site_on_tick(l.s, JOIN_MS + 1), DLXI_SITE_ENDED);
    assert_int_equal(l.s->result.status, DLX_TIMEOUT);
    assert_string_equal(l.s->result.message,
                        "no coordinator at 10.0.0.1:4700 answered for 3600 s (wan.join_s); check "
                        "wan.coordinator, wan.key and the roster, and that it runs");
    lone_close(&l);

    l = lone_open();
    for (int64_t now = 0; now <= 3000; now += 500) (void)dlxi_site_on_tick(l.s, now);
    (void)dlxi_site_tell_wait(l.s, line, sizeof line);
    assert_int_equal(tell(&l, DLXI_FRAME_PING, 1, 1, 0, 3000), DLXI_SITE_NOTHING);
    assert_told(&l, "the coordinator at 10.0.0.1:4700 answers; waiting for every site");
    /* its silence is one from now on */
    for (int64_t now = 3000; now <= 3000 + TIMEOUT_MS; now += 500)
        assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
    assert_int_equal(dlxi_site_on_tick(l.s, 3001 + TIMEOUT_MS), DLXI_SITE_ENDED);
    lone_close(&l);
}

/* ---- other lives of the coordinator, and none ------------------------------------------------ */

static dlxi_site_action ping_of(lone *l, uint32_t term, uint64_t id, uint64_t round) {
    dlxi_frame header = {
        .term = term, .coordinator = id, .round = round, .site = DLXI_SITE_COORDINATOR};
    l->message->kind = DLXI_FRAME_PING;
    l->message->as.ping = (dlxi_ping){.stamp = 5};
    assert_int_equal(dlxi_outbox_put(&l->coordinator, 0, header, l->message, NULL), DLX_OK);
    dlxi_site_action action =
        dlxi_site_on_frame(l->s, &dlxi_outbox_peek(&l->coordinator)->frame, 0);
    dlxi_outbox_drop(&l->coordinator);
    return action;
}

/* Of what waits to be sent, the newest of this kind; NULL: none. */
static const dlxi_frame *newest(const lone *l, dlxi_frame_kind kind) {
    const dlxi_frame *frame = NULL;
    for (const dlxi_outbox_item *item = l->s->outbox.first; item != NULL; item = item->next)
        if (item->frame.kind == kind) frame = &item->frame;
    return frame;
}

/* Only the highest term is listened to, and of each term one life. */
static void an_older_coordinator_is_not_listened_to(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    submit_lone(&l);
    outbox_drain(&l);
    l.message->as.reason = (dlxi_reason){.status = DLX_DATA, .text = "ha"};
    assert_int_equal(tell(&l, DLXI_FRAME_STOP, 3, 1, 0, 0), DLXI_SITE_NOTHING);
    ping_of(&l, 4, id_of(9), 1);
    assert_int_equal(l.s->stamp, 0);
    assert_true(l.s->coordinator_id == id_of(4));
    assert_null(newest(&l, DLXI_FRAME_READY));
    ping_of(&l, 6, id_of(9), 1);
    assert_int_equal(l.s->term, 6);
    assert_true(l.s->coordinator_id == id_of(9));
    assert_int_equal(l.s->stamp, 5);
    /* READY, which waits for its answer, is of the new term */
    for (int64_t now = 0; newest(&l, DLXI_FRAME_READY) == NULL && now < 2000; now += 100) {
        outbox_drain(&l);
        assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
    }
    const dlxi_frame *ready = newest(&l, DLXI_FRAME_READY);
    assert_non_null(ready);
    assert_int_equal(ready->term, 6);
    assert_true(ready->coordinator == id_of(9));
    assert_int_equal(begin_lone(&l, 4, 1, 9), DLXI_SITE_NOTHING);
    lone_close(&l);
}

/* An attempt is gone with the coordinator that began it, and what was submitted is said again. */
static void a_new_coordinator_knows_no_attempt(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    submit_lone(&l);
    begin_lone(&l, 4, 1, 3);
    outbox_drain(&l);
    ping_of(&l, 5, id_of(5), 1);
    assert_int_equal(l.s->attempt, 0);
    const dlxi_frame *ready = newest(&l, DLXI_FRAME_READY);
    assert_non_null(ready);
    assert_int_equal(ready->term, 5);
    assert_int_equal(ready->attempt, 0);
    assert_int_equal(begin_lone(&l, 5, 1, 1), DLXI_SITE_BEGIN); /* its attempts count from one */
    lone_close(&l);
}

/* What is staged may be a round that the last life has committed: the next one knows. */
static void what_is_staged_outlives_the_coordinator(void **state) {
    (void)state;
    for (int committed = 0; committed < 2; committed++) {
        lone l = lone_open();
        welcome_lone(&l);
        submit_lone(&l);
        begin_lone(&l, 4, 1, 3);
        dlxi_site_on_staged(l.s, 9);
        outbox_drain(&l);
        ping_of(&l, 5, id_of(5), committed ? 2 : 1);
        assert_true(l.s->staged);
        assert_null(newest(&l, DLXI_FRAME_STAGED)); /* not of an attempt of this term */
        assert_non_null(newest(&l, DLXI_FRAME_READY));
        l.message->as.reason = (dlxi_reason){.status = DLX_ABORTED, .text = "another"};
        assert_int_equal(tell(&l, DLXI_FRAME_ABORT, 5, 1, 0, 0), DLXI_SITE_ABORT); /* a text */
        assert_true(l.s->staged);
        if (committed) {
            l.message->as.commit = commit_of(4);
            assert_int_equal(tell(&l, DLXI_FRAME_COMMIT, 5, 1, 3, 0), DLXI_SITE_COMMIT);
        } else {
            assert_int_equal(begin_lone(&l, 5, 1, 1), DLXI_SITE_BEGIN);
            assert_false(l.s->staged);
        }
        lone_close(&l);
    }
}

/* A coordinator that lost what this site submitted hears it again. */
static void a_submission_that_was_forgotten_is_said_again(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    const dlxi_ready message = {.submission = 3, .tokens = 5};
    dlxi_site_on_ready(l.s, &message);
    begin_lone(&l, 4, 1, 1);
    outbox_drain(&l);
    for (int aborted = 0; aborted < 2; aborted++) { /* in an attempt, and after it */
        l.message->as.ping = (dlxi_ping){.submission = 3};
        tell(&l, DLXI_FRAME_PING, 4, 1, 1, 0);
        assert_null(newest(&l, DLXI_FRAME_READY));
        l.message->as.ping = (dlxi_ping){.submission = 2};
        tell(&l, DLXI_FRAME_PING, 4, 2, 1, 0); /* of another round */
        assert_null(newest(&l, DLXI_FRAME_READY));
        l.message->as.ping = (dlxi_ping){.submission = 2};
        tell(&l, DLXI_FRAME_PING, 4, 1, 1, 0);
        assert_non_null(newest(&l, DLXI_FRAME_READY));
        outbox_drain(&l);
        l.message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
        if (aborted == 0) assert_int_equal(tell(&l, DLXI_FRAME_ABORT, 4, 1, 1, 0), DLXI_SITE_ABORT);
    }
    lone_close(&l);
}

/* Once the run has begun a site does without the coordinator for a while, and says so once. */
static void an_orphan_waits_for_its_coordinator(void **state) {
    (void)state;
    char line[DLXI_REASON_MAX + 1];
    for (int returns = 0; returns < 2; returns++) {
        lone l = lone_open();
        welcome_lone(&l);
        assert_false(dlxi_site_tell_wait(l.s, line, sizeof line));
        dlxi_site_on_entered(l.s);
        int64_t now = 0;
        for (; now <= TIMEOUT_MS; now += 500) {
            assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
            assert_false(dlxi_site_tell_wait(l.s, line, sizeof line));
        }
        assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
        assert_told(&l, "no message from the coordinator at 10.0.0.1:4700 for 5 s; training on, "
                        "then waiting for it, up to 60 s (wan.orphan_s)");
        assert_false(dlxi_site_tell_wait(l.s, line, sizeof line));
        for (; now <= TIMEOUT_MS + ORPHAN_MS; now += 500)
            assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
        if (returns) {
            tell(&l, DLXI_FRAME_PING, 4, 1, 0, now);
            assert_told(&l, "the coordinator at 10.0.0.1:4700 is back");
            assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
        } else {
            assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_ENDED);
            assert_int_equal(l.s->result.status, DLX_TIMEOUT);
            assert_string_equal(l.s->result.message,
                                "no message from the coordinator at 10.0.0.1:4700 for 65500 ms "
                                "(wan.timeout_s and wan.orphan_s)");
        }
        lone_close(&l);
    }
}

/* ---- another coordinator takes the run over -------------------------------------------------- */

#define OTHER (UINT64_C(1) << 32 | 5) /* of another lineage than id_of */

static dlxi_site_action claim(lone *l, uint32_t term, uint64_t run_id, int64_t now) {
    l->message->kind = DLXI_FRAME_CLAIM;
    l->message->as.claim = (dlxi_claim){.run_id = run_id, .wants_copy = true};
    dlxi_frame header = {.term = term, .coordinator = OTHER, .site = DLXI_SITE_COORDINATOR};
    assert_int_equal(dlxi_outbox_put(&l->coordinator, 0, header, l->message, NULL), DLX_OK);
    dlxi_site_action action =
        dlxi_site_on_frame(l->s, &dlxi_outbox_peek(&l->coordinator)->frame, now);
    dlxi_outbox_drop(&l->coordinator);
    return action;
}

/* What it says to that, and nothing else waits. */
static dlxi_position position_of(lone *l, uint32_t term) {
    const dlxi_frame *frame = newest(l, DLXI_FRAME_POSITION);
    assert_non_null(frame);
    assert_int_equal(frame->term, term);
    assert_int_equal(dlxi_message_decode(l->message, frame, NULL), DLX_OK);
    dlxi_position position = l->message->as.position;
    outbox_drain(l);
    return position;
}

static void only_an_orphan_obeys_a_claim(void **state) {
    (void)state;
    lone l = lone_open();
    welcome_lone(&l);
    outbox_drain(&l);
    int64_t now = 0;
    assert_int_equal(claim(&l, 0, 0, now), DLXI_SITE_NOTHING);
    assert_null(newest(&l, DLXI_FRAME_POSITION)); /* it has not entered */
    submit_lone(&l);
    outbox_drain(&l);
    claim(&l, 9, 0, now); /* a term for any run is none for this one */
    claim(&l, 9, 1, now);
    assert_int_equal(l.s->term, 4);
    outbox_drain(&l);
    claim(&l, 9, l.s->welcome.run_id, now);
    assert_true(position_of(&l, 4).hears);
    /* nor does it obey that one's other messages, whatever the term */
    l.message->as.view = (dlxi_view){.members = 1, .member = {{.tokens = 5}}};
    l.message->kind = DLXI_FRAME_BEGIN;
    dlxi_frame header = {
        .term = 9, .coordinator = OTHER, .round = 1, .attempt = 1, .site = DLXI_SITE_COORDINATOR};
    assert_int_equal(dlxi_outbox_put(&l.coordinator, 0, header, l.message, NULL), DLX_OK);
    assert_int_equal(dlxi_site_on_frame(l.s, &dlxi_outbox_peek(&l.coordinator)->frame, now),
                     DLXI_SITE_NOTHING);
    dlxi_outbox_drop(&l.coordinator);
    assert_int_equal(l.s->term, 4);

    begin_lone(&l, 4, 1, 3);
    dlxi_site_on_staged(l.s, 3);
    outbox_drain(&l);
    for (; now <= TIMEOUT_MS + 500; now += 500) dlxi_site_on_tick(l.s, now);
    outbox_drain(&l);
    claim(&l, 0, l.s->welcome.run_id, now);
    dlxi_position orphan = position_of(&l, 4);
    assert_false(orphan.hears);
    assert_int_equal(orphan.view, 1);       /* what it has staged is with itself alone */
    claim(&l, 4, l.s->welcome.run_id, now); /* no higher term */
    assert_true(l.s->coordinator_id == id_of(4));
    outbox_drain(&l);
    claim(&l, 9, l.s->welcome.run_id, now);
    assert_int_equal(l.s->term, 9);
    assert_true(l.s->coordinator_id == OTHER);
    assert_int_equal(position_of(&l, 9).view, 1); /* the new one may know of its commit */
    dlxi_site_on_tick(l.s, now += 500);           /* it hears the one that it obeys */
    outbox_drain(&l);
    claim(&l, 9, l.s->welcome.run_id, now);
    assert_true(position_of(&l, 9).hears);
    /* the first one's later life is of the other lineage now */
    assert_int_equal(begin_lone(&l, 10, 1, 1), DLXI_SITE_NOTHING);
    assert_int_equal(commit_lone(&l, 1, 3), DLXI_SITE_NOTHING);
    lone_close(&l);
}

static void a_site_keeps_the_newest_copy(void **state) {
    (void)state;
    static const uint8_t bytes[][3] = {{1, 2, 3}, {4, 5, 6}, {7, 8, 9}};
    const dlxi_copy copies[] = {
        {.term = 4, .round = 2, .bytes = 3, .data = bytes[0]},
        {.term = 4, .round = 1, .bytes = 3, .data = bytes[1]}, /* older, by a late commit */
        {.term = 5, .round = 1, .bytes = 2, .data = bytes[2]}, /* the term comes first */
    };
    lone l = lone_open();
    welcome_lone(&l);
    for (uint64_t round = 1; round <= 3; round++) {
        submit_lone(&l);
        begin_lone(&l, 4, round, 1);
        dlxi_site_on_staged(l.s, 3);
        l.message->as.commit = commit_of(4);
        l.message->as.commit.copy = copies[round - 1];
        assert_int_equal(tell(&l, DLXI_FRAME_COMMIT, 4, round, 1, 0), DLXI_SITE_COMMIT);
        assert_int_equal(l.s->commit.copy.bytes, 0); /* it is not the owner's */
        dlxi_site_on_applied(l.s);
        outbox_drain(&l);
        claim(&l, 0, 0, 0);
        dlxi_position position = position_of(&l, 4);
        const dlxi_copy *expected = &copies[round < 3 ? 0 : 2];
        assert_int_equal(position.copy.term, expected->term);
        assert_int_equal(position.copy.round, expected->round);
        assert_int_equal(position.copy.bytes, expected->bytes);
        assert_int_equal(l.s->copy.data[0], expected->data[0]);
    }
    lone_close(&l);
}

enum { PART_MAX = 4000 };

/* A part of a copy: `bytes` of them. Returns the place behind it. */
static uint8_t *part_put(uint8_t *at, uint8_t byte, size_t bytes) {
    memset(at, 0, 4);
    at[0] = (uint8_t)bytes;
    at[1] = (uint8_t)(bytes >> 8);
    memset(at + 4, byte, bytes);
    return at + 4 + bytes;
}

/* The state and records of a copy of that round, back to round `from`; states are 200, and a record
 * is its round, `bytes` of them. */
static dlxi_copy copy_of(uint8_t *data, uint32_t term, uint64_t round, uint64_t from,
                         size_t bytes) {
    uint8_t *at = part_put(data, 200, 3);
    for (uint64_t r = round; r >= from; r--) at = part_put(at, (uint8_t)r, bytes);
    return (dlxi_copy){.term = term, .round = round, .bytes = (uint32_t)(at - data), .data = data};
}

static void commit_with(lone *l, uint64_t round, const dlxi_copy *copy) {
    submit_lone(l);
    begin_lone(l, l->s->term, round, 1);
    dlxi_site_on_staged(l->s, 3);
    l->message->as.commit = commit_of(l->s->term);
    l->message->as.commit.copy = *copy;
    assert_int_equal(tell(l, DLXI_FRAME_COMMIT, l->s->term, round, 1, 0), DLXI_SITE_COMMIT);
    dlxi_site_on_applied(l->s);
    outbox_drain(l);
}

/* The kept copy is this one. */
static void assert_kept(const lone *l, const dlxi_copy *expected) {
    assert_int_equal(l->s->copy.round, expected->round);
    assert_int_equal(l->s->copy.bytes, expected->bytes);
    assert_memory_equal(l->s->copy.data, expected->data, expected->bytes);
}

static void a_site_keeps_earlier_records(void **state) {
    (void)state;
    static uint8_t data[16 * PART_MAX], all[16 * PART_MAX];
    lone l = lone_open();
    welcome_lone(&l);
    dlxi_copy copy, kept;
    for (uint64_t round = 1; round <= 3; round++) { /* each is given the last record alone */
        copy = copy_of(data, 4, round, round, 20);
        commit_with(&l, round, &copy);
    }
    kept = copy_of(all, 4, 3, 1, 20);
    assert_kept(&l, &kept);
    copy = copy_of(data, 4, 9, 4, 20); /* it is behind */
    commit_with(&l, 4, &copy);
    kept = copy_of(all, 4, 9, 1, 20);
    assert_kept(&l, &kept);
    copy = copy_of(data, 5, 9, 8, 20); /* a later life has the same round, and says it again */
    commit_with(&l, 5, &copy);
    kept.term = 5;
    assert_kept(&l, &kept);
    copy = copy_of(data, 5, 11, 11, 20); /* a gap */
    commit_with(&l, 6, &copy);
    assert_kept(&l, &copy);
    l.s->copy_lineage = 7; /* of the coordinator from which this one took the run over */
    copy = copy_of(data, 5, 12, 12, 20);
    commit_with(&l, 7, &copy);
    assert_kept(&l, &copy);
    for (uint64_t round = 13; round < 16; round++) { /* 8,192 bytes at most, and whole records */
        copy = copy_of(data, 5, round, round, 3000);
        commit_with(&l, round - 5, &copy);
    }
    kept = copy_of(all, 5, 15, 14, 3000);
    assert_kept(&l, &kept);
    for (size_t bytes = 1; bytes < 12; bytes++) { /* malformed ones stay what they are */
        copy = copy_of(data, 5, 15 + bytes, 15 + bytes, 3000);
        copy.bytes = (uint32_t)bytes;
        commit_with(&l, 10 + bytes, &copy);
        assert_int_equal(l.s->copy.round, 15 + bytes);
        assert_in_range(l.s->copy.bytes, bytes, 8192);
        assert_memory_equal(l.s->copy.data, data, bytes);
    }
    lone_close(&l);
}

/* ---- rounds without this site ---------------------------------------------------------------- */

static dlxi_site_action commit_of_another(lone *l, uint64_t round) {
    l->message->as.commit = commit_of(4);
    l->message->as.commit.view.member[0].site = 1;
    return tell(l, DLXI_FRAME_COMMIT, 4, round, 7, 0);
}

static void a_round_without_this_site_is_followed(void **state) {
    (void)state;
    lone l = lone_open();
    l.message->as.welcome = (dlxi_welcome){.site = 0, .sites = 2, .tokens_target = 10};
    assert_int_equal(tell(&l, DLXI_FRAME_WELCOME, 4, 1, 0, 0), DLXI_SITE_LISTEN);
    l.message->as.endpoints = (dlxi_endpoints){.sites = 2};
    assert_int_equal(tell(&l, DLXI_FRAME_PEERS, 4, 1, 0, 0), DLXI_SITE_CONNECT);
    assert_int_equal(commit_of_another(&l, 1), DLXI_SITE_NOTHING); /* it has no θ yet */
    dlxi_site_on_entered(l.s);
    assert_int_equal(commit_of_another(&l, 2), DLXI_SITE_NOTHING); /* one after the other */
    assert_int_equal(commit_of_another(&l, 1), DLXI_SITE_FOLLOW);
    assert_int_equal(commit_of_another(&l, 1), DLXI_SITE_NOTHING); /* it is being done */
    assert_int_equal(l.s->round, 1);
    outbox_drain(&l);
    submit_lone(&l); /* meanwhile: for the next round */
    assert_null(newest(&l, DLXI_FRAME_READY));
    assert_int_equal(begin_lone(&l, 4, 1, 8), DLXI_SITE_NOTHING);
    dlxi_site_on_followed(l.s);
    assert_int_equal(l.s->round, 2);
    submit_lone(&l);
    assert_int_equal(newest(&l, DLXI_FRAME_READY)->round, 2);

    /* it was a member of an attempt that was begun again without it */
    assert_int_equal(begin_lone(&l, 4, 2, 1), DLXI_SITE_BEGIN);
    dlxi_site_on_staged(l.s, 3);
    assert_int_equal(commit_of_another(&l, 2), DLXI_SITE_FOLLOW);
    assert_int_equal(l.s->attempt, 0);
    assert_false(l.s->staged);
    assert_true(l.s->submitted);
    assert_null(l.s->standing);

    /* after the last round there is nothing to submit for */
    dlxi_site_on_followed(l.s);
    const dlxi_ready second = {.submission = 2, .tokens = 5};
    dlxi_site_on_ready(l.s, &second);
    assert_int_equal(commit_of_another(&l, 3), DLXI_SITE_FOLLOW);
    l.s->commit.finished = true;
    dlxi_site_on_followed(l.s);
    assert_null(l.s->standing);
    outbox_drain(&l);
    l.message->as.ping = (dlxi_ping){.part_count = 2};
    tell(&l, DLXI_FRAME_PING, 4, 4, 0, 0);
    assert_null(newest(&l, DLXI_FRAME_READY));
    lone_close(&l);
}

/* A link that takes nothing for an hour costs no memory; then one hello says all. */
static void nothing_piles_up_before_the_coordinator_starts(void **state) {
    (void)state;
    lone l = lone_open();
    for (int64_t now = 0; now <= JOIN_MS / 2; now += 100) (void)dlxi_site_on_tick(l.s, now);
    assert_int_equal(dlxi_outbox_peek(&l.s->outbox)->frame.kind, DLXI_FRAME_HELLO);
    assert_null(dlxi_outbox_peek(&l.s->outbox)->next);
    outbox_drain(&l);
    (void)dlxi_site_on_tick(l.s, JOIN_MS / 2 + 600); /* the hello was lost */
    assert_int_equal(dlxi_outbox_peek(&l.s->outbox)->frame.kind, DLXI_FRAME_HELLO);

    /* whom nobody knows has nobody to tell that it leaves; others have */
    dlx_error why;
    dlxi_error_set(&why, DLX_INTERRUPTED, "interrupted");
    dlxi_site_fail(l.s, &why);
    assert_null(dlxi_outbox_peek(&l.s->outbox));
    lone_close(&l);
    l = lone_open();
    outbox_drain(&l);
    dlxi_site_fail(l.s, &why);
    assert_int_equal(dlxi_outbox_peek(&l.s->outbox)->frame.kind, DLXI_FRAME_FAILED);
    lone_close(&l);
}

/* At the shortest timeout that the interface allows, with ticks every 100 ms, a coordinator and
 * sites that only ping each other never lose one another. */
static void pings_keep_an_idle_run_alive(void **state) {
    (void)state;
    enum { SHORTEST_MS = 1000, TICK_MS = 100 };
    world *w = world_open(1, 1000, NULL);
    join(w, 0, "b");
    listen_all(w, 1);
    lone l = lone_open();
    l.s->timeout_ms = SHORTEST_MS;
    welcome_lone(&l);
    while (dlxi_outbox_peek(&l.s->outbox) != NULL) dlxi_outbox_drop(&l.s->outbox);
    int64_t last_seen_ms = w->now_ms, said_ms = w->now_ms;
    for (int64_t now = 0; now < 20000; now += TICK_MS) {
        assert_int_equal(dlxi_site_on_tick(l.s, now), DLXI_SITE_NOTHING);
        dlxi_coordinator_on_tick(w->c, w->now_ms + now);
        const dlxi_outbox_item *item;
        while ((item = dlxi_outbox_peek(&l.s->outbox)) != NULL) {
            assert_int_equal(item->frame.kind, DLXI_FRAME_PING);
            dlxi_frame frame = item->frame;
            frame.term = 1;
            frame.coordinator = LIFE_ID;
            dlxi_coordinator_on_frame(w->c, 0, "", "", &frame, w->now_ms + now);
            assert_true(w->now_ms + now - said_ms < SHORTEST_MS - TICK_MS);
            said_ms = w->now_ms + now;
            dlxi_outbox_drop(&l.s->outbox);
        }
        while ((item = dlxi_outbox_peek(dlxi_coordinator_outbox(w->c))) != NULL) {
            assert_int_equal(item->frame.kind, DLXI_FRAME_PING);
            dlxi_frame frame = item->frame;
            frame.term = 4;
            frame.coordinator = id_of(4);
            assert_int_equal(dlxi_site_on_frame(l.s, &frame, now), DLXI_SITE_NOTHING);
            assert_true(w->now_ms + now - last_seen_ms < SHORTEST_MS - TICK_MS);
            last_seen_ms = w->now_ms + now;
            dlxi_outbox_drop(dlxi_coordinator_outbox(w->c));
        }
    }
    assert_true(last_seen_ms > w->now_ms + 19000 && said_ms > w->now_ms + 19000);
    lone_close(&l);
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_site_follows_its_coordinator),
        cmocka_unit_test(a_commit_that_was_not_staged_ends_the_site),
        cmocka_unit_test(a_view_of_unknown_sites_ends_the_site),
        cmocka_unit_test(a_run_that_finishes_too_early_fails),
        cmocka_unit_test(an_abort_takes_staging_back),
        cmocka_unit_test(a_site_repeats_what_waits_for_an_answer),
        cmocka_unit_test(the_reason_of_a_stop_reaches_the_caller),
        cmocka_unit_test(a_silent_coordinator_ends_the_site),
        cmocka_unit_test(a_coordinator_may_start_late),
        cmocka_unit_test(an_older_coordinator_is_not_listened_to),
        cmocka_unit_test(a_new_coordinator_knows_no_attempt),
        cmocka_unit_test(what_is_staged_outlives_the_coordinator),
        cmocka_unit_test(a_submission_that_was_forgotten_is_said_again),
        cmocka_unit_test(an_orphan_waits_for_its_coordinator),
        cmocka_unit_test(only_an_orphan_obeys_a_claim),
        cmocka_unit_test(a_site_keeps_the_newest_copy),
        cmocka_unit_test(a_site_keeps_earlier_records),
        cmocka_unit_test(a_round_without_this_site_is_followed),
        cmocka_unit_test(nothing_piles_up_before_the_coordinator_starts),
        cmocka_unit_test(pings_keep_an_idle_run_alive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
