#!/usr/bin/env bash
# Builds this checkout's image and tags it IMAGE:latest and, unless it has changes, IMAGE:COMMIT. From the environment:
# IMAGE (artclf), BASE_IMAGE and TF_PACKAGE (as in the Dockerfile), and as secrets of the build alone the files named
# by PIP_CONFIG_FILE, UV_CONFIG_FILE and SSL_CERT_FILE. Arguments go to docker build.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${IMAGE:-artclf}
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
in_image=(artclf container pyproject.toml requirements.lock .dockerignore) # as in jobs/push.py
[ -z "$(git status --porcelain -- "${in_image[@]}" 2>/dev/null)" ] || commit+=-dirty
tag=$commit
case ${TF_PACKAGE:-} in *cuda*) tag+=-gpu ;; esac
case $commit in unknown | *-dirty) tag=latest ;; esac # a commit's name alone would not say what is in it

# Every machine of the backends is amd64, whatever this one is.
options=(--file container/Dockerfile --platform linux/amd64 --build-arg "COMMIT=$commit"
    --tag "$image:$tag" --tag "$image:latest")
for argument in BASE_IMAGE TF_PACKAGE HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!argument:-}" ] || options+=(--build-arg "$argument") # by name: the value shows in no list of processes
done
for secret in pip=PIP_CONFIG_FILE uv=UV_CONFIG_FILE ca=SSL_CERT_FILE; do
    file=${secret#*=}
    [ ! -s "${!file:-}" ] || options+=(--secret "id=${secret%%=*},src=${!file}")
done

if docker buildx version >/dev/null 2>&1; then
    # SageMaker takes Docker's kind of manifest alone: no OCI one, and no index of image and attestation.
    docker buildx build --provenance=false --output type=docker "${options[@]}" "$@" .
else
    # A client newer than the engine may have been installed without buildx; Debian's own brings BuildKit along.
    docker=docker
    [ ! -x /usr/bin/docker ] || docker=/usr/bin/docker
    DOCKER_BUILDKIT=1 "$docker" build "${options[@]}" "$@" .
fi
docker image inspect -f '{{.Size}}' "$image:$tag" | awk -v name="$image:$tag" '{ printf "%s: %.2f GB\n", name, $1 / 1e9 }'
