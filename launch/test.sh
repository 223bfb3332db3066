#!/usr/bin/env bash
# Everything that a change must pass: style, types, scripts, tests. Sets itself up in .venv.
#   bash launch/test.sh [--slurm] [pytest arguments]       e.g. -m "not slow" -k cifar
# --slurm installs Slurm and shellcheck by apt, as root, if they are missing; without it their tests are skipped, with the reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

slurm=
if [[ ${1-} == --slurm ]]; then
  slurm=yes
  shift
fi
python=.venv/bin/python

# The tests start a Slurm of their own, in a folder of their own.
packages=(munge slurmctld slurmd slurm-client shellcheck)
install_slurm() {
  local apt=(apt-get install --yes --quiet --quiet --no-install-recommends "${packages[@]}")
  export DEBIAN_FRONTEND=noninteractive
  echo "installing ${packages[*]}"
  "${apt[@]}" >/dev/null 2>&1 || { apt-get update --quiet --quiet && "${apt[@]}" >/dev/null; } ||
    echo "apt could not install them (see above): goes on without"
}
if ! hash munged slurmctld slurmd sbatch shellcheck 2>/dev/null; then
  if [[ ! $slurm && $EUID == 0 && -t 0 ]] && hash apt-get 2>/dev/null; then
    read -r -p "Install ${packages[*]} by apt, so that Slurm jobs are tested too? [y/N] " answer
    [[ $answer != [yY]* ]] || slurm=yes
  fi
  if [[ $slurm ]]; then
    install_slurm &
  else
    echo "no Slurm or shellcheck here: what needs them is skipped (--slurm installs them by apt, as root)"
  fi
fi
bash launch/setup.sh tools
wait

$python -m ruff check .
$python -m ruff format --check .
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
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-1}
unset PYTHONDONTWRITEBYTECODE # hundreds of them import the same

# Types are checked meanwhile, on one core for a minute.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
$python -m mypy >"$types" 2>&1 &
checked=$!
# Much of their time is waiting: three at once, a file at a time, so that what a file's tests share is made once.
failed=0
$python -m pytest --numprocesses "${PYTEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder "$@" || failed=$?
wait $checked || failed=1
cat "$types"
exit "$failed"
