"""A checkpoint of full fine-tuning against `torch.save` of the same tensors and one read of them.

python -m benchmarks.checkpoint_speed
python -m benchmarks.checkpoint_speed --gib 8 --write

One process and tensors in memory, a third weights and two thirds Adam's averages. "prefopt" is all of a save: weights
in safetensors, state, both on the disk and with their SHA-256, manifest, sealed, the checkpoint before it removed.
"torch" is `torch.save` of the same tensors and a read of the file, without waiting for the disk; "torch, on disk"
waits for it too. Rounds alternate, the files of a round are gone before the next, and the fastest of each counts.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.checkpoints_rank import describe
from benchmarks.results import write_results
from prefopt.distributed.saving import CheckpointSaver
from prefopt.storage.files import bring_to_disk

GIB = 2**30
TENSOR_BYTES = 2**26
BLOCK = 2**24
TARGET = 0.8


class TensorTrainer:
    """Saves tensors in memory as full fine-tuning does: weights once, and twice as much of the optimizer's."""

    def __init__(self, num_bytes: int) -> None:
        self.model = torch.nn.Module()
        self.is_deepspeed_enabled = False
        self.state = SimpleNamespace(global_step=0, save_to_json=lambda path: Path(path).write_text("{}"))
        number = max(1, num_bytes // 3 // TENSOR_BYTES)
        self.weights, self.first, self.second = (
            {f"{i}": torch.randn(TENSOR_BYTES // 4) for i in range(number)} for _ in range(3)
        )

    @property
    def num_bytes(self) -> int:
        return 3 * len(self.weights) * TENSOR_BYTES

    def _save(self, folder: str) -> None:
        save_file(self.weights, Path(folder) / "model.safetensors")

    def _save_optimizer_and_scheduler(self, folder: str) -> None:
        torch.save([self.first, self.second], Path(folder) / "optimizer.pt")

    def _save_scaler(self, folder: str) -> None:
        pass

    def _save_rng_state(self, folder: str) -> None:
        pass


def measure(folder: Path, trainer: TensorTrainer, rounds: int) -> dict[str, float]:
    """Seconds of the fastest round of each."""
    saver, seconds = CheckpointSaver(folder / "checkpoints", 1), {}

    def save() -> None:
        trainer.state.global_step += 1
        assert saver.save(trainer, lambda: describe(trainer.state.global_step)), "there is room"

    def save_plainly(*, on_disk: bool) -> None:
        path = folder / "plain.pt"
        torch.save([trainer.weights, trainer.first, trainer.second], path)
        if on_disk:
            bring_to_disk(path)
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK):
                pass

    ways: dict[str, Callable[[], None]] = {
        "prefopt": save,
        "torch": lambda: save_plainly(on_disk=False),
        "torch, on disk": lambda: save_plainly(on_disk=True),
    }
    for _ in range(rounds):
        for name, way in ways.items():
            os.sync()
            begun = time.perf_counter()
            way()
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - begun)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "plain.pt").unlink(missing_ok=True)
    return seconds


def main(argv: list[str]) -> None:
    """Measures, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=3.0, help="size of a checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the file system to measure; unset: the temporary one")
    parser.add_argument("--write", action="store_true", help="write results/<machine>/checkpoint_speed.json")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    trainer = TensorTrainer(int(args.gib * GIB))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        seconds = measure(Path(folder), trainer, args.rounds)
    result: dict[str, Any] = {"gb": trainer.num_bytes / 1e9, "rounds": args.rounds, "seconds": seconds}
    result["ratios"] = {name: value / seconds["prefopt"] for name, value in seconds.items() if name != "prefopt"}
    for name, value in seconds.items():
        console.print(f"{name}: {value:.2f} s, {result['gb'] / value:.2f} GB/s", highlight=False)
    for name, ratio in result["ratios"].items():
        console.print(f"prefopt's speed / {name}: {ratio:.2f}", highlight=False)
    console.print(f"target: {TARGET} of torch: {'met' if result['ratios']['torch'] >= TARGET else 'missed'}")
    if args.write:
        path = write_results("checkpoint_speed", result, packages=("torch", "safetensors"), argv=argv)
        console.print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
