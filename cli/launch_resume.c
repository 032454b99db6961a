/* SPDX-License-Identifier: Apache-2.0 */
/* What launch --resume finds in run.dir of sites that it does not start. */
#include "cli.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* "site-K" with K in 1 … sites */
static bool is_started(const char *name, int sites) {
    char own[SITE_BYTES];
    for (int i = 1; i <= sites; i++) {
        snprintf(own, sizeof own, "site-%d", i);
        if (strcmp(name, own) == 0) return true;
    }
    return false;
}

/* list ← list,text; false: no memory */
static bool list_append(char **list, const char *text) {
    char *longer = NULL;
    if (asprintf(&longer, "%s%s%s", *list != NULL ? *list : "", *list != NULL ? "," : "", text) < 0)
        return false;
    free(*list);
    *list = longer;
    return true;
}

bool launch_unsent(char **out, const char *run_dir, int sites) {
    struct dirent **entry = NULL;
    int count = strchr(run_dir, ',') != NULL ? 0 : scandir(run_dir, &entry, NULL, alphasort);
    bool enough = true;
    *out = NULL;
    for (int i = 0; i < count; i++) {
        const char *name = entry[i]->d_name;
        char path[4096 + 256];
        struct stat facts;
        snprintf(path, sizeof path, "%s/%s/snapshots", run_dir, name);
        bool other = name[0] != '.' && strchr(name, ',') == NULL && !is_started(name, sites);
        if (enough && other && stat(path, &facts) == 0 && S_ISDIR(facts.st_mode))
            enough = list_append(out, path);
        free(entry[i]);
    }
    free(entry);
    if (enough) return true;
    free(*out);
    *out = NULL;
    return failure_say(DLX_MEMORY, "out of memory for the list of earlier sites"), false;
}
