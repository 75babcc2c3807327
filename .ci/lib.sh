# Sourced by .ci/run and .ci/nightly, in the checkout: the environment of a build, what must be installed, how a step is told.

export CI=true # a missing Kafka broker fails the tests instead of skipping them
export OPENSSL_NO_VENDOR=1 # Debian's OpenSSL, as in the image: 4 CPU minutes less; a fresh clone builds its own
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-always}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/rookery-ci-target}
export CARGO_INCREMENTAL=0 # no second build profits from it; the folder stays half the size
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"

step_name=start
step() { # step NAME COMMAND…: names the step, runs it, says how long it took
  step_name=$1
  shift
  printf '\n==> %s\n' "$step_name"
  local began=$SECONDS
  "$@"
  printf '==> %s: %d s\n' "$step_name" $((SECONDS - began))
}
trap 'status=$?; [ $status -eq 0 ] || printf "\n==> FAILED: %s (exit %d)\n" "$step_name" "$status" >&2' EXIT

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "Missing packages need root or sudo to install; run this as root once: $*" >&2
    return 1
  fi
}

# The packages of what is not there yet, one a line.
missing_packages() {
  command -v cc >/dev/null && command -v make >/dev/null || echo build-essential
  command -v pkg-config >/dev/null || echo pkg-config
  pkg-config --exists openssl 2>/dev/null || echo libssl-dev # for rdkafka
  command -v git >/dev/null || echo git
  if [ -z "${ROOKERY_PG_BIN:-}" ] && ! command -v initdb >/dev/null &&
    ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    echo postgresql
  fi
  # The time of day jumps in one of the stories, and the network breaks in others.
  compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || echo libfaketime
  command -v ip >/dev/null || echo iproute2
  # A real Kafka broker runs from its jars.
  command -v java >/dev/null || echo openjdk-17-jre-headless
  command -v mvn >/dev/null || echo maven
}

packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  as_root apt-get update -q
  # Debian would start a cluster of its own beside our private one.
  if [[ " ${missing[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    as_root mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Whether the machine has a Docker engine with Compose that answers.
has_engine() { docker compose version >/dev/null 2>&1 && docker version >/dev/null 2>&1; }

toolchain() {
  command -v cargo >/dev/null || {
    echo "cargo is missing: install Rust from https://rustup.rs" >&2
    return 1
  }
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
  rustc --version
}
