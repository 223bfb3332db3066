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

# A Slurm for the tests to start, and a linter of scripts. Elsewhere those tests are skipped, saying why.
packages=(munge slurmctld slurmd slurm-client shellcheck)
if [[ $EUID == 0 ]] && command -v apt-get >/dev/null && ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
  echo "installing ${packages[*]}"
  install=(apt-get install --yes --quiet --quiet --no-install-recommends "${packages[@]}")
  export DEBIAN_FRONTEND=noninteractive
  "${install[@]}" >/dev/null 2>&1 || { apt-get update --quiet --quiet && "${install[@]}" >/dev/null; } ||
    echo "apt could not install them (see above): goes on without"
fi
scripts=(launch/*.sh .ci/run slurm/*.sh slurm/*.sbatch)
for script in "${scripts[@]}"; do
  bash -n "$script"
done
if command -v shellcheck >/dev/null; then
  shellcheck --external-sources "${scripts[@]}"
else
  echo "no shellcheck here: scripts are only parsed"
fi

# Tests start several processes of their own; one thread in each is quickest on few cores and reproducible on many.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Much of their time is waiting: two at once, a file at a time, so that what a file's tests share is made once.
exec $python -m pytest --numprocesses "${PYTEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
