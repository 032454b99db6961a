/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded by test_arithmetic.py: every thread flushes denormal results to zero and reads
 * denormals as zero, as a library built with -ffast-math makes a whole process do. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <xmmintrin.h>

enum { FLUSH_RESULTS = 0x8000, DENORMALS_ARE_ZERO = 0x40 }; /* bits of MXCSR */

typedef int create_thread(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

typedef struct beginning {
    void *(*run)(void *);
    void *argument;
} beginning;

static void flush_to_zero(void) {
    _mm_setcsr(_mm_getcsr() | FLUSH_RESULTS | DENORMALS_ARE_ZERO);
}

static void *begin(void *context) {
    beginning b = *(beginning *)context;
    free(context);
    flush_to_zero();
    return b.run(b.argument);
}

__attribute__((constructor)) static void begin_process(void) {
    flush_to_zero();
}

__attribute__((visibility("default"))) int pthread_create(pthread_t *thread,
                                                          const pthread_attr_t *attributes,
                                                          void *(*run)(void *), void *argument) {
    create_thread *real;
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    beginning *b = malloc(sizeof *b);
    if (b == NULL || real == NULL) abort();
    *b = (beginning){run, argument};
    return real(thread, attributes, begin, b);
}
