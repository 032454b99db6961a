/* SPDX-License-Identifier: Apache-2.0 */
/* Assertions, in release builds too, for our own bugs: not for peers, files or the system. */
#ifndef DLXI_BASE_PANIC_H
#define DLXI_BASE_PANIC_H

#include <stdio.h>
#include <stdlib.h>

#define DLXI_ASSERT(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: bug in dilocox: %s does not hold\n", __FILE__, __LINE__,       \
                    #condition);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
