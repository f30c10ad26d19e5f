"""One rank of `benchmarks.checkpoints`: trains with a clock on what safety adds. Started by torchrun.

torchrun --standalone --nproc_per_node 2 -m benchmarks.checkpoints_rank FOLDER SETTINGS [OVERRIDE ...]

SETTINGS is a JSON object of the fields of `Settings`.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks.ranks import run_until_training
from prefopt.distributed import checkpoint as on_disk
from prefopt.distributed import group, saving
from prefopt.distributed.checkpoint import CheckpointFacts
from prefopt.distributed.saving import CheckpointSaver, find_newest
from prefopt.process.ranks import is_main, rank, world_size
from prefopt.storage import sealed
from prefopt.training import durable, training
from prefopt.training.durable import DurableTrainer

MIB = 2**20
BLOCK = 32 * MIB


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        agreements: Repetitions of the exchange at the end of a step.
        verifications: Of the last checkpoint of the run.
        rounds: Synthetic checkpoints.
        synthetic_mib: Size of each of them.
    """

    agreements: int
    verifications: int
    rounds: int
    synthetic_mib: int


@dataclass
class Clock:
    """Spans of time of wrapped functions: name, begin and seconds, in the order in which they ended."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spans.append((name, begun, time.perf_counter() - begun))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a span around each call."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return wrapped

    def timed_entering(self, name: str, manager: Callable[..., Any]) -> Callable[..., Any]:
        """The context manager, with a span around entering it."""

        @contextmanager
        def wrapped(*args: Any) -> Iterator[None]:
            with ExitStack() as stack:
                with self.span(name):
                    stack.enter_context(manager(*args))
                yield

        return wrapped

    def take(self) -> list[tuple[str, float, float]]:
        """The spans so far, which are forgotten."""
        taken, self.spans = self.spans, []
        return taken


TARGETS: tuple[tuple[Any, str, str], ...] = (
    (DurableTrainer, "end_step", "end_step"),
    (durable, "agree", "agree"),
    (DurableTrainer, "evaluate", "evaluate"),
    (DurableTrainer, "_save_checkpoint", "save"),
    (DurableTrainer, "_describe", "describe"),
    (saving, "save_weights", "weights"),
    (CheckpointSaver, "_seal", "seal"),
    (sealed, "bring_to_disk", "fsync"),
    (sealed, "hash_file", "hash"),
    (on_disk, "seal", "manifest"),
    (on_disk, "keep_newest", "rotate"),
)
"""Where a function is looked up, its name there, and the name of its spans."""


@contextmanager
def clocked(trainer: Any) -> Iterator[Clock]:
    """Puts the clock on everything that is measured."""
    clock = Clock()
    with ExitStack() as stack:
        for owner, name, label in TARGETS:
            stack.enter_context(mock.patch.object(owner, name, clock.timed(label, getattr(owner, name))))
        write = clock.timed("optimizer", trainer._save_optimizer_and_scheduler)
        stack.enter_context(mock.patch.object(trainer, "_save_optimizer_and_scheduler", write))
        stack.enter_context(mock.patch.object(durable, "during", clock.timed_entering("position", durable.during)))
        yield clock


def time_agreement(repetitions: int) -> list[float]:
    """Seconds of the exchange at the end of a step, when the ranks come to it at the same time."""
    seconds = []
    group.barrier()
    for step in range(repetitions):
        begun = time.perf_counter()
        with group.during(f"the end of step {step}"):
            group.agree(False, False, False)
        seconds.append(time.perf_counter() - begun)
    return seconds


def time_verification(folder: Path, *, cold: bool) -> float:
    """Seconds that a resume takes to find the newest checkpoint and to check its files."""
    if cold and is_main():
        for path in folder.rglob("*"):
            if path.is_file():
                drop_cache(path)
    group.barrier()
    begun = time.perf_counter()
    assert find_newest(folder) is not None, "a checkpoint has just been written"
    return time.perf_counter() - begun


def drop_cache(path: Path) -> None:
    """Lets the system forget a file's pages, so that the next reading is from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class SyntheticTrainer:
    """Saves files of the sizes of weights and of Adam's averages, one to two, as full fine-tuning in fp32 does."""

    def __init__(self, num_bytes: int) -> None:
        self.model = torch.nn.Module()
        self.is_deepspeed_enabled = False
        self.state = SimpleNamespace(global_step=0, save_to_json=lambda path: Path(path).write_text("{}"))
        self._block = os.urandom(min(BLOCK, num_bytes // 3))
        self._num_bytes = num_bytes

    def _save(self, folder: str) -> None:
        if is_main():
            self._write(Path(folder) / "model.safetensors", self._num_bytes // 3)

    def _save_optimizer_and_scheduler(self, folder: str) -> None:
        if is_main():
            self._write(Path(folder) / "optimizer.bytes", self._num_bytes * 2 // 3)

    def _save_scaler(self, folder: str) -> None:
        pass

    def _save_rng_state(self, folder: str) -> None:
        pass

    def _write(self, path: Path, num_bytes: int) -> None:
        with path.open("wb") as file:
            for start in range(0, num_bytes, len(self._block)):
                file.write(self._block[: num_bytes - start])


def time_synthetic(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Saves, seals and verifies checkpoints of a given size."""
    trainer, saver, rounds = SyntheticTrainer(settings.synthetic_mib * MIB), CheckpointSaver(folder, 1), []
    for number in range(1, settings.rounds + 1):
        trainer.state.global_step = number
        with clocked(trainer) as clock:
            begun = time.perf_counter()
            saved = saver.save(trainer, lambda: describe(trainer.state.global_step))
            total = time.perf_counter() - begun
            spans = clock.take()
        assert saved, "there is room"
        seconds = {"save_s": total, "cached_s": time_verification(folder, cold=False)}
        rounds.append({**seconds, "cold_s": time_verification(folder, cold=True), "spans": spans})
    group.barrier()
    if is_main():
        shutil.rmtree(folder)
    return rounds


def describe(step: int) -> CheckpointFacts:
    return CheckpointFacts(
        step=step,
        num_ranks=world_size(),
        zero_stage=None,
        batch_size=1,
        config="",
        wandb_id=None,
        windows=[],
        time_s=0.0,
    )


def main(argv: list[str]) -> None:
    folder, settings = Path(argv[0]), Settings(**json.loads(argv[1]))
    content: dict[str, Any] = {}

    def work(trainer: Any) -> None:
        run = trainer.run.directory
        with clocked(trainer) as clock:
            training.train(trainer, None)
            content["spans"] = clock.take()
        content["agreements_s"] = time_agreement(settings.agreements)
        newest = find_newest(run.checkpoints)
        assert newest is not None, "the last step was saved"
        content["checkpoint_bytes"] = sum(path.stat().st_size for path in newest.iterdir())
        content["verifications_s"] = [
            time_verification(run.checkpoints, cold=False) for _ in range(settings.verifications)
        ]
        content["synthetic"] = time_synthetic(folder / "synthetic", settings)

    run_until_training(argv[2:], work)
    (folder / f"{rank()}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
