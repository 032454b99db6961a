/* SPDX-License-Identifier: Apache-2.0 */
/* Names, and manifest.json: written, and read without trust. */
#include "checkpoint/manifest.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/panic.h"
#include "base/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 1, HASH_DIGITS = 16 };
static const char format_name[] = "dilocox snapshot";
/* before the digits of the manifest's own checksum */
static const char hash_mark[] = "\"xxh3\": \"";

/* ---- kinds and names ------------------------------------------------------------------------- */

static const char *const kinds[] = {"F32", "I32", "I64", "U8"};
enum { KINDS = sizeof kinds / sizeof *kinds };

const char *dlxi_part_kind_name(dlx_part_kind kind) {
    DLXI_ASSERT((unsigned)kind < KINDS);
    return kinds[kind];
}

size_t dlxi_part_kind_bytes(dlx_part_kind kind) {
    return dlxi_dtype_bytes(dlxi_part_kind_name(kind));
}

void dlxi_snapshot_file_name(char dst[DLXI_SNAPSHOT_FILE_BYTES], int rank) {
    snprintf(dst, DLXI_SNAPSHOT_FILE_BYTES, "rank-%04d.safetensors", rank);
}

dlx_status dlxi_snapshot_step_path(char dst[DLXI_PATH_BYTES], const char *directory, uint64_t step,
                                   const char *ending, dlx_error *error) {
    char name[64];
    snprintf(name, sizeof name, "step-%0*" PRIu64 "%s", DLXI_SNAPSHOT_DIGITS, step, ending);
    return dlxi_path_join(dst, directory, name, error);
}

bool dlxi_snapshot_step_of(uint64_t *step, const char *name, const char *ending) {
    static const char beginning[] = "step-";
    if (strncmp(name, beginning, sizeof beginning - 1) != 0) return false;
    name += sizeof beginning - 1;
    *step = 0;
    for (int i = 0; i < DLXI_SNAPSHOT_DIGITS; i++, name++) {
        if (*name < '0' || *name > '9') return false;
        *step = *step * 10 + (uint64_t)(*name - '0');
    }
    return strcmp(name, ending) == 0;
}

bool dlxi_part_name_is_allowed(const char *name) {
    size_t bytes = strnlen(name, DLXI_SNAPSHOT_NAME_MAX + 1), length;
    if (bytes == 0 || bytes > DLXI_SNAPSHOT_NAME_MAX || strcmp(name, "__metadata__") == 0)
        return false;
    for (size_t i = 0; i < bytes; i += length) {
        uint32_t code;
        length = dlxi_utf8_next(&code, name + i, bytes - i);
        if (length == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0)) return false;
    }
    return true;
}

/* ---- the checksum ---------------------------------------------------------------------------- */

/* *at ← where the digits are: behind the first mark. */
static bool digits_find(size_t *at, const char *text, size_t bytes) {
    const size_t mark = sizeof hash_mark - 1;
    const char *found = memmem(text, bytes, hash_mark, mark);
    if (found == NULL) return false;
    *at = (size_t)(found - text) + mark;
    return bytes - *at >= HASH_DIGITS;
}

/* *hash ← of the text with zeros for digits. */
static dlx_status text_hash(uint64_t *hash, const char *text, size_t bytes, size_t at,
                            dlx_error *error) {
    dlxi_hasher *hasher = NULL;
    char zeros[HASH_DIGITS];
    memset(zeros, '0', sizeof zeros);
    DLX_TRY(dlxi_hasher_open(&hasher, error));
    dlxi_hasher_add(hasher, text, at);
    dlxi_hasher_add(hasher, zeros, sizeof zeros);
    dlxi_hasher_add(hasher, text + at + HASH_DIGITS, bytes - at - HASH_DIGITS);
    *hash = dlxi_hasher_value(hasher);
    dlxi_hasher_close(&hasher);
    return DLX_OK;
}

dlx_status dlxi_manifest_seal(char *text, size_t bytes, dlx_error *error) {
    char digits[HASH_DIGITS + 1];
    size_t at;
    uint64_t hash;
    if (!digits_find(&at, text, bytes)) return DLX_OK;
    DLX_TRY(text_hash(&hash, text, bytes, at, error));
    snprintf(digits, sizeof digits, "%016" PRIx64, hash);
    memcpy(text + at, digits, HASH_DIGITS);
    return DLX_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool kind_parse(dlx_part_kind *kind, const char *dtype) {
    for (int i = 0; i < KINDS; i++) {
        if (dtype == NULL || strcmp(kinds[i], dtype) != 0) continue;
        *kind = (dlx_part_kind)i;
        return true;
    }
    return false;
}

static bool hash_parse(uint64_t *hash, const char *text) {
    if (text == NULL || strlen(text) != HASH_DIGITS ||
        strspn(text, "0123456789abcdef") != HASH_DIGITS)
        return false;
    *hash = strtoull(text, NULL, 16);
    return true;
}

/* Whether `value` is a whole number from 0. */
static bool number_parse(int64_t *number, const json_t *value) {
    *number = json_integer_value(value);
    return json_is_integer(value) && *number >= 0;
}

static dlx_status part_parse(dlxi_snapshot_part *part, const json_t *entry, const char *file,
                             const char *path, dlx_error *error) {
    const json_t *shape = json_object_get(entry, "shape");
    char text[DLXI_JSON_SHOWN_BYTES];
    const char *wrong = NULL;
    if (!dlxi_part_name_is_allowed(part->name))
        wrong = "its name is too long or has control characters";
    else if (!kind_parse(&part->kind, json_string_value(json_object_get(entry, "dtype"))))
        wrong = "its dtype is not F32, I32, I64 or U8";
    else if (json_array_size(shape) != 2 || !number_parse(&part->rows, json_array_get(shape, 0)) ||
             !number_parse(&part->cols, json_array_get(shape, 1)))
        wrong = "its shape is not two whole numbers from 0";
    else if (part->rows > 0 && part->cols > INT64_MAX / 16 / part->rows)
        wrong = "its shape has more elements than any file";
    else if (!hash_parse(&part->xxh3, json_string_value(json_object_get(entry, "xxh3"))))
        wrong = "its xxh3 is not 16 hexadecimal digits";
    if (wrong != NULL)
        DLX_FAIL(error, DATA, "%s: %s: part '%s': %s", path, file,
                 dlxi_json_show_name(text, part->name), wrong);
    part->bytes = (uint64_t)(part->rows * part->cols) * dlxi_part_kind_bytes(part->kind);
    return DLX_OK;
}

static dlx_status file_parse(dlxi_manifest *m, int rank, const json_t *entry, const char *path,
                             dlx_error *error) {
    char text[DLXI_JSON_SHOWN_BYTES];
    dlxi_manifest_file *file = &m->file[rank];
    const char *name = json_string_value(json_object_get(entry, "name"));
    int64_t bytes;
    dlxi_snapshot_file_name(file->name, rank);
    if (name == NULL || strcmp(name, file->name) != 0)
        DLX_FAIL(error, DATA, "%s: file %d is '%s'; it should be '%s'", path, rank,
                 dlxi_json_show_name(text, name != NULL ? name : ""), file->name);
    if (!number_parse(&bytes, json_object_get(entry, "bytes")))
        DLX_FAIL(error, DATA, "%s: %s: its bytes are not a whole number from 0", path, file->name);
    file->bytes = (uint64_t)bytes;
    file->first = m->count;
    json_t *parts = json_object_get(entry, "parts"), *part;
    json_object_foreach(parts, name, part) {
        m->part[m->count].name = name;
        m->part[m->count].rank = rank;
        DLX_TRY(part_parse(&m->part[m->count], part, file->name, path, error));
        m->count++;
    }
    file->count = m->count - file->first;
    return DLX_OK;
}

static dlx_status files_parse(dlxi_manifest *m, const json_t *files, const char *path,
                              dlx_error *error) {
    size_t count = 0;
    if (json_array_size(files) != (size_t)m->ranks)
        DLX_FAIL(error, DATA, "%s: lists %zu files for %d ranks", path, json_array_size(files),
                 m->ranks);
    for (int rank = 0; rank < m->ranks; rank++) {
        const json_t *parts = json_object_get(json_array_get(files, (size_t)rank), "parts");
        if (!json_is_object(parts)) DLX_FAIL(error, DATA, "%s: file %d has no parts", path, rank);
        count += json_object_size(parts);
    }
    if (count > DLXI_SNAPSHOT_PARTS_MAX)
        DLX_FAIL(error, DATA, "%s: lists %zu parts; allowed: up to %d", path, count,
                 DLXI_SNAPSHOT_PARTS_MAX);
    DLX_TRY(DLXI_NEW(&m->file, m->ranks, error));
    DLX_TRY(DLXI_NEW(&m->part, count, error));
    for (int rank = 0; rank < m->ranks; rank++)
        DLX_TRY(file_parse(m, rank, json_array_get(files, (size_t)rank), path, error));
    return DLX_OK;
}

static dlx_status hash_check(const json_t *root, const char *text, size_t bytes, const char *path,
                             dlx_error *error) {
    uint64_t listed, hash = 0;
    size_t at;
    bool has_hash = hash_parse(&listed, json_string_value(json_object_get(root, "xxh3"))) &&
                    digits_find(&at, text, bytes);
    if (has_hash) DLX_TRY(text_hash(&hash, text, bytes, at, error));
    if (!has_hash || hash != listed)
        DLX_FAIL(error, DATA, "%s: is damaged: its checksum does not match", path);
    return DLX_OK;
}

static dlx_status manifest_parse(dlxi_manifest *m, const char *text, size_t bytes, const char *path,
                                 dlx_error *error) {
    int64_t number;
    m->root = dlxi_json_parse(text, bytes, path, error);
    if (m->root == NULL) return DLX_DATA;
    const char *format = json_string_value(json_object_get(m->root, "format"));
    if (format == NULL || strcmp(format, format_name) != 0)
        DLX_FAIL(error, DATA, "%s: is not the manifest of a snapshot", path);
    if (!number_parse(&number, json_object_get(m->root, "version")) || number != VERSION)
        DLX_FAIL(error, DATA, "%s: version %" PRId64 " of the format; this program reads %d", path,
                 number, VERSION);
    DLX_TRY(hash_check(m->root, text, bytes, path, error));
    if (!number_parse(&number, json_object_get(m->root, "step")) ||
        (uint64_t)number > DLXI_SNAPSHOT_STEP_MAX)
        DLX_FAIL(error, DATA, "%s: its step is not a whole number from 0 to %" PRIu64, path,
                 DLXI_SNAPSHOT_STEP_MAX);
    m->step = (uint64_t)number;
    if (!number_parse(&number, json_object_get(m->root, "ranks")) || number < 1 ||
        number > DLXI_RANKS_MAX)
        DLX_FAIL(error, DATA, "%s: its ranks are not a whole number from 1 to %d", path,
                 DLXI_RANKS_MAX);
    m->ranks = (int)number;
    m->meta = json_object_get(m->root, "meta");
    if (!json_is_object(m->meta)) DLX_FAIL(error, DATA, "%s: its meta is not an object", path);
    return files_parse(m, json_object_get(m->root, "files"), path, error);
}

dlx_status dlxi_manifest_parse(dlxi_manifest **out, const char *text, size_t bytes,
                               const char *path, dlx_error *error) {
    *out = NULL;
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlx_status status = manifest_parse(*out, text, bytes, path, error);
    if (status != DLX_OK) dlxi_manifest_close(out);
    return status;
}

void dlxi_manifest_close(dlxi_manifest **manifest) {
    dlxi_manifest *m = *manifest;
    if (m == NULL) return;
    free(m->part);
    free(m->file);
    json_decref(m->root);
    free(m);
    *manifest = NULL;
}

/* ---- the files ------------------------------------------------------------------------------- */

static dlx_status tensor_check(dlxi_snapshot_part *part, const dlxi_file_tensor *tensor,
                               const char *path, dlx_error *error) {
    if (tensor == NULL)
        DLX_FAIL(error, DATA, "%s: part '%.96s', which the manifest lists, is missing", path,
                 part->name);
    if (strcmp(tensor->dtype, dlxi_part_kind_name(part->kind)) != 0 || tensor->dims != 2 ||
        tensor->shape[0] != part->rows || tensor->shape[1] != part->cols)
        DLX_FAIL(error, DATA,
                 "%s: part '%.96s' has another dtype or shape than %s [%" PRId64 ", %" PRId64
                 "], which the manifest lists; do the files belong together?",
                 path, part->name, dlxi_part_kind_name(part->kind), part->rows, part->cols);
    part->offset = tensor->offset;
    return DLX_OK;
}

dlx_status dlxi_manifest_compare(dlxi_manifest *manifest, int rank, const dlxi_safetensors *file,
                                 const char *path, dlx_error *error) {
    const dlxi_manifest_file *listed = &manifest->file[rank];
    if (dlxi_safetensors_bytes(file) != listed->bytes)
        DLX_FAIL(error, DATA,
                 "%s: has %" PRIu64 " bytes, the manifest lists %" PRIu64
                 "; do the files belong together?",
                 path, dlxi_safetensors_bytes(file), listed->bytes);
    if (dlxi_safetensors_count(file) != listed->count)
        DLX_FAIL(error, DATA,
                 "%s: has %zu parts, the manifest lists %zu; do the files belong together?", path,
                 dlxi_safetensors_count(file), listed->count);
    for (size_t i = 0; i < listed->count; i++) {
        dlxi_snapshot_part *part = &manifest->part[listed->first + i];
        DLX_TRY(tensor_check(part, dlxi_safetensors_find(file, part->name), path, error));
    }
    return DLX_OK;
}

dlx_status dlxi_manifest_check_file(dlxi_manifest *manifest, int rank, const char *path,
                                    dlx_error *error) {
    dlxi_safetensors *file = NULL;
    dlx_error own;
    if (error == NULL) error = &own;
    dlx_status status = dlxi_safetensors_open_header(&file, path, error);
    if (status == DLX_SYSTEM && error->system_errno == ENOENT)
        DLX_FAIL(error, DATA, "%s: this file, which the manifest lists, is missing", path);
    if (status == DLX_OK) status = dlxi_manifest_compare(manifest, rank, file, path, error);
    dlxi_safetensors_close(&file);
    return status;
}

/* ---- writing --------------------------------------------------------------------------------- */

dlx_status dlxi_manifest_describe(char **out, int rank, uint64_t file_bytes, const dlx_part *parts,
                                  const uint64_t *xxh3, size_t count, dlx_error *error) {
    char name[DLXI_SNAPSHOT_FILE_BYTES], digits[17];
    bool complete = true;
    json_t *list = json_object();
    dlxi_snapshot_file_name(name, rank);
    for (size_t i = 0; i < count && complete; i++) {
        snprintf(digits, sizeof digits, "%016" PRIx64, xxh3[i]);
        json_t *entry =
            json_pack("{s:s, s:[I,I], s:s}", "dtype", dlxi_part_kind_name(parts[i].kind), "shape",
                      (json_int_t)parts[i].rows, (json_int_t)parts[i].cols, "xxh3", digits);
        complete = json_object_set_new(list, parts[i].name, entry) == 0;
    }
    json_t *root =
        json_pack("{s:s, s:I, s:o}", "name", name, "bytes", (json_int_t)file_bytes, "parts", list);
    *out = root != NULL && complete ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (*out == NULL) DLX_FAIL(error, MEMORY, "out of memory: the description of %zu parts", count);
    return DLX_OK;
}

dlx_status dlxi_manifest_text(char **out, uint64_t step, const char *const *descriptions, int ranks,
                              json_t *meta, dlx_error *error) {
    dlx_status status = DLX_OK;
    json_t *files = json_array(), *root = NULL;
    char *text = NULL;
    *out = NULL;
    for (int rank = 0; rank < ranks; rank++) {
        char name[DLXI_SNAPSHOT_FILE_BYTES + 24];
        snprintf(name, sizeof name, "the description of rank %d", rank);
        json_t *file = dlxi_json_parse(descriptions[rank], strlen(descriptions[rank]), name, error);
        if (file == NULL) {
            status = DLX_DATA;
            goto out;
        }
        if (json_array_append_new(files, file) != 0)
            DLX_FAIL_OUT(error, MEMORY, "out of memory: the manifest of %d ranks", ranks);
    }
    root = json_pack("{s:s, s:i, s:s, s:I, s:i, s:o, s:O}", "format", format_name, "version",
                     VERSION, "xxh3", "0000000000000000", "step", (json_int_t)step, "ranks", ranks,
                     "meta", meta != NULL ? json_incref(meta) : json_object(), "files", files);
    if (root != NULL) text = json_dumps(root, JSON_INDENT(1));
    if (text == NULL || asprintf(out, "%s\n", text) < 0) {
        *out = NULL;
        DLX_FAIL_OUT(error, MEMORY, "out of memory: the manifest of %d ranks", ranks);
    }
    DLX_TRY_OUT(dlxi_manifest_seal(*out, strlen(*out), error));
out:
    free(text);
    json_decref(root);
    json_decref(files);
    return status;
}
