#!/bin/sh
# Make the secrets that docker-compose.yml mounts, those that are not there yet.
#
# The folder is closed to others (0700). The files in it are readable (0444), because each is
# mounted into containers whose users are not ours.
set -eu
cd "$(dirname "$0")"
folder=${MODELYARD_SECRETS:-secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"

random() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }

keep() { # NAME VALUE
    [ -s "$folder/$1" ] && return
    printf '%s\n' "$2" >"$folder/.$1"
    chmod 444 "$folder/.$1"
    mv "$folder/.$1" "$folder/$1"
    echo "made $folder/$1"
}

keep postgres-password "$(random)"
keep redis-password "$(random)"
keep secret-key "$(random)$(random)"
keep admin-token "$(random)"
keep database-url "postgresql://modelyard:$(cat "$folder/postgres-password")@postgres:5432/modelyard"
keep redis-url "redis://:$(cat "$folder/redis-password")@redis:6379/0"
# The identity provider gives this one: write it into the file.
keep oidc-client-secret ""
