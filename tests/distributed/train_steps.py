"""Trains under each ZeRO stage, or goes on from checkpoints of another number of ranks. Run by torchrun.

torchrun --nproc_per_node N -m tests.distributed.train_steps MODEL ROWS FOLDER [RANKS THAT WROTE THE CHECKPOINTS]

Rank 0 writes what was seen to FOLDER/<N>.json; the checkpoints of a case lie in FOLDER/<stage>-<method>-<N>.
"""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import trl
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import reduce
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt.distributed.native_ops import leave_out_shared_memory
from prefopt.distributed.universal import SeparateSteps, load_universal, make_universal

CASES = [(stage, method) for stage in (1, 2, 3) for method in ("full", "lora")]
CONTROLS = [(2, "full", "forgotten"), (3, "full", "unmended")]
"""What must be seen to differ: an optimizer without its state, and stage 3 as DeepSpeed loads it."""
STEPS, SAVED = 4, 2
BATCH = 6
"""Pairs per step over all ranks: 1, 2 and 3 ranks can share it."""


class Watch(TrainerCallback):
    """Takes the one checkpoint, and looks at the optimizer where it is taken or has been loaded."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == SAVED:
            self.look(**kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == SAVED:
            self.look(**kwargs)
            control.should_save = True

    def on_train_end(self, args, state, control, optimizer, **kwargs):
        self.seen["steps"] = [float(values["step"]) for values in adam_of(optimizer).state.values()]

    def look(self, optimizer: Any, **kwargs: Any) -> None:
        """Notes the norms of Adam's averages over all ranks, and what holds for each group."""
        adam = adam_of(optimizer)
        for key in ("exp_avg", "exp_avg_sq"):
            squares = sum(values[key].double().square().sum() for values in adam.state.values())
            self.seen[key] = float(reduce(squares, "sum").sqrt())
        self.seen["weight_decays"] = [group["weight_decay"] for group in adam.param_groups]


class Forget(TrainerCallback):
    """Zeroes the optimizer's averages, as if only the weights had been loaded."""

    def on_train_begin(self, args, state, control, optimizer, **kwargs):
        for values in adam_of(optimizer).state.values():
            values["exp_avg"].zero_()
            values["exp_avg_sq"].zero_()


def adam_of(optimizer: Any) -> torch.optim.Optimizer:
    return optimizer.optimizer.optimizer


def train(
    model_path: str, rows: str, output: Path, *, stage: int, method: str, resumed: Path | None, control: str = ""
) -> dict[str, Any]:
    """DPO with warm-up, decay and clipping in force; saves in the middle."""
    AcceleratorState._reset_state(reset_partial_state=False)
    ranks = PartialState().num_processes
    per_device = min(3, BATCH // ranks)
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:  # parameters are parted and sub-groups many, as in large models
        zero |= {"stage3_param_persistence_threshold": 0, "sub_group_size": 3000}
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    arguments = trl.DPOConfig(
        output_dir=str(output),
        deepspeed={
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "gradient_clipping": "auto",
        },
        accelerator_config={"use_configured_state": True},
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=BATCH // ranks // per_device,
        train_sampling_strategy="sequential",
        max_steps=STEPS,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        weight_decay=0.1,
        max_grad_norm=0.5,
        bf16=False,
        logging_steps=1,
        save_strategy="no",  # Watch asks for the one that is wanted
        report_to=[],
        disable_tqdm=True,
    )
    is_lora = method == "lora"
    data = Dataset.from_list([json.loads(line) for line in Path(rows).read_text().splitlines()])
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        ref_model=None if is_lora else AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear") if is_lora else None,
    )
    if resumed is not None:
        load_universal(trainer)
    if control == "unmended":
        trainer.remove_callback(SeparateSteps)
    if control == "forgotten":
        trainer.add_callback(Forget())
    watch = Watch()
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    engine = trainer.model_wrapped
    entries = [entry for entry in trainer.state.log_history if "loss" in entry and entry["step"] > SAVED]
    unset_hf_deepspeed_config()
    return watch.seen | {
        "losses": [entry["loss"] for entry in entries],
        "grad_norms": [entry["grad_norm"] for entry in entries],
        "learning_rates": [entry["learning_rate"] for entry in entries],
        "engine": type(engine).__name__,
        "stage": engine.zero_optimization_stage(),
        "loads_universal": engine.load_universal_checkpoint(),
        "ranks": engine.dp_world_size,
    }


def main(model_path: str, rows: str, folder: str, source: str = "") -> None:
    leave_out_shared_memory()
    state = PartialState(backend="gloo")
    work, ranks = Path(folder), state.num_processes
    found = {}
    controls = CONTROLS if source and ranks == 1 else []
    for stage, method, control in [(*case, "") for case in CASES] + controls:
        resumed = None
        if source:
            resumed = work / f"resharded-{stage}-{method}-{ranks}"
            if state.is_main_process:
                make_universal(work / f"{stage}-{method}-{source}" / f"checkpoint-{SAVED}", resumed)
            state.wait_for_everyone()
        name = f"{stage}-{method}{'-' if control else ''}{control}"
        output = work / f"{stage}-{method}-{ranks}"
        found[name] = train(model_path, rows, output, stage=stage, method=method, resumed=resumed, control=control)
    if state.is_main_process:
        (work / f"{ranks}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
