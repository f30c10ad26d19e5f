#!/bin/bash
# voice: prefopt.train on 1 node x 8 GPUs
# Written by prefopt.submit. It may be read, changed, and submitted again with sbatch.
#SBATCH --job-name=voice
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gres=gpu:8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=/shared/project/runs/voice/slurm/train-%j.log
#SBATCH --requeue

set -u
cd /shared/project || exit 1
export OMP_NUM_THREADS=8 # not what the submitting shell had
python=(.venv/bin/python)

# What runs: the folder of the run, and the overrides of prefopt.train.
run=/shared/project/runs/voice
overrides=(
    +experiment=dpo_brand_voice
    run.root=/shared/project/runs
    run.name=voice
)
job=$SLURM_JOB_ID
attempt=$run/slurm/$job-${SLURM_RESTART_COUNT:-0} # what this attempt says besides its log
mkdir -p "$attempt" || exit 1
export PREFOPT_ATTEMPT=$attempt PYTHONFAULTHANDLER=1 # where ranks leave what a user must mend
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$attempt/nccl_

# Where the ranks meet: the first node, by the address that Slurm itself uses, and a port that every node can derive.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node -o "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# Slurm tells this script of the time limit (USR1, 300 s before) and of the end (TERM). Every rank gets USR1 through
# srun, saves and ends; TERM would make srun kill the ranks at once.
step=
trap '[ -n "$step" ] && kill -USR1 "$step"' USR1 TERM
on_every_node() {
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=64 "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends a wait, and then has its place in $?
    wait "$step"
    code=$?
    step=
}

# Queues the job again, and leaves out the nodes it is given besides those left out before. Not if somebody has cancelled
# it, or Slurm itself is queueing it again. Then waits to be killed: a job that ends by itself meanwhile counts as failed.
queue_again() {
    for _ in {1..5}; do # a controller that is busy may answer later
        state=$(squeue --noheader --jobs="$job" --format=%T) && break
        sleep 10
    done
    [ "$state" = RUNNING ] || return
    trap '' TERM
    scontrol requeue "$job" || return
    if [ -n "${1:-}" ]; then
        left_out=$(scontrol show job -o "$job" | sed -n 's/.* ExcNodeList=\([^( ][^ ]*\) .*/\1,/p')
        scontrol update JobId="$job" ExcNodeList="$left_out$1"
    fi
    sleep 300
}

# A look at every node. A bad one is named, and left out when the job is queued again, as is what was left out before.
bad_nodes=$run/slurm/$job.bad_nodes
on_every_node --kill-on-bad-exit=0 --wait=120 "${python[@]}" -m prefopt.cluster.preflight look "$attempt" \
    --nodes=1 --gpus=8 --min-free-gib=10.0
if ! bad=$("${python[@]}" -m prefopt.cluster.preflight judge "$attempt" --nodes=1); then
    echo "$bad" >>"$bad_nodes"
    # Above 128: a signal ended the look.
    if { [ -n "$bad" ] || [ "$code" -gt 128 ]; } && [ "$(wc -l <"$bad_nodes")" -le 3 ]; then
        queue_again "$bad"
    fi
    exit 1
fi
rm -f "$bad_nodes"

on_every_node --kill-on-bad-exit=0 --wait=600 bash -c 'PET_NODE_RANK=$SLURM_NODEID exec "$@"' torchrun \
    "${python[@]}" -m torch.distributed.run --nnodes=1 --nproc_per_node=8 --max_restarts=0 \
    --rdzv_backend=static --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout=300 \
    -m prefopt.train "${overrides[@]}"

# What comes next follows from what the run says of itself (status.json), not from an exit code.
next=$("${python[@]}" -m prefopt.cluster.attempts "$run" --job="$job" --code="$code" --attempt="$attempt" \
    --max-attempts=100 --max-crashes=3)
case $next in
done) exit 0 ;;
again) queue_again ;;
esac
exit $((code == 0 ? 1 : code))
