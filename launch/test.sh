#!/usr/bin/env bash
# Everything that a change must pass: style, types, scripts, tests. Sets itself up in .venv.
#   bash launch/test.sh [pytest arguments]       e.g. -m "not slow" -k cifar
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh tools
python=.venv/bin/python

$python -m ruff check .
$python -m ruff format --check .
$python -m mypy
for script in launch/*.sh .ci/run $(find slurm -name '*.sh' -o -name '*.sbatch'); do
  bash -n "$script"
done

# Tests start several processes of their own; one thread in each is quickest on few cores and reproducible on many.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec $python -m pytest "$@"
