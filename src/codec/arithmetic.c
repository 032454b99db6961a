/* SPDX-License-Identifier: Apache-2.0 */
/* The floating-point environment of replicated arithmetic: round to nearest, denormals kept, no
 * traps. A library that a site links may leave flush-to-zero on in its threads; the bits of a sum
 * would then depend on the site. Sets MXCSR on x86-64 (nothing here uses the x87), FPCR on aarch64,
 * and elsewhere what <fenv.h> covers. */
#include "codec/codec.h"

#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <xmmintrin.h>

/* all exceptions masked, round to nearest, neither FTZ (bit 15) nor DAZ (bit 6) */
enum { MXCSR_DEFAULT = 0x1F80 };

void dlxi_arithmetic_enter(dlxi_arithmetic *saved) {
    unsigned mode = _mm_getcsr();
    memcpy(saved->saved, &mode, sizeof mode);
    if (mode != MXCSR_DEFAULT) _mm_setcsr(MXCSR_DEFAULT);
}

void dlxi_arithmetic_leave(const dlxi_arithmetic *saved) {
    unsigned mode;
    memcpy(&mode, saved->saved, sizeof mode);
    if (_mm_getcsr() != mode) _mm_setcsr(mode);
}

#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

static void fpcr_write(uint64_t mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
}

void dlxi_arithmetic_enter(dlxi_arithmetic *saved) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode) : : "memory");
    memcpy(saved->saved, &mode, sizeof mode);
    fpcr_write(0); /* round to nearest, FZ off, no traps */
}

void dlxi_arithmetic_leave(const dlxi_arithmetic *saved) {
    uint64_t mode;
    memcpy(&mode, saved->saved, sizeof mode);
    fpcr_write(mode);
}

#else
#include <fenv.h>

_Static_assert(sizeof(fenv_t) <= sizeof(dlxi_arithmetic), "dlxi_arithmetic holds a fenv_t");

void dlxi_arithmetic_enter(dlxi_arithmetic *saved) {
    fenv_t environment;
    fegetenv(&environment);
    memcpy(saved->saved, &environment, sizeof environment);
    fesetenv(FE_DFL_ENV);
}

void dlxi_arithmetic_leave(const dlxi_arithmetic *saved) {
    fenv_t environment;
    memcpy(&environment, saved->saved, sizeof environment);
    fesetenv(&environment);
}
#endif
