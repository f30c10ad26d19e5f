# The environment of a cluster's jobs: copy it to a folder that all nodes see, adapt it, and name it in your profile,
#
#   environment: /shared/nlp/environment.sh        # conf/cluster, or cluster.environment=... on the command line
#
# Every job's script sources it first, on its first node, before Python starts; srun hands the variables on to the other
# nodes. It is sourced by bash under `set -u`: an unset variable is an error, so write ${NAME:-} where one may be unset,
# and put `set +u` and `set -u` around scripts that do not bear it (conda's are among them). If its last command fails,
# the job ends there. What is commented out below is an example.

# --- Software --------------------------------------------------------------------------------------------------------

# module purge
# module load gcc/12 cuda/12.6

# The job runs the interpreter that submitted it, by its path: an environment need not be activated for that. Activate
# it where programs beside Python have to be found.
# source /shared/nlp/prefopt/.venv/bin/activate

# --- Shared by all nodes: must lie on the shared disk ----------------------------------------------------------------

# Tokens and reference log-probs, computed once for all runs. Unset: the home folder.
# export PREFOPT_CACHE=/shared/nlp/cache/prefopt
# export HF_HOME=/shared/nlp/cache/huggingface

# --- On each node's own disk: many small files, of no use afterwards -------------------------------------------------

export TMPDIR=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}
export TRITON_CACHE_DIR=$TMPDIR/triton-${USER:-$(id -un)}-${SLURM_JOB_ID:-0}
export TORCHINDUCTOR_CACHE_DIR=$TMPDIR/inductor-${USER:-$(id -un)}-${SLURM_JOB_ID:-0}

# --- Network between the nodes ---------------------------------------------------------------------------------------

# The interface by which nodes reach each other, where NCCL and Gloo choose a wrong one: the preflight then says that
# there is no all-reduce. `ip -br addr` on a node lists them.
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=$NCCL_SOCKET_IFNAME
# export NCCL_IB_HCA=mlx5
# export NCCL_DEBUG=INFO

# --- Network to the outside ------------------------------------------------------------------------------------------

# Compute nodes seldom have one. Models then come from the cache alone, filled on the login node, and W&B records offline
# (prefopt sync sends it on).
# export HF_HUB_OFFLINE=1 WANDB_MODE=offline
# export https_proxy=http://proxy.example.org:3128

# --- Threads ---------------------------------------------------------------------------------------------------------

# The CPUs of a node divided by its ranks, unless it is set: here, or in the shell that submits.
# export OMP_NUM_THREADS=8
