#!/usr/bin/env bash
# Puts libtorch for the backend `tch` into one folder, `target/libtorch` if none is named:
#
#   scripts/get-libtorch.sh [FOLDER]
#
# Its output is what the shell has to know, everything else goes to standard error, so that this is all:
#
#   eval "$(scripts/get-libtorch.sh)" && cargo build --release --features tch
#
# It is the CPU's part of PyTorch's wheel for x86-64 Linux: 0.5 GB to fetch, 0.6 GB in the folder. Needs pip, a C
# compiler and the internet, or a mirror of PyPI. A folder that is complete is not fetched again.
#
# For CUDA, or another kind of machine, LIBTORCH and LD_LIBRARY_PATH may name any libtorch of this version, such as the
# one of https://pytorch.org, or of an installed PyTorch.
set -euo pipefail
[ $# -le 1 ] || { printf 'usage: %s [FOLDER]\n' "$0" >&2; exit 2; }
folder=${1:-${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/libtorch}
folder=${folder%/}

# The version that the crate `tch` in Cargo.toml is made for, and no other. The libraries in wheels for all Pythons are
# the same; one is taken, whichever Python there is, so that its hash can be known.
version=2.13.0
python=312
sha256=796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b
complete="torch $version cp$python $sha256"

say() { printf '%s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

exports() {
    local whole
    whole=$(cd "$folder" && pwd)
    printf 'export LIBTORCH=%q\n' "$whole"
    printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$whole/lib"
}

if [ "$(cat "$folder/complete" 2>/dev/null)" = "$complete" ]; then
    exports
    exit
fi

# Another version of ours is replaced, and nothing else.
if [ -e "$folder" ] && [ ! -e "$folder/complete" ] && [ -n "$(ls -A "$folder")" ]; then
    fail "$folder is there and not from this script: name another folder, or remove it"
fi
[ "$(uname -sm)" = 'Linux x86_64' ] \
    || fail "this fetches libtorch for x86-64 Linux: for $(uname -sm), set LIBTORCH to a libtorch $version yourself"
python3 -m pip --version >/dev/null 2>&1 || fail 'pip is missing: install python3-pip'
compiler=${CC:-cc}
command -v "$compiler" >/dev/null || fail "the C compiler $compiler is missing: install gcc"

# Beside the folder, so that it becomes the folder by a rename, and only when complete.
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.part.XXXXXX")
trap 'rm -rf "$work"' EXIT

say "fetching libtorch $version (0.5 GB)"
printf 'torch==%s --hash=sha256:%s\n' "$version" "$sha256" >"$work/requirements.txt"
python3 -m pip download --quiet --no-deps --require-hashes --only-binary :all: --platform manylinux_2_28_x86_64 \
    --implementation cp --python-version "$python" --abi "cp$python" \
    --dest "$work" --requirement "$work/requirements.txt" >&2

# Headers, and of the libraries those without CUDA.
python3 - "$work"/torch-*.whl "$work/new" <<'PYTHON'
import pathlib, shutil, sys, zipfile

LIBRARIES = {"torch/lib/libtorch_cpu.so", "torch/lib/libc10.so"}

wheel, to = zipfile.ZipFile(sys.argv[1]), pathlib.Path(sys.argv[2])
for name in wheel.namelist():
    # OpenMP's file has its version in its name.
    wanted = name.startswith(("torch/include/", "torch/lib/libgomp")) or name in LIBRARIES
    if not wanted or name.endswith("/"):
        continue
    path = to / pathlib.PurePosixPath(name).relative_to("torch")
    if not path.resolve().is_relative_to(to.resolve()):
        sys.exit(f"the wheel would write outside its folder: {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(name) as packed, path.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
PYTHON
for library in libtorch_cpu.so libc10.so; do
    [ -s "$work/new/lib/$library" ] || fail "the wheel has no $library: it is not laid out as that of $version was"
done

# The wheel's libraries name CUDA's, and the linker asks for libtorch.so; on the CPU nothing of them is called, so empty
# ones of these names do. Those of CUDA have a version too, or the loader would warn each time.
for library in libtorch.so libcudart.so.13 libcupti.so.13; do
    printf '%s { global: *; };\n' "$library" >"$work/versions"
    printf 'int empty_%s;\n' "${library//[.-]/_}" \
        | "$compiler" -shared -fPIC -x c "-Wl,-soname,$library,--version-script,$work/versions" \
            -o "$work/new/lib/$library" -
done

# By this file the crate `torch-sys` sees that the version is its own.
printf '%s\n' "$version" >"$work/new/build-version"
printf '%s\n' "$complete" >"$work/new/complete"
rm -rf "$folder"
mv "$work/new" "$folder"
say "libtorch $version is in $folder"
exports
