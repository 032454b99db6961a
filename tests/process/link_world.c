/* SPDX-License-Identifier: Apache-2.0 */
/* Keys, a roster, a coordinator and two sites for tests of the `zmq` link; see link_world.h. */
#include "link_world.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

dlx_error error;
char directory[] = "/tmp/dilocox-link-XXXXXX";
char key_path[KEYS][PATH_BYTES], key_text[KEYS][DLXI_KEY_TEXT_BYTES];
char roster_path[PATH_BYTES], coordinator_roster_path[PATH_BYTES];
const char *const names[KEYS] = {"coordinator", "delft", "oslo", "rome", "stranger"};

void must(dlx_status status) {
    if (status != DLX_OK) fail_msg("%s: %s", dlx_status_text(status), error.message);
}

/* ---- a log that can be waited for ------------------------------------------------------------ */

journal coordinator_log = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
journal site_log = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

void journal_add(void *context, const char *line) {
    journal *j = context;
    pthread_mutex_lock(&j->mutex);
    size_t used = strlen(j->text);
    snprintf(j->text + used, sizeof j->text - used, "%s\n", line);
    j->lines++;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->mutex);
}

void journal_clear(journal *j) {
    pthread_mutex_lock(&j->mutex);
    j->text[0] = '\0';
    j->lines = 0;
    pthread_mutex_unlock(&j->mutex);
}

/* Waits until the log holds `piece`. */
void journal_expect(journal *j, const char *piece) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += DEADLINE_MS / 1000;
    pthread_mutex_lock(&j->mutex);
    int late = 0;
    while (strstr(j->text, piece) == NULL && late == 0)
        late = pthread_cond_timedwait(&j->changed, &j->mutex, &until);
    bool found = strstr(j->text, piece) != NULL;
    pthread_mutex_unlock(&j->mutex);
    if (!found) fail_msg("the log does not say '%s' but:\n%s", piece, j->text);
}

/* ---- building a run -------------------------------------------------------------------------- */

void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

int make_keys(void **state) {
    (void)state;
    assert_non_null(mkdtemp(directory));
    char roster[1024] = "# who may join\n";
    for (int i = 0; i < KEYS; i++) {
        snprintf(key_path[i], PATH_BYTES, "%s/%s.key", directory, names[i]);
        must(dlxi_key_generate(key_path[i], key_text[i], &error));
        size_t used = strlen(roster);
        if (i != STRANGER)
            snprintf(roster + used, sizeof roster - used, "%s %s\n", names[i], key_text[i]);
    }
    snprintf(roster_path, PATH_BYTES, "%s/roster.txt", directory);
    write_file(roster_path, roster);
    /* what a site needs at least */
    snprintf(coordinator_roster_path, PATH_BYTES, "%s/coordinator-only.txt", directory);
    snprintf(roster, sizeof roster, "coordinator %s\n", key_text[COORDINATOR]);
    write_file(coordinator_roster_path, roster);
    return 0;
}

int remove_keys(void **state) {
    (void)state;
    for (int i = 0; i < KEYS; i++) unlink(key_path[i]);
    unlink(roster_path);
    unlink(coordinator_roster_path);
    return rmdir(directory);
}

dlxi_link_settings settings_of(int who, const char *coordinator, bool curve) {
    return (dlxi_link_settings){
        .coordinator = coordinator,
        .listen_host = "",
        .curve = curve,
        .key_path = key_path[who],
        .roster_path = roster_path,
        .name = names[who],
        .timeout_ms = 1000,
        .unconnected_ms = 1000,
        .log = journal_add,
        .log_context = who == COORDINATOR ? &coordinator_log : &site_log,
    };
}

void open_coordinator(world *w, const char *at, bool curve) {
    *w = (world){0};
    journal_clear(&coordinator_log);
    journal_clear(&site_log);
    dlxi_link_settings settings = settings_of(COORDINATOR, at, curve);
    must(dlxi_zmq_coordinator_open(&w->coordinator, &settings, w->bound, &error));
}

void join(dlxi_link *a, uint32_t a_index, int a_who, dlxi_link *b, uint32_t b_index, int b_who,
          bool curve) {
    char at_a[DLXI_ENDPOINT_BYTES], at_b[DLXI_ENDPOINT_BYTES];
    must(a->op->listen(a, a_index, b_index, names[b_who], curve ? key_text[b_who] : "", at_a,
                       &error));
    must(b->op->listen(b, b_index, a_index, names[a_who], curve ? key_text[a_who] : "", at_b,
                       &error));
    assert_true(at_a[0] != '\0');
    assert_string_equal(at_b, ""); /* the lower index binds */
    must(a->op->connect(a, b_index, at_b, &error));
    must(b->op->connect(b, a_index, at_a, &error));
}

void build(world *w, const char *at, bool curve) {
    open_coordinator(w, at, curve);
    for (int i = 0; i < 2; i++) {
        dlxi_link_settings settings = settings_of(DELFT + i, w->bound, curve);
        must(dlxi_zmq_site_open(&w->site[i], &settings, &error));
    }
    join(w->site[0], 0, DELFT, w->site[1], 1, OSLO, curve);
}

void raze(world *w) {
    dlxi_link_close(&w->site[0]);
    dlxi_link_close(&w->site[1]);
    dlxi_link_close(&w->coordinator);
}
