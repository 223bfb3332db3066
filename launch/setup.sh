#!/usr/bin/env bash
# Make .venv at the root of the checkout, or bring it up to date.
#   bash launch/setup.sh [tools]       tools: also what launch/test.sh needs
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
tools=(mypy==2.4.1 pytest==9.2.0 pytest-xdist==3.8.0 ruff==0.17.6 types-PyYAML==6.0.12.20261113 types-tqdm==4.70.0.20261106 pyarrow==26.0.1 webdataset==1.0.2)

fail() {
  echo "error: $*" >&2
  exit 2
}

# install NAME SIZE PIP-ARGUMENTS: skipped when the stamp of NAME says that the same was installed before.
install() {
  local stamp=.venv/.installed-$1 wanted quiet=()
  wanted=$(printf '%s\n' "${@:3}" "$(<requirements.txt)" | sha256sum)
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  echo "installing $1 into .venv: $2"
  [[ -t 1 ]] || quiet=(--quiet) # pip shows its progress only on a terminal
  .venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check --no-input "${@:3}" ||
    fail "pip could not install $1 (see above); it needs PyPI or a mirror (PIP_INDEX_URL), and 7 GB of disk"
  echo "$wanted" >"$stamp"
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  command -v "$python" >/dev/null || fail "$python not found: install Python 3.10 or newer, or name one in PYTHON"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version) is too old: install Python 3.10 or newer, or name one in PYTHON"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module: apt-get install python3-venv (or your system's package of it)"
  "$python" -m venv --clear .venv
fi

install requirements "PyTorch with CUDA, DALI and others, 3.4 GB to download, 7 GB on disk" -r requirements.txt
if [[ ${1-} == tools ]]; then
  install tools "what launch/test.sh needs, 80 MB to download" "${tools[@]}"
fi
echo "ready; in each new shell: source .venv/bin/activate"
