#!/usr/bin/env bash
# What a CUDA device can show and a CPU cannot, in steps that each have a time limit; below ten minutes in all.
#
#   bash benchmarks/gpu/run.sh                     # every step
#   bash benchmarks/gpu/run.sh smoke bench         # some
#   bash benchmarks/gpu/run.sh --print e2e         # what a step would run, and nothing is run
#
#   smoke     README's command as it is typed, in fp32 and in bf16
#   tests     tests/gpu
#   bench     one step of DPO at 1B against TRL, equality first: pairs/s, MFU, memory
#   e2e       whole runs of a 1B model with random weights through prefopt.train: where the seconds go
#   zero      ZeRO-2 and ZeRO-3 on one device
#   qlora     a 4-bit base
#   kernels   steps with Liger's layers and without agree, in fp32 and in bf16
#   memory    a step of 3B and 8B: bytes, beside those that docs/scaling.md computes
#
# Run it in a checkout on a machine with one CUDA device, torch, transformers, accelerate and pytest. It takes prefopt as
# it is installed, else from .gpu/whl (benchmarks/gpu/prepare.sh; no network needed), else from the package index. A
# step that fails does not stop the others, and the last lines say which passed; the exit status is their number.
#
# Settings, by environment:
#   OUT      folder for the steps' output and results; default below WORK
#   WORK     folder for what is installed, for models and for runs; default below the temporary folder
#   MODELS   of `bench`; default 1B
#   PAIRS    of `bench`; default "1024/256 mixed 256/96"
set -u
cd "$(dirname "$0")/../.." || exit
export WORK=${WORK:-${TMPDIR:-/tmp}/prefopt-gpu} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true
export OUT=${OUT:-$WORK/out}
ALL=(smoke tests bench e2e zero qlora kernels memory)
declare -A LIMIT_S=([smoke]=55 [tests]=100 [bench]=95 [e2e]=140 [zero]=65 [qlora]=40 [kernels]=30 [memory]=70)
PRINTS=${PRINTS:-}

# Runs a command, or prints it with --print.
run() {
    if [[ $PRINTS ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

train() {
    local began=$SECONDS code
    run python3 -m prefopt.train logger=none "run.root=$WORK/runs" run.overwrite=true "$@"
    code=$?
    [[ $PRINTS ]] || echo "--- $* took $((SECONDS - began)) s in all"
    return $code
}

step_of_dpo() { run python3 -m benchmarks.dpo_step --device cuda "$@"; }

# A 1B model with random weights and the shipped tokenizer, which several steps use.
model_1b() { [[ -z $PRINTS && -d $WORK/1B ]] || run python3 -m benchmarks.random_model 1B "$WORK/1B"; }

smoke() {
    train +experiment=dpo_brand_voice run.name=smoke &&
        train +experiment=dpo_brand_voice run.name=smoke_bf16 trainer.precision=bf16
}

tests() { run python3 -m pytest tests/gpu -q -p no:cacheprovider --maxfail=10 --tb=short; }

bench() {
    local models pairs
    read -ra models <<<"${MODELS:-1B}"
    read -ra pairs <<<"${PAIRS:-1024/256 mixed 256/96}"
    step_of_dpo --model "${models[@]}" --pairs "${pairs[@]}" --peft none lora --rounds 4 --write
}

e2e() {
    local common=(algorithm=dpo model=hf "model.path=$WORK/1B" data=brand_voice trainer.precision=bf16
        trainer.max_steps=30 trainer.per_device_batch_size=16 trainer.log_every=10)
    local failed=0
    model_1b || return
    train "${common[@]}" run.name=e2e_lora peft=lora || failed=1
    train "${common[@]}" run.name=e2e_full peft=none || failed=1
    return $failed
}

zero() {
    local stage failed=0
    for stage in zero2 zero3; do
        run python3 -m torch.distributed.run --standalone --nproc-per-node 1 -m prefopt.train logger=none \
            "run.root=$WORK/runs" run.overwrite=true +experiment=dpo_brand_voice "deepspeed=$stage" \
            trainer.precision=bf16 trainer.max_steps=16 "run.name=$stage" || failed=1
    done
    return $failed
}

qlora() {
    model_1b && train algorithm=dpo model=hf "model.path=$WORK/1B" data=brand_voice peft=qlora trainer.precision=bf16 \
        trainer.max_steps=10 run.name=qlora
}

kernels() {
    run python3 -c 'import liger_kernel' &&
        step_of_dpo --model small --pairs 256/96 --rounds 1 --dtype fp32 &&
        step_of_dpo --model small --pairs 256/96 --rounds 1 --dtype bf16 --peft none lora
}

memory() { step_of_dpo --model 3B 8B --pairs 1024/256 --rounds 1 --peft lora none --write dpo_step_memory; }

# Makes prefopt importable.
install() {
    local site=$WORK/site
    if [[ -d .gpu/whl ]]; then
        local pip=(python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site")
        [[ -d $site ]] || "${pip[@]}" .gpu/whl/*.whl || return
        rm -rf "$site"/prefopt "$site"/prefopt-*
        "${pip[@]}" --upgrade .gpu/whl/prefopt-*.whl || return
        export PYTHONPATH=$site:$PWD HF_HUB_OFFLINE=1
    elif ! python3 -c 'import prefopt' 2>/dev/null; then
        # Without constraints, so that the torch of the machine, which fits its driver, stays.
        [[ -d $WORK/venv ]] || python3 -m venv --system-site-packages "$WORK/venv" || return
        export PATH=$WORK/venv/bin:$PATH
        python3 -m pip install --quiet '.[qlora]' liger-kernel pytest setuptools wheel || return
        DS_BUILD_OPS=0 python3 -m pip install --quiet --no-build-isolation 'deepspeed>=0.19.8,<0.20' || return
    fi
}

# Copies the results of this card to $OUT.
collect() {
    local card
    card=$(python3 -c 'import torch
from benchmarks.results import name_machine
print(name_machine(torch.cuda.get_device_name()))') || return
    [[ -d benchmarks/results/$card ]] && mkdir -p "$OUT/results" && cp -r "benchmarks/results/$card" "$OUT/results/"
    local work
    for work in "$WORK"/runs/*/work.json; do
        [[ -f $work ]] && cp "$work" "$OUT/$(basename "$(dirname "$work")").work.json"
    done
}

main() {
    if [[ ${1:-} == --print ]]; then
        PRINTS=yes
        shift
    fi
    local step steps=("${@:-${ALL[@]}}")
    [[ $# -gt 0 ]] || steps=("${ALL[@]}")
    for step in "${steps[@]}"; do
        [[ -v LIMIT_S[$step] ]] || { echo "$step: no such step. There are: ${ALL[*]}" >&2 && exit 2; }
    done
    if [[ $PRINTS ]]; then
        for step in "${steps[@]}"; do "$step"; done
        return
    fi
    mkdir -p "$OUT" && install || exit
    { nvidia-smi -L && python3 -c 'import torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__)'; } 2>&1 | tee "$OUT/machine.log"
    local began=$SECONDS passed=() failed=()
    for step in "${steps[@]}"; do
        echo "=== $step (at most ${LIMIT_S[$step]} s)"
        local step_began=$SECONDS code
        timeout --kill-after=5 "${LIMIT_S[$step]}" bash benchmarks/gpu/run.sh --only "$step" >"$OUT/$step.log" 2>&1
        code=$?
        tail -n 60 "$OUT/$step.log" | cut -c1-220
        local told="$step ($((SECONDS - step_began)) s"
        case $code in
            0) passed+=("$told)") ;;
            124 | 137) failed+=("$told, time limit)") ;;
            *) failed+=("$told, exit $code)") ;;
        esac
    done
    collect
    echo "=== $((SECONDS - began)) s; output and results: $OUT"
    echo "passed: ${passed[*]:-none}"
    echo "failed: ${failed[*]:-none}"
    exit ${#failed[@]}
}

# A step runs in a process of its own, which the time limit ends with all that it started.
if [[ ${1:-} == --only ]]; then
    "$2"
else
    main "$@"
fi
