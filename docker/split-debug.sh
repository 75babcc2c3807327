#!/usr/bin/env bash
# Takes the line tables of a program out of it, into PROGRAM.debug beside it: the program that ships stays small, and its
# backtraces name functions. With the other file beside it, a backtrace names files and lines too.
#
#   docker/split-debug.sh PROGRAM
set -euo pipefail
program=$1
objcopy --only-keep-debug --compress-debug-sections "$program" "$program.debug"
strip --strip-debug "$program"
# The program's name for the other file, with a checksum: one of another build is not taken for it.
(cd "$(dirname "$program")" && objcopy --remove-section .gnu_debuglink --add-gnu-debuglink="$(basename "$program").debug" "$(basename "$program")")
