/* SPDX-License-Identifier: Apache-2.0 */
/* The synchroniser's options as a whole: what they mean together, by key and by field, what `auto`
 * and 0 stand for, and which of them the sites' hash covers. */
#include "outer/sync_options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void expect_refused(const dlx_sync_config *config, const char *by_field,
                           const char *by_key) {
    dlx_error error;
    assert_int_equal(dlxi_sync_options_check(config, false, &error), DLX_CONFIG);
    assert_string_equal(error.message, by_field);
    assert_int_equal(dlxi_sync_options_check(config, true, &error), DLX_CONFIG);
    assert_string_equal(error.message, by_key);
}

static void what_does_not_fit_together(void **state) {
    (void)state;
#define REFUSED(by_field, by_key, ...)                                                             \
    do {                                                                                           \
        dlx_sync_config config = DLX_SYNC_CONFIG_INIT;                                             \
        assert_int_equal(dlxi_sync_options_check(&config, false, NULL), DLX_OK);                   \
        config.inner_steps = 25;                                                                   \
        config.factor_rank = 16;                                                                   \
        __VA_ARGS__;                                                                               \
        expect_refused(&config, by_field, by_key);                                                 \
    } while (0)
    REFUSED("inner_steps_min: 26 is out of range; allowed: 1 to inner_steps, 25",
            "sync.inner_steps_min: 26 is out of range; allowed: 1 to sync.inner_steps, 25",
            config.inner_steps_min = 26);
    REFUSED(
        "inner_steps_max: 24 is out of range; allowed: 0, or inner_steps, 25, to 200000",
        "sync.inner_steps_max: 24 is out of range; allowed: 0, or sync.inner_steps, 25, to 200000",
        config.inner_steps_max = 24);
    REFUSED(
        "fragments: 4 does not go with overlap delayed; allowed: 1, or overlap none or carry",
        "sync.fragments: 4 does not go with overlap delayed; allowed: 1, or sync.overlap none or "
        "carry",
        config.fragments = 4;
        config.overlap = DLX_OVERLAP_DELAYED);
    REFUSED(
        "fragments: 2 does not go with adaptation link; allowed: 1, or adaptation off",
        "sync.fragments: 2 does not go with adaptation link; allowed: 1, or sync.adaptation off",
        config.fragments = 2;
        config.adaptation = DLX_ADAPTATION_LINK);
    REFUSED("exchange_steps: 26 is out of range; allowed: 0 to inner_steps, 25",
            "sync.exchange_steps: 26 is out of range; allowed: 0 to sync.inner_steps, 25",
            config.exchange_steps = 26);
    REFUSED(
        "factor_rank_min: 17 is out of range; allowed: 0 to factor_rank, 16",
        "sync.compression.rank_min: 17 is out of range; allowed: 0 to sync.compression.rank, 16",
        config.factor_rank_min = 17);
    REFUSED("factor_rank_max: 15 is out of range; allowed: 0, or factor_rank, 16, to 1024",
            "sync.compression.rank_max: 15 is out of range; allowed: 0, or sync.compression.rank, "
            "16, to 1024",
            config.factor_rank_max = 15);
    REFUSED("group: 63 is odd; allowed: even, 2 to 1024",
            "sync.compression.group: 63 is odd; allowed: even, 2 to 1024", config.group = 63);
    REFUSED("timeout_ms: 999 is out of range; allowed: 1000 to 86400000",
            "wan.timeout_s: 999 is out of range; allowed: 1000 to 86400000",
            config.timeout_ms = 999);
#undef REFUSED
}

/* The table's range of a choice is that of its words. */
static void choices_have_words(void **state) {
    (void)state;
    int overlaps = 0, adaptations = 0;
    while (dlxi_method_words[overlaps] != NULL) overlaps++;
    while (dlxi_adaptation_words[adaptations] != NULL) adaptations++;
    assert_int_equal(overlaps, DLXI_MAX_overlap + 1);
    assert_int_equal(adaptations, DLXI_MAX_adaptation + 1);
    assert_int_equal(dlxi_bits_values[3], DLXI_MAX_bits);
}

static void values_in_use(void **state) {
    (void)state;
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    dlx_sync_config used = dlxi_sync_options_resolve(&config);
    assert_true(used.outer_learning_rate == 1 && used.outer_momentum == (double)0.9f);
    assert_true(used.outer_momentum_rate == (double)0.2f);
    assert_true(used.factor_rank_min == 16 && used.factor_rank_max == 128);
    assert_true(used.inner_steps_max == 64 && used.keep_unsent);
    assert_true(used.outer_warmup == 8);
    assert_true(dlxi_sync_options_outer_in(&used, 1).momentum == 1.0 / 9);
    assert_true(dlxi_sync_options_outer_in(&used, 71).momentum == 71.0 / 79);
    assert_true(dlxi_sync_options_outer_in(&used, 72).momentum == (double)0.9f);
    used.fragments = 4; /* rounds 5 to 8 are the second of their tensors */
    assert_true(dlxi_sync_options_outer_in(&used, 5).momentum == 2.0 / 10);
    assert_true(dlxi_sync_options_outer_in(&used, 8).momentum == 2.0 / 10);

    config.overlap = DLX_OVERLAP_NONE; /* never trains past H */
    config.outer_momentum = 0.1;
    config.inner_steps_max = 40;
    config.factor_rank_min = 3;
    config.error_feedback = false; /* nothing unsent is kept then */
    used = dlxi_sync_options_resolve(&config);
    assert_true(used.outer_momentum == (double)0.1f && used.inner_steps_max == 16);
    assert_true(used.outer_momentum_rate == (double)0.1f); /* Nesterov's, of η = 1 */
    assert_true(used.outer_warmup == 0 &&
                dlxi_sync_options_outer_in(&used, 1).momentum == (double)0.1f);
    assert_true(used.factor_rank_min == 3 && !used.keep_unsent);

    config.overlap = DLX_OVERLAP_ALLREDUCE;
    used = dlxi_sync_options_resolve(&config);
    assert_true(used.inner_steps == 1 && used.inner_steps_min == 1 && used.inner_steps_max == 1);
    assert_true(used.bits == 32 && used.factor_rank == 0 && used.factor_rank_max == 0);
    assert_int_equal(used.adaptation, DLX_ADAPTATION_OFF);
    config.bits = 16;
    assert_int_equal(dlxi_sync_options_resolve(&config).bits, 16);
}

/* Another value than the default, and than what that stands for. */
#define OTHER_OVERLAP(value)    DLX_OVERLAP_EAGER
#define OTHER_ADAPTATION(value) DLX_ADAPTATION_LINK
#define OTHER_COUNT(value)      ((value) + 13)
#define OTHER_INT(value)        ((value) + 26)
#define OTHER_BITS(value)       8
#define OTHER_REAL(value)       ((value) + 0.125)
#define OTHER_AUTO(value)       0.5
#define OTHER_FLAG(value)       !(value)
#define OTHER_MS(value)         ((value) + 1)

static void the_hash_covers_what_sites_share(void **state) {
    (void)state;
    const dlx_sync_config standard = DLX_SYNC_CONFIG_INIT;
    const uint64_t hash = dlxi_sync_options_hash(&standard);
    const bool SAME = true, OWN = false;
    int shared = 0, own = 0;
#define CHANGED(kind, field, key, value, low, high, sites, comment)                                \
    do {                                                                                           \
        dlx_sync_config config = standard;                                                         \
        config.field = OTHER_##kind(value);                                                        \
        if ((dlxi_sync_options_hash(&config) != hash) != sites) fail_msg("%s", #field);            \
        if (sites)                                                                                 \
            shared++;                                                                              \
        else                                                                                       \
            own++;                                                                                 \
    } while (0);
    DLX_SYNC_OPTION_TABLE(CHANGED)
#undef CHANGED
    assert_true(shared >= 15 && own >= 1);

    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.seed = 2;
    assert_true(dlxi_sync_options_hash(&config) != hash);

    /* what stands for something is that */
    config = standard;
    config.outer_learning_rate = 1;
    config.outer_momentum = (double)0.9f;
    config.outer_momentum_rate = (double)0.2f;
    config.factor_rank_min = 16;
    config.factor_rank_max = 128;
    config.inner_steps_max = 64;
    config.outer_warmup = 8;
    assert_true(dlxi_sync_options_hash(&config) == hash);
    dlx_sync_config used = dlxi_sync_options_resolve(&standard);
    assert_true(dlxi_sync_options_hash(&used) == hash);
    /* and what the overlap does not use does not count */
    config.overlap = DLX_OVERLAP_ALLREDUCE;
    uint64_t gradients = dlxi_sync_options_hash(&config);
    config.bits = 8, config.inner_steps = 3, config.factor_rank = 5;
    assert_true(dlxi_sync_options_hash(&config) == gradients);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_does_not_fit_together),
        cmocka_unit_test(choices_have_words),
        cmocka_unit_test(values_in_use),
        cmocka_unit_test(the_hash_covers_what_sites_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
