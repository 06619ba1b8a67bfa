#!/usr/bin/env bash
# docs/federation.md says the truth: its quickstart is followed line by line, its calls are made, and the metrics that it and
# deploy/ name are there. Usage: check-federation.sh LAPWING
#
# It uses the ports of the guide: 18080 to 18083, and 9000.
set -euo pipefail
lapwing=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
guide=$root/docs/federation.md
dir=$(mktemp -d)
pids=()
tidy_up() {
    trap - EXIT
    # shellcheck disable=SC2015 # a process that has ended is as good
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait
    rm -rf "$dir"
}
trap tidy_up EXIT
cd "$dir"
mkdir bin
ln -s "$lapwing" bin/lapwing
ln -s "$root/examples" examples
export PATH=$dir/bin:$PATH

# The blocks of shell below a heading.
blocks() {
    awk -v heading="$1" '
        /^#+ / { is_there = ($0 == heading) }
        /^```/ { is_shell = (is_there && $0 == "```sh"); next }
        is_shell' "$guide"
}

# Waits for a command to succeed, at most 60 seconds.
wait_for() {
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    printf 'gave up waiting for: %s\n' "$*"
    tail -n 5 ./*.log
    exit 1
}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in 18080 18081 18082 18083 9000; do
    if is_taken "$port"; then
        printf 'port %s is taken by somebody else\n' "$port"
        exit 1
    fi
done

printf '%s\n' '--- the quickstart'
blocks '## Quickstart' >quickstart
# What stands without a prompt runs until it is ended.
grep -E '^(lapwing|python3) ' quickstart >running
while read -r line; do
    printf '%s &\n' "$line"
    bash -c "exec $line" >"run-${#pids[@]}.log" 2>&1 &
    pids+=($!)
done <running
[ ${#pids[@]} = 5 ] || { printf 'the quickstart starts %d programs, and not 5\n' ${#pids[@]}; exit 1; }
wait_for is_taken 9000
for port in 18080 18081 18082 18083; do wait_for curl -sf "http://127.0.0.1:$port/ready"; done
# Each home announces itself to its main, and the mains tell each other.
wait_for lapwing call alice.home@relay-a.com blog list --data-dir bob
wait_for lapwing call relay-a.com echo echo 1 --data-dir bob
sed -n 's/^\$ //p' quickstart >asked
while read -r line; do
    printf '$ %s\n' "$line"
    bash -ec "$line" </dev/null | tee -a said
    printf '\n'
done <asked
# What the guide shows is said, but for times and traces.
for word in alice.home@relay-a.com '"first"' '3 hops' 'as relay-b.com.main knows it' '"result":2}'; do
    grep -qF -- "$word" said || { printf 'nobody says: %s\n' "$word"; exit 1; }
    grep -qF -- "$word" quickstart || { printf 'the guide does not say: %s\n' "$word"; exit 1; }
done

printf '%s\n' '--- the calls'
{ blocks '## Calling'; blocks '### Requests with dependencies'; } >calls
bash -e calls | tee answers
calls=$(grep -c '^rpc ' calls)
[ "$calls" -ge 4 ] && [ "$(wc -l <answers)" = "$calls" ] || { printf 'not every call of the guide was answered\n'; exit 1; }
if grep '"error"' answers; then exit 1; fi

printf '%s\n' '--- the metrics'
curl -sf http://127.0.0.1:18081/metrics >metrics
named() {
    grep -ohE 'lapwing_federation_[a-z_]+' "$root"/deploy/grafana/*.json "$root"/deploy/prometheus/*.yml
    awk '/^## / { is_there = ($0 == "## Metrics") } is_there && /^\| `/' "$guide" | cut -d'|' -f2 |
        sed 's/{[a-z,]*}//g' | grep -oE '[a-z_]+' | sed 's/^/lapwing_federation_/'
}
for name in $(named | sort -u | grep -v '_$'); do
    grep -qE "^# TYPE ${name%_bucket} " metrics || { printf 'there is no metric %s\n' "$name"; exit 1; }
done
printf 'the guide is true\n'
