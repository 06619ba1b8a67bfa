#!/usr/bin/env bash
# A demo with a killed leader makes progress, and finishes, on a machine with 50 busy processes beside it.
# Usage: check-busy.sh LAPWING [ROUNDS]
set -euo pipefail
lapwing=$(realpath "$1")
rounds=${2:-60}
dir=$(mktemp -d)
busy=()
trap 'kill "${busy[@]}" 2>/dev/null || true; wait 2>/dev/null; rm -rf "$dir"' EXIT
cd "$dir"
for _ in $(seq 50); do
    sh -c 'while :; do :; done' &
    busy+=($!)
done
# Every busy process ends with this script, also when it is killed by the time limit of its caller.
timeout 600 "$lapwing" demo --rounds "$rounds" --json | tail -n 1
