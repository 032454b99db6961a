/* SPDX-License-Identifier: Apache-2.0 */
/* What outlives a coordinator's process: one function both writes and reads it. */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/hash.h"
#include "base/name.h"
#include "base/panic.h"
#include "member/coordinator_internal.h"
#include "options/options.h"
#include "wire/bytes.h"

enum { FORMAT = 4, SITE_BYTES = 4096, HEAD_BYTES = 1024 };

#define COUNT_MAX (UINT64_C(1) << 60) /* of rounds, submissions, tokens: so that none overflows */

/* Exactly one of the two is set. */
typedef struct both {
    dlxi_writer *writer;
    dlxi_reader *reader;
    bool out_of_range;
} both;

#define DEFINE(name, type)                                                                         \
    static void both_##name(both *b, type *value) {                                                \
        if (b->writer != NULL)                                                                     \
            dlxi_write_##name(b->writer, *value);                                                  \
        else                                                                                       \
            *value = dlxi_read_##name(b->reader);                                                  \
    }
DEFINE(u8, uint8_t)
DEFINE(u16, uint16_t)
DEFINE(u32, uint32_t)
DEFINE(u64, uint64_t)

static void both_bool(both *b, bool *value) {
    uint8_t byte = b->writer != NULL && *value;
    both_u8(b, &byte);
    b->out_of_range = b->out_of_range || byte > 1;
    *value = byte == 1;
}

static void both_text(both *b, char *text, size_t max_bytes) {
    if (b->writer != NULL)
        dlxi_write_string(b->writer, text, max_bytes);
    else
        dlxi_read_string(b->reader, text, max_bytes);
}

static void both_count(both *b, uint16_t *count, uint16_t min, uint16_t max) {
    both_u16(b, count);
    if (*count >= min && *count <= max) return;
    b->out_of_range = true;
    *count = 0;
}

static void both_lease(both *b, dlxi_lease *lease) {
    uint16_t count = (uint16_t)lease->range_count;
    both_u64(b, &lease->submission);
    both_count(b, &count, 0, DLXI_LEASE_RANGES_MAX);
    lease->range_count = count;
    for (uint16_t i = 0; i < count; i++) {
        both_u64(b, &lease->ranges[i].first);
        both_u32(b, &lease->ranges[i].count);
    }
}

/* ---- a site ---------------------------------------------------------------------------------- */

/* first: the first one; what all sites have alike is written with it */
static void both_site(both *b, dlxi_run_site *s, const dlxi_run_site *first) {
    uint8_t gone = s->presence == DLXI_GONE;
    /* why others were away in this life is of no use to the next one */
    uint64_t lost_round = gone ? s->lost_round : 0;
    uint16_t status = gone ? (uint16_t)s->lost_status : 0;
    char none[DLXI_REASON_MAX + 1] = "", *why = gone || b->reader != NULL ? s->lost_why : none;
    both_text(b, s->name, DLXI_SITE_NAME_MAX);
    both_text(b, s->key, DLXI_KEY_TEXT_MAX);
    both_u8(b, &gone);
    both_u64(b, &s->windows);
    both_u64(b, &s->tokens_per_window);
    both_u64(b, &s->data_hash);
    both_u32(b, &s->lease_windows);
    both_bool(b, &s->keeps_history);
    both_u64(b, &s->counted);
    both_u64(b, &s->voided);
    both_u64(b, &s->windows_early);
    b->out_of_range = b->out_of_range || s->windows_early > COUNT_MAX;
    for (int i = 0; i < DLXI_COORDINATOR_LEASES; i++) both_lease(b, &s->leases[i]);
    both_bool(b, &s->was_member);
    both_u32(b, &s->left_out);
    both_u32(b, &s->left_out_total);
    both_u64(b, &lost_round);
    both_u16(b, &status);
    both_text(b, why, DLXI_REASON_MAX);
    if (b->reader != NULL) {
        s->presence = gone ? DLXI_GONE : DLXI_PRESENT;
        s->lost_round = lost_round;
        s->lost_status = (dlx_status)status;
    }
    both_count(b, &s->rank_count, 1, DLXI_RANKS_MAX);
    if (b->reader != NULL)
        s->ranks = calloc(s->rank_count > 0 ? s->rank_count : 1, sizeof *s->ranks);
    if (s->ranks == NULL) s->rank_count = 0;
    for (uint16_t r = 0; r < s->rank_count; r++) {
        both_u64(b, &s->ranks[r].incarnation);
        if (s == first)
            both_u64(b, &s->ranks[r].tensors_hash);
        else if (b->reader != NULL && r < first->rank_count)
            s->ranks[r].tensors_hash = first->ranks[r].tensors_hash;
    }
}

/* Once all have reported. A site without a report was away. */
static void both_report(both *b, dlxi_run_site *s) {
    char none[] = "", *text = s->report != NULL ? s->report : none;
    bool has = s->report != NULL && DLXI_ALL(s, reported);
    both_bool(b, &has);
    if (!has || b->out_of_range) return;
    if (b->reader != NULL && (text = s->report = malloc(DLXI_TEXT_MAX + 1)) == NULL) return;
    both_text(b, text, DLXI_TEXT_MAX);
}

/* A site of an earlier life, until it is heard. One that has reported is not missed. */
static void site_revive(dlxi_run_site *s, uint64_t round) {
    s->joined = s->rank_count;
    if (s->presence != DLXI_GONE && s->report == NULL) {
        s->presence = DLXI_AWAY;
        s->revived = true;
        s->lost_round = round;
        s->lost_status = DLX_PEER_LOST;
        dlxi_text_copy(s->lost_why, sizeof s->lost_why,
                       "not heard since the coordinator was started again");
    }
    for (uint16_t r = 0; r < s->rank_count; r++) {
        dlxi_run_rank *p = &s->ranks[r];
        p->joined = p->listening = p->linked = p->entered = true;
        p->reported = s->report != NULL;
    }
}

/* Its sites have just been lost. */
static void times_begin(dlxi_coordinator *c, int64_t now_ms) {
    c->now_ms = c->pinged_ms = c->ticked_ms = c->opened_ms = c->closing_ms = now_ms;
    for (uint16_t i = 0; i < c->count; i++) {
        c->sites[i].away_ms = now_ms;
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            c->sites[i].ranks[r].last_seen_ms = now_ms;
    }
}

static bool lease_is_valid(const dlxi_lease *lease, uint64_t submission) {
    bool valid = lease->submission == submission;
    for (uint32_t i = 0; i < lease->range_count; i++)
        valid = valid && lease->ranges[i].count > 0 && lease->ranges[i].first <= UINT64_MAX / 4;
    return valid;
}

/* What the rest of a coordinator relies on. `previous`: the site before it, or NULL. */
static bool site_is_valid(const dlxi_run_site *s, const dlxi_run_site *previous) {
    if (!dlxi_name_valid(s->name) || (previous != NULL && strcmp(previous->name, s->name) >= 0) ||
        (previous != NULL && previous->rank_count != s->rank_count) || s->counted > COUNT_MAX ||
        s->voided > s->counted + 2 || s->lost_round > COUNT_MAX ||
        (s->presence == DLXI_GONE && s->lost_round == 0) || (unsigned)s->lost_status > DLX_DIVERGED)
        return false;
    for (uint64_t n = s->counted + 1; n <= s->counted + 2; n++)
        if (!lease_is_valid(&s->leases[n % DLXI_COORDINATOR_LEASES], n)) return false;
    return true;
}

static bool whole_is_valid(const dlxi_coordinator *c) {
    return c->term > 0 && c->term < UINT32_MAX && c->round > 0 && c->round <= COUNT_MAX &&
           c->committed_tokens <= COUNT_MAX && c->count > 0 && dlxi_coordinator_left(c) > 0 &&
           (uint32_t)c->count * c->sites[0].rank_count <= DLXI_RUN_RANKS_MAX;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static void both_head(both *b, dlxi_coordinator *c, dlxi_stage *stage) {
    uint16_t format = FORMAT, number = (uint16_t)*stage;
    uint32_t lineage = dlxi_lineage_of(c->settings.life_id);
    both_u16(b, &format);
    b->out_of_range = b->out_of_range || format != FORMAT;
    both_count(b, &number, 0, DLXI_STAGE_OVER);
    *stage = (dlxi_stage)number;
    both_u64(b, &c->settings.run_id);
    both_u64(b, &c->settings.tokens_target);
    both_u32(b, &lineage);
    c->settings.life_id = (uint64_t)lineage << 32 | (uint32_t)c->settings.life_id;
    both_u32(b, &c->term);
    both_u64(b, &c->round);
    both_u64(b, &c->committed_tokens);
    both_bool(b, &c->committed_last);
    both_text(b, c->endpoint, DLXI_ENDPOINT_MAX);
    both_count(b, &c->count, 1, DLXI_SITES_MAX);
}

static void both_record(both *b, dlxi_record *r) {
    both_u64(b, &r->round);
    both_u64(b, &r->committed_tokens);
    both_u32(b, &r->term);
    both_u32(b, &r->attempt);
    both_u64(b, &r->coordinator);
    both_bool(b, &r->finished);
    for (uint16_t m = 0; m < r->members; m++) {
        both_u16(b, &r->member[m].site);
        both_bool(b, &r->member[m].voided);
        both_u64(b, &r->member[m].tokens);
        both_u64(b, &r->member[m].step_ns);
        b->out_of_range = b->out_of_range || r->member[m].site >= DLXI_SITES_MAX ||
                          (m > 0 && r->member[m].site <= r->member[m - 1].site);
    }
    for (size_t i = 0; i < (size_t)r->members * r->ranks; i++) {
        both_u64(b, &r->exchange_ns[i]);
        both_u64(b, &r->exchange_bytes[i]);
    }
}

static dlxi_stage stage_of(const dlxi_coordinator *c) {
    bool done = c->phase == DLXI_COORDINATOR_DONE;
    if (c->leaves_run || c->phase < DLXI_COORDINATOR_CLOSING) return DLXI_STAGE_ROUNDS;
    return (done && c->result.status != DLX_OK) || c->is_over ? DLXI_STAGE_OVER
                                                              : DLXI_STAGE_REPORTED;
}

bool dlxi_coordinator_is_unsaved(const dlxi_coordinator *c) {
    return c->begun && !c->leaves_run && (c->unsaved || stage_of(c) != c->saved_stage);
}

bool dlxi_coordinator_waits_for_disk(const dlxi_coordinator *c) {
    return c->count == 0 || c->sites[0].keeps_history;
}

void dlxi_coordinator_set_over(dlxi_coordinator *c) {
    DLXI_ASSERT(c->phase == DLXI_COORDINATOR_DONE);
    c->is_over = true;
}

bool dlxi_coordinator_is_over(const dlxi_coordinator *c) {
    return stage_of(c) == DLXI_STAGE_OVER;
}

void dlxi_coordinator_set_endpoint(dlxi_coordinator *c, const char *endpoint) {
    dlxi_text_copy(c->endpoint, sizeof c->endpoint, endpoint);
}

const char *dlxi_coordinator_endpoint(const dlxi_coordinator *c) {
    return c->endpoint;
}

static size_t record_bytes_max(const dlxi_record *r) {
    return HEAD_BYTES + (size_t)r->members * (19 + 16 * (size_t)r->ranks);
}

static void record_write(dlxi_writer *writer, const dlxi_record *record) {
    dlxi_record *r = (dlxi_record *)(uintptr_t)record; /* a writer changes nothing */
    both b = {.writer = writer};
    both_u16(&b, &r->members);
    both_u16(&b, &r->ranks);
    both_record(&b, r);
}

static dlx_status record_save(dlxi_saved *out, const dlxi_record *record, dlx_error *error) {
    size_t most = record_bytes_max(record);
    if ((out->record = malloc(most)) == NULL) DLX_FAIL(error, MEMORY, "out of memory for a record");
    dlxi_writer writer = dlxi_writer_over(out->record, most);
    record_write(&writer, record);
    DLXI_ASSERT(!writer.failed);
    out->record_bytes = writer.used_bytes;
    out->round = record->round;
    return DLX_OK;
}

static size_t state_bytes_max(const dlxi_coordinator *c, dlxi_stage stage, const char *text) {
    size_t most = HEAD_BYTES + strlen(text) + dlxi_ledger_bytes(c->ledger);
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        most += SITE_BYTES + 16 * (size_t)s->rank_count;
        most += stage == DLXI_STAGE_REPORTED && s->report != NULL ? strlen(s->report) : 0;
    }
    return most;
}

static void state_write(dlxi_writer *writer, dlxi_coordinator *c, dlxi_stage stage, char *text) {
    both b = {.writer = writer};
    both_head(&b, c, &stage);
    both_text(&b, text, DLXI_TEXT_MAX);
    dlxi_ledger_write(c->ledger, writer);
    for (uint16_t i = 0; i < c->count; i++) {
        both_site(&b, &c->sites[i], c->sites);
        if (stage == DLXI_STAGE_REPORTED) both_report(&b, &c->sites[i]);
    }
}

dlx_status dlxi_coordinator_save_round(dlxi_coordinator *c, uint64_t round, dlxi_saved *out,
                                       dlx_error *error) {
    char none[] = "", *text = c->shared_text != NULL ? c->shared_text : none;
    dlxi_stage stage = stage_of(c);
    size_t most = state_bytes_max(c, stage, text);
    *out = (dlxi_saved){0};
    if ((out->state = malloc(most)) == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for the coordinator's state");
    dlxi_writer writer = dlxi_writer_over(out->state, most);
    state_write(&writer, c, stage, text);
    DLXI_ASSERT(!writer.failed);
    out->state_bytes = writer.used_bytes;
    const dlxi_record *record = dlxi_record_of(c, round);
    dlx_status status = record != NULL ? record_save(out, record, error) : DLX_OK;
    if (status != DLX_OK)
        dlxi_saved_release(out);
    else
        c->unsaved = false, c->saved_stage = stage;
    return status;
}

dlx_status dlxi_coordinator_save(dlxi_coordinator *c, dlxi_saved *out, dlx_error *error) {
    return dlxi_coordinator_save_round(c, c->round - 1, out, error);
}

void dlxi_saved_release(dlxi_saved *saved) {
    free(saved->state);
    free(saved->record);
    *saved = (dlxi_saved){0};
}

/* ---- the copy that sites keep ---------------------------------------------------------------- */

enum { HASH_TEXT_BYTES = 18 };

/* Stands for the text of the settings in a copy. */
static void settings_hash(char text[HASH_TEXT_BYTES], const char *settings) {
    text[0] = '\0';
    if (settings != NULL)
        snprintf(text, HASH_TEXT_BYTES, "#%016llx",
                 (unsigned long long)dlxi_hash(settings, strlen(settings), 0));
}

/* A part of a copy begins with its length, which is known behind it. */
static void part_end(dlxi_writer *writer, size_t at) {
    dlxi_writer length = dlxi_writer_over(writer->bytes + at, sizeof(uint32_t));
    dlxi_write_u32(&length, (uint32_t)(writer->used_bytes - at - sizeof(uint32_t)));
}

/* False: no room; nothing is written then. */
static bool record_part_write(dlxi_writer *writer, const dlxi_record *record) {
    dlxi_writer before = *writer;
    dlxi_write_u32(writer, 0);
    record_write(writer, record);
    if (!writer->failed) part_end(writer, before.used_bytes);
    if (writer->failed) *writer = before;
    return writer->used_bytes > before.used_bytes;
}

/* The state, and the last record. Sites keep those of the rounds before, too. */
static bool copy_write(dlxi_writer *writer, dlxi_coordinator *c) {
    char text[HASH_TEXT_BYTES];
    const dlxi_record *record = dlxi_record_of(c, c->round - 1);
    settings_hash(text, c->shared_text);
    dlxi_write_u32(writer, 0);
    state_write(writer, c, DLXI_STAGE_ROUNDS, text);
    if (writer->failed) return false;
    part_end(writer, 0);
    return record == NULL || record_part_write(writer, record);
}

void dlxi_coordinator_copy_make(dlxi_coordinator *c) {
    if (c->copy == NULL && (c->copy = malloc(DLXI_COPY_MAX)) == NULL) return;
    dlxi_writer writer = dlxi_writer_over(c->copy, DLXI_COPY_MAX);
    c->copy_bytes = copy_write(&writer, c) ? (uint32_t)writer.used_bytes : 0;
    if (c->copy_bytes > 0 || c->no_copy_is_told) return;
    c->no_copy_is_told = true;
    dlxi_lines_add(&c->log,
                   "the run's state is too large for sites to keep: if coordinator.db is lost, "
                   "--takeover can't go on, nor --resume");
}

uint32_t dlxi_coordinator_copy_extend(dlxi_coordinator *c, uint64_t from) {
    dlxi_writer writer = dlxi_writer_over(c->copy, DLXI_COPY_MAX);
    writer.used_bytes = c->copy_bytes;
    for (uint64_t round = c->round - 1; c->copy_bytes > 0 && --round >= from && round > 0;) {
        const dlxi_record *record = dlxi_record_of(c, round);
        if (record == NULL || !record_part_write(&writer, record)) break;
    }
    return (uint32_t)writer.used_bytes;
}

/* ---- restoring ------------------------------------------------------------------------------- */

static dlx_status settings_compare(const dlxi_coordinator *c, const char *then, dlx_error *error) {
    dlxi_option_difference d;
    char hash[HASH_TEXT_BYTES];
    settings_hash(hash, c->shared_text);
    if (then[0] == '#' && c->shared_text != NULL && strcmp(then, hash) != 0)
        DLX_FAIL(
            error, CONFIG,
            "the settings are not those of the run: start the coordinator with the config that "
            "the run began with");
    if (c->shared_text == NULL || then[0] == '#' ||
        dlxi_options_canonical_equal(&d, c->shared_text, strlen(c->shared_text), then, strlen(then),
                                     false))
        return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: '%s' now, '%s' when this run began; start its coordinator again with the same "
             "settings, or a new run in another run.dir",
             d.key, d.ours, d.theirs);
}

static dlx_status sites_compare(const dlxi_coordinator *c, dlx_error *error) {
    if (c->settings.sites == c->count) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "sites: %u now, %u when this run began; start its coordinator again with the same "
             "number, or a new run in another run.dir",
             c->settings.sites, c->count);
}

/* same: the sites and settings have to be those of now. */
static dlx_status state_read(dlxi_coordinator *c, const uint8_t *state, size_t bytes, bool same,
                             dlx_error *error) {
    char *text = malloc(DLXI_TEXT_MAX + 1);
    if (text == NULL) DLX_FAIL(error, MEMORY, "out of memory for the coordinator's state");
    dlxi_reader reader = dlxi_reader_over(state, bytes);
    both b = {.reader = &reader};
    both_head(&b, c, &c->saved_stage);
    both_text(&b, text, DLXI_TEXT_MAX);
    bool memory = true, fits = dlxi_ledger_read(c->ledger, &reader);
    for (uint16_t i = 0; i < c->count && memory; i++) {
        both_site(&b, &c->sites[i], c->sites);
        if (c->saved_stage == DLXI_STAGE_REPORTED) both_report(&b, &c->sites[i]);
        memory = c->sites[i].ranks != NULL;
        fits = fits && site_is_valid(&c->sites[i], i > 0 ? &c->sites[i - 1] : NULL);
        if (memory) site_revive(&c->sites[i], c->round);
    }
    dlx_status status = DLX_OK;
    if (!memory)
        status = dlxi_error_set(error, DLX_MEMORY, "out of memory for the coordinator's state");
    else if (b.out_of_range || !fits || !dlxi_reader_done(&reader) || !whole_is_valid(c))
        status = dlxi_error_set(error, DLX_DATA, "the coordinator's saved state is malformed");
    else if (c->saved_stage == DLXI_STAGE_OVER)
        status = dlxi_error_set(error, DLX_STATE, "the run is over");
    else if (same)
        status = sites_compare(c, error);
    if (status == DLX_OK && same) status = settings_compare(c, text, error);
    free(text);
    return status;
}

static dlx_status coordinator_restore(dlxi_coordinator **out,
                                      const dlxi_coordinator_settings *settings,
                                      const uint8_t *state, size_t bytes, bool same, int64_t now_ms,
                                      dlx_error *error) {
    dlxi_coordinator *c;
    DLX_TRY(dlxi_coordinator_open(&c, settings, now_ms, error));
    dlx_status status = state_read(c, state, bytes, same, error);
    if (status != DLX_OK) {
        dlxi_coordinator_close(&c);
        *out = NULL;
        return status;
    }
    c->phase = c->saved_stage == DLXI_STAGE_REPORTED ? DLXI_COORDINATOR_CLOSING
               : c->committed_last                   ? DLXI_COORDINATOR_ENDING
                                                     : DLXI_COORDINATOR_RUNNING;
    times_begin(c, now_ms);
    c->welcomed = c->begun = c->restored = c->unsaved = true;
    *out = c;
    return DLX_OK;
}

dlx_status dlxi_coordinator_restore(dlxi_coordinator **out,
                                    const dlxi_coordinator_settings *settings, const uint8_t *state,
                                    size_t bytes, int64_t now_ms, dlx_error *error) {
    DLX_TRY(coordinator_restore(out, settings, state, bytes, true, now_ms, error));
    dlxi_coordinator *c = *out;
    if (!DLXI_PLANTED(18)) c->term++;
    dlxi_lines_add(&c->log,
                   "goes on with run %016llx at round %llu, as term %u; waiting for its sites",
                   (unsigned long long)c->settings.run_id, (unsigned long long)c->round, c->term);
    return DLX_OK;
}

dlx_status dlxi_coordinator_restore_record(dlxi_coordinator *c, const uint8_t *bytes, size_t count,
                                           dlx_error *error) {
    dlxi_reader reader = dlxi_reader_over(bytes, count);
    both b = {.reader = &reader};
    uint16_t members, ranks;
    both_count(&b, &members, 1, DLXI_SITES_MAX);
    both_count(&b, &ranks, 1, DLXI_RANKS_MAX);
    dlxi_record *record = members > 0 && ranks > 0 ? dlxi_record_new(members, ranks) : NULL;
    if (record != NULL) both_record(&b, record);
    if (record == NULL || b.out_of_range || !dlxi_reader_done(&reader) ||
        ranks != c->sites[0].rank_count || record->member[members - 1].site >= c->count ||
        record->round == 0 || record->round >= c->round) {
        free(record);
        DLX_FAIL(error, DATA, "a saved record of a round is malformed");
    }
    dlxi_record_keep(c, record);
    return DLX_OK;
}

/* The next part of a copy, behind its length. */
static const uint8_t *part_read(dlxi_reader *reader, size_t *bytes) {
    *bytes = dlxi_read_u32(reader);
    return dlxi_read_bytes(reader, *bytes);
}

static dlx_status copy_restore(dlxi_coordinator **out, const dlxi_coordinator_settings *settings,
                               const uint8_t *copy, size_t bytes, bool same, int64_t now_ms,
                               dlx_error *error) {
    dlxi_reader reader = dlxi_reader_over(copy, bytes);
    size_t part_bytes;
    const uint8_t *part = part_read(&reader, &part_bytes);
    *out = NULL;
    if (part == NULL)
        DLX_FAIL(error, DATA, "a site's copy of the coordinator's state is malformed");
    dlx_status status = coordinator_restore(out, settings, part, part_bytes, same, now_ms, error);
    while (status == DLX_OK && dlxi_reader_left_bytes(&reader) > 0) {
        part = part_read(&reader, &part_bytes);
        status = part == NULL ? dlxi_error_set(error, DLX_DATA, "a saved record is malformed")
                              : dlxi_coordinator_restore_record(*out, part, part_bytes, error);
    }
    if (status == DLX_OK && (*out)->saved_stage != DLXI_STAGE_ROUNDS)
        status = dlxi_error_set(error, DLX_DATA, "a site's copy is of another stage of the run");
    if (status == DLX_OK && dlxi_record_of(*out, (*out)->round - 1) == NULL)
        status = dlxi_error_set(error, DLX_DATA, "a site's copy lacks the last round's record");
    if (status != DLX_OK) dlxi_coordinator_close(out);
    return status;
}

dlx_status dlxi_coordinator_restore_copy(dlxi_coordinator **out,
                                         const dlxi_coordinator_settings *settings,
                                         const uint8_t *copy, size_t bytes, int64_t now_ms,
                                         dlx_error *error) {
    return copy_restore(out, settings, copy, bytes, true, now_ms, error);
}

dlx_status dlxi_coordinator_read_copy(dlxi_coordinator **out,
                                      const dlxi_coordinator_settings *settings,
                                      const dlxi_copy *copy, int64_t now_ms, dlx_error *error) {
    return copy_restore(out, settings, copy->data, copy->bytes, false, now_ms, error);
}

static void site_give_up(dlxi_coordinator *c, dlxi_run_site *s) {
    char text[DLXI_REASON_MAX + 1];
    if (s->presence == DLXI_GONE) return;
    snprintf(text, sizeof text, "site '%s' was given up when round %llu was the next", s->name,
             (unsigned long long)c->round);
    dlxi_presence_lose(c, s, NULL, DLX_PEER_LOST, text);
}

void dlxi_coordinator_succeed(dlxi_coordinator *c, uint32_t term, uint64_t life_id,
                              uint64_t given_up, int64_t now_ms) {
    times_begin(c, now_ms);
    c->term = term;
    c->settings.life_id = life_id;
    dlxi_lines_add(&c->log,
                   "takes over run %016llx at round %llu, as term %u; waiting for its sites",
                   (unsigned long long)c->settings.run_id, (unsigned long long)c->round, c->term);
    c->taken_round = c->round;
    c->given_up = given_up;
    for (uint16_t i = 0; i < c->count; i++)
        if ((given_up >> i & 1u) != 0) site_give_up(c, &c->sites[i]);
    dlxi_coordinator_copy_make(c);
}

uint64_t dlxi_coordinator_round(const dlxi_coordinator *c) {
    return c->round;
}

uint64_t dlxi_coordinator_run_id(const dlxi_coordinator *c) {
    return c->settings.run_id;
}
