/* SPDX-License-Identifier: Apache-2.0 */
#include "train/results.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/lines.h"
#include "base/memory.h"

dlx_status dlxi_directory_make(const char *path, dlx_error *error) {
    char part[DLXI_PATH_BYTES];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof part)
        DLX_FAIL(error, CONFIG, "run.dir: '%.100s' must be a path of 1 to %d bytes", path,
                 DLXI_PATH_BYTES - 1);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            DLX_FAIL(error, SYSTEM, "%s: cannot make this directory: %s", part, strerror(errno));
    }
    return DLX_OK;
}

static bool is_in(const char *directory, const char *path) {
    char parent[DLXI_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    dlxi_text_copy(parent, sizeof parent, slash == NULL ? "." : path);
    if (slash != NULL && (size_t)(slash - path) < sizeof parent)
        parent[slash == path ? 1 : slash - path] = '\0';
    return dlxi_file_same(directory, parent);
}

dlx_status dlxi_outputs_check(const dlxi_config *config, const char *directory, dlx_error *error) {
    static const char *const files[] = {"summary.json", "metrics.jsonl", "weights"};
    const struct {
        const char *key, *path;
    } inputs[] = {{"data.train", config->data.train},
                  {"data.validation", config->data.validation},
                  {"wan.key", config->wan.key},
                  {"wan.roster", config->wan.roster}};
    char path[DLXI_PATH_BYTES];
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        DLX_TRY(dlxi_path_join(path, directory, files[f], error));
        for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
            const char *input = inputs[i].path;
            if (input[0] == '\0' || !(dlxi_file_same(input, path) || is_in(path, input))) continue;
            DLX_FAIL(error, CONFIG,
                     "%s: the run would replace '%s', which is its %s; choose another run.dir",
                     path, input, inputs[i].key);
        }
    }
    return DLX_OK;
}

struct dlxi_metrics {
    FILE *file;
    off_t complete; /* bytes, up to the end of a line */
    char path[DLXI_PATH_BYTES];
};

/* Without a part of a line, which a process that was killed may have left. */
static bool cut_to_line(dlxi_metrics *metrics) {
    if (fseeko(metrics->file, 0, SEEK_END) != 0) return false;
    metrics->complete = ftello(metrics->file);
    for (; metrics->complete > 0; metrics->complete--) {
        if (fseeko(metrics->file, metrics->complete - 1, SEEK_SET) != 0) return false;
        if (fgetc(metrics->file) == '\n') break;
    }
    return ftruncate(fileno(metrics->file), metrics->complete) == 0;
}

dlx_status dlxi_metrics_open(dlxi_metrics **out, const char *path, bool goes_on, dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlxi_text_copy((*out)->path, sizeof(*out)->path, path);
    (*out)->file = fopen(path, goes_on ? "a+e" : "we");
    if ((*out)->file != NULL && (!goes_on || cut_to_line(*out))) return DLX_OK;
    dlx_status status = dlxi_file_write_fail(path, error);
    dlxi_metrics_close(out);
    return status;
}

dlx_status dlxi_metrics_write(dlxi_metrics *metrics, json_t *line, dlx_error *error) {
    if (line == NULL) DLX_FAIL(error, MEMORY, "%s: out of memory for a line", metrics->path);
    bool written = json_dumpf(line, metrics->file, JSON_COMPACT | JSON_REAL_PRECISION(9)) == 0 &&
                   fputc('\n', metrics->file) != EOF && fflush(metrics->file) == 0;
    json_decref(line);
    if (written) {
        metrics->complete = ftello(metrics->file);
        return DLX_OK;
    }
    dlx_status status = dlxi_file_write_fail(metrics->path, error);
    /* without a part of a line; if that fails too, the message is the same */
    if (ftruncate(fileno(metrics->file), metrics->complete) != 0) errno = 0;
    return status;
}

json_t *dlxi_notice_make(const char *text, uint64_t round) {
    char at[32] = "", whole[48], plain[DLXI_LINE_BYTES];
    struct timespec now;
    struct tm utc;
    if (clock_gettime(CLOCK_REALTIME, &now) == 0 && gmtime_r(&now.tv_sec, &utc) != NULL &&
        strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%S", &utc) > 0)
        snprintf(whole, sizeof whole, "%s.%03ldZ", at, now.tv_nsec / 1000000);
    else
        whole[0] = '\0';
    json_t *shown = json_string(text);
    if (shown == NULL) { /* not UTF-8 */
        dlxi_text_copy(plain, sizeof plain, text);
        for (char *p = plain; *p != '\0'; p++)
            if ((*p & 0x80) != 0) *p = '?';
        shown = json_string(plain);
    }
    json_t *line = json_pack("{s:s, s:s}", "event", "notice", "time", whole);
    if (round > 0) json_object_set_new(line, "round", json_integer((json_int_t)round));
    json_object_set_new(line, "text", shown);
    return line;
}

void dlxi_metrics_close(dlxi_metrics **metrics) {
    if (*metrics == NULL) return;
    if ((*metrics)->file != NULL) fclose((*metrics)->file);
    free(*metrics);
    *metrics = NULL;
}

json_t *dlxi_json_real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

dlx_status dlxi_summary_write(const char *path, const json_t *summary, dlx_error *error) {
    char *text = json_dumps(summary, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    if (text == NULL) DLX_FAIL(error, MEMORY, "%s: out of memory", path);
    dlx_status status = dlxi_file_write_text(path, text, error);
    free(text);
    return status;
}

/* ---- merging --------------------------------------------------------------------------------- */

static double number(const json_t *site, const char *key) {
    return json_number_value(json_object_get(site, key));
}

static double sum(const json_t *sites, const char *key) {
    double total = 0;
    size_t i;
    json_t *site;
    json_array_foreach(sites, i, site) total += number(site, key);
    return total;
}

static double largest(const json_t *sites, const char *key) {
    double value = 0;
    size_t i;
    json_t *site;
    json_array_foreach(sites, i, site) value = fmax(value, number(site, key));
    return value;
}

static json_t *ratio(double numerator, double denominator) {
    return denominator > 0 && isfinite(numerator) ? json_real(numerator / denominator)
                                                  : json_null();
}

/* Over the sites that have one; null if none has. */
static json_t *mean_of(const json_t *sites, const char *key) {
    double total = 0, count = 0;
    size_t i;
    json_t *site;
    json_array_foreach(sites, i, site) {
        total += number(site, key);
        count += json_is_number(json_object_get(site, key));
    }
    return ratio(total, count);
}

/* The value that all sites share, or null. */
static json_t *common(const json_t *sites, const char *key) {
    json_t *first = json_object_get(json_array_get(sites, 0), key);
    for (size_t i = 1; i < json_array_size(sites); i++)
        if (!json_equal(first, json_object_get(json_array_get(sites, i), key))) return json_null();
    return first == NULL ? json_null() : json_incref(first);
}

static json_t *integer(double value) {
    return json_integer((json_int_t)value);
}

json_t *dlxi_summary_merge(const json_t *sites, const json_t *dropped, const json_t *membership,
                           const char *run_id) {
    double count = (double)json_array_size(sites), utilization = 0;
    size_t i;
    json_t *site;
    json_array_foreach(sites, i, site) utilization += number(site, "utilization") / count;
    double sent = sum(sites, "wan_bytes_sent") / count,
           equivalent = sum(sites, "allreduce_bytes_equivalent") / count;
    double val_tokens = sum(sites, "val_tokens");
    json_t *merged = json_pack("{s:i, s:s}", "version", DLXI_SUMMARY_VERSION, "run_id", run_id);
    const struct {
        const char *key;
        json_t *value;
    } fields[] = {
        {"status", common(sites, "status")},
        {"overlap", common(sites, "overlap")},
        {"sites", integer(count)},
        {"stages", common(sites, "stages")},
        {"replicas", common(sites, "replicas")},
        {"parameters", common(sites, "parameters")},
        {"steps", integer(largest(sites, "steps"))},
        {"rounds", integer(largest(sites, "rounds"))},
        {"attempts", integer(largest(sites, "attempts"))},
        {"tokens", integer(largest(sites, "tokens"))},
        {"val_loss", ratio(sum(sites, "val_loss_sum"), val_tokens)},
        {"val_loss_initial",
         ratio(sum(sites, "val_loss_initial_sum"), sum(sites, "val_tokens_initial"))},
        {"wall_s", json_real(largest(sites, "wall_s"))},
        {"tokens_per_s", json_real(sum(sites, "tokens_per_s"))},
        {"peak_rss_bytes", integer(largest(sites, "peak_rss_bytes"))},
        {"compute_s", json_real(sum(sites, "compute_s") / count)},
        {"wait_s", json_real(sum(sites, "wait_s") / count)},
        {"utilization", json_real(utilization)},
        {"wan_bytes_sent", integer(sent)},
        {"wan_bytes_received", integer(sum(sites, "wan_bytes_received") / count)},
        {"allreduce_bytes_equivalent", integer(equivalent)},
        {"compression_ratio", ratio(equivalent, sent)},
        {"codec_ratio", common(sites, "codec_ratio")},
        {"outer_learning_rate", common(sites, "outer_learning_rate")},
        {"outer_momentum", common(sites, "outer_momentum")},
        {"outer_momentum_rate", common(sites, "outer_momentum_rate")},
        {"inner_steps", common(sites, "inner_steps")},
        {"rank_mean", common(sites, "rank_mean")},
        {"exchange_steps_mean", json_real(sum(sites, "exchange_steps_mean") / count)},
        {"agreement", mean_of(sites, "agreement")},
        {"persistence", mean_of(sites, "persistence")},
        {"mean_over_own", mean_of(sites, "mean_over_own")},
        {"unsent_share", mean_of(sites, "unsent_share")},
        {"anchor_hash", common(sites, "anchor_hash")},
        {"per_site", json_deep_copy(sites)},
        {"dropped", json_deep_copy(dropped)},
        {"membership", json_deep_copy(membership)},
    };
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
        json_object_set_new(merged, fields[k].key, fields[k].value);
    return merged;
}
