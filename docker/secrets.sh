#!/usr/bin/env bash
# Makes the secrets of docker-compose.yml, once: what exists is kept, for a database keeps the password that it was made with.
#
#   docker/secrets.sh [FOLDER]
#
# Compose mounts the files as they are, and three different users read them in their containers. So the files are
# readable, and the folder is not: only its owner (and the engine) gets to them.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

once() { # once FILE COMMAND…: writes what the command says, unless the file is there
  [ -s "$1" ] && return
  "${@:2}" >"$1.new"
  chmod 644 "$1.new"
  mv "$1.new" "$1"
}

once rookery-secret random
for service in users posts comments search; do
  once "$service-db-password" random
  once "$service-database-url" printf 'postgres://rookery:%s@%s-db:5432/%s' "$(cat "$service-db-password")" "$service" "$service"
done
