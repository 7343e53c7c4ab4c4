#!/usr/bin/env bash
# Puts what some tests need on a Debian machine where they may install it: a headless Chromium, and strace for the
# faults at single system calls. Elsewhere those tests skip and say so.
set -euo pipefail
missing=()
for package in chromium strace; do
    command -v "$package" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        >/dev/null 2>&1 || echo "${missing[*]} could not be installed; the tests that need it will skip" >&2
fi
