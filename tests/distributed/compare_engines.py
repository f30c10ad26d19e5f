"""Trains with and without shared prompts under each ZeRO stage. Run by torchrun; rank 0 writes what was seen as JSON.

torchrun --nproc_per_node 2 -m tests.distributed.compare_engines MODEL ROWS RESULT
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
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt.distributed.native_ops import leave_out_shared_memory
from prefopt.models.shared_prefix import LAYOUT, PairLayout, SharedPrefix, find_obstacle

CASES = [(1, "full"), (2, "full"), (3, "full"), (3, "lora")]
ENGINES = ["trl", "shared_prefix"]


class WithLayout:
    """TRL's collator, and the layout of what it made."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        completions = batch["completion_mask"].sum(1)
        prompts = (batch["attention_mask"].sum(1) - completions)[: len(examples)]
        lengths = list(zip(prompts.tolist(), *(half.tolist() for half in completions.chunk(2)), strict=True))
        return batch | {LAYOUT: PairLayout.build(lengths, batch["input_ids"].shape[1])}


def train(model_path: str, rows: str, output: Path, *, stage: int, method: str, engine: str) -> dict[str, Any]:
    """Three DPO steps with a reference that differs from the policy."""
    AcceleratorState._reset_state(reset_partial_state=False)
    arguments = trl.DPOConfig(
        output_dir=str(output),
        deepspeed={
            "zero_optimization": {"stage": stage},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "gradient_clipping": "auto",
        },
        accelerator_config={"use_configured_state": True},
        per_device_train_batch_size=2,
        max_steps=3,
        learning_rate=3e-3,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
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
    if engine == "shared_prefix":
        trainer.data_collator = WithLayout(trainer.data_collator)
        for model in filter(None, (trainer.model, trainer.ref_model)):
            model = trainer.accelerator.unwrap_model(model)
            assert find_obstacle(model) is None
            SharedPrefix(model)
    rows_seen: list[int] = []
    trainer.accelerator.unwrap_model(trainer.model).get_input_embeddings().register_forward_hook(
        lambda module, args, output: rows_seen.append(len(output))
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    unset_hf_deepspeed_config()
    return {
        "losses": [entry["loss"] for entry in steps],
        "grad_norms": [entry["grad_norm"] for entry in steps],
        "margins": [entry["rewards/margins"] for entry in steps],
        "rows_seen": sorted(set(rows_seen)),
        "is_deepspeed_enabled": trainer.is_deepspeed_enabled,
        "distributed_type": str(trainer.accelerator.distributed_type),
        "stage": trainer.model_wrapped.zero_optimization_stage(),
        "num_partitioned": sum(hasattr(p, "ds_tensor") for p in trainer.model.parameters()),
        "num_parameters": sum(1 for _ in trainer.model.parameters()),
        "num_ranks": trainer.accelerator.num_processes,
    }


def main(model_path: str, rows: str, result: str) -> None:
    leave_out_shared_memory()
    state = PartialState(backend="gloo")
    found = {
        f"{stage}-{method}-{engine}": train(
            model_path, rows, Path(result).parent, stage=stage, method=method, engine=engine
        )
        for stage, method in CASES
        for engine in ENGINES
    }
    if state.is_main_process:
        Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
