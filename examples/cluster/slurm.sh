#!/usr/bin/env bash
# Runs one pit command on several machines: one torchrun per machine, one process per GPU.
#   sbatch --nodes 2 examples/cluster/slurm.sh rl --curriculum --save-every 10
# All machines must see the same run folder, data and model. With --requeue and --resume, a job that was stopped, or that
# lost a machine, resumes from its last checkpoint. At its first start there is none: --resume reports that and begins.
#SBATCH --job-name=pit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # download the model first, on a machine with network access

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m pitcli "$@" --resume
