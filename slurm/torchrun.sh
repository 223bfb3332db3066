# shellcheck shell=bash disable=SC2154
# Sourced: what the scripts beside it share. `job` is this job's id as Slurm's commands take it.

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() {
  printf '%(%F %T)T slurm: %s\n' -1 "$*"
}

# distributed ATTEMPT MODULE [ARGUMENT ...]: one torchrun a node, a process a GPU (or PROCS_PER_NODE). Becomes srun: start it with &.
distributed() {
  local restart=${SLURM_RESTART_COUNT:-0} first address port processes cores
  # Slurm knows a node by an address that works, which its name need not.
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  [[ $(scontrol show node --oneliner "$first") =~ NodeAddr=([^ ]+) ]]
  address=${BASH_REMATCH[1]}
  # Of its own for each job that could share the node, and for each start: a torchrun of the start before may still hold the last one.
  port=$((10000 + (SLURM_JOB_ID * 16 + (restart + $1) % 16) % 20000))
  processes=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
  # srun does not inherit it, and one core would be the default.
  cores=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$patience
  # No --max-restarts: the job itself starts it again, and counts progress.
  # --wait and no --kill-on-bad-exit: the node that writes the checkpoint is not the first to end.
  # --export=ALL: a job of --export=NONE (or SBATCH_EXPORT=NONE) would hand nothing to its nodes, not even what `enter` has set.
  # shellcheck disable=SC2016
  exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cores" \
    --export=ALL --cpu-bind=none --kill-on-bad-exit=0 --wait="$patience" "${srun_options[@]}" \
    "${container[@]}" bash -c '
      numa=$1 python=$2
      shift 2
      if [[ -n $numa && -e /proc/driver/nvidia/version ]] && command -v numactl >/dev/null; then
        set -- --numa-binding="$numa" "$@"
      fi
      exec "$python" -m torch.distributed.run "$@"' torchrun "$numa" "$python" \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$processes" --max-restarts=0 \
    --rdzv-backend=c10d --rdzv-endpoint="$address:$port" --rdzv-id="$SLURM_JOB_ID-$restart-$1" -m "${@:2}"
}
