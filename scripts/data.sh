#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The King James text (Debian's bible-kjv, public domain) as token files: data/kjv.train.tokens, data/kjv.validation.tokens.
set -eu
dilocox=$1
[ ! -f data/kjv.train.tokens ] || [ ! -f data/kjv.validation.tokens ] || exit 0
mkdir -p data
bible -f gen1:1-rev22:21 | sed -E 's/^[^ ]+ +//' > data/kjv.txt
"$dilocox" tokenize data/kjv.txt data/kjv --validation-every 20
