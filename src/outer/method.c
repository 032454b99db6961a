/* SPDX-License-Identifier: Apache-2.0 */
/* The table of methods. Formulas: docs/algorithm.md. */
#include "outer/method.h"

#include <math.h>
#include <string.h>

/* ---- linear models: state (θ, v, pseudo-gradient in flight d, local start s) ----------------- */

enum { ANCHOR, VELOCITY, FLYING, START };

/* θ' = θ − (η d + γ v'), v' = μ v + d: the outer step on what was in flight. */
static void outer_rows(dlxi_matrix a, const dlxi_outer *by) {
    a[ANCHOR][ANCHOR] = 1;
    a[ANCHOR][FLYING] = -dlxi_outer_share(by);
    a[ANCHOR][VELOCITY] = -by->momentum_rate * by->momentum;
    a[VELOCITY][VELOCITY] = by->momentum;
    a[VELOCITY][FLYING] = 1;
}

/* d = c θ, at once. */
static dlxi_modes none_modes(const dlxi_outer *by, double c, int sites, double exchange_share) {
    (void)sites, (void)exchange_share;
    dlxi_matrix a = {{0}};
    a[ANCHOR][ANCHOR] = 1 - dlxi_outer_share(by) * c;
    a[ANCHOR][VELOCITY] = -by->momentum_rate * by->momentum;
    a[VELOCITY][ANCHOR] = c;
    a[VELOCITY][VELOCITY] = by->momentum;
    return (dlxi_modes){.mean = dlxi_spectral_radius(a)};
}

/* d' = c θ, measured before the step. */
static dlxi_modes delayed_modes(const dlxi_outer *by, double c, int sites, double exchange_share) {
    (void)sites, (void)exchange_share;
    dlxi_matrix a = {{0}};
    outer_rows(a, by);
    a[FLYING][ANCHOR] = c;
    return (dlxi_modes){.mean = dlxi_spectral_radius(a)};
}

/* d' = c s; s' = θ' − (η+γ)/D · c s. Differences between sites: θ = v = 0. */
static dlxi_modes eager_modes(const dlxi_outer *by, double c, int sites, double exchange_share) {
    (void)exchange_share;
    dlxi_matrix a = {{0}};
    double own = dlxi_outer_share(by) / sites;
    outer_rows(a, by);
    a[FLYING][START] = c;
    memcpy(a[START], a[ANCHOR], sizeof a[START]);
    a[START][START] -= own * c;
    return (dlxi_modes){.mean = dlxi_spectral_radius(a), .disagreement = own * c};
}

/* During the exchange s goes a share `early` of its way, g = early · s; then p = θ' − g goes a
 * share `late`. */
static dlxi_modes carry_modes(const dlxi_outer *by, double c, int sites, double exchange_share) {
    (void)sites;
    dlxi_matrix a = {{0}};
    double early = 1 - pow(1 - c, exchange_share), late = 1 - pow(1 - c, 1 - exchange_share);
    outer_rows(a, by);
    for (int i = 0; i < DLXI_MODE_STATES; i++) {
        double start = a[ANCHOR][i] - (i == START ? early : 0);
        a[START][i] = (1 - late) * start;
        a[FLYING][i] = a[ANCHOR][i] - a[START][i];
    }
    return (dlxi_modes){.mean = dlxi_spectral_radius(a), .disagreement = (1 - late) * early};
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

/* M ← (from − p) + e */
static void error_accumulate(float *restrict error, const float *restrict from,
                             const float *restrict p, int64_t count) {
    for (int64_t k = 0; k < count; k++) error[k] = (from[k] - p[k]) + error[k];
}

static void started_submit(const dlxi_chunk *c, dlxi_coefficients by) {
    (void)by;
    error_accumulate(c->error, c->start, c->p, c->count);
}

/* If local training kept what was unsent, and start is not kept apart from θ, p lacks e already. */
static void none_submit(const dlxi_chunk *c, dlxi_coefficients by) {
    const float *restrict from = c->start != NULL ? c->start : c->anchor, *restrict p = c->p;
    float *restrict error = c->error;
    if (c->start != NULL || by.kept == 0.0f) {
        error_accumulate(error, from, p, c->count);
        return;
    }
    for (int64_t k = 0; k < c->count; k++) error[k] = from[k] - p[k];
}

/* p ← θ − kept · e */
static void none_apply(const dlxi_chunk *c, dlxi_coefficients by) {
    float *restrict p = c->p;
    const float *restrict anchor = c->anchor, *restrict error = c->error;
    for (int64_t k = 0; k < c->count; k++) p[k] = anchor[k] - by.kept * error[k];
    if (c->start != NULL) memcpy(c->start, p, (size_t)c->count * sizeof *p);
}

/* δ ← start − p; p, start ← θ − own · δ. θ holds this site's last share whole (Kale et al.,
 * arXiv 2502.12996). */
static void eager_apply(const dlxi_chunk *c, dlxi_coefficients by) {
    float *restrict p = c->p, *restrict start = c->start;
    const float *restrict anchor = c->anchor;
    for (int64_t k = 0; k < c->count; k++) {
        p[k] = anchor[k] - by.own * (start[k] - p[k]);
        start[k] = p[k];
    }
}

/* g ← start − p; start ← θ − kept · e; p ← start − g. */
static void carry_apply(const dlxi_chunk *c, dlxi_coefficients by) {
    float *restrict p = c->p, *restrict start = c->start;
    const float *restrict anchor = c->anchor, *restrict error = c->error;
    for (int64_t k = 0; k < c->count; k++) {
        float progress = start[k] - p[k];
        start[k] = anchor[k] - by.kept * error[k];
        p[k] = start[k] - progress;
    }
}

/* ---- the table ------------------------------------------------------------------------------- */

/* X(overlap, word, …): docs/convergence.md has the measurements behind the defaults. */
#define METHODS(X)                                                                                 \
    X(ALLREDUCE, "allreduce", .averages_gradients = true, .modes = none_modes)                     \
    X(NONE, "none", .keeps_unsent = true, .takes_turns = true, .outer = {1.0, 0.9, 0.2},           \
      .warmup = 8, .modes = none_modes, .submit = none_submit, .apply = none_apply)                \
    X(DELAYED, "delayed", .when = DLXI_WHEN_BOUNDARY, .keeps_start = true,                         \
      .outer = {0.5, 0.9, 0.1}, .modes = delayed_modes, .submit = started_submit)                  \
    X(EAGER, "eager", .when = DLXI_WHEN_BOUNDARY, .keeps_start = true, .outer = {0.5, 0.9, 0.1},   \
      .modes = eager_modes, .submit = started_submit, .apply = eager_apply)                        \
    X(CARRY, "carry", .when = DLXI_WHEN_COMMITTED, .keeps_start = true, .keeps_unsent = true,      \
      .takes_turns = true, .outer = {1.0, 0.9, 0.2}, .warmup = 8, .modes = carry_modes,            \
      .submit = started_submit, .apply = carry_apply)

#define METHOD_ROW(overlap, word, ...) [DLX_OVERLAP_##overlap] = {.name = (word), __VA_ARGS__},
static const dlxi_method methods[] = {METHODS(METHOD_ROW)};
#define METHOD_WORD(overlap, word, ...) [DLX_OVERLAP_##overlap] = (word),
const char *const dlxi_method_words[] = {METHODS(METHOD_WORD)[sizeof methods / sizeof *methods] =
                                             NULL};

const dlxi_method *dlxi_method_of(dlx_overlap overlap) {
    return (size_t)overlap < sizeof methods / sizeof *methods ? &methods[overlap] : NULL;
}

double dlxi_method_worst_mode(const dlxi_method *method, const dlxi_outer *by, int sites,
                              double exchange_share, double *worst_c) {
    double worst = -1;
    for (int i = 1; i <= 50; i++) {
        dlxi_modes modes = method->modes(by, 0.02 * i, sites, exchange_share);
        double larger = fmax(modes.mean, modes.disagreement);
        if (larger > worst) {
            worst = larger;
            if (worst_c != NULL) *worst_c = 0.02 * i;
        }
    }
    return worst;
}
