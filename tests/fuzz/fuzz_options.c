/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a config, as a --set, and as a peer's canonical text. What loads must print as YAML
 * that loads back to the same values. */
#include "replay.h"
#include "../options_table.h"
#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

static void must_round_trip(const test_config *config) {
    char *yaml, *canonical, *again;
    test_config back;
    dlx_error error;
    dlxi_option_difference difference;
    memset(&back, 0, sizeof back);
    dlxi_options_set_defaults(&back, &test_table);
    DLXI_ASSERT(dlxi_options_print_yaml(&yaml, config, &test_table, &error) == DLX_OK);
    DLXI_ASSERT(dlxi_options_load_text(&back, &test_table, "printed", yaml, strlen(yaml), &error) ==
                DLX_OK);
    DLXI_ASSERT(dlxi_options_print_canonical(&canonical, config, &test_table, &error) == DLX_OK);
    DLXI_ASSERT(dlxi_options_print_canonical(&again, &back, &test_table, &error) == DLX_OK);
    DLXI_ASSERT(dlxi_options_canonical_equal(&difference, canonical, strlen(canonical), again,
                                             strlen(again), false));
    DLXI_ASSERT(strcmp(config->run.dir, back.run.dir) == 0 &&
                strcmp(config->wan.key, back.wan.key) == 0);
    free(yaml);
    free(canonical);
    free(again);
}

static void must_explain(const dlx_error *error) {
    size_t bytes = strnlen(error->message, sizeof error->message);
    DLXI_ASSERT(bytes > 0 && bytes < sizeof error->message);
    for (size_t i = 0; i < bytes; i++) DLXI_ASSERT((unsigned char)error->message[i] >= 0x20);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const char *text = (const char *)data;
    test_config config;
    dlx_error error;
    dlxi_option_difference difference;
    memset(&config, 0, sizeof config);
    dlxi_options_set_defaults(&config, &test_table);
    if (dlxi_options_load_text(&config, &test_table, "x.yaml", text, bytes, &error) == DLX_OK) {
        must_round_trip(&config);
    } else {
        must_explain(&error);
    }

    char *assignment = malloc(bytes + 1);
    if (assignment == NULL) return 0;
    if (bytes > 0) memcpy(assignment, data, bytes);
    assignment[bytes] = '\0';
    if (dlxi_options_set(&config, &test_table, assignment, &error) == DLX_OK)
        must_round_trip(&config);
    else
        must_explain(&error);
    free(assignment);

    size_t half = bytes / 2;
    bool equal =
        dlxi_options_canonical_equal(&difference, text, half, text + half, bytes - half, false);
    DLXI_ASSERT(equal ==
                (half == bytes - half && (half == 0 || memcmp(text, text + half, half) == 0)));
    equal = dlxi_options_canonical_equal(&difference, text, half, text + half, bytes - half, true);
    DLXI_ASSERT(!equal || memcmp(text, text + half, half) == 0);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const char *const seeds[] = {
        "# a config\nname: \"two words\"\nrun:\n  seed: 7\n  dir: runs/b\ntrain: {tokens: 1.0e6, "
        "learning_rate: 2e-3}\n"
        "sync:\n  overlap: eager\n  inner_steps: 5\n  outer_momentum: auto\n  compression: {rank: "
        "auto, "
        "error_feedback: false}\nwan: {key: 'it''s'}\n",
        "sync.compression.rank: 4\nsync: {patience: -3}\n? train\n: batch: 3\n",
        "--- {name: |\n  block\n}\n...\n",
        "sync.outer_momentum=0.5",
        "wan.key=\xC3\xA9t\xC3\xA9",
        "&a run: [1, *a, !!int 3]\n",
        "run.seed: 1\nsync.overlap: carry\nrun.seed: 1\nsync.overlap: eager\n",
    };
    if (index >= (int)(sizeof seeds / sizeof *seeds)) return 0;
    size_t bytes = strlen(seeds[index]);
    memcpy(data, seeds[index], bytes);
    return bytes;
}
