/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox: the options of the synchroniser and of the coordinator, one row each. dilocox.h includes
 * this file, and makes fields of its configs of the rows. */
#ifndef DILOCOX_OPTIONS_H
#define DILOCOX_OPTIONS_H

/* As a value of an AUTO option: chosen for the overlap. */
#define DLX_AUTO (-1.0)

/* X(kind, field, key, default, min, max, sites, comment), one row per option. It gives the field of
 * dlx_sync_config with its default, the check of its range, the comparison of the sites' settings
 * when they join, and the trainer's option `key`; key "": the trainer has none. Rows are in the
 * order of memory: add new ones at the end.
 *
 *   kind         C type           values
 *   OVERLAP      dlx_overlap      in a config file, a word
 *   ADAPTATION   dlx_adaptation   in a config file, a word
 *   COUNT        uint32_t
 *   INT          int
 *   BITS         int              4, 8, 16, or 32, in a config file `none`: not quantised
 *   REAL         double
 *   AUTO         double           or DLX_AUTO, in a config file `auto`
 *   FLAG         bool
 *   MS           uint32_t         milliseconds, in a config file seconds
 *
 * sites: SAME if all sites must have the same value, OWN if each has its own. */
/* clang-format off */
#define DLX_SYNC_OPTION_TABLE(X)                                                                   \
    X(OVERLAP, overlap, "sync.overlap", DLX_OVERLAP_CARRY, 0, DLX_OVERLAP_CARRY, SAME,             \
      "what training does while a round's update travels")                                         \
    X(COUNT, inner_steps, "sync.inner_steps", 16, 1, 100000, SAME,                                 \
      "H: inner steps per round")                                                                  \
    X(COUNT, inner_steps_min, "sync.inner_steps_min", 1, 1, 100000, SAME,                          \
      "adaptation's lower bound of H")                                                             \
    X(COUNT, inner_steps_max, "sync.inner_steps_max", 0, 0, 200000, SAME,                          \
      "train on past H to here while an exchange is late, then wait; 0: 4 H")                      \
    X(COUNT, exchange_steps, "sync.exchange_steps", 0, 0, 100000, SAME,                            \
      "carry: apply exactly this many steps after submission, so that a run repeats; 0: at once")  \
    X(AUTO, outer_learning_rate, "sync.outer_learning_rate", DLX_AUTO, 0, 10, SAME,                \
      "of the outer step")                                                                         \
    X(AUTO, outer_momentum, "sync.outer_momentum", DLX_AUTO, 0, 0.999, SAME,                       \
      "of the outer step: how much of past updates is kept")                                       \
    X(ADAPTATION, adaptation, "sync.adaptation", DLX_ADAPTATION_OFF, 0, DLX_ADAPTATION_LINK, SAME, \
      "of rank and H: off, by spectrum (paper), by link")                                          \
    X(INT, factor_rank, "sync.compression.rank", 64, 0, 1024, SAME,                                \
      "columns of the low-rank factors, if they are smaller than the matrix; 0: none")             \
    X(INT, factor_rank_min, "sync.compression.rank_min", 0, 0, 1024, SAME,                         \
      "adaptation's lower bound; 0: a quarter of rank")                                            \
    X(INT, factor_rank_max, "sync.compression.rank_max", 0, 0, 1024, SAME,                         \
      "adaptation's upper bound; 0: twice rank")                                                   \
    X(BITS, bits, "sync.compression.bits", 4, 4, 32, SAME,                                         \
      "of a value sent; under allreduce 16, or else none")                                         \
    X(INT, group, "sync.compression.group", 64, 2, 1024, SAME,                                     \
      "values that share a scale; even")                                                           \
    X(FLAG, error_feedback, "sync.compression.error_feedback", true, false, true, SAME,            \
      "what was not sent is sent later")                                                           \
    X(FLAG, keep_unsent, "sync.compression.keep_unsent", true, false, true, SAME,                  \
      "none, carry: a site trains on from what it has not sent yet, and so does not do it again")  \
    X(MS, timeout_ms, "wan.timeout_s", 10000, 1000, 86400000, OWN,                                 \
      "declare a peer lost after this long without a message")                                     \
    X(MS, join_ms, "wan.join_s", 600000, 1000, 86400000, OWN,                                      \
      "wait this long for the coordinator to answer, and at the coordinator for sites to join")    \
    X(MS, orphan_ms, "wan.orphan_s", 1800000, 0, 86400000, OWN,                                    \
      "when the coordinator is lost, wait this long for it to come back before the run ends")      \
    X(COUNT, history_mib, "sync.history_mib", 0, 0, 1048576, OWN,                                  \
      "results of past rounds kept for sites that missed them; 0: 64, or more for a large model")  \
    X(FLAG, balance, "sync.balance", false, false, true, SAME,                                     \
      "slower sites take fewer inner steps, faster ones more, so that they submit together")       \
    X(AUTO, outer_momentum_rate, "sync.outer_momentum_rate", DLX_AUTO, 0, 10, SAME,                \
      "of the outer step's momentum part; auto: the overlap's, or Nesterov's for another step")    \
    X(MS, wait_ms, "", 0, 0, 86400000, OWN,                                                        \
      "a call that has to wait longer for others returns DLX_AGAIN; 0: calls block")               \
    X(COUNT, windows_ahead, "", 0, 0, 1000000, OWN,                                                \
      "of a lease, more than its round trains on: for a loader that takes windows early")          \
    X(COUNT, fragments, "sync.fragments", 1, 1, 64, SAME,                                          \
      "none, carry: parts of the model that take turns, one a round; the last round has all")      \
    X(AUTO, outer_warmup, "sync.outer_warmup", DLX_AUTO, 0, 1000, SAME,                            \
      "W: outer momentum is at most n / (n + W) in round n; auto: none, carry 8; 0 if it is set")

/* The same for the coordinator; key "": the trainer has none, or that of the table above. */
#define DLX_COORDINATOR_OPTION_TABLE(X)                                                            \
    X(COUNT, sites, "", 2, 1, 64, OWN,                                                             \
      "how many sites take part")                                                                  \
    X(MS, timeout_ms, "", 10000, 1000, 86400000, OWN,                                              \
      "declare a site lost after this long without a message")                                     \
    X(MS, patience_ms, "wan.patience_s", 600000, 1000, 86400000, OWN,                              \
      "a round that began to fail has this long to commit before the run ends")                    \
    X(MS, join_ms, "", 600000, 1000, 86400000, OWN,                                                \
      "wait this long for sites to join")                                                          \
    X(COUNT, sites_min, "wan.min_sites", 1, 0, 64, OWN,                                            \
      "go on without the others while as many sites as this are left; 0: with all or not at all")  \
    X(MS, limbo_ms, "", 600000, 1000, 86400000, OWN,                                               \
      "a site that is away keeps its windows for so long")                                         \
    X(MS, wait_ms, "", 0, 0, 86400000, OWN,                                                        \
      "dlx_coordinator_run returns DLX_AGAIN after this long; 0: it blocks")
/* clang-format on */

/* The C types of the kinds. */
#define DLX_TYPE_OVERLAP    dlx_overlap
#define DLX_TYPE_ADAPTATION dlx_adaptation
#define DLX_TYPE_COUNT      uint32_t
#define DLX_TYPE_INT        int
#define DLX_TYPE_BITS       int
#define DLX_TYPE_REAL       double
#define DLX_TYPE_AUTO       double
#define DLX_TYPE_FLAG       bool
#define DLX_TYPE_MS         uint32_t

/* Eight bytes per option: a field that a later version adds never lies in the padding of an older
 * struct. */
#ifdef __cplusplus
#define DLX_OPTION_ALIGN alignas(8)
#else
#define DLX_OPTION_ALIGN _Alignas(8)
#endif
#define DLX_OPTION_FIELD(kind, field, key, standard, min, max, sites, comment)                     \
    DLX_OPTION_ALIGN DLX_TYPE_##kind field;
#define DLX_OPTION_DEFAULT(kind, field, key, standard, min, max, sites, comment)                   \
    .field = (standard),

#endif
