#!/usr/bin/env bash
# The runs behind a table of results, and the table. Started again, it goes on where it was stopped; what is done is not done again.
#   bash launch/results.sh fast DATA       ResNet-20 and SE-ResNet-20 in 20 epochs of CIFAR-10, three seeds each
#   bash launch/results.sh table4 DATA     the paper's table 4: plain and SE ResNet-110, ResNet-164 and WRN-16-8, three seeds each
#   bash launch/results.sh ten DATA        ResNet-18 and SE-ResNet-18 on ten classes of ImageNet at 128 px, 20 epochs, two seeds each
# JOBS=2 does two at once. Flags for launch.train, as --gpus 8, may follow. Runs are in runs/results, their packed logs in runs/results/logs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

table=${1-} data=${2-}
ten=(data.classes=10 data.crop=128 data.resize=144 batch=128 optim.lr=0.1 epochs=20 schedule=cosine schedule.warmup=linear
  precision=bf16) # half the CPU time of fp32 if the CPU has AVX-512 BF16
case $table in
  fast) seeds=3 configs=(cifar10/fast_{,se_}resnet20) overrides=() ;;
  table4) seeds=3 configs=(cifar10/{,se_}resnet110 cifar10/{,se_}resnet164 cifar10/{,se_}wrn16_8) overrides=() ;;
  ten) seeds=2 configs=(imagenet/{,se_}resnet18) overrides=("${ten[@]}") ;;
  *) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
[[ -d $data ]] || { echo "no data at '$data': python -m launch.prepare makes some" >&2 && exit 2; }
shift 2

python=.venv/bin/python
runs=runs/results stopped=
trap 'stopped=yes; kill -TERM $(jobs -p) 2>/dev/null || true' INT TERM HUP # each run saves, and ends
for ((seed = 0; seed < seeds; seed++)); do
  for config in "${configs[@]}"; do
    out=$runs/$(basename "$config")/seed$seed
    [[ $stopped ]] && break 2
    $python -m launch.train "configs/$config.yaml" "${overrides[@]}" "seed=$seed" --data "$data" --out "$out" "$@" &
    while (($(jobs -rp | wc -l) >= ${JOBS:-1})); do
      wait -n || true # a run that fails does not keep the others from theirs
    done
  done
done
while [[ $(jobs -rp) ]]; do wait || true; done

$python -m launch.status $runs
begun=("$runs"/*/seed*)
$python -m launch.report "${begun[@]}" --pack $runs/logs >/dev/null
$python -m launch.report "${begun[@]}" --table
[[ ! $stopped ]] || exit 75 # as a run that was stopped does
