#!/usr/bin/env bash
# The demo keeps what the README promises, and leaves nothing behind. Usage: check-demo.sh LAPWING
set -euo pipefail
lapwing=$(realpath "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
"$lapwing" demo --json | tee events | tail -n 1 >result
cat result
python3 - result <<'P'
import json, sys
r = json.load(open(sys.argv[1]))
promises = {
    "averaged accuracy is at least 95 %": r["averaged_accuracy"] >= 0.95,
    "at most a tenth of a dense exchange is sent": r["sent_bytes_per_node"] * 10 <= r["dense_bytes_per_node"],
    "the killed leader was replaced": r["leader_changes"] >= 1,
    # On two idle cores; a machine that runs something else beside it is slower.
    "it takes less than 90 seconds": r["seconds"] < 90,
}
for promise, kept in promises.items():
    print("kept  " if kept else "BROKEN", promise)
sys.exit(not all(promises.values()))
P
test -s "$(python3 -c 'import json;print(json.load(open("result"))["report"])')"
if pgrep -f "$lapwing (node|gateway)" >/dev/null; then
    echo "processes were left behind:"
    pgrep -af "$lapwing (node|gateway)"
    exit 1
fi
