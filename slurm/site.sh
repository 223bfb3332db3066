# shellcheck shell=bash disable=SC2034
# The one file to edit for a cluster. The scripts beside it source it at the start of a job, and `python -m launch.submit` reads it; so
# it only sets variables, and what takes time or has effects is in `enter`. Another file: --site FILE, or SENET_SITE=FILE by hand.

# What sbatch is asked for besides nodes, GPUs and time; empty leaves it to the cluster, which often means one core. Flags of launch.submit
# go before these.
partition=
account=
qos=
cpus=8               # cores a process, for decoding: 8 to 16 a GPU
mem=16G              # memory a process; 0: all of a node's
gpu=                 # the GPUs' name for launch.plan, as h100: launch.submit then says how many starts a training will take
sbatch_options=()    # all else, as in (--exclusive --constraint=h100)

# Where things are, the same on all nodes.
data=                                   # data set when --data is not given
python=$SENET_ROOT/.venv/bin/python     # in the container, where there is one
host_python=$python                     # outside of it: Python 3.10 with PyYAML, to read a run's state and a file's variants

# A container, one of: Apptainer or Singularity (a command before python), pyxis and enroot (options of srun).
container=()         # (apptainer exec --nv --bind /data /images/senet.sif)
srun_options=()      # (--container-image=/images/senet.sqsh --container-mounts=/data,"$SENET_ROOT" --container-workdir="$SENET_ROOT")

# How processes are bound to cores near their GPU: a mode of torchrun's --numa-binding, or empty. Used where GPUs and numactl are there.
numa=node

# Seconds that nodes get to end once one of them has ended: for the last checkpoint and W&B. KillWait of the cluster bounds a scancel.
patience=90

# Called once on the first node of a job; the other nodes inherit the environment.
enter() {
  # module load cuda/13
  # export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5
  # export WANDB_MODE=offline          # nodes without a way out
  :
}
