#!/usr/bin/env bash
# Gathers what benchmarks/gpu/run.sh needs on a GPU machine without network, in .gpu/ of the checkout (ignored by git).
#
#   bash benchmarks/gpu/prepare.sh
#
# Run it in the project's root after `make install`, where there is network; it takes about a minute. Then copy the
# checkout with .gpu/ to the GPU machine and run benchmarks/gpu/run.sh there. The GPU machine brings torch,
# transformers, accelerate and pytest. Where it has network, none of this is needed.
#
# Settings, by environment:
#   PYTHON          of the environment that builds wheels; default .venv/bin/python
#   TARGET_PYTHON   version of Python on the GPU machine; default 3.12
#   TARGET_CUDA     version of CUDA there without its point, whose build of bitsandbytes is kept; default 130
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python} TARGET_PYTHON=${TARGET_PYTHON:-3.12} TARGET_CUDA=${TARGET_CUDA:-130}
wheels=.gpu/whl

# The tested version of a package, as constraints.txt has it; its newest one where it is not listed.
pinned() { grep -i "^$1==" constraints.txt || echo "$1"; }

# Downloads wheels for the GPU machine, without what they depend on.
fetch() {
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheels" \
        --implementation cp --python-version "$TARGET_PYTHON" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "$@"
}

build() { "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$@"; }

# Takes the builds for other versions of CUDA and other devices out of bitsandbytes: 200 MB that would be copied.
shrink() {
    "$PYTHON" - "$TARGET_CUDA" "$wheels"/bitsandbytes-*.whl <<'PY'
import os, re, sys, zipfile

cuda, path = sys.argv[1:]
foreign = re.compile(rf"(?!libbitsandbytes_cuda{cuda}\.)libbitsandbytes_(cuda|rocm|hip|xpu)")
smaller = path + ".part"
with zipfile.ZipFile(path) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
    for item in old.infolist():
        content = old.read(item)
        if item.filename.endswith(".dist-info/RECORD"):
            lines = content.decode().splitlines(keepends=True)
            content = "".join(line for line in lines if not foreign.search(line)).encode()
        if not foreign.search(item.filename):
            new.writestr(item, content)
os.replace(smaller, path)
PY
}

rm -rf "$wheels" && mkdir -p "$wheels"
for name in trl peft datasets hydra-core omegaconf rich dill multiprocess hjson pydantic annotated-types \
    typing-inspection liger-kernel; do
    fetch "$(pinned "$name")"
done
# pydantic works with one version of its core.
fetch "$(unzip -p "$wheels"/pydantic-2*.whl '*/METADATA' |
    sed -n 's/^Requires-Dist: \(pydantic-core==[0-9.]*\).*/\1/p')"
# These two come as source only, and are plain Python once built. DeepSpeed's build wants an installed torch.
build "$(pinned antlr4-python3-runtime)"
DS_BUILD_OPS=0 build --no-build-isolation "$(pinned deepspeed)"
fetch "$(pinned bitsandbytes)" && shrink
build .
du -sh .gpu
