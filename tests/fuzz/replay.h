/* SPDX-License-Identifier: Apache-2.0 */
/* What a fuzzer gives to replay.c: one entry point, which libFuzzer also calls, and a few
 * well-formed inputs. */
#ifndef DLXI_TESTS_REPLAY_H
#define DLXI_TESTS_REPLAY_H

#include <stddef.h>
#include <stdint.h>

enum { FUZZ_INPUT_BYTES_MAX = 1 << 16 };

/* Feeds data to the decoder; aborts where a property does not hold. Always returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* data[FUZZ_INPUT_BYTES_MAX] ← input `index`; returns its size, 0 behind the last one. */
size_t fuzz_seed(uint8_t *data, int index);

#endif
