#!/usr/bin/env bash
# Makes artclf's image for the tests, on a real Docker engine: one that answers already, or one that is installed and
# started here (Debian, as root). The base is the Dockerfile's own, or Debian's Python by debootstrap where no registry
# can be reached. What may not be done here is told, and ends this with 0: the tests that need it skip.
set -euo pipefail
cd "$(dirname "$0")/.."
LOCAL_BASE=local/python:3.11-slim-bookworm
ENGINE_LOG=/var/log/artclf-dockerd.log
mkdir -p .cache
exec 9>.cache/docker.lock
flock 9

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

give_up() {
    echo "tests/docker.sh: $1; the tests that need a container will skip" >&2
    exit 0
}

answers() {
    docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

may_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep -q '^VERSION_CODENAME=bookworm' /etc/os-release
}

quietly() {
    "$@" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }
}

install_packages() {
    quietly apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive quietly apt-get install -y -qq --no-install-recommends "$@"
}

start_engine() {
    local options
    # The firewall stays as it is. A kernel without bridges still runs containers on the host's network or on none.
    for options in --iptables=false "--iptables=false --bridge=none"; do
        # shellcheck disable=SC2086
        setsid nohup dockerd $options >"$ENGINE_LOG" 2>&1 </dev/null 9>&- &
        while kill -0 $! 2>/dev/null; do
            ! answers || return 0
            sleep 0.2
        done
    done
    return 1
}

make_base() {
    local mirror tree=$work/base
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
    quietly debootstrap --variant=minbase --include=python3.11-venv,python3-distutils,ca-certificates \
        bookworm "$tree" "$mirror" || return 1
    # No list of packages and no name of the mirror goes into the base.
    : >"$tree/etc/apt/sources.list"
    rm -rf "$tree"/var/{cache/apt,lib/apt/lists,log}/* "$tree"/usr/share/{doc,man,locale}/*
    tar -C "$tree" -c . | docker import - "$LOCAL_BASE" >/dev/null
}

if ! answers; then
    may_install || give_up "no Docker engine answers, and only root on Debian 12 may install one"
    if ! command -v dockerd >/dev/null; then
        install_packages docker.io iptables || give_up "Docker could not be installed"
    fi
    answers || start_engine || give_up "Docker's engine does not start here, see $ENGINE_LOG"
fi

# What the SageMaker SDK's local mode starts its container with.
if ! docker compose version >/dev/null 2>&1 && ! command -v docker-compose >/dev/null && may_install; then
    install_packages docker-compose || true
fi

default_base=$(sed -n 's/^ARG BASE_IMAGE=//p' container/Dockerfile)
if docker image inspect "$LOCAL_BASE" >/dev/null 2>&1; then
    export BASE_IMAGE=$LOCAL_BASE
elif ! docker image inspect "$default_base" >/dev/null 2>&1 && ! timeout 300 docker pull -q "$default_base" >/dev/null 2>&1; then
    may_install || give_up "$default_base cannot be pulled, and only root on Debian 12 may make a base"
    command -v debootstrap >/dev/null || install_packages debootstrap || give_up "debootstrap could not be installed"
    make_base || give_up "a base could not be made by debootstrap"
    export BASE_IMAGE=$LOCAL_BASE
fi

# A registry for the tests of push, taken out of Debian's package: installed, it would become a service.
if [ ! -x .cache/docker-registry ] && may_install; then
    (cd "$work" && quietly apt-get download docker-registry && dpkg -x docker-registry_*.deb registry) &&
        install "$work/registry/usr/bin/docker-registry" .cache/docker-registry || true
fi

# Secrets are planted in what the build is given, and tests/container/test_image.py looks for them in every layer.
ca=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
{ [ ! -r "$ca" ] || cat "$ca"; echo "# planted-secret-of-the-certificates"; } >"$work/ca.pem"
{ [ ! -r "${PIP_CONFIG_FILE:-}" ] || cat "$PIP_CONFIG_FILE"; echo "; planted-secret-of-pip"; } >"$work/pip.conf"
{ [ ! -r "${UV_CONFIG_FILE:-}" ] || cat "$UV_CONFIG_FILE"; echo "# planted-secret-of-uv"; } >"$work/uv.toml"
export SSL_CERT_FILE=$work/ca.pem PIP_CONFIG_FILE=$work/pip.conf UV_CONFIG_FILE=$work/uv.toml
# The engine's own network may lead nowhere; the build needs a way to the packages.
quietly container/image.sh --network host
tail -n 1 "$work/log"
