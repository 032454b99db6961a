/* SPDX-License-Identifier: Apache-2.0 */
#include "in_process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

in_process *in_process_new(void) {
    in_process *p = calloc(1, sizeof *p);
    if (p == NULL) abort();
    p->coordinator = (dlx_coordinator_config)DLX_COORDINATOR_CONFIG_INIT;
    for (size_t i = 0; i < IN_PROCESS_SITES_MAX; i++) {
        p->site[i].config = (dlx_sync_config)DLX_SYNC_CONFIG_INIT;
        p->site[i].config.adaptation = DLX_ADAPTATION_OFF;
        p->site[i].statistics = (dlx_statistics)DLX_STATISTICS_INIT;
    }
    return p;
}

dlx_status in_process_await(in_process_site *site, dlx_status status, dlx_step *done) {
    while (status == DLX_AGAIN && dlx_sync_is_pending(site->sync)) {
        site->waits++;
        if (site->while_pending != NULL) site->while_pending(site);
        status = dlx_sync_wait(site->sync, done, &site->error);
    }
    return status;
}

dlx_status in_process_train(in_process_site *site) {
    dlx_step done = DLX_STEP_INIT;
    dlx_status status = DLX_OK;
    for (uint64_t step = 0; status == DLX_OK && !done.finished; step++) {
        if (site->inner_step != NULL) site->inner_step(site, step);
        status = dlx_sync_step(site->sync, site->tokens_per_step, &done, &site->error);
        status = in_process_await(site, status, &done);
        site->steps = step + 1;
        if (status == DLX_OK && site->after_step != NULL) site->after_step(site, step, &done);
    }
    if (status != DLX_OK) return status;
    return in_process_await(site, dlx_sync_report(site->sync, "", &site->error), NULL);
}

enum { GATHER_DEADLINE_S = 20 };

dlx_status in_process_gather(void *context, void *all, const void *own, size_t bytes,
                             dlx_error *error) {
    in_process_seat *seat = context;
    in_process_table *table = seat->table;
    if (bytes > sizeof table->own[0]) abort();
    pthread_mutex_lock(&table->mutex);
    memcpy(table->own[seat->rank], own, bytes);
    uint64_t generation = table->generation;
    if (++table->arrived == table->ranks) {
        for (size_t r = 0; r < table->ranks; r++)
            memcpy(table->all + r * bytes, table->own[r], bytes);
        table->arrived = 0;
        table->generation++;
        pthread_cond_broadcast(&table->changed);
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += GATHER_DEADLINE_S;
    int late = 0;
    while (table->generation == generation && late == 0)
        late = pthread_cond_timedwait(&table->changed, &table->mutex, &until);
    bool together = table->generation != generation;
    memcpy(all, table->all, table->ranks * bytes);
    pthread_mutex_unlock(&table->mutex);
    if (together) return DLX_OK;
    if (error != NULL) {
        *error = (dlx_error){.status = DLX_TIMEOUT, .round = -1};
        snprintf(error->message, sizeof error->message, "a rank of this site did not come");
    }
    return DLX_TIMEOUT;
}

static void set_floating_point_mode(unsigned bits) {
#if defined(__x86_64__)
    if (bits != 0) _mm_setcsr(_mm_getcsr() | bits);
#else
    (void)bits;
#endif
}

static void *site_thread(void *context) {
    in_process_site *site = context;
    set_floating_point_mode(site->floating_point_mode);
    if (site->restore == NULL)
        site->status = dlx_sync_open(&site->sync, &site->config, site->tensors, site->tensor_count,
                                     &site->error);
    else
        site->status = (site->is_new ? dlx_sync_resume_as_new : dlx_sync_resume)(
            &site->sync, &site->config, site->tensors, site->tensor_count, site->restore,
            site->context, &site->error);
    site->status = in_process_await(site, site->status, NULL);
    if (site->status == DLX_OK) {
        site->run_id = dlx_sync_run_id(site->sync);
        site->status = (site->script != NULL ? site->script : in_process_train)(site);
        if (site->sync != NULL) (void)dlx_sync_statistics(site->sync, &site->statistics, NULL);
    }
    dlx_sync_close(&site->sync);
    return NULL;
}

static void *coordinator_thread(void *context) {
    in_process *p = context;
    do p->status = dlx_coordinator_run(p->running, &p->error);
    while (p->status == DLX_AGAIN);
    return NULL;
}

static void join(in_process_site *site) {
    if (!site->joined) pthread_join(site->thread, NULL);
    site->joined = true;
}

bool in_process_run(in_process *p, size_t count, uint64_t tokens) {
    if (dlx_hub_open(&p->hub, &p->error) != DLX_OK) return false;
    p->coordinator.link.hub = p->hub;
    p->coordinator.sites = p->sites_expected != 0 ? p->sites_expected : (uint32_t)count;
    p->coordinator.tokens = tokens;
    if (dlx_coordinator_open(&p->running, &p->coordinator, &p->error) != DLX_OK) {
        dlx_hub_close(&p->hub);
        return false;
    }
    dlx_coordinator_on_begin(p->running, p->on_begin, p->begin_context);
    p->run_id = dlx_coordinator_run_id(p->running);
    if (pthread_create(&p->thread, NULL, coordinator_thread, p) != 0) abort();
    for (size_t i = 0; i < count; i++) {
        in_process_site *site = &p->site[i];
        site->index = i;
        snprintf(site->name_space, sizeof site->name_space, "site-%zu", i);
        site->config.site = site->name != NULL ? site->name : site->name_space;
        site->config.link.hub = p->hub;
        if (site->after_previous) join(&p->site[i - 1]);
        if (pthread_create(&site->thread, NULL, site_thread, site) != 0) abort();
    }
    for (size_t i = 0; i < count; i++) join(&p->site[i]);
    pthread_join(p->thread, NULL);
    dlx_coordinator_close(&p->running);
    dlx_hub_close(&p->hub);
    return true;
}
