#!/usr/bin/env bash
# Puts a headless Chromium on a Debian machine where the tests may install one; elsewhere the tests
# that need a browser skip and say so.
set -euo pipefail
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo "chromium could not be installed; the browser tests will skip" >&2
fi
