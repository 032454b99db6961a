/* SPDX-License-Identifier: Apache-2.0 */
/* Key files: making, reading and checking CURVE key pairs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zmq.h>

#include "base/text.h"
#include "link/roster.h"

enum { KEY_FILE_BYTES_MAX = 4096, KEY_TEXT_CHARACTERS = DLXI_KEY_TEXT_BYTES - 1 };

bool dlxi_key_decode(uint8_t key[DLXI_KEY_BYTES], const char *text) {
    return strlen(text) == KEY_TEXT_CHARACTERS && zmq_z85_decode(key, text) != NULL;
}

void dlxi_key_pair_wipe(dlxi_key_pair *keys) {
    explicit_bzero(keys, sizeof *keys);
}

/* ---- the process that holds one -------------------------------------------------------------- */

/* Core dumps are written without memory; false with errno. */
static bool dumps_empty(void) {
    int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT; /* this kernel writes no dumps */
    bool written = write(fd, "0", 1) == 1;
    int system_errno = errno;
    close(fd);
    errno = system_errno;
    return written;
}

/* Before a secret key is in memory, and for good, since libzmq keeps copies: no core dump has it,
 * and no other process of this user reads it from here (PR_SET_DUMPABLE). With `memory_is_read`
 * others must: then a dump, which may go to a program whatever its size limit, has no memory. */
static dlx_status dumps_forbid(bool memory_is_read, dlx_error *error) {
    struct rlimit core;
    if (getrlimit(RLIMIT_CORE, &core) == 0) {
        core.rlim_cur = 0;
        if (setrlimit(RLIMIT_CORE, &core) == 0 &&
            (memory_is_read ? dumps_empty() : prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0))
            return DLX_OK;
    }
    DLX_FAIL(error, SYSTEM, "wan.key: core dumps can't be turned off: %s", strerror(errno));
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Of the open file, since its path may lead elsewhere a moment later. */
static dlx_status key_file_check(int fd, const char *path, dlx_error *error) {
    struct stat about;
    if (fstat(fd, &about) != 0)
        DLX_FAIL(error, SYSTEM, "wan.key: '%s' is not used: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode))
        DLX_FAIL(error, CONFIG, "wan.key: '%s' is not used: it is not a regular file", path);
    if (about.st_size > KEY_FILE_BYTES_MAX)
        DLX_FAIL(error, CONFIG, "wan.key: '%s' is not used: it is too large for a key file", path);
    if (about.st_uid != geteuid() && about.st_uid != 0)
        DLX_FAIL(error, CONFIG,
                 "wan.key: '%s' belongs to user %u, and this process is user %u's; allowed is a "
                 "key file of its own user or root: change its owner (chown), or make another key",
                 path, (unsigned)about.st_uid, (unsigned)geteuid());
    if ((about.st_mode & 077) != 0)
        DLX_FAIL(
            error, CONFIG,
            "wan.key: '%s' is open to other users (mode %04o, allowed is 0600); run 'chmod 600 %s'",
            path, (unsigned)(about.st_mode & 07777), path);
    return DLX_OK;
}

static dlx_status key_file_open(int *fd, const char *path, dlx_error *error) {
    if (path == NULL || path[0] == '\0')
        DLX_FAIL(
            error, CONFIG,
            "wan.key: no key file is given; run 'dilocox keygen site.key' and set wan.key to it");
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0 && errno == ENOENT)
        DLX_FAIL(error, CONFIG, "wan.key: no such file '%s'; run 'dilocox keygen %s' first", path,
                 path);
    if (*fd < 0)
        DLX_FAIL(error, SYSTEM, "wan.key: '%s' can't be opened: %s", path, strerror(errno));
    dlx_status status = key_file_check(*fd, path, error);
    if (status != DLX_OK) close(*fd);
    return status;
}

static dlx_status key_file_read(char text[KEY_FILE_BYTES_MAX + 1], const char *path,
                                dlx_error *error) {
    int fd = -1;
    DLX_TRY(key_file_open(&fd, path, error));
    size_t used = 0;
    ssize_t got = 1;
    while (used < KEY_FILE_BYTES_MAX) {
        got = read(fd, text + used, KEY_FILE_BYTES_MAX - used);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        used += (size_t)got;
    }
    int system_errno = errno;
    close(fd);
    errno = system_errno;
    if (got < 0) {
        explicit_bzero(text, used);
        DLX_FAIL(error, SYSTEM, "wan.key: '%s' can't be read: %s", path, strerror(errno));
    }
    text[used] = '\0';
    return DLX_OK;
}

/* Copies the value of `name: value` on its own line; false if there is none or it is not 40
 * characters long. */
static bool value_find(char dst[DLXI_KEY_TEXT_BYTES], const char *text, const char *name) {
    size_t name_characters = strlen(name);
    for (const char *line = text + dlxi_text_mark_bytes(text, strlen(text));
         line != NULL && *line != '\0';) {
        const char *end = strchr(line, '\n');
        if (strncmp(line, name, name_characters) == 0 && line[name_characters] == ':') {
            const char *value = line + name_characters + 1;
            value += strspn(value, " \t");
            size_t characters = strcspn(value, " \t\r\n");
            if (characters != KEY_TEXT_CHARACTERS) return false;
            memcpy(dst, value, characters);
            dst[characters] = '\0';
            return true;
        }
        line = end != NULL ? end + 1 : NULL;
    }
    return false;
}

dlx_status dlxi_key_pair_read(dlxi_key_pair *out, const char *path, bool memory_is_read,
                              dlx_error *error) {
    char text[KEY_FILE_BYTES_MAX + 1];
    *out = (dlxi_key_pair){0};
    DLX_TRY(dumps_forbid(memory_is_read, error));
    DLX_TRY(key_file_read(text, path, error));
    dlxi_key_pair keys = {0};
    uint8_t public_key[DLXI_KEY_BYTES], secret_key[DLXI_KEY_BYTES];
    char derived[DLXI_KEY_TEXT_BYTES] = "";
    bool complete = value_find(keys.public_text, text, "public") &&
                    value_find(keys.secret_text, text, "secret") &&
                    dlxi_key_decode(public_key, keys.public_text) &&
                    dlxi_key_decode(secret_key, keys.secret_text);
    bool matched = complete && zmq_curve_public(derived, keys.secret_text) == 0 &&
                   strcmp(derived, keys.public_text) == 0;
    if (matched) *out = keys;
    explicit_bzero(text, sizeof text);
    explicit_bzero(secret_key, sizeof secret_key);
    dlxi_key_pair_wipe(&keys);
    if (!complete)
        DLX_FAIL(
            error, CONFIG,
            "wan.key: '%s' is not a key file: it must have the lines 'public: KEY' and 'secret: "
            "KEY' of %d characters each; make one with 'dilocox keygen'",
            path, KEY_TEXT_CHARACTERS);
    if (!matched)
        DLX_FAIL(error, CONFIG,
                 "wan.key: the public and secret halves in '%s' do not belong together; make a new "
                 "pair with 'dilocox keygen'",
                 path);
    return DLX_OK;
}

dlx_status dlxi_key_public(const char *path, char public_text[DLXI_KEY_TEXT_BYTES],
                           dlx_error *error) {
    dlxi_key_pair keys;
    public_text[0] = '\0';
    DLX_TRY(dlxi_key_pair_read(&keys, path, false, error));
    memcpy(public_text, keys.public_text, DLXI_KEY_TEXT_BYTES);
    dlxi_key_pair_wipe(&keys);
    return DLX_OK;
}

/* ---- making ---------------------------------------------------------------------------------- */

static bool text_write(int fd, const char *text, size_t bytes) {
    while (bytes != 0) {
        ssize_t written = write(fd, text, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        text += written;
        bytes -= (size_t)written;
    }
    return true;
}

dlx_status dlxi_key_generate(const char *path, char public_text[DLXI_KEY_TEXT_BYTES],
                             dlx_error *error) {
    public_text[0] = '\0';
    dlxi_key_pair keys;
    size_t path_bytes = strlen(path);
    if (path_bytes == 0 || path[path_bytes - 1] == '/')
        DLX_FAIL(error, CONFIG, "'%.100s' names no file; give the key file a name, as site.key",
                 path);
    DLX_TRY(dumps_forbid(false, error));
    if (zmq_curve_keypair(keys.public_text, keys.secret_text) != 0)
        DLX_FAIL(error, SYSTEM, "keys can't be made: this ZeroMQ was built without CURVE");
    char text[256];
    int bytes =
        snprintf(text, sizeof text,
                 "# A key of dilocox. This file is secret; only the public half goes on a roster.\n"
                 "public: %s\nsecret: %s\n",
                 keys.public_text, keys.secret_text);
    dlx_status status = DLX_OK;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST)
        DLX_FAIL_OUT(
            error, CONFIG,
            "'%s' exists already and a key is never overwritten; choose another name or remove it",
            path);
    if (fd < 0)
        DLX_FAIL_OUT(error, SYSTEM, "key file '%s' can't be written: %s", path, strerror(errno));
    bool written = fchmod(fd, 0600) == 0 && text_write(fd, text, (size_t)bytes) && fsync(fd) == 0;
    if (close(fd) != 0) written = false;
    if (!written) {
        status = dlxi_error_set(error, DLX_SYSTEM, "key file '%s' can't be written: %s", path,
                                strerror(errno));
        unlink(path);
        goto out;
    }
    memcpy(public_text, keys.public_text, DLXI_KEY_TEXT_BYTES);
out:
    explicit_bzero(text, sizeof text);
    dlxi_key_pair_wipe(&keys);
    return status;
}
