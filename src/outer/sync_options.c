/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/sync_options.h"

#include <math.h>

#include "base/hash.h"
#include "codec/codec.h"

const char *const dlxi_adaptation_words[] = {
    [DLX_ADAPTATION_OFF] = "off",
    [DLX_ADAPTATION_PAPER] = "paper",
    [DLX_ADAPTATION_LINK] = "link",
    NULL,
};
const char *const dlxi_bits_words[] = {"4", "8", "16", "none", NULL};
const int dlxi_bits_values[] = {4, 8, 16, 32};

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
_Static_assert(COUNT_OF(dlxi_adaptation_words) == DLX_ADAPTATION_LINK + 2, "a word for each");
_Static_assert(COUNT_OF(dlxi_bits_words) == COUNT_OF(dlxi_bits_values) + 1, "a word for each");

#define ROW(kind, field, ...) DLXI_OPTION_FROM_ROW(dlx_sync_config, field, kind, field, __VA_ARGS__)
static const dlxi_option rows[] = {DLX_SYNC_OPTION_TABLE(ROW)};
#define INDEX(kind, field, ...) OPTION_##field,
enum { DLX_SYNC_OPTION_TABLE(INDEX) };

/* option ≤ bound; or at_least: option is 0, or ≥ bound. */
static const struct {
    int option, bound;
    bool at_least;
} relations[] = {
    {OPTION_inner_steps_min, OPTION_inner_steps, false},
    {OPTION_inner_steps_max, OPTION_inner_steps, true},
    {OPTION_exchange_steps, OPTION_inner_steps, false},
    {OPTION_factor_rank_min, OPTION_factor_rank, false},
    {OPTION_factor_rank_max, OPTION_factor_rank, true},
};

static const char *name_of(const dlxi_option *option, bool by_key) {
    return by_key ? option->key : option->field;
}

/* Adaptation takes each exchange for the whole model's. */
static dlx_status fragments_check(const dlx_sync_config *config, bool by_key, dlx_error *error) {
    const dlxi_method *method = dlxi_method_of(config->overlap);
    const char *name = name_of(&rows[OPTION_fragments], by_key);
    if (config->fragments == 1 || method->averages_gradients) return DLX_OK;
    if (!method->takes_turns)
        DLX_FAIL(error, CONFIG,
                 "%s: %u does not go with overlap %s; allowed: 1, or %s none or carry", name,
                 config->fragments, method->name, name_of(&rows[OPTION_overlap], by_key));
    if (config->adaptation != DLX_ADAPTATION_OFF)
        DLX_FAIL(error, CONFIG, "%s: %u does not go with adaptation %s; allowed: 1, or %s off",
                 name, config->fragments, dlxi_adaptation_words[config->adaptation],
                 name_of(&rows[OPTION_adaptation], by_key));
    return DLX_OK;
}

dlx_status dlxi_sync_options_check(const dlx_sync_config *config, bool by_key, dlx_error *error) {
    const dlxi_option_table table = {rows, COUNT_OF(rows)};
    DLX_TRY(dlxi_options_check(config, &table, by_key, error));
    for (size_t i = 0; i < COUNT_OF(relations); i++) {
        const dlxi_option *option = &rows[relations[i].option], *other = &rows[relations[i].bound];
        double value = dlxi_option_number(config, option),
               bound = dlxi_option_number(config, other);
        if (!relations[i].at_least && value > bound)
            DLX_FAIL(error, CONFIG, "%s: %.0f is out of range; allowed: %.0f to %s, %.0f",
                     name_of(option, by_key), value, option->min, name_of(other, by_key), bound);
        if (relations[i].at_least && value != 0 && value < bound)
            DLX_FAIL(error, CONFIG, "%s: %.0f is out of range; allowed: 0, or %s, %.0f, to %.0f",
                     name_of(option, by_key), value, name_of(other, by_key), bound, option->max);
    }
    const dlxi_option *group = &rows[OPTION_group];
    if (config->group % 2 != 0)
        DLX_FAIL(error, CONFIG, "%s: %d is odd; allowed: even, %.0f to %.0f",
                 name_of(group, by_key), config->group, group->min, group->max);
    return fragments_check(config, by_key, error);
}

/* A site trains on for so many rounds while an exchange is late, unless set: long enough to hide an
 * exchange of three; not longer, since it may be alone by then. */
enum { ROUNDS_MAX = 4 };

/* Rounded the same on all sites, in any rounding mode of the caller's thread. */
static double float_round(double value) {
    const volatile double exact = value; /* volatile: rounded here, not earlier or later */
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    const volatile float rounded = (float)exact;
    dlxi_arithmetic_leave(&saved);
    return (double)rounded;
}

dlx_sync_config dlxi_sync_options_resolve(const dlx_sync_config *config) {
    dlx_sync_config c = *config;
    const dlxi_method *method = dlxi_method_of(c.overlap);
    bool all_auto = c.outer_learning_rate == DLX_AUTO && c.outer_momentum == DLX_AUTO;
    if (c.outer_warmup == DLX_AUTO)
        c.outer_warmup = all_auto && c.outer_momentum_rate == DLX_AUTO ? method->warmup : 0;
    if (c.outer_learning_rate == DLX_AUTO) c.outer_learning_rate = method->outer.learning_rate;
    if (c.outer_momentum == DLX_AUTO) c.outer_momentum = method->outer.momentum;
    if (c.outer_momentum_rate == DLX_AUTO)
        c.outer_momentum_rate =
            all_auto ? method->outer.momentum_rate : c.outer_learning_rate * c.outer_momentum;
    c.outer_learning_rate = float_round(c.outer_learning_rate);
    c.outer_momentum = float_round(c.outer_momentum);
    c.outer_momentum_rate = float_round(c.outer_momentum_rate);
    if (c.factor_rank_min == 0) c.factor_rank_min = (c.factor_rank + 3) / 4;
    if (c.factor_rank_max == 0) c.factor_rank_max = 2 * c.factor_rank;
    if (c.inner_steps_max == 0) c.inner_steps_max = ROUNDS_MAX * c.inner_steps;
    if (method->when == DLXI_WHEN_WAITED_FOR) c.inner_steps_max = c.inner_steps;
    c.keep_unsent = c.keep_unsent && c.error_feedback;
    if (method->averages_gradients) { /* rounds of one step, of whole gradients, in f32 or f16 */
        c.inner_steps = c.inner_steps_min = c.inner_steps_max = 1;
        if (c.bits != 16) c.bits = 32;
        c.factor_rank = c.factor_rank_min = c.factor_rank_max = 0;
        c.adaptation = DLX_ADAPTATION_OFF;
        c.fragments = 1;
    }
    return c;
}

dlxi_outer dlxi_sync_options_outer(const dlx_sync_config *resolved) {
    return (dlxi_outer){resolved->outer_learning_rate, resolved->outer_momentum,
                        resolved->outer_momentum_rate};
}

dlxi_outer dlxi_sync_options_outer_in(const dlx_sync_config *resolved, uint64_t round) {
    dlxi_outer outer = dlxi_sync_options_outer(resolved);
    const double turn = (double)((round + resolved->fragments - 1) / resolved->fragments);
    const double most = turn / (turn + resolved->outer_warmup);
    if (turn > 0 && most < outer.momentum) outer.momentum = most;
    return outer;
}

uint32_t dlxi_sync_options_round_steps_max(const dlx_sync_config *resolved) {
    return (uint32_t)ceil(resolved->inner_steps_max * resolved->pace_max);
}

uint64_t dlxi_sync_options_hash(const dlx_sync_config *config) {
    const dlx_sync_config resolved = dlxi_sync_options_resolve(config);
    uint64_t hash = dlxi_hash(&resolved.seed, sizeof resolved.seed, 0);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        double value = dlxi_option_number(&resolved, &rows[i]);
        if (!rows[i].site_may_differ) hash = dlxi_hash(&value, sizeof value, hash);
    }
    return hash;
}
