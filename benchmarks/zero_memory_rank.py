"""One rank of `benchmarks.zero_memory`: trains a few steps and writes the bytes of its tensors. Started by torchrun.

torchrun --standalone --nproc_per_node 2 -m benchmarks.zero_memory_rank FOLDER BUCKET [OVERRIDE ...]

BUCKET is DeepSpeed's reduce_bucket_size; 0 leaves prefopt's DeepSpeed configuration as it is.
"""

import gc
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.ranks import run_until_training
from prefopt.config.load import load_config
from prefopt.config.schema import DeepSpeedConfig
from prefopt.distributed.deepspeed import build_deepspeed
from prefopt.process.ranks import rank
from prefopt.training import arguments
from prefopt.training.callbacks import StepCallback

CATEGORIES = ("buckets", "weights", "adam", "master", "gradients", "other")
"""A storage belongs to the first that claims it."""
ZERO_GRADIENTS = ("averaged_gradients", "all_grad_tensors", "grads_in_partition", "grad_partitions_flat_buffer")
"""Attributes of DeepSpeed's optimizers that hold gradients between the backward and the update."""


class Watch(TrainerCallback):
    """Counts tensors in the last step: when the last gradient is there, and when the step is over."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._num_waiting = 0
        self.moments: dict[str, dict[str, Any]] = {}
        self.loading_peak_rss = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self._trainer.model.parameters():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
        self.loading_peak_rss = read_memory("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        is_last = state.global_step == state.max_steps - 1
        self._num_waiting = sum(1 for _ in self._trainer.model.parameters()) if is_last else 0

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        self._num_waiting -= 1
        if self._num_waiting == 0:
            self._look("backward")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self._look("step_end")

    def _look(self, moment: str) -> None:
        rss = read_memory("VmRSS")
        self.moments[moment] = {"bytes": count_bytes(self._trainer), "rss": rss}


def count_bytes(trainer: Any) -> dict[str, int]:
    """Bytes of the distinct storages of all tensors of this process, by category."""
    parameters = list(trainer.model.parameters())
    wrapped = trainer.model_wrapped
    adam = trainer.optimizer
    while hasattr(adam, "optimizer"):
        adam = adam.optimizer
    zero = wrapped.optimizer if trainer.is_deepspeed_enabled else None
    buckets = [bucket.buffer for bucket in zero.ipg_buckets.values()] if zero is not None else []
    found = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    claims = {
        "buckets": buckets,
        "weights": [parameters, [getattr(parameter, "ds_tensor", None) for parameter in parameters]],
        "adam": list(adam.state.values()),
        "master": [
            [settings["params"] for settings in adam.param_groups],
            getattr(zero, "fp32_partitioned_groups_flat", None),  # stage 3 shows them to Adam during the update alone
        ],
        "gradients": [
            [tensor.grad for tensor in found if tensor.is_leaf],
            [getattr(zero, name, None) for name in ZERO_GRADIENTS],
        ],
        "other": found,
    }
    counted = count_storages({name: find_tensors(claims[name]) for name in CATEGORIES})
    if zero is None and hasattr(wrapped, "_get_ddp_logging_data"):
        counted["buckets"] += read_ddp_buckets(wrapped)
    return counted


def count_storages(claims: dict[str, Iterable[torch.Tensor]]) -> dict[str, int]:
    """Bytes of distinct storages; one that several categories claim counts for the first of them."""
    seen: set[int] = set()
    counted = dict.fromkeys(claims, 0)
    for name, tensors in claims.items():
        for tensor in tensors:
            if tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                counted[name] += storage.nbytes()
    return counted


def find_tensors(item: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dicts."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, dict | list | tuple):
        for part in item.values() if isinstance(item, dict) else item:
            yield from find_tensors(part)


def read_ddp_buckets(model: Any) -> int:
    """Bytes of the buckets of DDP's reducer, a second copy of the gradients that Python does not see."""
    facts = model._get_ddp_logging_data()
    assert not facts["gradient_as_bucket_view"], "gradients would be views of them"
    sizes = facts["rebuilt_bucket_sizes"] if facts["has_rebuilt_buckets"] else facts["bucket_sizes"]
    return sum(int(size) for size in sizes.split(","))


def read_memory(name: str) -> int:
    """Bytes of `VmRSS` (resident) or `VmHWM` (its peak) of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def main(argv: list[str]) -> None:
    folder, bucket = Path(argv[0]), int(argv[1])

    def with_bucket(config: DeepSpeedConfig) -> dict[str, Any] | None:
        settings = build_deepspeed(config)
        if settings is not None and bucket:
            settings["zero_optimization"]["reduce_bucket_size"] = bucket
        return settings

    if load_config(argv[2:]).deepspeed.stage is not None:
        import deepspeed  # noqa: F401 (before the baseline, as every other import)
    baseline = read_memory("VmRSS")
    content: dict[str, Any] = {}

    def work(trainer: Any) -> None:
        """`prefopt.training.training.train` without a reference, a metrics log and checkpoints."""
        watch = Watch(trainer)
        trainer.args.save_strategy = "no"
        trainer.remove_callback(PrinterCallback)
        for callback in (StepCallback(trainer), watch):
            trainer.add_callback(callback)
        trainer.train()
        content["steps_peak_rss"] = read_memory("VmHWM")
        content["baseline_rss"], content["loading_peak_rss"] = baseline, watch.loading_peak_rss
        content["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
        content["moments"] = watch.moments

    with mock.patch.object(arguments, "build_deepspeed", with_bucket):
        run_until_training(argv[2:], work)
    (folder / f"{rank()}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
