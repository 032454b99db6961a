/* SPDX-License-Identifier: Apache-2.0 */
/* write_snapshot DIRECTORY STEP RANKS KEEP META: commits a snapshot whose values test_snapshot.py
 * computes by itself, and keeps the newest KEEP. META: a JSON object. */
#include "checkpoint/snapshot.h"
#include "base/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3, ROWS = 3, COLS = 7, PARTS = LAYERS + 4 };

static float matrix[LAYERS][ROWS * COLS];
static int32_t words[5];
static int64_t counters[4];
static uint8_t bytes[13];

static const dlx_part *parts_make(int rank) {
    static char name[LAYERS][32];
    static dlx_part part[PARTS];
    for (int i = 0; i < ROWS * COLS; i++)
        for (int layer = 0; layer < LAYERS; layer++)
            matrix[layer][i] = (float)i * 0.5f - (float)(100 * layer + rank);
    for (int i = 0; i < 5; i++) words[i] = -i * 1000003 + rank;
    for (int i = 0; i < 4; i++) counters[i] = (INT64_C(1) << (50 + i)) - rank;
    for (int i = 0; i < 13; i++) bytes[i] = (uint8_t)(17 * i + rank);
    part[0] = (dlx_part){"bytes", DLX_PART_U8, 1, 13, bytes};
    part[1] = (dlx_part){"words", DLX_PART_I32, 1, 5, words};
    part[2] = (dlx_part){"counters", DLX_PART_I64, 2, 2, counters};
    part[3] = (dlx_part){"nothing", DLX_PART_F32, 0, 3, NULL};
    for (int layer = 0; layer < LAYERS; layer++) {
        snprintf(name[layer], sizeof name[layer], "layers.%d.θ", 10 * layer);
        part[4 + layer] = (dlx_part){name[layer], DLX_PART_F32, ROWS, COLS, matrix[layer]};
    }
    return part;
}

int main(int count, char **arguments) {
    static dlxi_snapshot_writer *writer[DLXI_RANKS_MAX];
    static char *description[DLXI_RANKS_MAX];
    dlx_error error = {.message = "usage: write_snapshot DIRECTORY STEP RANKS KEEP META"};
    dlx_status status = count == 6 ? DLX_OK : DLX_ARGUMENT;
    const char *directory = arguments[1];
    uint64_t step = status == DLX_OK ? strtoull(arguments[2], NULL, 10) : 0;
    int ranks = status == DLX_OK ? atoi(arguments[3]) : 0;
    for (int rank = 0; rank < ranks && status == DLX_OK; rank++) {
        status = dlxi_snapshot_begin(&writer[rank], directory, step, rank, ranks, parts_make(rank),
                                     PARTS, &error);
        if (status == DLX_OK)
            status = dlxi_snapshot_result(writer[rank], &description[rank], &error);
    }
    if (status == DLX_OK) {
        json_t *meta = json_loads(arguments[5], 0, NULL);
        status = dlxi_snapshot_commit(directory, step, (const char *const *)description, ranks,
                                      meta, atoi(arguments[4]), &error);
        json_decref(meta);
    }
    for (int rank = 0; rank < ranks; rank++) {
        dlxi_snapshot_close(&writer[rank]);
        free(description[rank]);
    }
    if (status != DLX_OK) fprintf(stderr, "write_snapshot: %s\n", error.message);
    return status == DLX_OK ? 0 : 1;
}
