/* SPDX-License-Identifier: Apache-2.0 */
/* Keys, a roster, a coordinator and two sites for tests of the `zmq` link, each endpoint with a
 * context of its own, as in processes of their own. What fails here fails the test. */
#ifndef DLXI_TESTS_LINK_WORLD_H
#define DLXI_TESTS_LINK_WORLD_H

#include <pthread.h>

#include "link/links.h"

enum { DEADLINE_MS = 30000, KEYS = 5, PATH_BYTES = 256, LOG_BYTES = 8192 };
enum { COORDINATOR, DELFT, OSLO, ROME, STRANGER }; /* the last is not on the roster */
extern const char *const names[KEYS];

extern dlx_error error;
extern char directory[];
extern char key_path[KEYS][PATH_BYTES], key_text[KEYS][DLXI_KEY_TEXT_BYTES];
extern char roster_path[PATH_BYTES],
    coordinator_roster_path[PATH_BYTES]; /* all but the stranger; only the coordinator */

/* A log that can be waited for. */
typedef struct journal {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    char text[LOG_BYTES];
    size_t lines;
} journal;
extern journal coordinator_log, site_log;

typedef struct world {
    dlxi_link *coordinator, *site[2];
    char bound[DLXI_ENDPOINT_BYTES];
} world;

void must(dlx_status status);
void journal_add(void *context, const char *line);
void journal_clear(journal *j);
void journal_expect(journal *j, const char *piece);
void write_file(const char *path, const char *text);
int make_keys(void **state);
int remove_keys(void **state);
dlxi_link_settings settings_of(int who, const char *coordinator, bool curve);
void open_coordinator(world *w, const char *at, bool curve);
void join(dlxi_link *a, uint32_t a_index, int a_who, dlxi_link *b, uint32_t b_index, int b_who,
          bool curve);
void build(world *w, const char *at, bool curve);
void raze(world *w);

#endif
