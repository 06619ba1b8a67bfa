#!/bin/sh
# What `lapwing demo` does, by hand: a gateway and some nodes on this machine, a job, the leader killed with
# SIGKILL half-way and started again, and the model at the end.
#
#   examples/by-hand.sh [NODES [ROUNDS]]        3 nodes and 40 rounds unless told otherwise
#
# LAPWING names the binary (default: the one that `cargo build --release` makes). Everything is ended and removed at
# the end, also after Ctrl-C; the model stays as ./model.safetensors.
set -eu

nodes=${1:-3}
rounds=${2:-40}
lapwing=${LAPWING:-$(dirname "$0")/../target/release/lapwing}
dir=$(mktemp -d)
pids=

tidy_up() {
    trap - EXIT INT TERM
    # shellcheck disable=SC2086 # a list of numbers
    [ -z "$pids" ] || kill $pids 2>/dev/null || true
    wait
    rm -rf "$dir"
}
trap tidy_up EXIT
trap 'tidy_up; exit 130' INT TERM

# Waits for a command to succeed, at most 120 seconds.
wait_for() {
    what=$1
    shift
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    echo "gave up waiting for $what; the logs are:" >&2
    tail -n 5 "$dir"/*.log >&2
    exit 1
}

start_node() {
    "$lapwing" node --gateway "$(cat "$dir/gateway/gateway.addr")" --name "node-$1" --data-dir "$dir/node-$1" \
        --listen /ip4/127.0.0.1/udp/0/quic-v1 \
        --data "digits#partition=dirichlet:0.5,seed=1,part=$1/$nodes" >>"$dir/node-$1.log" 2>&1 &
    echo $! >"$dir/node-$1.pid"
    pids="$pids $!"
}

# "$lapwing" job and cluster commands through one node's admin address.
via() {
    node=$1
    shift
    "$lapwing" "$@" --data-dir "$dir/node-$node"
}

members_are_active() {
    [ "$(via 1 cluster members | grep -c ' active ')" -ge "$nodes" ]
}

echo "1. a gateway and $nodes nodes"
"$lapwing" gateway --host 127.0.0.1 --port 0 --data-dir "$dir/gateway" >"$dir/gateway.log" 2>&1 &
pids="$pids $!"
wait_for "the gateway" test -s "$dir/gateway/gateway.addr"
for number in $(seq "$nodes"); do start_node "$number"; done
wait_for "all nodes to join" members_are_active
via 1 cluster members

echo "2. a job"
cat >"$dir/job.toml" <<JOB
data = "digits"
rounds = $rounds
local_steps = 10
lr = 0.05
final_dense_rounds = 5
evaluate_every = 10
JOB
job=$(via 1 job submit "$dir/job.toml")
echo "$job"

closed_at_least() {
    via "$1" job list | awk -v job="$job" -v least="$2" '$1 == job && $3 >= least { found = 1 } END { exit !found }'
}
wait_for "half of the rounds" closed_at_least 1 $((rounds / 2))

leader=$(via 1 cluster members | awk '$3 == "leader" { sub("node-", "", $2); print $2 }')
echo "3. kill -9 of the leader, node-$leader; the others go on"
kill -9 "$(cat "$dir/node-$leader.pid")"
survivor=$((leader % nodes + 1))
before=$(via "$survivor" job list | awk -v job="$job" '$1 == job { print $3 }')
wait_for "a round without the old leader" closed_at_least "$survivor" $((before + 2))
via "$survivor" cluster members

echo "4. node-$leader comes back on its own data"
rm -f "$dir/node-$leader/admin.addr"
start_node "$leader"

echo "5. to the end"
via "$survivor" job watch "$job"
via "$survivor" job export "$job" --out model.safetensors
