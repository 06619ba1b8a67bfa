#!/usr/bin/env bash
# Installs the implementations of libp2p that tests/interop tries ours against, into one folder:
#
#   scripts/get-interop-peers.sh FOLDER
#
# Needs Python with pip and venv, node (20 or later) with npm, and the internet. What is there already in the version
# that is wanted is not fetched again.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)/tests/interop
to=${1:?name the folder to install into}
mkdir -p "$to"
to=$(cd "$to" && pwd)

# go-libp2p has no binary of its own to download; hivemind, from PyPI, brings its daemon along.
wheel=hivemind==1.1.12
sha256=acb8f0cf2cdb085259feb1c0a092c530f1953287cbfa4a1ab5e14e8c65359a2c
go="go-libp2p (${wheel/==/ })"
if [ ! -x "$to/go/p2pd" ] || [ "$(cat "$to/go-libp2p.version" 2>/dev/null)" != "$go" ]; then
    command -v pip >/dev/null || { printf 'pip is missing: install python3-pip\n'; exit 1; }
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    printf '%s --hash=sha256:%s\n' "$wheel" "$sha256" >"$unpacked/requirements.txt"
    # The platform of the wheel, so that another machine says that it is none of ours instead of building it.
    pip download --quiet --no-deps --require-hashes --only-binary :all: --platform manylinux2014_x86_64 \
        --dest "$unpacked" --requirement "$unpacked/requirements.txt"
    python3 -m zipfile -e "$unpacked"/hivemind-*.whl "$unpacked"
    mkdir -p "$to/go"
    install -m 755 "$unpacked/hivemind/hivemind_cli/p2pd" "$to/go/p2pd.part"
    mv "$to/go/p2pd.part" "$to/go/p2pd"
    printf '%s\n' "$go" >"$to/go-libp2p.version"
fi

# js-libp2p, as its lock file has it. An older node installs it all, and fails only when it is to run.
node=$(node -p 'process.versions.node' 2>/dev/null) || { printf 'node is missing: install nodejs\n'; exit 1; }
[ "${node%%.*}" -ge 20 ] || { printf 'node is %s: js-libp2p needs 20 or later\n' "$node"; exit 1; }
if ! cmp -s "$here/package-lock.json" "$to/js/installed"; then
    command -v npm >/dev/null || { printf 'npm is missing: install nodejs and npm\n'; exit 1; }
    mkdir -p "$to/js"
    cp "$here/package.json" "$here/package-lock.json" "$to/js/"
    # Not `npm ci`: the lock file has the QUIC library's build of one platform, and `ci` wants those of all.
    (cd "$to/js" && npm install --no-save --loglevel error --no-audit --no-fund --ignore-scripts)
    printf 'js-libp2p %s\n' "$(cd "$to/js" && node -p 'require("./node_modules/libp2p/package.json").version')" \
        >"$to/js-libp2p.version"
    cp "$here/package-lock.json" "$to/js/installed"
fi

# py-libp2p, in an environment of its own, as its constraints have it.
if ! cmp -s "$here/constraints.txt" "$to/py/installed"; then
    python3 -m venv --clear "$to/py"
    "$to/py/bin/pip" install --quiet --constraint "$here/constraints.txt" libp2p
    printf 'py-libp2p %s\n' "$("$to/py/bin/python" -c 'from importlib.metadata import version; print(version("libp2p"))')" \
        >"$to/py-libp2p.version"
    cp "$here/constraints.txt" "$to/py/installed"
fi
