#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzzer of a folder of programs, fuzz.sh build-asan/tests, for a minute (or SECONDS_EACH) from a seed that it prints; a failing run prints how to replay it.
set -eu
cd "$(dirname "$0")/.."
seed=${SEED:-$(date +%s)}
for fuzzer in "$1"/fuzz_*; do
    [ -x "$fuzzer" ] && [ -f "$fuzzer" ] || continue
    echo "$fuzzer --seed $seed"
    code=0
    timeout "${SECONDS_EACH:-60}" "$fuzzer" --runs 1000000000 --seed "$seed" || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 124 ] || exit "$code"
done
