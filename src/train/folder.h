/* SPDX-License-Identifier: Apache-2.0 */
/* The directory of a run's results, run.dir, which the run's processes on a machine share: whether
 * it can be used, which run uses it, and the results of the run before, which are kept.
 *
 * RUN_DIR/.lock names the run. Each process of a run locks it while it runs, shared; the first one
 * exclusively, while it moves what an earlier run left to RUN_DIR/previous-N. The system drops the
 * locks of a process that ends in whatever way.
 *
 * RUN_DIR/coordinator.db is the store of the coordinator that runs there. It is removed when its
 * run is over: a coordinator that finds it goes on with that run. */
#ifndef DLXI_TRAIN_FOLDER_H
#define DLXI_TRAIN_FOLDER_H

#include "base/file.h"

enum { DLXI_RUN_ID_BYTES = 17 };

/* 16 hexadecimal digits */
void dlxi_run_id_show(char text[DLXI_RUN_ID_BYTES], uint64_t run_id);

/* NULL, or why no site may have this name: it is no name, or another file of run.dir. */
const char *dlxi_folder_misnames(const char *site);

/* These change nothing. Whether no other run than this one (0: none at all) uses run.dir; whether
 * it, and the directory `site` in it (NULL: none), can be made and written; and both, for no run.
 * DLX_CONFIG. */
dlx_status dlxi_folder_check_unused(const char *run_dir, uint64_t run_id, dlx_error *error);
dlx_status dlxi_folder_check_writable(const char *run_dir, const char *site, dlx_error *error);
dlx_status dlxi_folder_check(const char *run_dir, const char *site, dlx_error *error);

/* *found ← whether run.dir has the store of a run that is not over; path ← where it is, or would
 * be. */
dlx_status dlxi_folder_store(char path[DLXI_PATH_BYTES], bool *found, const char *run_dir,
                             dlx_error *error);
/* Of a run that is over. */
void dlxi_folder_store_remove(const char *path);
/* Renames it, with its journal, to aside ← path.replaced, or .replaced-2 and so on. DLX_SYSTEM. */
dlx_status dlxi_folder_store_put_aside(char aside[DLXI_PATH_BYTES], const char *path,
                                       dlx_error *error);
/* Undoes that, unless there is another store by now. */
void dlxi_folder_store_put_back(const char *aside, const char *path);

typedef struct dlxi_folder {
    int lock; /* a file descriptor; −1: none */
} dlxi_folder;

/* Makes run.dir and takes it for the run. `who` ("site 'paris'") is shown to those who find it in
 * use. `log` receives where earlier results are now. DLX_CONFIG: another run has it; DLX_SYSTEM.
 * Leave it in any case. */
dlx_status dlxi_folder_enter(dlxi_folder *out, const char *run_dir, const char *who,
                             uint64_t run_id, dlx_log log, void *log_context, dlx_error *error);
void dlxi_folder_leave(dlxi_folder *folder);

#define DLXI_FOLDER_NONE                                                                           \
    { .lock = -1 }

#endif
