#!/bin/bash
# Whether the node behind a port is ready to serve; says what is not. Asks /readyz through bash's own /dev/tcp: the image
# has no curl, and needs none for one line of HTTP.
#
#   rookery-ready [PORT]
set -uo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${1:-8080}"
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
IFS=' ' read -r _ status _ <&3
[ "${status:-}" = 200 ] && exit 0
cat <&3
exit 1
