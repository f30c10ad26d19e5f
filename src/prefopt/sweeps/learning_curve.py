"""Trains on growing parts of the data, one training after the other, and measures all on the same held-out pairs."""

import hashlib
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat, LoggerName
from prefopt.config.gate import GateConfig
from prefopt.config.load import fingerprint
from prefopt.config.schema import DataConfig, TrainConfig
from prefopt.data.conversion import to_row
from prefopt.data.formats.writing import as_json
from prefopt.data.loading import read_pairs, read_splits
from prefopt.data.reading import read_records
from prefopt.data.records import PreferencePair, Record
from prefopt.data.split import nested_subsets, number_prompts
from prefopt.evaluation.learning_curve import LearningCurve, Trained, fit_learning_curve
from prefopt.process.errors import EndedError, UserError, explained
from prefopt.process.ranks import is_launched
from prefopt.reports.learning_curve import describe_point, describe_start
from prefopt.reports.publish import PAIRS
from prefopt.runs.directory import RunDirectory, State
from prefopt.storage.files import PARTIAL, delete, read_objects

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the training prompts, smallest first."""
NUM_SEEDS = 3
MIN_PROMPTS = 16
"""Fewest training prompts: an eighth of them are two."""
MIN_HELD_OUT_PROMPTS = 10
"""Fewest held-out prompts: below, an interval says nothing."""
TOKENISING = (
    "as_chat",
    "max_length",
    "on_bad",
    "on_long_prompt",
    "on_long_completion",
    "on_extra_eos",
    "on_control_token",
)
"""Settings of the data that act when rows are tokenised. The others have acted when the parts are written."""

Train = Callable[[TrainConfig], RunDirectory]


@dataclass(frozen=True)
class _Point:
    """A training of the curve.

    Attributes:
        share: Share of the training prompts.
        seed: Seed of the choice of prompts, and of the training.
        config: Its settings.
        num_rows: Number of its training rows.
    """

    share: float
    seed: int
    config: TrainConfig
    num_rows: int

    @property
    def run(self) -> RunDirectory:
        return RunDirectory.of(self.config)


@dataclass(frozen=True)
class _Result:
    """What a finished training has left: its accuracy per held-out pair, and how long it took."""

    trained: Trained
    base: "np.ndarray[Any, np.dtype[np.bool_]]"
    sources: list[str]
    seconds: float


def measure_learning_curve(config: TrainConfig, folder: Path, train: Train, console: Console) -> LearningCurve:
    """Trains with these settings on an eighth, a quarter, half and all of the training prompts, by three seeds each.

    A seed draws the order in which prompts are added, so that each part holds the smaller ones, and the order of the
    training. The held-out pairs are those of the run with these settings, for all points.

    All points train on equally many examples, the smaller ones in more passes. With equally many epochs the smaller
    ones would take fewer steps, and what more steps gain would pass for what more data gain: half of the brand-voice
    pairs reach 81 % in one epoch, but 98 % in two, as all of them do in one.

    The same call goes on where it was stopped: a point that is done is read, not trained again. `run.time_limit` holds
    for each training.

    Args:
        config: The settings of the run; it is not changed.
        folder: Gets the parts of the data, a folder per point (its report, not its model) and a log of each.
        train: Trains one run, and returns it: `prefopt.train`.
        console: Where progress is shown.

    Raises:
        UserError: There are too few prompts, or no held-out pairs; or a training has failed for such a reason.
        Preempted: A stop was asked for.
    """
    if is_launched():
        raise UserError("--learning-curve trains one run after the other in one process: leave out torchrun.")
    folder = folder.absolute()
    with explained(folder, "written", "Free space, or choose another folder."):
        points, prompts = _plan(config, folder)
    results: dict[int, _Result] = {}
    for number, point in enumerate(points):
        result = _read_result(point)
        if result is not None:
            results[number] = result
    left = [number for number in range(len(points)) if number not in results]
    told = describe_start([point.num_rows for point in points], len(results), _estimate(len(left), results.values()))
    console.print(told)
    for number in left:
        results[number] = _train_point(points[number], folder, train)
        place, rest = f"{len(results)}/{len(points)}", _estimate(len(points) - len(results), results.values())
        console.print(describe_point(place, results[number].trained, results[number].seconds, rest))
    found = [results[number] for number in range(len(points))]
    if any(result.sources != found[0].sources for result in found):
        raise EndedError(f"{folder}: the trainings were measured on different held-out pairs. Remove the folder.")
    numbers = np.array([prompts[int(source.rpartition(":")[2]) - 1] for source in found[0].sources])
    rows = "pairs" if config.algorithm.trains_pairs else "demonstrations"
    return fit_learning_curve([result.trained for result in found], numbers, found[0].base, rows)


def _plan(config: TrainConfig, folder: Path) -> tuple[list[_Point], list[int]]:
    """Writes the parts of the data; returns all trainings, and the prompt number of each row of the held-out file.

    The name of a file contains a digest of its rows, and that of a run one of its settings. So nothing of earlier data
    or settings is taken for a point of these.
    """
    splits = read_splits(config.data, kind=config.algorithm.rows, seed=config.run.seed)
    measured = splits.held_out if config.algorithm.trains_pairs else _read_pairs(config, splits.train)
    if not measured:
        how = "data.held_out_fraction=0.1" if config.algorithm.trains_pairs else "evaluation.pairs=<file of pairs>"
        raise UserError(f"--learning-curve: no held-out pairs to measure the accuracy on. Set {how}.")
    _require_prompts("training", splits.train, MIN_PROMPTS)
    _require_prompts("held-out", measured, MIN_HELD_OUT_PROMPTS)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    pairs = _write_rows(data, "pairs", measured)
    held_out = pairs if config.algorithm.trains_pairs else None
    points = []
    for seed in range(config.run.seed, config.run.seed + NUM_SEEDS):
        for share, records in zip(SHARES, nested_subsets(splits.train, SHARES, seed=seed), strict=True):
            part = _write_rows(data, f"train-{len(records)}", records)
            settings = _settings(config, folder, part, held_out, pairs, seed)
            settings.trainer.num_epochs *= len(splits.train) / len(records)
            settings.run.name = f"train-{len(records)}-seed-{seed}-{fingerprint(settings)[:8]}"
            points.append(_Point(share, seed, settings, len(records)))
    return points, number_prompts(measured)


def _read_pairs(config: TrainConfig, trained: Sequence[Record]) -> Sequence[Record]:
    """Reads the pairs on which an SFT run is measured."""
    if config.evaluation.pairs is None:
        return []
    whole = {"train": config.evaluation.pairs, "held_out": None, "held_out_fraction": 0.0, "format": DataFormat.auto}
    return read_pairs(replace(config.data, **whole), trained).train


def _require_prompts(which: str, records: Sequence[Record], least: int) -> None:
    found = len(set(number_prompts(records)))
    if found < least:
        raise UserError(f"--learning-curve: {found} {which} prompts, and it takes at least {least}. Give more rows.")


def _write_rows(folder: Path, name: str, records: Sequence[Record]) -> Path:
    """Writes records as rows in TRL's format into a file of their digest, and checks that they are read as they were.

    Raises:
        UserError: A row is read differently.
    """
    digest = hashlib.sha256()
    partial = folder / f"{name}-{uuid.uuid4().hex[:12]}{PARTIAL}"
    try:
        with partial.open("wb") as file:
            for record in records:
                line = f"{as_json(to_row(record))}\n".encode()
                digest.update(line)
                file.write(line)
        path = folder / f"{name}-{digest.hexdigest()[:12]}.jsonl"
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    kind: Kind = "preference" if isinstance(records[0], PreferencePair) else "sft"
    again = read_records(str(path), format=DataFormat.trl, kind=kind).records
    for before, after in zip(records, again, strict=True):
        if to_row(before) != to_row(after):
            raise UserError(f"{before.source}: this row changes when it is written to {path} and read again.")
    return path


def _settings(
    config: TrainConfig, folder: Path, part: Path, held_out: Path | None, pairs: Path, seed: int
) -> TrainConfig:
    """Returns the settings of a point: the user's, without what only a report for people needs."""
    kept = {name: getattr(config.data, name) for name in TOKENISING}
    has_pairs_apart = held_out is None
    return replace(
        config,
        run=replace(config.run, root=str(folder), seed=seed, overwrite=False),
        data=DataConfig(
            train=str(part),
            held_out=None if has_pairs_apart else str(held_out),
            held_out_fraction=0.0 if has_pairs_apart else DataConfig.held_out_fraction,
            format=DataFormat.trl,
            gate=GateConfig.off(),  # it was for all the data together
            **kept,
        ),
        logger=replace(config.logger, name=LoggerName.none),
        trainer=replace(
            config.trainer,
            eval_every=config.trainer.eval_every if config.trainer.callbacks else None,  # these may use its results
            keep_best=None,
            keep_checkpoints=1,
            log_rows=False,
        ),
        evaluation=replace(
            config.evaluation,
            pairs=str(pairs) if has_pairs_apart else None,
            max_train_examples=1,
            num_samples=0,
            contestants=["base", "tuned"],
            judges=[],
            tasks=[],
            num_shown_samples=0,
            neutral_texts=None,
        ),
    )


def _train_point(point: _Point, folder: Path, train: Train) -> _Result:
    """Trains a point; what the training prints goes to its log."""
    log = folder / f"{point.run.path.name}.log"
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        train(point.config)
    result = _read_result(point)
    if result is None:
        raise EndedError(f"{point.run.path}: this training of the learning curve has no result. See {log}.")
    return result


def _read_result(point: _Point) -> _Result | None:
    """Reads the result of a point, and frees its space; None if it is not done."""
    run = point.run
    report = run.read_report() if run.read_status().get("state") == State.done.value else {}
    if not report or not (run.report / PAIRS).is_file():
        return None
    for bulky in (run.model, run.checkpoints):
        delete(bulky)
    rows = read_objects(run.report / PAIRS)
    tuned, base = (_hits(run, rows, name) for name in ("tuned", "base"))
    about = report["run"]
    trained = Trained(point.share, about["data"]["num_train"], point.seed, tuned, about["steps"])
    spent = sum((report.get("phases") or {}).values())
    return _Result(trained, base, [row["source"] for row in rows], spent)


def _hits(run: RunDirectory, rows: Sequence[dict[str, Any]], model: str) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Returns which pairs a model ranks right, shape (pairs,).

    Raises:
        EndedError: Some of its margins are not finite; pairs.jsonl has null for them.
    """
    margins = [row[f"{model}_margin"] for row in rows]
    if num := sum(margin is None or not isfinite(margin) for margin in margins):
        raise EndedError(
            f"{run.path}: the margins of {model} are not finite for {num} of {len(margins)} held-out pairs, so its "
            "accuracy is none. Lower optim.learning_rate, or give model.path whole weights: that is another curve."
        )
    return np.array(margins) > 0


def _estimate(num_left: int, results: Collection[_Result]) -> float | None:
    """Estimates the seconds that so many more trainings take: as long as those that are done; None before the first.

    All train on equally many examples.
    """
    return num_left * sum(result.seconds for result in results) / len(results) if results else None
