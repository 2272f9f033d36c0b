#!/bin/sh
# Check the container files on a machine that has no container engine.
#
#   deploy/check.sh lint         hadolint on every Dockerfile
#   deploy/check.sh config       docker-compose.yml as Compose reads it
#   deploy/check.sh build NAME   really build deploy/NAME.Dockerfile (web, worker) with buildah
#   deploy/check.sh run          start the built web image against DATABASE_URL and REDIS_URL (over TCP)
#   deploy/check.sh              lint and config, and what buildah can do if it is installed
#
# A build needs root, buildah and, where no image registry can be reached, debootstrap: then a bare
# Debian with Python 3.11 stands in for the base image (BASE). The pip settings of this machine
# (certificates, wheel folders) are lent to it.
set -eu
cd "$(dirname "$0")/.."
BASE=${BASE:-localhost/python:3.11-slim}
PORT=${PORT:-8765}

lint() {
    linter=.venv/bin/hadolint
    [ -x "$linter" ] || linter=hadolint
    "$linter" deploy/*.Dockerfile
    echo "lint: good"
}

config() {
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    MODELYARD_SECRETS=$folder sh deploy/secrets.sh >/dev/null
    for profile in "" gpu; do
        if docker compose version >/dev/null 2>&1; then
            MODELYARD_SECRETS=$folder COMPOSE_PROFILES=$profile docker compose config --quiet
        else
            MODELYARD_SECRETS=$folder COMPOSE_PROFILES=$profile docker-compose config --quiet
        fi
    done
    echo "config: good"
}

# The folders that pip takes wheels from here, one a line.
wheel_folders() {
    for setting in find-links extra-index-url; do
        python3 -m pip config list 2>/dev/null | sed -n "s/^.*\.$setting='\(.*\)'$/\1/p"
    done | tr ' ' '\n' | sed -e 's#^file://##' -e 's#/simple$##' | sort -u |
        while read -r folder; do [ -d "$folder" ] && echo "$folder"; done
}

base() {
    buildah inspect --type image "$BASE" >/dev/null 2>&1 && return
    case $BASE in localhost/*) ;; *) buildah pull "$BASE"; return ;; esac
    folder=$(mktemp -d)
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$folder" >/dev/null
    cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/"
    [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$folder/etc/"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder" / >/dev/null
    env | grep -E '^PIP_' | while read -r setting; do
        buildah config --env "$setting" "$container"
    done
    buildah commit --quiet --rm "$container" "$BASE" >/dev/null
    rm -r "$folder"
}

build() {
    base
    set -- "$1"
    for folder in $(wheel_folders); do set -- "$@" --volume "$folder:$folder:ro"; done
    name=$1
    shift
    [ -z "${TORCH_INDEX:-}" ] || set -- "$@" --build-arg "TORCH_INDEX=$TORCH_INDEX"
    buildah bud --layers --isolation chroot --pull-never --format docker --build-arg "BASE=$BASE" "$@" \
        --file "deploy/$name.Dockerfile" --tag "localhost/modelyard-$name" .
    echo "build $name: good"
}

run() {
    : "${DATABASE_URL:?names the database that the web process is started against}"
    : "${REDIS_URL:?names the broker that the web process is started against}"
    if python3 -c "import socket; socket.create_connection(('127.0.0.1', $PORT))" 2>/dev/null; then
        echo "run: port $PORT is taken; set PORT to another" >&2
        exit 1
    fi
    container=$(buildah from --pull-never localhost/modelyard-web)
    log=$(mktemp)
    set -- --env "DATABASE_URL=$DATABASE_URL" --env "REDIS_URL=$REDIS_URL"
    buildah run --isolation chroot "$container" -- python3 -c '
import importlib.util, sys
found = [name for name in ("torch", "numpy", "workers") if importlib.util.find_spec(name)]
sys.exit(f"the web image holds {found}" if found else 0)'
    buildah run --isolation chroot "$@" "$container" -- python3 manage.py prepare
    setsid buildah run --isolation chroot "$@" "$container" -- \
        granian --interface asgi --host 127.0.0.1 --port "$PORT" config.asgi:application \
        >"$log" 2>&1 &
    process=$!
    answer=none
    for _ in $(seq 60); do
        answer=$(python3 -c "
import urllib.request
for path in ('healthz', 'readyz', ''):
    with urllib.request.urlopen('http://127.0.0.1:$PORT/' + path, timeout=5) as answer:
        print('/' + path, answer.status)
" 2>/dev/null) && break
        sleep 1
    done
    kill -- "-$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
    buildah rm "$container" >/dev/null
    if [ "$answer" = none ] || [ -z "$answer" ]; then
        cat "$log"
        rm "$log"
        echo "run: the web image does not answer" >&2
        exit 1
    fi
    rm "$log"
    printf '%s\nrun: good\n' "$answer"
}

case ${1:-all} in
    lint | config | base | run) "$1" ;;
    build) build "${2:?web or worker}" ;;
    all)
        lint
        config
        if command -v buildah >/dev/null; then build web; else echo "build: skipped, no buildah"; fi
        ;;
    *)
        sed -n '2,12s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
