"""Proves of a fault: the same command, run again, ends with the result of a run to which nothing happened.

`Arena.survive(mode, fault)` starts a run, lets the fault happen, runs the same command until it is done, and compares
everything that the run leaves with the undisturbed run of the mode.
"""

import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.storage.files import read_lines
from prefopt.tracking.metrics import TIMES
from tests.faults.hooks import Injection
from tests.zygote import Ranks, Zygote

NAME = "test"
KEPT = 2
NUM_ROWS = 22
STEPS = 12
"""In two epochs: 5 steps of 4 pairs and one of 2. A run saves after 4, 8 and 12, evaluates after 5, 10 and 12."""
ATTEMPTS = 1
"""How often the command may have to be run again once nothing happens to it any more."""
DEADLINE_S = 600.0
PREEMPTED = 75
REFUSED = 2
FAILED = 1

Ended = list[int]
"""Exit codes by rank, negative for a signal."""


@dataclass(frozen=True)
class Mode:
    """How a run is spread over processes.

    Attributes:
        ranks: 0 for one process without a launcher.
        overrides: What the mode sets; a step sees 4 pairs in 2 forwards per rank in every mode.
        has_dropout: With it a random state that is not restored shows; without it the engine shares prompts.
    """

    name: str
    ranks: int
    overrides: tuple[str, ...]
    has_dropout: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode("single", 0, ("trainer.per_device_batch_size=2",)),
        Mode("ddp", 2, ("trainer.per_device_batch_size=1",), has_dropout=True),
        Mode("zero2", 2, ("trainer.per_device_batch_size=1", "deepspeed=zero2")),
        Mode("zero3", 2, ("trainer.per_device_batch_size=1", "deepspeed=zero3"), has_dropout=True),
    )
}


@dataclass
class Attempt:
    """A running command."""

    ranks: Ranks
    run: Path
    bell: Path

    def wait_until_reached(self) -> None:
        """Returns when a rank pauses in the place of the injection."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(self.bell.glob("reached-*")):
            assert not self.ranks.poll(), f"the place was never reached:\n{self.ranks.output()}"
            assert time.monotonic() < deadline, f"the place was not reached in time:\n{self.ranks.output()}"
            time.sleep(0.005)

    def release(self) -> None:
        """Lets ranks go on that pause."""
        (self.bell / "go").touch()

    def wait(self) -> Ended:
        return self.ranks.wait(DEADLINE_S)

    def wait_for_others(self) -> Ended:
        """For a rank that pauses for good, which nobody need wait for once another one has failed."""
        return self.ranks.wait(DEADLINE_S, grace_s=1)


@dataclass(frozen=True)
class Fault:
    """What happens to a run, once.

    Attributes:
        name: In words, for ids and tables.
        strike: Makes it happen to a running command, and returns when that has ended.
        injection: What is built into the ranks for it.
        codes: Exit codes of the ranks that are right; None if any are.
        state: `state` in status.json after it; None if any is right.
        messages: What the output must hold.
        overrides: What is added to the command for this attempt.
        afterwards: Done with the run's folder before the command is run again.
    """

    name: str
    strike: Callable[[Attempt], Ended]
    injection: Injection | None = None
    codes: frozenset[int] | None = None
    state: str | None = None
    messages: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    afterwards: Callable[[Path], None] = field(default=lambda run: None)


def killed(name: str, at: Injection, *, only: int | None = None) -> Fault:
    """SIGKILL of one rank or of all in a place."""
    return _signalled(f"kill {_whom(only)} {name}", at, signal.SIGKILL, only, codes=None, state=None)


def stopped(
    name: str,
    at: Injection,
    number: signal.Signals = signal.SIGTERM,
    *,
    only: int | None = None,
    codes: frozenset[int] = frozenset({PREEMPTED}),
) -> Fault:
    """A request to stop, to one rank or to all, in a place: every rank ends with 75."""
    return _signalled(f"{number.name} to {_whom(only)} {name}", at, number, only, codes=codes, state="preempted")


def _whom(only: int | None) -> str:
    return "all" if only is None else f"rank {only}"


def _signalled(name: str, at: Injection, number: signal.Signals, only: int | None, **expected: Any) -> Fault:
    def strike(attempt: Attempt) -> Ended:
        attempt.wait_until_reached()
        attempt.ranks.kill(number, only=only)
        attempt.release()
        return attempt.wait()

    return Fault(name, strike, at, **expected)


def after(delay_s: float, number: signal.Signals, *, only: int | None = None) -> Fault:
    """A signal after some time, wherever the run is then."""

    def strike(attempt: Attempt) -> Ended:
        time.sleep(delay_s)
        attempt.ranks.poll()
        attempt.ranks.kill(number, only=only)
        return attempt.wait()

    return Fault(f"{number.name} to {_whom(only)} after {delay_s:.2f} s", strike)


def damaged(name: str, damage: Callable[[Path], None], at: Injection) -> Fault:
    """A kill of all ranks in a place, and something done to the checkpoints before the next attempt."""
    plain = killed("", at)
    return Fault(f"{name} after a kill", plain.strike, at, afterwards=lambda run: damage(run / "checkpoints"))


def survived(name: str, at: Injection, *messages: str) -> Fault:
    """Something that a run gets over by itself."""
    return Fault(name, Attempt.wait, at, frozenset({0}), "done", messages)


class Arena:
    """Where runs meet faults: data, a model, a folder for each run, and what undisturbed runs left.

    Args:
        zygote: Starts the ranks.
        folder: For everything that is written.
        model: A small model without dropout.
        pairs: Files with training and held-out pairs.
    """

    def __init__(self, zygote: Zygote, folder: Path, model: Path, pairs: tuple[Path, Path]) -> None:
        self._zygote, self._folder, self._pairs = zygote, folder, pairs
        self._undisturbed: dict[str, Path] = {}
        self._durations_s: dict[str, float] = {}
        self._model, self._dropping = model, shutil.copytree(model, folder / "model")
        config = read_json(model / "config.json") | {"attention_dropout": 0.2}
        (self._dropping / "config.json").write_text(json.dumps(config))

    def new_folder(self) -> Path:
        """A folder for one run: `runs` and `cache` will be in it."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def undisturbed(self, mode: Mode) -> Path:
        """The folder of a run to which nothing happened; run once."""
        if mode.name not in self._undisturbed:
            attempt = self.start(mode, self.new_folder())
            codes = attempt.wait()
            assert set(codes) == {0}, f"exit codes {codes}:\n{attempt.ranks.output()}"
            check_equal(attempt.run, attempt.run)
            self._undisturbed[mode.name] = attempt.run
        return self._undisturbed[mode.name]

    def duration_s(self, mode: Mode) -> float:
        """How long a command takes here; measured once, after the undisturbed run has warmed up what is shared."""
        self.undisturbed(mode)
        if mode.name not in self._durations_s:
            begun = time.monotonic()
            assert set(self.start(mode, self.new_folder()).wait()) == {0}
            self._durations_s[mode.name] = time.monotonic() - begun
        return self._durations_s[mode.name]

    def start(
        self, mode: Mode, folder: Path, injection: Injection | None = None, overrides: Sequence[str] = ()
    ) -> Attempt:
        """Starts the command of a mode; the same one for the same folder."""
        bell = Path(tempfile.mkdtemp(dir=folder, prefix="bell-"))
        ranks = self._zygote.start(
            [*self._argv(mode, folder), *overrides],
            ranks=mode.ranks,
            log=folder / "output.log",
            hooks="tests.faults.hooks" if injection is not None else None,
            PREFOPT_CACHE=str(folder / "cache"),
            **(injection.environment(bell) if injection is not None else {}),
        )
        return Attempt(ranks, folder / "runs" / NAME, bell)

    def survive(self, mode: Mode, *faults: Fault, folder: Path | None = None) -> list[Ended]:
        """Lets faults happen, one to each attempt, runs the same command until it is done, and compares.

        Returns:
            The exit codes of every attempt.
        """
        expected = self.undisturbed(mode)
        folder = folder or self.new_folder()
        run = folder / "runs" / NAME
        attempts = []
        for fault in faults:
            attempt = self.start(mode, folder, fault.injection, fault.overrides)
            attempts.append(fault.strike(attempt))
            self._check(fault, attempts[-1], attempt)
            fault.afterwards(run)
        while read_json(run / "status.json").get("state") != "done":
            assert len(attempts) < len(faults) + ATTEMPTS, f"not done after {attempts}:\n{attempt.ranks.output()}"
            attempt = self.start(mode, folder)
            attempts.append(attempt.wait())
            assert set(attempts[-1]) == {0}, f"exit codes {attempts}:\n{attempt.ranks.output()}"
        check_equal(run, expected, attempt.ranks.output())
        return attempts

    def _check(self, fault: Fault, codes: Ended, attempt: Attempt) -> None:
        output, status = attempt.ranks.output(), read_json(attempt.run / "status.json")
        assert fault.codes is None or set(codes) <= fault.codes, f"exit codes {codes}:\n{output}"
        assert fault.state in (None, status.get("state")), f"{status}:\n{output}"
        for message in fault.messages:
            assert message in output, f"not in the output: {message}\n{output}"

    def _argv(self, mode: Mode, folder: Path) -> list[str]:
        return [
            "model=hf",
            f"model.path={self._dropping if mode.has_dropout else self._model}",
            f"+trainer.extra.disable_dropout={str(not mode.has_dropout).lower()}",
            "data=files",
            f"data.train={self._pairs[0]}",
            f"data.held_out={self._pairs[1]}",
            f"run.root={folder / 'runs'}",
            f"run.name={NAME}",
            "run.timeout_s=60",
            "logger=none",
            "optim.learning_rate=1e-3",
            "trainer.num_epochs=2",
            "trainer.gradient_accumulation_steps=2",
            "trainer.log_every=3",
            "trainer.save_every=4",
            "trainer.eval_every=5",
            f"trainer.keep_checkpoints={KEPT}",
            "trainer.log_rows=true",
            "evaluation.batch_size=2",
            "evaluation.num_samples=0",
            "evaluation.neutral_texts=null",
            "evaluation.bootstrap_resamples=20",
            *mode.overrides,
        ]


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def check_equal(run: Path, expected: Path, output: str = "") -> None:
    """Asserts that two runs have left the same, apart from times and from what the protocol leaves of a fault."""
    for name in ("metrics.jsonl", "rows.jsonl"):
        found, wanted = read_records(run / name), read_records(expected / name)
        different = [pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]]
        numbers = f"{len(found)} records for {len(wanted)}"
        assert found == wanted, f"{name}: {numbers}, first different: {different[:1]}\n{output}"
    _check_epochs(read_records(run / "rows.jsonl"))
    assert _weights(run / "model") == _weights(expected / "model"), f"the weights differ:\n{output}"
    assert _report(run) == _report(expected), f"the reports differ:\n{output}"
    status = read_json(run / "status.json")
    assert (status["state"], status["step"], status["message"]) == ("done", STEPS, ""), status
    _check_names(run, expected)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Lines without what a clock decides."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in read_lines(path)]


def _check_epochs(rows: list[dict[str, Any]]) -> None:
    assert [record["step"] for record in rows] == list(range(1, STEPS + 1))
    for first in range(0, STEPS, STEPS // 2):
        epoch = [row for record in rows[first : first + STEPS // 2] for row in record["rows"]]
        assert sorted(epoch) == list(range(NUM_ROWS))


def _weights(model: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in model.glob("*.safetensors")}
    assert found
    return found


def _report(run: Path) -> dict[str, Any]:
    report = read_json(run / "report" / "report.json")
    report["audit"].pop("date")
    return {k: v for k, v in report.items() if k not in ("date", "throughput", "phases", "provenance")}


def _check_names(run: Path, expected: Path) -> None:
    assert [path.name for path in run.parent.iterdir()] == [NAME], "something is left beside the run"
    assert _names(run) == _names(expected), f"names differ: {_names(run) ^ _names(expected)}"
    kept = {int(path.name.removeprefix("step-")): path for path in (run / "checkpoints").glob("step-*")}
    assert STEPS in kept
    assert len(kept) <= KEPT, f"too many checkpoints: {sorted(kept)}"
    others = {path.name for path in (run / "checkpoints").iterdir()} - {path.name for path in kept.values()}
    assert all(re.fullmatch(r"damaged-step-\d+", name) for name in others), others
    shape = _checkpoint_names(expected / "checkpoints" / f"step-{STEPS}")
    for path in kept.values():
        assert _checkpoint_names(path) == shape, f"{path}: names differ: {_checkpoint_names(path) ^ shape}"


def _names(run: Path) -> set[str]:
    """Everything in a run's folder but the checkpoints, and what attempts that failed have said of it."""
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    return {name for name in names if not name.startswith("checkpoints/")} - {"error.log"}


def _checkpoint_names(checkpoint: Path) -> set[str]:
    names = (str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*"))
    return {re.sub(r"global_step\d+", "global_step", name) for name in names}


@contextmanager
def mounted(folder: Path, size: str = "64m") -> Iterator[Path]:
    """A file system in memory at `folder`; needs the right to mount.

    Raises:
        subprocess.CalledProcessError: There is no such right.
    """
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Changes options, such as `ro`, of what `mounted` made."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
