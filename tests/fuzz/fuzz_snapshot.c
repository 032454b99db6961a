/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the readers of a snapshot's manifest and of the header of the file that it lists. An input
 * is a manifest, a zero byte and a file: as it is, and with the checksum that the manifest would
 * have. */
#include "replay.h"
#include "checkpoint/manifest.h"
#include "base/panic.h"

#include <string.h>

enum { DATA_BYTES = 45 };

/* What is accepted is in bounds. */
static void check(const dlxi_manifest *m) {
    size_t count = 0;
    DLXI_ASSERT(m->ranks >= 1 && m->ranks <= 1024 && m->step <= DLXI_SNAPSHOT_STEP_MAX);
    DLXI_ASSERT(json_is_object(m->meta) && m->count <= DLXI_SNAPSHOT_PARTS_MAX);
    for (int rank = 0; rank < m->ranks; rank++) {
        DLXI_ASSERT(strchr(m->file[rank].name, '/') == NULL && m->file[rank].first == count);
        count += m->file[rank].count;
    }
    DLXI_ASSERT(count == m->count);
    for (size_t i = 0; i < m->count; i++) {
        const dlxi_snapshot_part *part = &m->part[i];
        DLXI_ASSERT(part->rank >= 0 && part->rank < m->ranks && part->rows >= 0 && part->cols >= 0);
        DLXI_ASSERT(part->bytes <= INT64_MAX && dlxi_part_name_is_allowed(part->name));
        for (const char *c = part->name; *c != '\0'; c++) DLXI_ASSERT((unsigned char)*c >= ' ');
    }
}

/* Whether it is the file of the manifest; the data of all parts is in it then. */
static bool compare(dlxi_manifest *m, const dlxi_safetensors *file) {
    dlx_error error;
    dlx_status status = dlxi_manifest_compare(m, 0, file, "file", &error);
    DLXI_ASSERT(status == DLX_OK ||
                (status == DLX_DATA && strncmp(error.message, "file: ", 6) == 0));
    for (size_t i = 0; i < m->file[0].count && status == DLX_OK; i++)
        DLXI_ASSERT(m->part[i].offset <= dlxi_safetensors_bytes(file) &&
                    m->part[i].bytes <= dlxi_safetensors_bytes(file) - m->part[i].offset);
    return status == DLX_OK;
}

/* Whether the manifest is well-formed, and the file its first one. */
static bool parse(const char *text, size_t bytes, const dlxi_safetensors *file) {
    dlxi_manifest *manifest = NULL;
    dlx_error error;
    dlx_status status = dlxi_manifest_parse(&manifest, text, bytes, "input", &error);
    DLXI_ASSERT(status == DLX_OK ||
                (status == DLX_DATA && strncmp(error.message, "input", 5) == 0));
    DLXI_ASSERT((status == DLX_OK) == (manifest != NULL));
    if (manifest != NULL) check(manifest);
    bool fits = manifest != NULL && file != NULL && compare(manifest, file);
    dlxi_manifest_close(&manifest);
    return fits;
}

/* Whether the sealed one fits. */
static bool run(const uint8_t *data, size_t bytes) {
    static char sealed[FUZZ_INPUT_BYTES_MAX];
    dlxi_safetensors *file = NULL;
    const uint8_t *zero = memchr(data, 0, bytes);
    size_t text_bytes = zero != NULL ? (size_t)(zero - data) : bytes;
    if (bytes > FUZZ_INPUT_BYTES_MAX) return false;
    if (zero != NULL)
        (void)dlxi_safetensors_parse(&file, zero + 1, bytes - text_bytes - 1, "file", NULL);
    (void)parse((const char *)data, text_bytes, file);
    memcpy(sealed, data, text_bytes);
    DLXI_ASSERT(dlxi_manifest_seal(sealed, text_bytes, NULL) == DLX_OK);
    bool fits = parse(sealed, text_bytes, file);
    dlxi_safetensors_close(&file);
    return fits;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    (void)run(data, bytes);
    return 0;
}

static size_t put(uint8_t *data, const char *manifest, const char *header) {
    size_t text_bytes = strlen(manifest) + 1, header_bytes = strlen(header);
    memcpy(data, manifest, text_bytes);
    uint8_t *file = data + text_bytes;
    memset(file, 0, 8);
    file[0] = (uint8_t)header_bytes;
    file[1] = (uint8_t)(header_bytes >> 8);
    memcpy(file + 8, header, header_bytes);
    memset(file + 8 + header_bytes, 7, DATA_BYTES);
    return text_bytes + 8 + header_bytes + DATA_BYTES;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const char manifest[] =
        "{\"format\": \"dilocox snapshot\", \"version\": 1, \"xxh3\": \"0000000000000000\", "
        "\"step\": 12, \"ranks\": 1, \"meta\": {\"run_id\": \"0\", \"tokens\": 3}, \"files\": ["
        "{\"name\": \"rank-0000.safetensors\", \"bytes\": 254, \"parts\": {"
        "\"a\": {\"dtype\": \"I64\", \"shape\": [2, 2], \"xxh3\": \"0123456789abcdef\"}, "
        "\"b\": {\"dtype\": \"F32\", \"shape\": [1, 2], \"xxh3\": \"0123456789abcdef\"}, "
        "\"c\": {\"dtype\": \"U8\", \"shape\": [5, 1], \"xxh3\": \"0123456789abcdef\"}}}]}\n";
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"I64\",\"shape\":[2,2],\"data_offsets\":[0,32]},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[32,40]},"
        "\"c\":{\"dtype\":\"U8\",\"shape\":[5,1],\"data_offsets\":[40,45]}}";
    static const char two[] =
        "{\"format\": \"dilocox snapshot\", \"version\": 1, \"xxh3\": \"0000000000000000\", "
        "\"step\": 999999999999, \"ranks\": 2, \"meta\": {}, \"files\": ["
        "{\"name\": \"rank-0000.safetensors\", \"bytes\": 10, \"parts\": {}}, "
        "{\"name\": \"rank-0001.safetensors\", \"bytes\": 0, \"parts\": {\"\\u00e9\": {\"dtype\": "
        "\"I32\", \"shape\": [0, 9], \"xxh3\": \"ffffffffffffffff\"}}}]}\n";
    if (index == 0) {
        size_t bytes = put(data, manifest, header);
        DLXI_ASSERT(run(data, bytes)); /* so that mutations get past all checks */
        return bytes;
    }
    if (index != 1) return 0;
    memcpy(data, two, sizeof two - 1);
    return sizeof two - 1;
}
