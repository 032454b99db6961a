#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what packages.txt lists and is missing, and says so: setup.sh, or setup.sh --without-tests. Needs Debian's apt-get, and
# root or sudo where something is missing.
set -eu
cd "$(dirname "$0")/.."
list=$(cat packages.txt)
[ "${1:-}" != --without-tests ] || list=$(sed '/^# tests/,$d' packages.txt)
missing=""
for package in $(printf '%s\n' "$list" | sed 's/#.*//'); do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing"
run=""
if [ "$(id -u)" -ne 0 ]; then
    run=sudo
    command -v sudo >/dev/null || { echo "setup: neither root nor sudo; as root: apt-get install$missing" >&2; exit 1; }
fi
$run env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# shellcheck disable=SC2086
$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
