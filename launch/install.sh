#!/usr/bin/env bash
# Installs this checkout for an accelerator into its .venv: again, it brings it up to date.
#
#   install.sh tpu|gpu
#
# uv brings Python 3.12 along where the machine has none of 3.11 to 3.13 (TPU VMs have 3.10).
set -euo pipefail
source "$(dirname "$0")/commands.sh"

[[ ${1:-} == tpu || ${1:-} == gpu ]] || { words_with_help && exit 2; }
cd "$ROOT"
uv=$(command -v uv || echo "$ROOT/.venv_uv/bin/uv")
[[ -x $uv ]] || python3 -m pip install --quiet --disable-pip-version-check --target .venv_uv uv
[[ -x .venv/bin/python ]] || "$uv" venv --quiet --python '>=3.11,<3.14' .venv
"$uv" pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable ".[$1,gcs]"
echo "$(uname -n): installed in $ROOT/.venv"
