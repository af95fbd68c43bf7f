#!/usr/bin/env bash
# One process of a run, on the machine where it computes: sets the compiler's flags, then becomes the training command.
#
#   train.sh tpu|gpu ARG…    as python -m deltalm_jax.train ARG…, with PYTHON or this checkout's .venv/bin/python
#
# Flags that are set already win: deltalm_jax/parallel/flags.py.
set -euo pipefail
source "$(dirname "$0")/commands.sh"

[[ ${1:-} != --help && $# -ge 1 ]] || { words_with_help && exit 0; }
python=${PYTHON:-$ROOT/.venv/bin/python}
need "$python" "Run launch/install.sh $1 first, or name another in PYTHON."
settings=$("$python" -m deltalm_jax.parallel.flags "$1")
shift
while IFS= read -r setting; do
  [[ ! $setting ]] || export "${setting?}"
done <<<"$settings"
exec "$python" -m deltalm_jax.train "$@"
