#!/usr/bin/env bash
# Makes the skeleton of a workspace: what cargo needs to build the dependencies, and nothing that changes with our code.
# Manifests and the lock file as they are, and an empty source for every target that a manifest can name.
#
#   docker/skeleton.sh WORKSPACE TARGET
#
# `cargo chef` does the same with a recipe; it would be one more program to pin and to compile, for these few lines.
set -euo pipefail
shopt -s nullglob
target=$(mkdir -p "$2" && cd "$2" && pwd)
cd "$1"

put() { # put FILE < text
  mkdir -p "$target/$(dirname "$1")"
  cat >"$target/$1"
}

for file in Cargo.toml Cargo.lock */Cargo.toml; do
  put "$file" <"$file"
done
for file in */src/lib.rs; do
  put "$file" </dev/null
done
# Tests are found by cargo where they exist, and no build asks for them.
for file in */build.rs */src/main.rs */src/bin/*.rs */src/bin/*/main.rs */benches/*.rs */examples/*.rs; do
  put "$file" <<<'fn main() {}'
done
