#!/usr/bin/env bash
# The four verbs on all GPUs of one machine, with either launcher. Each process takes its part of every step; the first
# one writes and speaks. A stopped command goes on with --resume, on fewer or more GPUs too.
#   examples/cluster/launch.sh hh.jsonl drafts.jsonl
set -euo pipefail
data=${1:?preference pairs} drafts=${2:?drafts to improve}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

torchrun --nproc-per-node "$gpus" -m pitcli train-reward --data "$data"
torchrun --nproc-per-node "$gpus" -m pitcli sft --data "$data"
accelerate launch --multi_gpu --num_processes "$gpus" -m pitcli rl --curriculum
accelerate launch --multi_gpu --num_processes "$gpus" -m pitcli improve --input "$drafts" --output improved.jsonl --max-iters 5
