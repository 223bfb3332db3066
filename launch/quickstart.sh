#!/usr/bin/env bash
# From a fresh clone to a trained SE-ResNet in a few minutes: set-up, demo data, training, evaluation. No GPU and no download of data needed.
#   bash launch/quickstart.sh
# Everything lands in .venv and runs/quickstart; a second run reuses it, and goes on where an interrupted one stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
python=.venv/bin/python
out=runs/quickstart

# A process per GPU, or two on the CPU to have something to distribute. A power of two divides the batch of 32; more than four
# processes would leave too few images to each for batch normalisation.
processes=$($python -c 'import torch; n = torch.cuda.device_count(); print(4 if n >= 4 else 1 if n == 1 else 2)')
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
distributed=("$python" -m torch.distributed.run --standalone "--nproc-per-node=$processes")

$python -m launch.prepare demo $out/data

log=$out/run/log.jsonl
before=$([[ ! -f $log ]] || wc -l <$log)
SECONDS=0
"${distributed[@]}" -m launch.train configs/debug/demo.yaml --data $out/data --out $out/run &
training=$!
# Ctrl-C or TERM end it with a checkpoint. wait returns at once when a signal comes, so it is asked again.
trap 'kill -TERM $training 2>/dev/null || true' INT TERM HUP
while
  code=0
  wait $training || code=$?
  kill -0 $training 2>/dev/null
do :; done
trap - INT TERM HUP
if ((code)); then
  $python -m launch.status $out/run >&2 || true
  echo "training ended early (exit code $code); the same command goes on from its last checkpoint" >&2
  exit $code
fi
seconds=$SECONDS

"${distributed[@]}" -m launch.evaluate $out/run --data $out/data --json >$out/errors.json
$python - $out/errors.json <<'END'
import json, sys
errors = json.loads(open(sys.argv[1]).read().splitlines()[-1])
print(f"\ntop-1 error {errors['top1_error']:.2f} %, top-5 error {errors['top5_error']:.2f} %", end=" ")
print(f"on {errors['images']} validation images (guessing: 90 %, 50 %)")
END
$python -m launch.report $out/run >/dev/null
if (($(wc -l <$log) > ${before:-0})); then
  echo "training took $seconds s on $processes processes"
else
  echo "nothing to train: the run was finished before; remove $out to start over"
fi
echo "look into:"
echo "  $out/run/report/index.html  the page of the run: curves, errors, most wrong images; open it in a browser"
echo "  $out/run            checkpoints, config, log of the run"
echo "  $out/data           the pictures"
echo "  $out/errors.json    the errors above"
