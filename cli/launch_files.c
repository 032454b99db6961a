/* SPDX-License-Identifier: Apache-2.0 */
/* What dilocox launch gives its children to read: the config that it has checked, and throwaway
 * keys, in a private directory of their own. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEMPORARY_BYTES_MAX = 200 }; /* options hold paths of 511 */

static bool fail_file(const char *path) {
    failure_say(DLX_SYSTEM, "%s: cannot write: %s", path, strerror(errno));
    return false;
}

/* Not in run.dir, which a run changes only once it has begun. */
static bool directory_make(launch_files *f) {
    const char *temporary = getenv("TMPDIR");
    if (temporary == NULL || temporary[0] != '/' || strlen(temporary) > TEMPORARY_BYTES_MAX)
        temporary = "/tmp";
    snprintf(f->directory, sizeof f->directory, "%s/dilocox-XXXXXX", temporary);
    if (mkdtemp(f->directory) != NULL) return true;
    f->directory[0] = '\0';
    failure_say(DLX_SYSTEM,
                "%s: cannot make a temporary directory: %s; set TMPDIR to one that "
                "can be written",
                temporary, strerror(errno));
    return false;
}

static bool config_write(const char *path, const dlx_config *config) {
    dlx_error error;
    char *text;
    if (dlx_config_print(&text, config, &error) != DLX_OK) return fail_with(&error), false;
    FILE *file = fopen(path, "wx");
    bool fine = file != NULL && fputs(text, file) >= 0;
    if (file != NULL && fclose(file) != 0) fine = false;
    free(text);
    return fine || fail_file(path);
}

static bool keys_write(const launch_files *f, const char *roster_path) {
    FILE *roster = fopen(roster_path, "wx");
    if (roster == NULL) return fail_file(roster_path);
    bool fine = true;
    for (int i = 0; fine && i < f->name_count; i++) {
        char path[LAUNCH_FILE_BYTES], public_text[DLXI_KEY_TEXT_BYTES];
        dlx_error error;
        launch_files_key(path, f, f->names[i]);
        fine = dlx_key_generate(path, public_text, &error) == DLX_OK;
        if (fine)
            fprintf(roster, "%s %s\n", f->names[i], public_text);
        else
            fail_with(&error);
    }
    if (fclose(roster) != 0 && fine) fine = fail_file(roster_path);
    return fine;
}

void launch_files_config(char path[LAUNCH_FILE_BYTES], const launch_files *f) {
    snprintf(path, LAUNCH_FILE_BYTES, "%s/config.yaml", f->directory);
}

void launch_files_roster(char path[LAUNCH_FILE_BYTES], const launch_files *f) {
    snprintf(path, LAUNCH_FILE_BYTES, "%s/roster.txt", f->directory);
}

void launch_files_key(char path[LAUNCH_FILE_BYTES], const launch_files *f, const char *name) {
    snprintf(path, LAUNCH_FILE_BYTES, "%s/%s.key", f->directory, name);
}

bool launch_files_make(launch_files *f, const dlx_config *config, bool keys) {
    char path[LAUNCH_FILE_BYTES];
    if (!directory_make(f)) return false;
    launch_files_config(path, f);
    if (!config_write(path, config)) return false;
    launch_files_roster(path, f);
    return !keys || keys_write(f, path);
}

void launch_files_remove(launch_files *f) {
    char path[LAUNCH_FILE_BYTES];
    if (f->directory[0] == '\0') return;
    launch_files_config(path, f);
    unlink(path);
    launch_files_roster(path, f);
    unlink(path);
    for (int i = 0; i < f->name_count; i++) {
        launch_files_key(path, f, f->names[i]);
        unlink(path);
    }
    rmdir(f->directory);
    f->directory[0] = '\0';
}
