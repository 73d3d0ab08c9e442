#!/bin/bash
# wrk.sh THREADS CONNECTIONS URL: runs wrk with check.lua until a thread has 20 answers, however long that takes: wrk
# itself knows only a duration. Prints what came of it, without the number of answers, and without that of read errors:
# wrk asks FIONREAD whether there is more to read, and takes EAGAIN for an error (docs/compatibility.md). A connection
# that was reset is found by the helper's counters.
set -euo pipefail
# wrk asks for a place for each microsecond until its time limit, and uses few of them.
echo 1 >/proc/sys/vm/overcommit_memory
enough=$(mktemp -u)
said=$(mktemp)
ENOUGH=$enough wrk --timeout 100s -t "$1" -c "$2" -d 1000s -s /srv/real/check.lua "$3" >"$said" &
until [ -e "$enough" ]; do
    kill -0 $! || { cat "$said"; exit 1; }
    sleep 0.05
done
# The first signal may find it before its sleep: once more, until it has ended.
while kill -INT $! 2>/dev/null; do sleep 0.05; done
wait $!
grep ^answers "$said" | sed 's/answers [1-9][0-9]*/answers some/; s/ read [0-9]*/ read any/'
