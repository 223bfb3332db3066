#!/usr/bin/env bash
# Run Python on null GPUs:  bash tests/nullgpu/run.sh -m launch.train ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
libraries=$("$python" -c 'from tests.nullgpu.build import build; print(build())')
export NULLGPU_SHARED=${NULLGPU_SHARED:-$(mktemp -d)} NULLGPU_LIBRARY=$libraries/libnull.so
export PYTHONPATH="$PWD/tests/nullgpu/site:$PWD" LD_PRELOAD=$libraries/libnull.so LD_LIBRARY_PATH=$libraries/lib
export TRITON_LIBCUDA_PATH=$libraries/lib TORCHINDUCTOR_COMPILE_THREADS=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" "$@"
