/* SPDX-License-Identifier: Apache-2.0 */
/* The synchroniser's options, from DLX_SYNC_OPTION_TABLE: rows for the options engine, the words of
 * choices, what values must fulfil together, what `auto` and 0 stand for, and a hash of what all
 * sites must share. Pure. */
#ifndef DLXI_OUTER_SYNC_OPTIONS_H
#define DLXI_OUTER_SYNC_OPTIONS_H

#include "options/options.h"
#include "outer/method.h"

extern const char *const dlxi_adaptation_words[], *const dlxi_bits_words[];
extern const int dlxi_bits_values[];

#define DLXI_KIND_OVERLAP    .kind = DLXI_OPTION_CHOICE, .words = dlxi_method_words
#define DLXI_KIND_ADAPTATION .kind = DLXI_OPTION_CHOICE, .words = dlxi_adaptation_words
#define DLXI_KIND_COUNT      .kind = DLXI_OPTION_INTEGER, .is_unsigned = true
#define DLXI_KIND_INT        .kind = DLXI_OPTION_INTEGER
#define DLXI_KIND_BITS                                                                             \
    .kind = DLXI_OPTION_CHOICE, .words = dlxi_bits_words, .values = dlxi_bits_values
#define DLXI_KIND_REAL  .kind = DLXI_OPTION_REAL
#define DLXI_KIND_AUTO  .kind = DLXI_OPTION_REAL, .allow_auto = true
#define DLXI_KIND_FLAG  .kind = DLXI_OPTION_BOOLEAN
#define DLXI_KIND_MS    .kind = DLXI_OPTION_SECONDS, .is_unsigned = true
#define DLXI_SITES_SAME .site_may_differ = false
#define DLXI_SITES_OWN  .site_may_differ = true

/* A row of one of the interface's tables as a row of the engine, for a struct `type` that has the
 * option as its member `designator`. */
#define DLXI_OPTION_FROM_ROW(type, designator, kind_, name_, key_, standard, low, high, sites,     \
                             sentence)                                                             \
    {DLXI_KIND_##kind_,                                                                            \
     DLXI_SITES_##sites,                                                                           \
     .key = (key_),                                                                                \
     .field = #name_,                                                                              \
     .offset = offsetof(type, designator),                                                         \
     .size = sizeof(((type *)0)->designator),                                                      \
     .min = (double)(low),                                                                         \
     .max = (double)(high),                                                                        \
     .default_value = (double)(standard),                                                          \
     .comment = (sentence)},

/* DLXI_MAX_group: the largest value, cut to a whole number. */
#define DLXI_MAX_OF_ROW(kind, field, key, standard, low, high, sites, sentence)                    \
    DLXI_MAX_##field = (int)(high),
enum { DLX_SYNC_OPTION_TABLE(DLXI_MAX_OF_ROW) };

/* Ranges, and what options mean together. DLX_CONFIG names options by their keys for the user of a
 * config file, by their fields for a C caller. */
dlx_status dlxi_sync_options_check(const dlx_sync_config *config, bool by_key, dlx_error *error);

/* The values in use: what `auto` and 0 stand for under this overlap, and for options that it leaves
 * no choice, that value. The outer step's numbers are rounded to the floats that replicas compute
 * with. */
dlx_sync_config dlxi_sync_options_resolve(const dlx_sync_config *config);

/* η, μ, γ of resolved options. */
dlxi_outer dlxi_sync_options_outer(const dlx_sync_config *resolved);
/* In that round, from 1: μ is at most n / (n + W), n the rounds that a tensor has had its turn. */
dlxi_outer dlxi_sync_options_outer_in(const dlx_sync_config *resolved, uint64_t round);
/* Inner steps of the longest round that these values allow. */
uint32_t dlxi_sync_options_round_steps_max(const dlx_sync_config *resolved);

/* Of the values in use that all sites must share, the seed included. */
uint64_t dlxi_sync_options_hash(const dlx_sync_config *config);

#endif
