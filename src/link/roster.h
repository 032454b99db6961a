/* SPDX-License-Identifier: Apache-2.0 */
/* Key files and rosters: who may join a run, and how a process proves that it may.
 *
 *     key file, mode 0600            roster, one line per name
 *     public: <Z85, 40 characters>   coordinator <Z85>
 *     secret: <Z85, 40 characters>   delft <Z85>
 *
 * In both, empty lines and lines that begin with '#' are ignored. In a roster a comment may also
 * follow the key, after a blank (Z85 itself has a '#'). The name `coordinator` is the
 * coordinator's; the others are sites'. */
#ifndef DLXI_LINK_ROSTER_H
#define DLXI_LINK_ROSTER_H

#include "base/name.h"
#include "link/link.h"

enum { DLXI_KEY_BYTES = 32, DLXI_ROSTER_NAMES_MAX = 256, DLXI_ROSTER_BYTES_MAX = 64 * 1024 };

extern const char dlxi_coordinator_name[]; /* "coordinator" */

typedef struct dlxi_key_pair {
    char public_text[DLXI_KEY_TEXT_BYTES];
    char secret_text[DLXI_KEY_TEXT_BYTES]; /* never in a message; wiped with dlxi_key_pair_wipe */
} dlxi_key_pair;

/* Reads a key file; refuses one that others may read, or that is neither this process's user's nor
 * root's, and halves that do not belong together. The process writes no core dumps any more, and
 * can't be traced but by root, unless memory_is_read: other processes copy from its memory, as MPI
 * does within a site. Errors begin `wan.key:`. */
dlx_status dlxi_key_pair_read(dlxi_key_pair *out, const char *path, bool memory_is_read,
                              dlx_error *error);
void dlxi_key_pair_wipe(dlxi_key_pair *keys);

typedef struct dlxi_roster_line {
    char name[DLXI_NAME_BYTES];
    char key_text[DLXI_KEY_TEXT_BYTES];
    uint8_t key[DLXI_KEY_BYTES];
} dlxi_roster_line;

typedef struct dlxi_roster {
    size_t count;
    dlxi_roster_line lines[DLXI_ROSTER_NAMES_MAX];
} dlxi_roster;

/* Z85 text of exactly 40 characters to a key. */
bool dlxi_key_decode(uint8_t key[DLXI_KEY_BYTES], const char *text);

/* `path` is only named in errors, which begin `wan.roster:`. On failure *out is undefined. */
dlx_status dlxi_roster_parse(dlxi_roster *out, const char *text, size_t text_bytes,
                             const char *path, dlx_error *error);
/* *out is the caller's, free with free(). */
dlx_status dlxi_roster_read(dlxi_roster **out, const char *path, dlx_error *error);

/* NULL if it is not on the roster. */
const dlxi_roster_line *dlxi_roster_by_name(const dlxi_roster *roster, const char *name);
const dlxi_roster_line *dlxi_roster_by_key(const dlxi_roster *roster,
                                           const uint8_t key[DLXI_KEY_BYTES]);

#endif
