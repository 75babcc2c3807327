# Sourced by .ci/nightly: deployments made, looked at, broken and updated. Every deployment has a project of its own, so that
# no volume of somebody's own is touched.

scratch=$(mktemp -d)
api=http://127.0.0.1:8080/api/v1

fail() {
  echo "FAILED: $*" >&2
  return 1
}

# Whatever happens, nothing of ours stays; after a failure with what the nodes said last.
ended() {
  rm -f "$scratch/asking"
  if [ -n "${COMPOSE_PROJECT_NAME:-}" ]; then
    [ "$1" -eq 0 ] || docker compose logs --no-color --tail 20 >&2 || true
    docker compose --profile '*' down --volumes --timeout 30 >/dev/null 2>&1 || true
  fi
  [ -z "${up_pid:-}" ] || kill -TERM "$up_pid" 2>/dev/null || true
  [ "$1" -eq 0 ] || printf '\n==> FAILED: %s (exit %d)\n' "$step_name" "$1" >&2
  rm -rf "$scratch"
}

# The image with a program that is compiled already: a build context with the name of a stage takes its place.
image() { # image PROGRAM [LABEL]
  install -D "$1" "$scratch/builder/src/target/release/rookery"
  docker/split-debug.sh "$scratch/builder/src/target/release/rookery"
  docker build --quiet --tag rookery:dev --label "ci.build=${2:-1}" --file docker/Dockerfile \
    --build-context "builder=$scratch/builder" . >/dev/null
  local program image
  program=$(stat -c %s "$scratch/builder/src/target/release/rookery")
  image=$(docker image inspect --format '{{.Size}}' rookery:dev)
  echo "program $((program / 1000000)) MB, image $((image / 1000000)) MB"
  [ "$program" -le 80000000 ] || fail "the program is larger than 80 MB"
}

# The README's tour, as a reader pastes it.
tour() {
  awk '/^<!-- tour:/ { wanted = 1 } /^```$/ { inside = 0 } inside { print } wanted && /^```bash/ { inside = 1; wanted = 0 }' \
    README.md >"$scratch/tour"
  [ "$(wc -l <"$scratch/tour")" -gt 15 ] || fail "the README has no tour"
  # Its post, to be found again. Not read from its answers: they hold the author's id too.
  echo 'echo "remembered $post"' >>"$scratch/tour"
  ROOKERY=http://127.0.0.1:8080 timeout 120 bash -euo pipefail "$scratch/tour" >"$scratch/tour.out" 2>&1 ||
    { cat "$scratch/tour.out" >&2; fail "the tour"; }
  remembered=$(sed -n 's/^remembered //p' "$scratch/tour.out")
  remembers
}

remembers() { curl -sS --fail-with-body --max-time 15 "$api/posts/$remembered" | grep -q 'Analytical Engine' || fail "a post is gone"; }

up() { docker compose --progress quiet up --detach --wait --quiet-pull "$@"; }

nodes() { docker compose --profile '*' ps --quiet gateway gateway-2 users posts comments search; }

# Every node is healthy by its own check, and can be asked from the host.
health() {
  local service port
  for service in users:3001 comments:3002 posts:3003 search:3004; do
    port=${service#*:}
    curl -sS --fail-with-body --max-time 5 "http://$(docker compose port "${service%:*}" "$port")/readyz" >/dev/null
  done
  curl -sS --fail-with-body --max-time 5 http://127.0.0.1:8080/readyz >/dev/null
  docker compose exec -T gateway rookery status >"$scratch/status"
  grep -q '0\.0\.0\.0' "$scratch/status" && cat "$scratch/status" && fail "an address that nobody can dial" || true
}

# 172.18.0.5 as a number.
number() {
  local a b c d
  IFS=. read -r a b c d <<<"$1"
  echo $(((a << 24) + (b << 16) + (c << 8) + d))
}

# The links that are open, from both their ends: each lies on the inner network, also those of copies.
links() {
  local subnet base bits node name seen=0 local_end remote_end state address
  subnet=$(docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' "${COMPOSE_PROJECT_NAME}_data")
  bits=$((32 - ${subnet#*/}))
  base=$(($(number "${subnet%/*}") >> bits))
  for node in $(nodes); do
    name=$(docker inspect --format '{{.Name}}' "$node")
    local here=0
    while read -r _ local_end remote_end state _; do
      # Established, and one end is the port of the links.
      [ "$state" = 01 ] || continue
      [ "${local_end#*:}" = 1CE8 ] || [ "${remote_end#*:}" = 1CE8 ] || continue
      for address in "${local_end%:*}" "${remote_end%:*}"; do
        # The kernel writes addresses of IPv4 with the last byte first.
        address=$((16#${address:6:2}${address:4:2}${address:2:2}${address:0:2}))
        [ $((address >> bits)) -eq "$base" ] || fail "$name has a link outside of $subnet: $local_end $remote_end"
      done
      here=$((here + 1))
    done < <(docker exec "$node" cat /proc/net/tcp)
    [ "$here" -gt 0 ] || fail "$name has no link"
    seen=$((seen + here))
  done
  echo "$seen ends of links, all within $subnet"
}

# Somebody new; prints the access token.
registered() { # registered NAME
  curl -sS --fail-with-body --max-time 15 "$api/auth/register" -H 'content-type: application/json' \
    -d "{\"username\":\"$1\",\"email\":\"$1@example.org\",\"password\":\"a long pass phrase\"}" |
    sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p'
}

# A client with a balancer of its own: asks both gateways five times a second whether they are ready, sends each request to one
# that is, and where a connection is refused, so that nothing was sent, to the other one. Counts what was not answered.
client() { # client start | stop
  case $1 in
    start)
      rm -f "$scratch"/{ready.*,asked}
      # The client ends with the second file, and so also when somebody else cleans up.
      touch "$scratch"/{asked,asking}
      local port token
      token=$(registered "client$RANDOM$RANDOM")
      for port in 8080 8081; do
        (
          slow=
          while [ -e "$scratch/asking" ]; do
            ready=$(curl -s -o /dev/null --max-time 1 -w '%{http_code}' "http://127.0.0.1:$port/readyz") && status=0 || status=$?
            if [ "$ready" = 200 ]; then
              slow=
              touch "$scratch/ready.$port"
            elif [ "$status" -eq 28 ] && [ -z "$slow" ]; then
              # No answer in time. As balancers do, it waits for a second one: a busy machine alone explains the first.
              slow=yes
            else
              rm -f "$scratch/ready.$port"
            fi
            sleep 0.2
          done
        ) &
        client_pids+=($!)
      done
      (
        turn=0
        until [ -e "$scratch/ready.8080" ] || [ -e "$scratch/ready.8081" ] || [ ! -e "$scratch/asking" ]; do sleep 0.1; done
        while [ -e "$scratch/asking" ]; do
          turn=$((turn + 1))
          request=(none)
          gateways=(8080 8081)
          [ $((turn % 2)) -eq 0 ] || gateways=(8081 8080)
          answer='000 0'
          for port in "${gateways[@]}"; do
            [ -e "$scratch/ready.$port" ] || continue
            case $((turn % 3)) in
              0) request=("/posts/$remembered") ;;
              1) request=("/posts?limit=5") ;;
              2) request=("/posts" -H "authorization: Bearer $token" -H 'content-type: application/json' \
                -d "{\"title\":\"turn $turn\",\"body\":\"\"}") ;;
            esac
            : >"$scratch/answer"
            answer=$(curl -s -o "$scratch/answer" --max-time 20 -w '%{http_code} %{time_total}' \
              "http://127.0.0.1:$port/api/v1${request[0]}" "${request[@]:1}") && break
            # 7: not connected. Anything else may have been sent.
            [ $? -eq 7 ] || break
          done
          [ -d "$scratch" ] || break
          [[ "$answer" == 20[01]* ]] && said= || said=$(head -c 500 "$scratch/answer" | tr '\n' ' ')
          echo "$answer $(date +%T) ${request[0]} $said" >>"$scratch/asked"
          sleep 0.05
        done
      ) &
      client_pids+=($!)
      ;;
    stop)
      rm "$scratch/asking"
      wait "${client_pids[@]}" || true
      client_pids=()
      awk '{ asked++; if ($1 != 200 && $1 != 201) failed++; if ($2 > slowest) slowest = $2 }
        END { printf "%d requests, %d failed, slowest %.1f s\n", asked, failed, slowest; exit failed > 0 || asked < 20 }' \
        "$scratch/asked" || { awk '$1 !~ /^20[01]$/ && shown++ < 20' "$scratch/asked" >&2; fail "requests failed"; }
      ;;
  esac
}
client_pids=()

# Ends the program in a container as a crash does. By the engine it would count as a wish, after which nothing restarts.
crash() { # crash SERVICE
  docker compose exec -T "$1" bash -c 'for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" != rookery ] || kill -9 "${p#/proc/}"; done'
}

# Not by `--wait`: a container whose program has just died is unhealthy to the engine while it starts again, and Compose gives up.
healthy() { # healthy [OPTION…] [SERVICE…]
  docker compose --profile '*' up --detach --no-recreate "$@" >"$scratch/compose.out" 2>&1 ||
    { cat "$scratch/compose.out" >&2; fail "not up: $*"; }
  local deadline=$((SECONDS + 180))
  until [ -z "$(docker ps --all --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
    --filter health=starting --filter health=unhealthy)" ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "not healthy: $*"
    sleep 0.5
  done
}

scale_and_update() {
  healthy gateway-2
  healthy --scale posts=2 posts
  local deadline=$((SECONDS + 60))
  until docker compose exec -T gateway rookery status --json | grep -q '"owner": "posts-2"'; do
    [ "$SECONDS" -lt "$deadline" ] || fail "the copy is given nothing"
    sleep 0.5
  done
  links
  client start
  image "$program" 2
  docker/update.sh --profile two-gateways
  sleep 2
  client stop
  local node id
  id=$(docker image inspect --format '{{.Id}}' rookery:dev)
  for node in $(nodes); do
    [ "$(docker inspect --format '{{.Image}}' "$node")" = "$id" ] || fail "a node was left out"
  done
  links
  remembers
}

crashes_and_restarts() {
  client start
  crash posts
  sleep 5
  crash users
  sleep 5
  docker compose restart posts-db >/dev/null 2>&1
  sleep 5
  docker compose restart comments >/dev/null 2>&1
  sleep 2
  client stop
  healthy --scale posts=2
  remembers
}

down_and_up() {
  docker compose --profile '*' down --timeout 30 >/dev/null 2>&1
  up
  remembers
}

part_cluster() {
  # The client asks more often than one person may.
  cat >"$scratch/nightly.yml" <<'YAML'
services:
  gateway: { environment: { ROOKERY__GATEWAY__RATE_LIMITS: "false" } }
  gateway-2: { environment: { ROOKERY__GATEWAY__RATE_LIMITS: "false" } }
YAML
  export COMPOSE_PROJECT_NAME=rookery-nightly COMPOSE_FILE=docker-compose.yml:$scratch/nightly.yml
  docker/secrets.sh
  step "cluster: up" up
  step "cluster: health" health
  step "cluster: links" links
  step "cluster: tour" tour
  step "cluster: a second posts node, an update one by one" scale_and_update
  step "cluster: crashes and restarts" crashes_and_restarts
  step "cluster: down and up" down_and_up
  docker stats --no-stream --format '{{.Name}} {{.MemUsage}}'
  docker compose --profile '*' down --volumes >/dev/null 2>&1
  unset COMPOSE_PROJECT_NAME COMPOSE_FILE
}

part_laptop() {
  export COMPOSE_PROJECT_NAME=rookery-nightly-laptop COMPOSE_FILE=docker-compose.laptop.yml
  step "laptop: up" up
  step "laptop: tour" tour
  step "laptop: a crash" laptop_crash
  step "laptop: down and up" down_and_up
  docker stats --no-stream --format '{{.Name}} {{.MemUsage}}'
  docker compose down --volumes >/dev/null 2>&1
  unset COMPOSE_PROJECT_NAME COMPOSE_FILE
}

laptop_crash() {
  crash rookery
  sleep 1
  healthy
  remembers
}

# A copy of what is under version control, to be edited.
checkout() {
  mkdir -p "$scratch/checkout"
  git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create --ignore-failed-read 2>/dev/null |
    tar --extract --directory "$scratch/checkout"
}

# A rule is edited: titles have 199 characters at most, instead of 200. Says how long it takes until clients see it.
edit() {
  local title token deadline began name=dev$RANDOM$RANDOM
  title=$(printf 'x%.0s' $(seq 200))
  token=$(registered "$name")
  post() {
    curl -s -o /dev/null --max-time 15 -w '%{http_code}' "$api/posts" -H "authorization: Bearer $token" \
      -H 'content-type: application/json' -d "{\"title\":\"$title\",\"body\":\"\"}"
  }
  [ "$(post)" = 201 ] || fail "200 characters are refused before the edit"
  sed -i '/impl Title/,/^}/s/1\.\.=200/1..=199/' "$scratch/checkout/actors/src/posts/rules.rs"
  began=$EPOCHREALTIME
  deadline=$((SECONDS + 900))
  until [ "$(post)" = 422 ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "the edit does not arrive"
    sleep 0.2
  done
  awk -v from="$began" -v to="$EPOCHREALTIME" 'BEGIN { printf "from the edited rule to its answer over HTTP: %.1f s\n", to - from }'
  sed -i '/impl Title/,/^}/s/1\.\.=199/1..=200/' "$scratch/checkout/actors/src/posts/rules.rs"
  until [ "$(post)" = 201 ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "the edit does not go back"
    sleep 0.2
  done
  # Its data are those of before.
  curl -sS --fail-with-body "$api/users/$name" >/dev/null
}

part_dev() {
  checkout
  step "dev without Docker: up" dev_up
  step "dev without Docker: an edit" edit
  kill -TERM "$up_pid"
  wait "$up_pid" || true
  unset up_pid
}

part_dev_containers() {
  checkout
  export COMPOSE_PROJECT_NAME=rookery-nightly-dev
  export COMPOSE_FILE=$scratch/checkout/docker-compose.yml:$scratch/checkout/docker-compose.dev.yml
  "$scratch/checkout/docker/secrets.sh"
  step "dev in containers: up" up --build
  step "dev in containers: an edit" edit
  docker compose logs --no-log-prefix build | grep 'dev:' | tail -4
  docker compose down --volumes >/dev/null 2>&1
  unset COMPOSE_PROJECT_NAME COMPOSE_FILE
}

# With incremental builds, as people have them; .ci/lib.sh turns them off.
dev_up() {
  env -u CARGO_INCREMENTAL CARGO_TARGET_DIR="${CI_DEV_TARGET_DIR:-$CARGO_TARGET_DIR}" "$scratch/checkout/dev/up" >"$scratch/dev.log" 2>&1 &
  up_pid=$!
  local deadline=$((SECONDS + 3600))
  until curl -s --max-time 2 http://127.0.0.1:8080/readyz >/dev/null; do
    kill -0 "$up_pid" 2>/dev/null || { tail -30 "$scratch/dev.log" >&2; fail "dev/up ended"; }
    [ "$SECONDS" -lt "$deadline" ] || fail "dev/up does not serve"
    sleep 0.5
  done
}
