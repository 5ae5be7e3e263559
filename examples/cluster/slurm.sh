#!/usr/bin/env bash
# One command of pit over several machines: torchrun once a machine, one process a GPU.
#   sbatch --nodes 2 examples/cluster/slurm.sh rl --curriculum --save-every 10
# All machines must see the same run folder, data and model. --requeue and --resume: a job that was stopped, or that lost a
# machine, goes on from its last checkpoint; at its first start there is none, and --resume then says so and begins.
#SBATCH --job-name=pit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # fetch the model before, where there is a network

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m pitcli "$@" --resume
