/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a run in words. */
#include "cli.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double number(const json_t *summary, const char *key) {
    return json_number_value(json_object_get(summary, key));
}

static void sample_print(const char *weights) {
    const dlx_generate_options options = {.size = sizeof options,
                                          .prompt = "And ",
                                          .tokens = 240,
                                          .temperature = 0.8,
                                          .top_k = 40,
                                          .seed = 1,
                                          .threads = 1,
                                          .log = warning_say};
    dlx_error error;
    char *text;
    size_t bytes;
    if (dlx_generate(&text, &bytes, weights, &options, &error) != DLX_OK) {
        printf("\nno sample: %s\n", error.message);
        return;
    }
    printf("\na sample\n  ");
    text_print(text, bytes, "  ");
    printf("\n");
    free(text);
}

int interruption_print(const dlx_config *config, bool begun) {
    if (begun)
        fprintf(stderr, "dilocox: interrupted; partial results are in %s\n",
                dlx_config_run_dir(config));
    else
        fprintf(stderr, "dilocox: interrupted before all sites had joined; %s is unchanged\n",
                dlx_config_run_dir(config));
    return EXIT_FAILED;
}

static void dropped_print(const json_t *dropped) {
    size_t i;
    json_t *site;
    json_array_foreach(dropped, i, site) {
        const char *name = json_string_value(json_object_get(site, "site"));
        const char *why = json_string_value(json_object_get(site, "why"));
        printf("dropped            '%s' in round %.0f: %s\n", name != NULL ? name : "?",
               number(site, "round"), why != NULL ? why : "?");
    }
}

int results_print(const dlx_config *config) {
    char path[1024], sent[32], equivalent[32];
    const char *directory = dlx_config_run_dir(config);
    snprintf(path, sizeof path, "%s/summary.json", directory);
    json_error_t why;
    json_t *summary = json_load_file(path, 0, &why);
    if (summary == NULL) {
        fprintf(stderr, "dilocox: %s: %s\n", path, why.text);
        return EXIT_FAILED;
    }
    bytes_format(sent, number(summary, "wan_bytes_sent"));
    bytes_format(equivalent, number(summary, "allreduce_bytes_equivalent"));
    printf("\nvalidation loss    %.4f before, %.4f after %.0f tokens in %.0f rounds\n",
           number(summary, "val_loss_initial"), number(summary, "val_loss"),
           number(summary, "tokens"), number(summary, "rounds"));
    printf(
        "sent by a site     %s; an AllReduce every step would have sent %s, %.0f times as much\n",
        sent, equivalent, number(summary, "compression_ratio"));
    printf("time computing     %.1f %% of %.1f s of training, %.0f tokens/s in all\n",
           100 * number(summary, "utilization"),
           number(summary, "compute_s") + number(summary, "wait_s"),
           number(summary, "tokens_per_s"));
    dropped_print(json_object_get(summary, "dropped"));
    const char *hash = json_string_value(json_object_get(summary, "anchor_hash"));
    printf("anchor             %s\n", hash != NULL ? hash : "differs between sites");
    snprintf(path, sizeof path, "%s/weights/config.json", directory);
    if (access(path, F_OK) == 0) {
        snprintf(path, sizeof path, "%s/weights", directory);
        sample_print(path);
        printf("\nfiles in %s: summary.json, metrics.jsonl, <site>/metrics.jsonl, weights "
               "(%s/weights)\n",
               directory, directory);
    } else { /* no site is on this machine */
        printf("\nthe summary is %s/summary.json; the weights are on the site that "
               "says so\n",
               directory);
    }
    json_decref(summary);
    return EXIT_DONE;
}
