/* SPDX-License-Identifier: Apache-2.0 */
/* Key admission: one thread per ZeroMQ context answers ZAP requests (RFC 27), for every socket that
 * binds.
 *
 * The coordinator admits the keys of the roster, under their names; a site's socket for one peer
 * admits that peer's key. The name becomes the connection's User-Id, which no frame can change. A
 * refused peer receives nothing; the log gets at most one line per key and 10 s, from a table whose
 * size bounds lines and memory under a flood of fresh keys.
 *
 * libzmq admits every connection if no handler answers. So the handler runs from before the first
 * bind until the context is shut down, and receivers drop frames without the right User-Id. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/panic.h"
#include "link/zmq_internal.h"

enum { LOGGED_KEYS_MAX = 64, REQUEST_PARTS = 7, PART_BYTES_MAX = 255 };
static const int64_t LOG_PAUSE_NS = 10000000000;

typedef struct admitted {
    bool known;
    char name[DLXI_NAME_BYTES];
    uint8_t key[DLXI_KEY_BYTES];
} admitted;

typedef struct logged {
    int64_t at_ns; /* 0: free */
    uint8_t key[DLXI_KEY_BYTES];
} logged;

struct dlxi_zmq_auth {
    void *socket; /* REP; the thread's */
    pthread_t thread;
    pthread_mutex_t mutex; /* guards peers */
    admitted peers[DLXI_SITES_MAX];
    const dlxi_roster *roster;
    const char *roster_path;
    dlxi_log log;
    void *log_context;
    logged logged_keys[LOGGED_KEYS_MAX];
};

/* version, request id, domain, address, routing id, mechanism, credentials: each cut to
 * PART_BYTES_MAX, with a 0 after it */
typedef struct request {
    size_t count;
    size_t bytes[REQUEST_PARTS];
    char part[REQUEST_PARTS][PART_BYTES_MAX + 1];
} request;
enum { REQUEST_ID = 1, DOMAIN, ADDRESS, MECHANISM = 5, CREDENTIALS };

/* ---- deciding -------------------------------------------------------------------------------- */

/* Whether a line about this key may be logged now; counts it as logged. */
static bool refusal_may_log(dlxi_zmq_auth *auth, const uint8_t key[DLXI_KEY_BYTES]) {
    int64_t now_ns = dlxi_clock_ns();
    logged *place = NULL;
    for (size_t i = 0; i < LOGGED_KEYS_MAX; i++) {
        logged *l = &auth->logged_keys[i];
        bool fresh = l->at_ns != 0 && now_ns - l->at_ns < LOG_PAUSE_NS;
        if (fresh && memcmp(l->key, key, DLXI_KEY_BYTES) == 0) return false;
        if (!fresh && place == NULL) place = l;
    }
    if (place == NULL) return false;
    place->at_ns = now_ns;
    memcpy(place->key, key, DLXI_KEY_BYTES);
    return true;
}

static void refusal_log(dlxi_zmq_auth *auth, const request *r, const uint8_t key[DLXI_KEY_BYTES],
                        const char *peer) {
    char key_text[DLXI_KEY_TEXT_BYTES], line[512];
    if (auth->log == NULL || !refusal_may_log(auth, key) ||
        zmq_z85_encode(key_text, key, DLXI_KEY_BYTES) == NULL)
        return;
    if (peer[0] != '\0')
        snprintf(line, sizeof line,
                 "refused a connection from %s: its key %s is not that of site '%s'",
                 r->part[ADDRESS], key_text, peer);
    else
        snprintf(line, sizeof line,
                 "refused a connection from %s: its key %s is not a site's on the roster %s; to "
                 "admit it, add the line 'NAME %s' there and start again",
                 r->part[ADDRESS], key_text, auth->roster_path, key_text);
    auth->log(auth->log_context, line);
}

/* name ← the roster name of the key; false if this domain does not admit it. */
static bool request_admit(dlxi_zmq_auth *auth, const request *r, char name[DLXI_NAME_BYTES]) {
    name[0] = '\0';
    if (r->count != REQUEST_PARTS || strcmp(r->part[0], "1.0") != 0 ||
        strcmp(r->part[MECHANISM], "CURVE") != 0 || r->bytes[CREDENTIALS] != DLXI_KEY_BYTES)
        return false;
    uint8_t key[DLXI_KEY_BYTES];
    memcpy(key, r->part[CREDENTIALS], sizeof key);
    char peer[DLXI_NAME_BYTES] = "";
    unsigned index = 0;
    if (auth->roster != NULL && strcmp(r->part[DOMAIN], dlxi_coordinator_name) == 0) {
        const dlxi_roster_line *line = dlxi_roster_by_key(auth->roster, key);
        if (line != NULL && strcmp(line->name, dlxi_coordinator_name) != 0) {
            snprintf(name, DLXI_NAME_BYTES, "%s", line->name);
            return true;
        }
    } else if (sscanf(r->part[DOMAIN], "site.%3u", &index) == 1 && index < DLXI_SITES_MAX) {
        pthread_mutex_lock(&auth->mutex);
        const admitted *expected = &auth->peers[index];
        bool same = expected->known && memcmp(expected->key, key, sizeof key) == 0;
        snprintf(peer, sizeof peer, "%s", expected->name);
        pthread_mutex_unlock(&auth->mutex);
        if (same) {
            snprintf(name, DLXI_NAME_BYTES, "%s", peer);
            return true;
        }
    }
    refusal_log(auth, r, key, peer);
    return false;
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* False once the context is shut down. */
static bool request_read(void *socket, request *r) {
    *r = (request){0};
    for (bool more = true; more;) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        if (zmq_msg_recv(&message, socket, 0) < 0) {
            bool again = errno == EINTR;
            zmq_msg_close(&message);
            if (again) continue;
            return false;
        }
        size_t bytes = zmq_msg_size(&message);
        if (r->count < REQUEST_PARTS) {
            size_t kept = bytes < PART_BYTES_MAX ? bytes : PART_BYTES_MAX;
            memcpy(r->part[r->count], zmq_msg_data(&message), kept);
            r->bytes[r->count] = bytes;
        }
        r->count++;
        more = zmq_msg_more(&message) != 0;
        zmq_msg_close(&message);
    }
    return true;
}

static bool part_send(void *socket, const void *data, size_t bytes, bool more) {
    int sent;
    do sent = zmq_send(socket, data, bytes, more ? ZMQ_SNDMORE : 0);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

static bool text_send(void *socket, const char *text, bool more) {
    return part_send(socket, text, strlen(text), more);
}

static void *auth_run(void *argument) {
    dlxi_zmq_auth *auth = argument;
    request r;
    while (request_read(auth->socket, &r)) {
        char name[DLXI_NAME_BYTES];
        bool in = request_admit(auth, &r, name);
        size_t id_bytes =
            r.bytes[REQUEST_ID] < PART_BYTES_MAX ? r.bytes[REQUEST_ID] : PART_BYTES_MAX;
        if (!text_send(auth->socket, "1.0", true) ||
            !part_send(auth->socket, r.part[REQUEST_ID], id_bytes, true) ||
            !text_send(auth->socket, in ? "200" : "400", true) ||
            !text_send(auth->socket, in ? "OK" : "not admitted", true) ||
            !text_send(auth->socket, name, true) || !text_send(auth->socket, "", false))
            break;
    }
    DLXI_ASSERT(errno == ETERM); /* nothing else ends it: see above */
    zmq_close(auth->socket);
    return NULL;
}

/* Signals are for the program's own threads. */
static int thread_start(pthread_t *thread, void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(thread, NULL, auth_run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure;
}

dlx_status dlxi_zmq_auth_open(dlxi_zmq_auth **out, void *context, const dlxi_roster *roster,
                              const char *roster_path, dlxi_log log, void *log_context,
                              dlx_error *error) {
    *out = NULL;
    dlxi_zmq_auth *auth = NULL;
    DLX_TRY(DLXI_NEW(&auth, 1, error));
    auth->roster = roster;
    auth->roster_path = roster_path;
    auth->log = log;
    auth->log_context = log_context;
    dlx_status status = DLX_OK;
    int failure = pthread_mutex_init(&auth->mutex, NULL);
    if (failure != 0) {
        free(auth);
        errno = failure;
        DLX_FAIL(error, SYSTEM, "cannot create a mutex: %s", strerror(failure));
    }
    auth->socket = zmq_socket(context, ZMQ_REP);
    if (auth->socket == NULL || zmq_bind(auth->socket, "inproc://zeromq.zap.01") != 0)
        DLX_FAIL_OUT(error, SYSTEM, "key admission cannot start: %s", zmq_strerror(errno));
    int linger_ms = 0;
    zmq_setsockopt(auth->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    failure = thread_start(&auth->thread, auth);
    if (failure != 0) {
        errno = failure;
        DLX_FAIL_OUT(error, SYSTEM, "key admission cannot start: %s", strerror(failure));
    }
    *out = auth;
    return DLX_OK;
out:
    if (auth->socket != NULL) zmq_close(auth->socket);
    pthread_mutex_destroy(&auth->mutex);
    free(auth);
    return status;
}

void dlxi_zmq_auth_admit(dlxi_zmq_auth *auth, uint32_t index, const char *name,
                         const uint8_t key[DLXI_KEY_BYTES]) {
    pthread_mutex_lock(&auth->mutex);
    admitted *a = &auth->peers[index];
    a->known = true;
    snprintf(a->name, sizeof a->name, "%s", name);
    memcpy(a->key, key, sizeof a->key);
    pthread_mutex_unlock(&auth->mutex);
}

void dlxi_zmq_auth_close(dlxi_zmq_auth **auth) {
    if (*auth == NULL) return;
    pthread_join((*auth)->thread, NULL);
    pthread_mutex_destroy(&(*auth)->mutex);
    free(*auth);
    *auth = NULL;
}
