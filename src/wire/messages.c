/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/messages.h"

#include "base/panic.h"
#include "wire/bytes.h"

/* Exactly one of the two is set: a field is written from, or read to, the same place. */
typedef struct fields {
    dlxi_writer *writer;
    dlxi_reader *reader;
    bool out_of_range;
} fields;

#define DEFINE_FIELD(name, type)                                                                   \
    static void field_##name(fields *f, type *value) {                                             \
        if (f->writer != NULL)                                                                     \
            dlxi_write_##name(f->writer, *value);                                                  \
        else                                                                                       \
            *value = dlxi_read_##name(f->reader);                                                  \
    }
DEFINE_FIELD(u8, uint8_t)
DEFINE_FIELD(u16, uint16_t)
DEFINE_FIELD(u32, uint32_t)
DEFINE_FIELD(u64, uint64_t)
DEFINE_FIELD(f64, double)

static void field_i64(fields *f, int64_t *value) {
    uint64_t bits = (uint64_t)*value;
    field_u64(f, &bits);
    *value = (int64_t)bits;
}

static void field_bool(fields *f, bool *value) {
    /* a reader finds any bytes here, which may be no bool */
    uint8_t byte = f->writer != NULL && *value;
    field_u8(f, &byte);
    if (byte > 1) f->out_of_range = true;
    *value = byte == 1;
}

static void field_string(fields *f, char *text, size_t max_bytes) {
    if (f->writer != NULL)
        dlxi_write_string(f->writer, text, max_bytes);
    else
        dlxi_read_string(f->reader, text, max_bytes);
}

/* A count of things that follow, so that no loop runs past its array. */
static void field_count(fields *f, uint16_t *count, uint16_t max) {
    DLXI_ASSERT(f->writer == NULL || *count <= max);
    field_u16(f, count);
    if (*count > max) {
        f->out_of_range = true;
        *count = 0;
    }
}

static void lease_fields(fields *f, dlxi_lease *lease) {
    uint16_t count = (uint16_t)lease->range_count;
    field_u64(f, &lease->submission);
    field_count(f, &count, DLXI_LEASE_RANGES_MAX);
    lease->range_count = count;
    for (uint16_t i = 0; i < count; i++) {
        field_u64(f, &lease->ranges[i].first);
        field_u32(f, &lease->ranges[i].count);
        if (lease->ranges[i].count == 0 || lease->ranges[i].first > UINT64_MAX / 4)
            f->out_of_range = true;
    }
}

static void copy_fields(fields *f, dlxi_copy *copy) {
    field_u32(f, &copy->term);
    field_u64(f, &copy->round);
    field_u32(f, &copy->bytes);
    if (copy->bytes > DLXI_COPY_MAX) {
        f->out_of_range = true;
        copy->bytes = 0;
    }
    if (f->writer != NULL && copy->bytes > 0)
        dlxi_write_bytes(f->writer, copy->data, copy->bytes);
    else if (f->reader != NULL)
        copy->data = copy->bytes > 0 ? dlxi_read_bytes(f->reader, copy->bytes) : NULL;
}

static void hello_fields(fields *f, dlxi_hello *m) {
    field_string(f, m->site, DLXI_SITE_NAME_MAX);
    field_u16(f, &m->rank);
    field_u16(f, &m->ranks);
    field_u64(f, &m->tensors_hash);
    field_u64(f, &m->anchor_hash);
    field_u64(f, &m->windows);
    field_u64(f, &m->tokens_per_window);
    field_u64(f, &m->data_hash);
    field_u32(f, &m->lease_windows);
    field_u64(f, &m->incarnation);
    field_bool(f, &m->keeps_history);
    field_u64(f, &m->resumed_run);
    field_u64(f, &m->round);
    field_u64(f, &m->counted);
    copy_fields(f, &m->copy);
    field_string(f, m->shared_text, DLXI_TEXT_MAX);
}

static void welcome_fields(fields *f, dlxi_welcome *m) {
    field_u16(f, &m->site);
    field_count(f, &m->sites, DLXI_SITES_MAX);
    field_u64(f, &m->tokens_target);
    field_u64(f, &m->run_id);
    if (m->site >= m->sites) f->out_of_range = true;
    for (uint16_t i = 0; i < m->sites; i++) {
        field_string(f, m->members[i].name, DLXI_SITE_NAME_MAX);
        field_string(f, m->members[i].public_key, DLXI_KEY_TEXT_MAX);
        field_bool(f, &m->members[i].needs_anchor);
    }
    field_u64(f, &m->counted);
    lease_fields(f, &m->leases[0]);
    lease_fields(f, &m->leases[1]);
}

static void endpoints_fields(fields *f, dlxi_endpoints *m) {
    field_count(f, &m->sites, DLXI_SITES_MAX);
    for (uint16_t i = 0; i < m->sites; i++) field_string(f, m->endpoint[i], DLXI_ENDPOINT_MAX);
}

static void ready_fields(fields *f, dlxi_ready *m) {
    field_u64(f, &m->submission);
    field_u64(f, &m->base_round);
    field_u64(f, &m->tokens);
    field_u32(f, &m->windows_used);
    field_u64(f, &m->anchor_hash);
    field_f64(f, &m->norm);
    field_u64(f, &m->step_ns);
    field_u64(f, &m->exchange_ns);
    field_u64(f, &m->exchange_bytes);
    field_u32(f, &m->grace_ms);
}

static void view_fields(fields *f, dlxi_view *m) {
    field_count(f, &m->members, DLXI_SITES_MAX);
    if (m->members == 0) f->out_of_range = true;
    for (uint16_t i = 0; i < m->members; i++) {
        field_u16(f, &m->member[i].site);
        field_u64(f, &m->member[i].tokens);
        field_u64(f, &m->member[i].step_ns);
        field_u64(f, &m->member[i].exchange_ns);
        field_u64(f, &m->member[i].exchange_bytes);
        field_bool(f, &m->member[i].voided);
        if (m->member[i].site >= DLXI_SITES_MAX ||
            (i > 0 && m->member[i].site <= m->member[i - 1].site))
            f->out_of_range = true;
    }
}

static void commit_fields(fields *f, dlxi_commit *m) {
    field_u32(f, &m->term);
    field_u64(f, &m->coordinator);
    field_u64(f, &m->committed_tokens);
    field_bool(f, &m->finished);
    lease_fields(f, &m->lease);
    view_fields(f, &m->view);
    copy_fields(f, &m->copy);
}

static void position_fields(fields *f, dlxi_position *m) {
    field_u64(f, &m->run_id);
    field_u64(f, &m->incarnation);
    field_bool(f, &m->hears);
    field_u64(f, &m->view);
    copy_fields(f, &m->copy);
}

static void ping_fields(fields *f, dlxi_ping *m) {
    field_u64(f, &m->run_id);
    field_u64(f, &m->incarnation);
    field_i64(f, &m->stamp);
    field_u64(f, &m->sites);
    field_u64(f, &m->submission);
    field_u64(f, &m->parts);
    field_count(f, &m->part_count, DLXI_SITES_MAX);
    field_bool(f, &m->saves);
}

static void reason_fields(fields *f, dlxi_reason *m) {
    field_u16(f, &m->status);
    field_u16(f, &m->about);
    field_string(f, m->text, DLXI_REASON_MAX);
}

static void greeting_fields(fields *f, dlxi_greeting *m) {
    field_u32(f, &m->asks);
    field_u32(f, &m->answers);
    for (int i = 0; i < DLXI_TRIPS; i++) {
        field_u64(f, &m->trips[i].sent);
        field_u64(f, &m->trips[i].received);
    }
}

static void message_fields(fields *f, dlxi_message *m) {
    switch (m->kind) {
    case DLXI_FRAME_HELLO:
        hello_fields(f, &m->as.hello);
        break;
    case DLXI_FRAME_WELCOME:
        welcome_fields(f, &m->as.welcome);
        break;
    case DLXI_FRAME_LISTENING:
    case DLXI_FRAME_PEERS:
        endpoints_fields(f, &m->as.endpoints);
        break;
    case DLXI_FRAME_READY:
        ready_fields(f, &m->as.ready);
        break;
    case DLXI_FRAME_BEGIN:
        view_fields(f, &m->as.view);
        break;
    case DLXI_FRAME_STAGED:
        field_u64(f, &m->as.staged.hash);
        break;
    case DLXI_FRAME_COMMIT:
        commit_fields(f, &m->as.commit);
        break;
    case DLXI_FRAME_ABORT:
    case DLXI_FRAME_FAILED:
    case DLXI_FRAME_STOP:
        reason_fields(f, &m->as.reason);
        break;
    case DLXI_FRAME_REPORT:
        field_u64(f, &m->as.report.parts);
        field_count(f, &m->as.report.part_count, DLXI_SITES_MAX);
        field_string(f, m->as.report.text, DLXI_TEXT_MAX);
        break;
    case DLXI_FRAME_PING:
        ping_fields(f, &m->as.ping);
        break;
    case DLXI_FRAME_CLAIM:
        field_u64(f, &m->as.claim.run_id);
        field_bool(f, &m->as.claim.wants_copy);
        break;
    case DLXI_FRAME_POSITION:
        position_fields(f, &m->as.position);
        break;
    case DLXI_FRAME_FINISHED:
        break;
    default:
        f->out_of_range = true;
    }
}

dlx_status dlxi_message_encode(uint8_t *dst, size_t capacity_bytes, size_t *used_bytes,
                               const dlxi_message *message, dlx_error *error) {
    dlxi_writer writer = dlxi_writer_over(dst, capacity_bytes);
    fields f = {.writer = &writer};
    message_fields(&f, (dlxi_message *)(uintptr_t)message); /* a writer changes nothing */
    *used_bytes = writer.used_bytes;
    if (writer.failed || f.out_of_range)
        DLX_FAIL(error, ARGUMENT, "message of kind %d does not fit the format", (int)message->kind);
    return DLX_OK;
}

dlx_status dlxi_message_decode(dlxi_message *message, const dlxi_frame *frame, dlx_error *error) {
    dlxi_reader reader = dlxi_reader_over(frame->payload, frame->payload_bytes);
    fields f = {.reader = &reader};
    message->kind = frame->kind;
    message_fields(&f, message);
    if (f.out_of_range || !dlxi_reader_done(&reader))
        DLX_FAIL(error, DATA, "malformed message of kind %d from site %u", (int)frame->kind,
                 frame->site);
    return DLX_OK;
}

void dlxi_greeting_encode(uint8_t dst[DLXI_GREETING_BYTES], const dlxi_greeting *greeting) {
    dlxi_writer writer = dlxi_writer_over(dst, DLXI_GREETING_BYTES);
    fields f = {.writer = &writer};
    greeting_fields(&f, (dlxi_greeting *)(uintptr_t)greeting);
    DLXI_ASSERT(!writer.failed && writer.used_bytes == DLXI_GREETING_BYTES);
}

bool dlxi_greeting_decode(dlxi_greeting *greeting, const dlxi_frame *frame) {
    dlxi_reader reader = dlxi_reader_over(frame->payload, frame->payload_bytes);
    fields f = {.reader = &reader};
    if (frame->payload_bytes != DLXI_GREETING_BYTES) return false;
    greeting_fields(&f, greeting);
    return true;
}
