/* SPDX-License-Identifier: Apache-2.0 */
/* Admission: which site may join a run, and the reason that a refused one gets. */
#include <string.h>

#include "base/name.h"
#include "options/options.h"
#include "member/coordinator_internal.h"

#define TOKENS_PER_WINDOW_MAX (UINT64_C(1) << 24)

bool dlxi_coordinator_has_no_room(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                                  const char *proved_name, const dlxi_run_site *s,
                                  const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    if (c->welcomed && hello->resumed_run == c->settings.run_id)
        return dlxi_return_is_refused(text, c, proved_name, s, hello);
    if (c->welcomed)
        return snprintf(text, size,
                        "the run has begun with %u sites; one of them comes back with its snapshot "
                        "(--resume), others need a new run",
                        c->count);
    if (!dlxi_name_valid(hello->site))
        return snprintf(text, size, "a site's name is not allowed; " DLXI_NAME_RULE "; set --site");
    if (proved_name[0] != '\0' && strcmp(proved_name, hello->site) != 0)
        return snprintf(text, size, "site '%s' uses the key of '%s'; set --site or wan.key",
                        hello->site, proved_name);
    if (s != NULL && dlxi_run_site_is_complete(s))
        return snprintf(
            text, size,
            "a site named '%s' has joined already; give --site another name, or, if that "
            "one ended, wait for wan.timeout_s",
            hello->site);
    if (s == NULL && c->count == c->settings.sites)
        return snprintf(
            text, size,
            "%u sites are joining, as many as the run has; start the coordinator with more",
            c->count);
    return false;
}

/* Why this rank does not fit its site; or false. */
static bool mismatch_of_rank(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                             const dlxi_run_site *s, const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    if (hello->ranks < 1 || hello->ranks > DLXI_RANKS_MAX)
        return snprintf(text, size, "site '%s' has %u ranks; allowed: 1 to %d", hello->site,
                        hello->ranks, DLXI_RANKS_MAX);
    if (hello->rank >= hello->ranks)
        return snprintf(text, size, "site '%s' has a rank %u; of %u ranks, allowed: 0 to %u",
                        hello->site, hello->rank, hello->ranks, hello->ranks - 1);
    if (c->settings.sites * hello->ranks > DLXI_RUN_RANKS_MAX)
        return snprintf(text, size, "site '%s' has %u ranks; allowed with %u sites: 1 to %u",
                        hello->site, hello->ranks, c->settings.sites,
                        DLXI_RUN_RANKS_MAX / c->settings.sites);
    if (s != NULL && s->rank_count != hello->ranks)
        return snprintf(text, size,
                        "site '%s' has %u ranks by its rank %u and %u by another; start all ranks "
                        "of a site together",
                        s->name, hello->ranks, hello->rank, s->rank_count);
    if (s != NULL && s->ranks[hello->rank].joined)
        return snprintf(
            text, size,
            "site '%s' has a rank %u already; start each once, or give --site another name",
            s->name, hello->rank);
    if (hello->tokens_per_window > TOKENS_PER_WINDOW_MAX)
        return snprintf(text, size, "site '%s' has %llu tokens in a window; allowed: up to %llu",
                        hello->site, (unsigned long long)hello->tokens_per_window,
                        (unsigned long long)TOKENS_PER_WINDOW_MAX);
    return false;
}

/* Why this rank's settings differ from the coordinator's, naming both sites; or false. */
static bool mismatch_with_run(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                              const dlxi_run_site *s, const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    dlxi_option_difference d;
    if (c->shared_text == NULL ||
        dlxi_options_canonical_equal(&d, c->shared_text, strlen(c->shared_text), hello->shared_text,
                                     strlen(hello->shared_text), true))
        return false;
    bool other = c->count > 0 && s != &c->sites[0]; /* it was compared with the same text */
    return snprintf(
        text, size,
        "%s: '%s' on site '%s', '%s' in the run%s%s%s; all sites must use the same value", d.key,
        d.theirs, hello->site, d.ours, other ? " and on site '" : "", other ? c->sites[0].name : "",
        other ? "'" : "");
}

/* Why what this rank shares differs from the first site's, naming both; or false. */
static bool mismatch_of_sites(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                              const dlxi_run_site *s, const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    dlxi_option_difference d;
    if (c->sites_text == NULL ||
        dlxi_options_canonical_equal(&d, c->sites_text, strlen(c->sites_text), hello->shared_text,
                                     strlen(hello->shared_text), false))
        return false;
    if (s == &c->sites[0])
        return snprintf(
            text, size,
            "%s: '%s' on rank %u of site '%s', '%s' on another; all ranks must use the same value",
            d.key, d.theirs, hello->rank, s->name, d.ours);
    return snprintf(text, size,
                    "%s: '%s' on site '%s', '%s' on site '%s'; all sites must use the same value",
                    d.key, d.theirs, hello->site, d.ours, c->sites[0].name);
}

/* Why this rank's tensors or data differ from its counterparts', naming both sites; or false. */
static bool mismatch_of_model(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                              const dlxi_run_site *s, const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    if (c->count == 0) return false;
    const dlxi_run_site *first = &c->sites[0];
    dlxi_label who = dlxi_label_for(hello->site, hello->rank, hello->ranks);
    if (first->rank_count != hello->ranks)
        return snprintf(text, size,
                        "site '%s' has %u ranks, '%s' has %u; all sites must have the same",
                        hello->site, hello->ranks, first->name, first->rank_count);
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_rank *like = &c->sites[i].ranks[hello->rank];
        if (like->joined && like->tensors_hash != hello->tensors_hash)
            return snprintf(text, size,
                            "%s has other tensors (names, shapes) or settings (overlap, inner "
                            "steps, outer step, compression, "
                            "adaptation, seed) than '%s'; all sites must have the same",
                            who.text, c->sites[i].name);
    }
    if (first->windows != hello->windows || first->data_hash != hello->data_hash ||
        first->tokens_per_window != hello->tokens_per_window)
        return snprintf(
            text, size,
            "data.train: %s has %llu windows (hash %016llx), '%s' has %llu (%016llx); all sites "
            "need the same tokens",
            who.text, (unsigned long long)hello->windows, (unsigned long long)hello->data_hash,
            first->name, (unsigned long long)first->windows, (unsigned long long)first->data_hash);
    if (s != NULL && s->lease_windows != hello->lease_windows)
        return snprintf(text, size,
                        "%s asks for %u windows per round, another rank for %u; all ranks must ask "
                        "for the same",
                        who.text, hello->lease_windows, s->lease_windows);
    return false;
}

bool dlxi_coordinator_mismatch(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                               const dlxi_run_site *s, const dlxi_hello *hello) {
    /* the settings name a cause, the model's hash does not; what only sites know comes last */
    return mismatch_of_rank(text, c, s, hello) || mismatch_with_run(text, c, s, hello) ||
           dlxi_resume_mismatch(text, c, s, hello) ||
           (c->shared_text == NULL && mismatch_of_sites(text, c, s, hello)) ||
           mismatch_of_model(text, c, s, hello) || mismatch_of_sites(text, c, s, hello);
}

bool dlxi_coordinator_mismatch_with_run(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                                        const dlxi_run_site *s, const dlxi_hello *hello) {
    return mismatch_with_run(text, c, s, hello) ||
           (c->shared_text == NULL && mismatch_of_sites(text, c, s, hello)) ||
           mismatch_of_model(text, c, NULL, hello) || mismatch_of_sites(text, c, s, hello);
}
