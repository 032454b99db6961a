/* SPDX-License-Identifier: Apache-2.0 */
/* A site's snapshots: written from where the state is while training goes on, and gone on from.
 *
 * Nothing is copied. The writer's thread has the time of a forward and a backward pass, in which
 * parameters and the optimiser's state do not change, and the outer state the time until the next
 * submission; whoever changes them first waits for it. */
#ifndef DLXI_TRAIN_SNAPSHOTS_H
#define DLXI_TRAIN_SNAPSHOTS_H

#include "train/site_run.h"

#define DLXI_SNAPSHOTS_NUMBERS "train.numbers"

enum { DLXI_SNAPSHOTS_TENSOR_PARTS = 3, DLXI_SNAPSHOTS_NAME_BYTES = DLXI_TENSOR_NAME_MAX + 8 };

/* A parameter, 0, or the optimiser's state of it, 1 or 2, and its part's name; NULL: there is none.
 * name[DLXI_SNAPSHOTS_NAME_BYTES]. */
float *dlxi_snapshots_tensor_part(site_run *r, int64_t tensor, int which, char *name);

/* ---- train/resume.c ---- */

/* Opens the snapshot that the options name, checks that it is of this run's data and model, and
 * puts parameters and the optimiser's state in place. Collective over the site. */
dlx_status dlxi_snapshots_resume(site_run *r, dlx_error *error);
/* A dlx_restore whose context is a site_run. */
dlx_status dlxi_snapshots_restore(void *run, const dlx_part *part, dlx_error *error);
void dlxi_snapshots_close_opened(site_run *r);

/* ---- train/snapshots.c ---- */

/* Once the run has begun and the results are this run's. Removes what an earlier process left. */
dlx_status dlxi_snapshots_begin(site_run *r, dlx_error *error);

/* Before an optimiser's step. */
void dlxi_snapshots_wait(site_run *r);
/* After a step: begins one if it is time, or completes the one that is written. A failure is a
 * message, and the next one is tried when it is time. */
void dlxi_snapshots_on_step(site_run *r);
/* One of the state as it is, complete when this returns; the run has ended early. True: it is
 * there. */
bool dlxi_snapshots_last(site_run *r);
void dlxi_snapshots_close(site_run *r);

#endif
