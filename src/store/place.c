/* SPDX-License-Identifier: Apache-2.0 */
#include "store/place.h"
#include "base/file.h"
#include "base/hash.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The hash, since a machine's id should not appear in files that are copied (machine-id(5)). */
static uint64_t machine_hash(const char *host) {
    enum { ID_CHARACTERS = 32 };
    char *id = NULL;
    size_t bytes = 0;
    uint64_t hash = dlxi_hash(host, strlen(host), 1);
    /* images of containers have an empty one, or the word 'uninitialized' */
    if (dlxi_file_read(&id, &bytes, "/etc/machine-id", 4096, NULL) == DLX_OK &&
        strspn(id, "0123456789abcdef") == ID_CHARACTERS)
        hash = dlxi_hash(id, ID_CHARACTERS, 0);
    free(id);
    return hash;
}

dlx_status dlxi_place_here(dlxi_place *out, const char *path, dlx_error *error) {
    struct stat facts;
    *out = (dlxi_place){0};
    if (stat(path, &facts) != 0)
        DLX_FAIL(error, SYSTEM, "%s: can't be examined: %s", path, strerror(errno));
    if (gethostname(out->host, sizeof out->host - 1) != 0)
        DLX_FAIL(error, SYSTEM, "this host's name can't be read: %s", strerror(errno));
    out->machine = machine_hash(out->host);
    out->device = (uint64_t)facts.st_dev;
    out->inode = (uint64_t)facts.st_ino;
    return DLX_OK;
}

bool dlxi_place_is_same(const dlxi_place *left, const dlxi_place *here, char why[DLXI_WHY_BYTES]) {
    why[0] = '\0';
    if (left->machine != here->machine && strcmp(left->host, here->host) != 0)
        snprintf(why, DLXI_WHY_BYTES, "it was written on host '%.64s' and this is '%.64s'",
                 left->host, here->host);
    else if (left->machine != here->machine)
        snprintf(why, DLXI_WHY_BYTES,
                 "it was written on another machine, whose name is '%.64s' too", here->host);
    else if (left->device != here->device)
        snprintf(why, DLXI_WHY_BYTES, "it was written on another file system of this machine");
    else if (left->inode != here->inode)
        snprintf(why, DLXI_WHY_BYTES, "it is a copy: the coordinator wrote to another file");
    return why[0] == '\0';
}
