#!/bin/bash
# gpt3-13b on 8 nodes of 8 H100: sbatch docs/launch/slurm.sh, in a folder that all nodes share, with `zoo` on PATH there.
# One process a node; each uses all GPUs of its own.
#SBATCH --job-name=zoo
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Two minutes before the end of its time a run is told to leave: it saves first. What follows srun below queues the job again, for
# Slurm does so by itself only after preemption or the failure of a node.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# Process 0 of srun is on the first node of the list.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export COORDINATOR="$first:29500"

# What one process leaves with ends all: the others would wait for it.
code=0
srun --kill-on-bad-exit=1 bash -c '
    exec zoo train gpt3-175b --name gpt3-13b \
        --model.layers 40 --model.width 5120 --model.heads 40 --model.ffn 20480 \
        --mesh.fsdp 64 --mesh.tensor 1 --data.batch 512 --data.ramp --accumulate 1 \
        --data.paths corpus/ --tokenizer.path tokenizer/ \
        --processes "$SLURM_NTASKS" --process "$SLURM_PROCID" --coordinator "$COORDINATOR"
' || code=$?

# 143: it was told to leave, and has saved. 75: it was stuck. Queued again, it goes on from its newest checkpoint.
case "$code" in
    143) scontrol requeue "$SLURM_JOB_ID" ;;
    75) [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
