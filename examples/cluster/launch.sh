#!/usr/bin/env bash
# Runs the four distributed commands on all GPUs of one machine, with torchrun or accelerate. Each process computes its
# share of every step; only rank 0 writes files and prints. To resume a stopped command, add --resume; the number of GPUs
# may change.
#   examples/cluster/launch.sh hh.jsonl drafts.jsonl
set -euo pipefail
data=${1:?expected a file of preference pairs} drafts=${2:?expected a file of drafts to improve}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

torchrun --nproc-per-node "$gpus" -m pitcli train-reward --data "$data"
torchrun --nproc-per-node "$gpus" -m pitcli sft --data "$data"
accelerate launch --multi_gpu --num_processes "$gpus" -m pitcli rl --curriculum
accelerate launch --multi_gpu --num_processes "$gpus" -m pitcli improve --input "$drafts" --output improved.jsonl --max-iters 5
