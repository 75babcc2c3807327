#!/usr/bin/env bash
# Brings a running deployment to the image that is there now, one container after the other, while it serves.
#
#   docker compose build && docker/update.sh [OPTION…]       options of docker compose, as it was started with: -f …, --profile …
#
# The schema first, with the old nodes at work; then every node by itself: it hands over its shards and stops, and the next one
# only stops when this one is ready again. A service with one node pauses for the seconds of its restart, and requests wait;
# one with two does not pause. The gateways come last. With two, and a balancer that looks at /readyz, nobody is refused.
#
# Databases and broker stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
compose() { docker compose "${options[@]}" "$@"; }
options=("$@")
say() { printf 'update.sh: %s\n' "$*"; }

# All containers of a service answer. Not by `up --wait`, which gives up when a program ends once, though it is started again.
ready() {
  local deadline=$((SECONDS + ready_s)) containers health
  while [ "$SECONDS" -lt "$deadline" ]; do
    mapfile -t containers < <(compose ps --all --quiet "$1")
    health=$(docker inspect --format '{{.State.Health.Status}}' "${containers[@]}") && [ -n "$health" ] &&
      ! grep -qvx healthy <<<"$health" && return 0
    sleep 0.2
  done
  return 1
}

# Long enough for a node that is started twice on a busy machine.
ready_s=${ROOKERY_READY_S:-300}
# A balancer has seen by then that the gateway before is ready again.
noticed_s=${ROOKERY_BALANCER_S:-2}

began=$SECONDS
running=$(compose ps --services --status running)
say "schema"
compose run --rm --no-deps -T migrate

for service in users posts comments search gateway gateway-2; do
  grep -qx "$service" <<<"$running" || continue
  mapfile -t containers < <(compose ps --quiet "$service")
  image=$(docker image inspect --format '{{.Id}}' "$(docker inspect --format '{{.Config.Image}}' "${containers[0]}")")
  for container in "${containers[@]}"; do
    name=$(docker inspect --format '{{.Name}}' "$container")
    name=${name#/}
    if [ "$(docker inspect --format '{{.Image}}' "$container")" = "$image" ]; then
      say "$name is up to date"
      continue
    fi
    since=$SECONDS
    docker stop "$container" >/dev/null
    docker rm "$container" >/dev/null
    # Its data folder is on a volume, which stays. The other copies are left alone.
    compose up --detach --quiet-pull --no-build --no-deps --no-recreate --scale "$service=${#containers[@]}" "$service" 2>/dev/null &&
      ready "$service" ||
      { compose logs --tail 30 "$service" >&2; say "$name does not become ready; the others still run the image before" >&2; exit 1; }
    say "$name: $((SECONDS - since)) s"
    case $service in
      gateway*) sleep "$noticed_s" ;;
    esac
  done
done
say "done in $((SECONDS - began)) s"
