/* SPDX-License-Identifier: Apache-2.0 */
/* Limits of a model's configuration: the same for a run's config and for weights from elsewhere. */
#ifndef DLXI_MODEL_LIMITS_H
#define DLXI_MODEL_LIMITS_H

enum {
    DLXI_LAYERS_MAX = 1024,
    DLXI_WIDTH_MIN = 2,
    DLXI_WIDTH_MAX = 65536,
    DLXI_HEADS_MAX = 1024, /* key and value heads too */
    DLXI_MLP_WIDTH_MAX = 262144,
    DLXI_CONTEXT_MAX = 1 << 20,
    DLXI_VOCABULARY_MIN = 2,
    DLXI_VOCABULARY_MAX = 1 << 24,
    DLXI_MICRO_BATCH_MAX = 65536 /* windows */
};
#define DLXI_ROPE_THETA_MAX   1e9 /* from 1 */
#define DLXI_NORM_EPSILON_MAX 0.1 /* above 0 */
#define DLXI_WEIGHT_DECAY_MAX 10.0

#endif
