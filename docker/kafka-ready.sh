#!/bin/bash
# Whether the broker on a port answers: asks it for its API versions, as every client does first. kafka-broker-api-versions.sh
# asks the same, in a JVM of its own that takes a second of a core each time.
#
#   kafka-ready [PORT]
set -uo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${1:-9092}" || exit 1
# Length 15; ApiVersions (18) in version 0; correlation 7; the client's name with its length.
printf '\0\0\0\x0f\0\x12\0\0\0\0\0\x07\0\x05ready' >&3
# The answer: its length, the correlation, an error code.
answer=$(head -c 10 <&3 | od -An -v -tx1 | tr -d ' \n')
[ "${answer:8:12}" = 000000070000 ] && exit 0
echo "no answer to ApiVersions, but: $answer"
exit 1
