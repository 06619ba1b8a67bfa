#!/usr/bin/env bash
# The metrics of a gateway and of a node pass Prometheus' own linter. Usage: check-metrics.sh LAPWING
set -euo pipefail
lapwing=$1
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
await() { for _ in $(seq 600); do [ -s "$1" ] && return; sleep 0.1; done; echo "$1 did not appear"; return 1; }

"$lapwing" gateway --host 127.0.0.1 --port 0 --data-dir "$dir/gateway" 2>"$dir/gateway.log" &
await "$dir/gateway/gateway.addr"
url=$(cat "$dir/gateway/gateway.addr")
"$lapwing" node --gateway "$url" --data-dir "$dir/node" --listen /ip4/127.0.0.1/udp/0/quic-v1 2>"$dir/node.log" &
await "$dir/node/admin.addr"
admin=$(cat "$dir/node/admin.addr")
for address in "$url" "http://$admin"; do
    curl -fsS "$address/metrics" >"$dir/metrics"
    printf '%s: %d lines\n' "$address/metrics" "$(wc -l <"$dir/metrics")"
    promtool check metrics <"$dir/metrics"
done
