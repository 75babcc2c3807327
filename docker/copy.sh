#!/bin/bash
# Runs a node as one of several copies of a container, which share a volume. The first copy has the name and the data folder
# that it is given. Each further one has a name and a folder of its own: NAME-2 in copies/2, and so on. A copy takes the first
# that nobody has, so a container that is made again finds the data of the one before.
#
#   rookery-copy COMMAND…     with ROOKERY__NODE__NAME and ROOKERY__DATA_DIR
set -euo pipefail
umask 077
name=$ROOKERY__NODE__NAME
folder=$ROOKERY__DATA_DIR
for ((copy = 1; copy <= 64; copy++)); do
  if [ "$copy" -gt 1 ]; then
    export ROOKERY__NODE__NAME=$name-$copy ROOKERY__DATA_DIR=$folder/copies/$copy
    mkdir -p "$ROOKERY__DATA_DIR"
  fi
  # The node inherits the open file, and so holds the lock as long as it lives.
  exec {claim}>>"$ROOKERY__DATA_DIR/copy.lock"
  if flock --nonblock "$claim"; then
    # A node that was started without this script holds its own lock alone.
    if [ ! -e "$ROOKERY__DATA_DIR/lock" ] || flock --nonblock "$ROOKERY__DATA_DIR/lock" true; then
      [ "$copy" -eq 1 ] || echo "rookery-copy: this is $ROOKERY__NODE__NAME, in $ROOKERY__DATA_DIR" >&2
      exec rookery "$@"
    fi
  fi
  exec {claim}>&-
done
echo "rookery-copy: all of 64 copies of $name are taken" >&2
exit 1
