#!/bin/bash
# Collect the wheels that a machine with PyTorch, transformers, PEFT and the usual scientific packages lacks:
#
#   scripts/gpu/prepare.sh FOLDER        # needs the network; versions are those of constraints.txt
#   scripts/gpu/run.sh OUT --wheels FOLDER     # on the machine with the GPU, without network
#
# PYTHON_VERSION (3.12) and PLATFORM (manylinux_2_28_x86_64) describe that machine; PYTHON is the interpreter that
# runs pip here and has torch, which DeepSpeed's build imports.
set -euo pipefail
folder=${1:?usage: scripts/gpu/prepare.sh FOLDER}
checkout=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$checkout/.venv/bin/python}
mkdir -p "$folder"
# torch, numpy and what they need are left to the machine, whose builds fit its driver
packages="transformers tokenizers peft hydra-core omegaconf datasets evaluate dill multiprocess xxhash fsspec pydantic
  pydantic-core annotated-types typing-inspection typing-extensions platformdirs regex shtab tabulate scikit-learn joblib
  threadpoolctl narwhals cloudpickle requests urllib3 idna certifi charset-normalizer trl hjson ninja msgpack py-cpuinfo
  einops pytest-timeout"
sources="antlr4-python3-runtime deepspeed"   # published without wheels

pinned() {
  for name in "$@"; do
    grep -iE "^$name==" "$checkout/constraints.txt" || { echo "constraints.txt has no version of $name" >&2; exit 1; }
  done
}

# shellcheck disable=SC2046,SC2086
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$folder" \
  --implementation cp --python-version "${PYTHON_VERSION:-3.12}" --platform "${PLATFORM:-manylinux_2_28_x86_64}" \
  --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 $(pinned $packages)
# shellcheck disable=SC2046,SC2086
DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --wheel-dir "$folder" $(pinned $sources)
du -sh "$folder"
