/* SPDX-License-Identifier: Apache-2.0 */
/* What compiled programs rely on: the version that this library was built as, the numbers of
 * enumerators, and structs that cannot grow. tests/golden/abi.json has every offset. */
#include <dilocox_train.h>

const char *dlx_version(void) {
    return DLX_VERSION_TEXT;
}

uint32_t dlx_version_number(void) {
    return DLX_VERSION_NUMBER;
}

/* ---- enumerators: a program has their numbers compiled in ------------------------------------ */

#define IS(name, number) ((int)DLX_##name == (number))

_Static_assert(sizeof(dlx_status) == 4 && sizeof(dlx_dtype) == 4, "as in the caller's structs");
_Static_assert(IS(OK, 0) && IS(AGAIN, 1) && IS(TIMEOUT, 2) && IS(ABORTED, 3) &&
                   IS(INTERRUPTED, 4) && IS(ARGUMENT, 5) && IS(STATE, 6) && IS(CONFIG, 7) &&
                   IS(MEMORY, 8) && IS(SYSTEM, 9) && IS(DATA, 10) && IS(REFUSED, 11) &&
                   IS(PEER_LOST, 12) && IS(NUMERIC, 13) && IS(DIVERGED, 14),
               "dlx_status");
_Static_assert(IS(CLASS_NONE, 0) && IS(CLASS_RETRY, 1) && IS(CLASS_VIEW_CHANGED, 2) &&
                   IS(CLASS_FATAL, 3) && IS(CLASS_CALLER, 4),
               "dlx_status_class");
_Static_assert(IS(OVERLAP_ALLREDUCE, 0) && IS(OVERLAP_NONE, 1) && IS(OVERLAP_DELAYED, 2) &&
                   IS(OVERLAP_EAGER, 3) && IS(OVERLAP_CARRY, 4),
               "dlx_overlap");
_Static_assert(IS(ADAPTATION_OFF, 0) && IS(ADAPTATION_PAPER, 1) && IS(ADAPTATION_LINK, 2),
               "dlx_adaptation");
_Static_assert(IS(MEMORY_HOST, 0) && IS(MEMORY_CALLER, 1), "dlx_memory");
_Static_assert(IS(F32, 0) && IS(BF16, 1) && IS(F16, 2), "dlx_dtype");
_Static_assert(IS(TRAINED, 0) && IS(STATISTICS, 1), "dlx_kind");
_Static_assert(IS(EVENT_MESSAGE, 0) && IS(EVENT_JOINED, 1) && IS(EVENT_STEP, 2) &&
                   IS(EVENT_EVALUATED, 3),
               "dlx_event_kind");

/* ---- frozen structs -------------------------------------------------------------------------- */

/* The caller allocates it, often on its stack, and it has no size: a library that wrote a longer
 * one would write behind it. */
_Static_assert(offsetof(dlx_error, status) == 0 && offsetof(dlx_error, system_errno) == 4 &&
                   offsetof(dlx_error, round) == 8 && offsetof(dlx_error, site) == 16 &&
                   offsetof(dlx_error, message) == 80 && sizeof(dlx_error) == 592,
               "dlx_error is frozen");

/* It lies within dlx_sync_config and dlx_coordinator_config: what follows it there would move. */
_Static_assert(sizeof(dlx_link_config) == 6 * sizeof(void *) + 8, "dlx_link_config is frozen");
