"""Writes partitioned models with `save_partitioned`. Run by torchrun; each rank writes what it saw as JSON.

torchrun --nproc_per_node 2 -m tests.distributed.save_models ROOT

`ROOT/<case>/plain` holds a model or an adapter, and `ROOT/<case>/saved` is written from it, partitioned by ZeRO-3.
"""

import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from prefopt.distributed import weights
from prefopt.distributed.native_ops import leave_out_shared_memory


@dataclass
class Case:
    """What is loaded, and how it is saved.

    Attributes:
        base: The case whose model an adapter is put on.
        bf16: The model is loaded and trained in bfloat16.
        max_shard_bytes: As `save_partitioned` has it.
        num_steps: Optimizer steps before the model is saved; then `plain` is written anew, as transformers does today.
        fails_at: Number of the file at which the disk is full.
    """

    base: str | None = None
    bf16: bool = False
    max_shard_bytes: int = weights.MAX_SHARD_BYTES
    num_steps: int = 0
    fails_at: int | None = None


SHARD = 20_000
CASES = {
    "untied": Case(),
    "tied": Case(bf16=True),
    "disk_full": Case(max_shard_bytes=SHARD, fails_at=2),
    "sharded": Case(max_shard_bytes=SHARD),
    "trained": Case(max_shard_bytes=SHARD, num_steps=2),
    "renamed": Case(),
    "experts": Case(),
    "lora": Case(base="untied"),
    "dora": Case(base="untied"),
    "lora_and_head": Case(base="untied"),
    "trained_lora": Case(base="untied", num_steps=2),
}


class Gathered:
    """Bytes of the gathered tensors that are still in memory, and the most there ever were."""

    def __init__(self) -> None:
        self.alive = self.peak = 0

    def watch(self, gather: Any) -> Any:
        def watched(sources: list[torch.Tensor]) -> Iterator[torch.Tensor]:
            for tensor in gather(sources):
                storage = tensor.untyped_storage()
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.free, storage.nbytes())
                del storage
                yield tensor

        return watched

    def free(self, num_bytes: int) -> None:
        self.alive -= num_bytes


@contextmanager
def full_disk(fails_at: int | None) -> Iterator[list[str]]:
    """Names of the files that are written; the one with the given number is not."""
    names: list[str] = []

    def save(tensors: Any, path: Path, **options: Any) -> None:
        names.append(path.name)
        if len(names) == fails_at:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    save_file, weights.save_file = weights.save_file, save
    try:
        yield names
    finally:
        weights.save_file = save_file


def configure(case: Case) -> dict[str, Any]:
    """Norms stay whole on every rank, as in a large model; matrices are partitioned."""
    return {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 33},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": case.bf16},
    }


def start(case: Case, folder: Path) -> Any:
    """Loads a model as training does and hands it to DeepSpeed."""
    config = configure(case)
    alive = HfDeepSpeedConfig(config)  # while it lives, `from_pretrained` partitions
    model_path = folder if case.base is None else folder.parents[1] / case.base / "plain"
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
    if case.base is not None:
        model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    del alive
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def train(engine: Any, num_steps: int) -> None:
    batch = torch.arange(5, 25).reshape(1, -1)
    for _ in range(num_steps):
        engine.backward(engine(input_ids=batch, labels=batch).loss)
        engine.step()
    engine.eval()
    with torch.no_grad():
        engine(input_ids=batch)


def save(name: str, root: Path) -> dict[str, Any]:
    """One case, from loading to the files."""
    case, plain = CASES[name], root / name / "plain"
    engine = start(case, plain)
    train(engine, case.num_steps)
    model = engine.module
    if case.num_steps:
        state = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=case.base is not None)
        if state is not None:
            model.save_pretrained(
                plain, state_dict=state, **({} if case.base else {"max_shard_size": case.max_shard_bytes})
            )
    statuses = [parameter.ds_status.name for parameter in model.parameters()]
    gathered, gather, error = Gathered(), weights._gather, None
    weights._gather = gathered.watch(gather)
    with full_disk(case.fails_at) as files:
        try:
            weights.save_partitioned(model, root / name / "saved", max_shard_bytes=case.max_shard_bytes)
        except OSError as raised:
            error = str(raised)
    weights._gather = gather
    return {
        "error": error,
        "files": files,
        "obstacle": weights.find_obstacle(model),
        "num_partitioned": statuses.count("NOT_AVAILABLE"),
        "num_whole": statuses.count("AVAILABLE"),
        "statuses_are_as_before": statuses == [parameter.ds_status.name for parameter in model.parameters()],
        "peak_bytes": gathered.peak,
        "bytes_left": gathered.alive,
    }


def main(root: str) -> None:
    leave_out_shared_memory()
    state = PartialState(backend="gloo")
    deepspeed.init_distributed("gloo", dist_init_required=False)
    found = {name: save(name, Path(root)) for name in CASES}
    (Path(root) / f"rank{state.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
