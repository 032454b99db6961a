/* SPDX-License-Identifier: Apache-2.0 */
/* Compiles a plain loop for several CPUs; the loader picks one. The loop is compiled once if the
 * compiler lacks target_clones, under a sanitizer, or with DLXI_NO_CLONES (a test compares both).
 * Results stay equal: no file that uses it is built with contraction or fast-math. */
#ifndef DLXI_BASE_SIMD_H
#define DLXI_BASE_SIMD_H

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) &&       \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(DLXI_NO_CLONES)
#define DLXI_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DLXI_CLONES
#endif

#endif
