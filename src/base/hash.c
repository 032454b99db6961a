/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hash.h"
#include "base/memory.h"

#include <stdlib.h>
#include <xxhash.h>

uint64_t dlxi_hash(const void *data, size_t bytes, uint64_t seed) {
    return XXH3_64bits_withSeed(data, bytes, seed);
}

struct dlxi_hasher {
    XXH3_state_t *state;
};

dlx_status dlxi_hasher_open(dlxi_hasher **out, dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, 1, error));
    (*out)->state = XXH3_createState();
    if ((*out)->state == NULL) {
        dlxi_hasher_close(out);
        DLX_FAIL(error, MEMORY, "out of memory: the state of a checksum");
    }
    dlxi_hasher_begin(*out);
    return DLX_OK;
}

void dlxi_hasher_begin(dlxi_hasher *hasher) {
    XXH3_64bits_reset(hasher->state);
}

void dlxi_hasher_add(dlxi_hasher *hasher, const void *data, size_t bytes) {
    XXH3_64bits_update(hasher->state, data, bytes);
}

uint64_t dlxi_hasher_value(const dlxi_hasher *hasher) {
    return XXH3_64bits_digest(hasher->state);
}

void dlxi_hasher_close(dlxi_hasher **hasher) {
    if (*hasher == NULL) return;
    XXH3_freeState((*hasher)->state);
    free(*hasher);
    *hasher = NULL;
}
