#!/bin/sh
# Packages that people ask a gateway with, for the tests of this folder: 630 MB, a minute or two.
#     sh tests/sdks/setup.sh [FOLDER]        FOLDER: HEADRACE_SDKS, or .headrace/sdks in the repository
# Each gets a Python environment of its own, as they do not all agree on a version of OpenAI's client; those for node share
# one folder. What is there already is left alone. PYTHON names the Python to make them with, UV the installer.
# To test newer ones: uv pip compile --universal --python-version 3.11 --no-annotate --no-header.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=${1:-${HEADRACE_SDKS:-$here/../../.headrace/sdks}}
uv=${UV:-$here/../../.venv/bin/uv}
command -v "$uv" >/dev/null || {
    echo "there is no uv: make .venv/.installed-dev installs it, UV names another" >&2
    exit 1
}
mkdir -p "$folder"

for each in "$here"/requirements/*.txt; do
    name=$(basename "$each" .txt)
    cmp -s "$each" "$folder/$name/.made-of" && continue
    echo "headrace: installing $name into $folder" >&2
    rm -rf "${folder:?}/$name"
    "$uv" venv --quiet --python "${PYTHON:-python3}" "$folder/$name"
    "$uv" pip install --quiet --python "$folder/$name/bin/python" --requirement "$each"
    cp "$each" "$folder/$name/.made-of"
done

case ",${HEADRACE_TEST_SKIP:-}," in *,node,*) exit 0 ;; esac
cmp -s "$here/package-lock.json" "$folder/node/.made-of" && exit 0
echo "headrace: installing the packages for node into $folder" >&2
rm -rf "$folder/node"
mkdir "$folder/node"
cp "$here/package.json" "$here/package-lock.json" "$folder/node"
(cd "$folder/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
cp "$here/package-lock.json" "$folder/node/.made-of"
