/* SPDX-License-Identifier: Apache-2.0 */
/* Checks for tests that are ranks of an MPI job: a failure on one rank ends all of them. */
#ifndef DLXI_TESTS_MPI_JOB_H
#define DLXI_TESTS_MPI_JOB_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "cluster/cluster.h"

static dlxi_cluster *cluster;
static dlx_error error;

static inline void failed(int line, const char *format, ...) DLXI_PRINTF(2, 3);
static inline void failed(int line, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "line %d, rank %d: %s\n", line, cluster != NULL ? cluster->rank : -1, text);
    if (cluster != NULL) dlxi_cluster_abort(cluster, 1);
    exit(1);
}

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) failed(__LINE__, __VA_ARGS__);                                           \
    } while (0)
#define MUST(call)                                                                                 \
    do {                                                                                           \
        dlx_status must_ = (call);                                                                 \
        CHECK(must_ == DLX_OK, "%s: %s", dlx_status_text(must_), error.message);                   \
    } while (0)
#define EQUAL(a, b)                                                                                \
    do {                                                                                           \
        long long left_ = (long long)(a), right_ = (long long)(b);                                 \
        if (left_ != right_) failed(__LINE__, "%s is %lld, not %lld", #a, left_, right_);          \
    } while (0)

#endif
