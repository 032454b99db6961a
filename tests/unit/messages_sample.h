/* SPDX-License-Identifier: Apache-2.0 */
/* One message of every kind with every field set, for the tests of the wire's messages. */
#ifndef DLXI_TESTS_MESSAGES_SAMPLE_H
#define DLXI_TESTS_MESSAGES_SAMPLE_H

#include "wire/messages.h"

#include <string.h>

static const dlxi_frame_kind sample_kinds[] = {
    DLXI_FRAME_HELLO, DLXI_FRAME_WELCOME,  DLXI_FRAME_LISTENING, DLXI_FRAME_PEERS,
    DLXI_FRAME_READY, DLXI_FRAME_BEGIN,    DLXI_FRAME_STAGED,    DLXI_FRAME_COMMIT,
    DLXI_FRAME_ABORT, DLXI_FRAME_FAILED,   DLXI_FRAME_STOP,      DLXI_FRAME_REPORT,
    DLXI_FRAME_PING,  DLXI_FRAME_FINISHED, DLXI_FRAME_CLAIM,     DLXI_FRAME_POSITION};

enum { SAMPLE_KINDS = sizeof sample_kinds / sizeof *sample_kinds };

static inline dlxi_lease sample_lease(uint64_t submission) {
    return (dlxi_lease){.submission = submission,
                        .range_count = 2,
                        .ranges = {{5, 6}, {UINT64_C(1) << 40, UINT32_MAX}}};
}

static inline dlxi_view sample_view(void) {
    return (dlxi_view){.members = 2, .member = {{0, 1, 2, 3, 4, true}, {63, 5, 6, 7, 8, false}}};
}

static inline dlxi_copy sample_copy(void) {
    static const uint8_t data[] = {7, 8, 9};
    return (dlxi_copy){.term = 5, .round = 6, .bytes = sizeof data, .data = data};
}

/* *message is all zeros but for what is set here. */
static inline void sample_message(dlxi_message *message, dlxi_frame_kind kind) {
    memset(message, 0, sizeof *message);
    message->kind = kind;
    switch (kind) {
    case DLXI_FRAME_HELLO: {
        dlxi_hello *m = &message->as.hello;
        *m = (dlxi_hello){.site = "paris",
                          .rank = 1,
                          .ranks = 3,
                          .tensors_hash = UINT64_MAX,
                          .anchor_hash = 2,
                          .windows = 3,
                          .tokens_per_window = 4,
                          .data_hash = 5,
                          .lease_windows = 6,
                          .incarnation = 7,
                          .keeps_history = true,
                          .shared_text = "a.b: c\n"};
        break;
    }
    case DLXI_FRAME_WELCOME: {
        dlxi_welcome *m = &message->as.welcome;
        *m = (dlxi_welcome){.site = 1,
                            .sites = 2,
                            .tokens_target = 1234567890123,
                            .run_id = 0xfedcba9876543210,
                            .leases = {sample_lease(1), sample_lease(2)}};
        strcpy(m->members[0].name, "paris");
        strcpy(m->members[1].name, "tokyo");
        strcpy(m->members[1].public_key, "0123456789012345678901234567890123456789");
        m->members[0].needs_anchor = true;
        break;
    }
    case DLXI_FRAME_LISTENING:
    case DLXI_FRAME_PEERS:
        message->as.endpoints.sites = 3;
        strcpy(message->as.endpoints.endpoint[0], "tcp://10.0.0.1:5555");
        strcpy(message->as.endpoints.endpoint[2], "mem:4");
        break;
    case DLXI_FRAME_READY:
        message->as.ready = (dlxi_ready){.submission = 8,
                                         .base_round = 9,
                                         .tokens = 1,
                                         .windows_used = 2,
                                         .anchor_hash = 3,
                                         .norm = -0.5,
                                         .step_ns = 4,
                                         .exchange_ns = 5,
                                         .exchange_bytes = 6,
                                         .grace_ms = 7};
        break;
    case DLXI_FRAME_BEGIN:
        message->as.view = sample_view();
        break;
    case DLXI_FRAME_STAGED:
        message->as.staged.hash = 0x0123456789abcdef;
        break;
    case DLXI_FRAME_COMMIT:
        message->as.commit = (dlxi_commit){.term = 2,
                                           .coordinator = 3,
                                           .committed_tokens = 9,
                                           .finished = true,
                                           .lease = sample_lease(7),
                                           .view = sample_view(),
                                           .copy = sample_copy()};
        break;
    case DLXI_FRAME_ABORT:
    case DLXI_FRAME_FAILED:
    case DLXI_FRAME_STOP:
        message->as.reason = (dlxi_reason){.status = 13, .about = 5, .text = "because"};
        break;
    case DLXI_FRAME_REPORT:
        message->as.report.parts = 10;
        strcpy(message->as.report.text, "{\"loss\": 1}");
        break;
    case DLXI_FRAME_PING:
        message->as.ping = (dlxi_ping){.run_id = 0xfedcba9876543210,
                                       .incarnation = 7,
                                       .stamp = INT64_MIN + 5,
                                       .sites = 6,
                                       .submission = 4,
                                       .parts = 9,
                                       .part_count = 8,
                                       .saves = true};
        break;
    case DLXI_FRAME_CLAIM:
        message->as.claim = (dlxi_claim){.run_id = 0xfedcba9876543210, .wants_copy = true};
        break;
    case DLXI_FRAME_POSITION:
        message->as.position = (dlxi_position){.run_id = 0xfedcba9876543210,
                                               .incarnation = 7,
                                               .hears = true,
                                               .view = 1 | UINT64_C(1) << 63,
                                               .copy = sample_copy()};
        break;
    default: /* FINISHED is empty */
        break;
    }
}

#endif
