"""Evaluates a finished run: chooses the data, measures the models, builds the report."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.mixture import paths_of
from prefopt.config.schema import TrainConfig
from prefopt.data.origin import describe_origin
from prefopt.data.sources import sources_of
from prefopt.data.token_splits import TokenizedSplits
from prefopt.distributed import group
from prefopt.evaluation.asked import read_trained
from prefopt.evaluation.contestants import of_run
from prefopt.evaluation.evidence import gather
from prefopt.evaluation.identity import digest_untuned
from prefopt.evaluation.judged import Judged
from prefopt.evaluation.material import Material
from prefopt.evaluation.measure import Measured, measure_contestants
from prefopt.evaluation.metrics import BASE, TUNED
from prefopt.evaluation.outcome import read_answers
from prefopt.evaluation.report import Report
from prefopt.evaluation.samples import Samples, choose_samples, rank_prompts
from prefopt.evaluation.sampling import Answer
from prefopt.evaluation.statistics import Bootstrap
from prefopt.evaluation.summary import Summary
from prefopt.models.examples import Examples, hash_rows
from prefopt.process import phases
from prefopt.process.paths import places
from prefopt.process.ranks import is_main
from prefopt.runs.directory import RunDirectory
from prefopt.runs.files import read_report
from prefopt.runs.final_model import is_sealed
from prefopt.runs.provenance import MEASURED
from prefopt.runs.settings import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEST = "test"
"""The split that is measured after all choices are made; of the folder of its report, the last part of the name."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The results of evaluating one run.

    Attributes:
        report: The report, without `phases`.
        records: The lines of metrics.jsonl.
        pairs: The lines of pairs.jsonl, one per held-out pair.
        answers: The lines of answers.jsonl, one per answered prompt; nothing if nothing was judged.
    """

    report: Report
    records: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the run."""
        return max((record["step"] for record in self.records), default=0)


def evaluate_run(
    config: TrainConfig,
    run: RunDirectory,
    examples: Examples,
    material: Material,
    test: dict[str, Any] | None = None,
) -> Evaluation | None:
    """Measures `model/` of a run against its base.

    All ranks measure and then disconnect. Rank 0 returns the results, the other ranks return None.

    Args:
        config: Configuration of the run, with the settings of this evaluation.
        run: Folder of the run.
        examples: The data that `material` was chosen from.
        material: The data to measure on.
        test: What `record_look` has written down, if these are test data.
    """
    started = time.monotonic()
    tokenizer, data = examples.tokenizer, examples.tokenized
    with phases.group("evaluation"), group.during("the final evaluation", may_take_long=True):
        measured, answers, failures = measure_contestants(of_run(run.model), config, tokenizer, material)
    group.stop()
    if not is_main():
        return None
    bootstrap = Bootstrap(config.evaluation.bootstrap_resamples, config.run.seed)
    with phases.of("judging"):
        trained = read_trained(examples.records.train, config.run.seed) if material.are_judged else []
        outcome = read_answers(config, material, measured, answers, failures, trained)
    algorithm = config.algorithm
    summary = Summary(
        measured,
        material,
        beta=algorithm.reward_scale,
        bootstrap=bootstrap,
    )
    metrics = run.read_records()
    described = describe_data(examples, material)
    split = "held_out" if test is None else TEST
    names = {"train": str(config.data.train), split: _name_held_out(config, run, described["sha256"])}
    samples = show_answers(measured, answers, material, outcome.judged, tokenizer, config.evaluation.num_shown_samples)
    report = Report(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        run={**describe_run(config, data, metrics, names), **describe_flaws(run, metrics)},
        measured_on={f"data.{split}": config.data.held_out, "evaluation.pairs": config.evaluation.pairs},
        test=test,
        held_out=summary.held_out(),
        slices=summary.slices() or None,
        overfitting=summary.overfitting(),
        drift=summary.drift(),
        likelihood=summary.likelihood(),
        throughput={**throughput(metrics), "evaluation_time_s": time.monotonic() - started, **read_work(run)},
        data={
            "notes": data.notes.lines(),
            "counts": data.notes.to_dict(),
            "is_other": test is None and not _is_of_run(run, described["sha256"]),
        },
        overlap=material.overlap,
        audit=_audit_of(run, described["sha256"]),
        samples=samples.shown,
        sample_counts=samples.counts if samples.shown else None,
        contestants=describe_contestants(config, material) if material.are_judged or material.rivals else None,
        evidence=dict(gather(config, run.model)),
        provenance={**run.read_provenance(), "data": described},
    )
    outcome.conclude(report, config)
    return Evaluation(report, metrics, summary.per_pair(), outcome.lines)


def _audit_of(run: RunDirectory, digests: dict[str, str]) -> dict[str, Any] | None:
    """Returns what the audit of the run's data has found; None if other data are measured."""
    return run.read_provenance().get("data", {}).get("audit") if _is_of_run(run, digests) else None


def _is_of_run(run: RunDirectory, digests: dict[str, str]) -> bool:
    """Whether the training and held-out rows are those that the run had."""
    known = run.read_provenance().get("data", {}).get("sha256", {})
    return all(known.get(name) == digests.get(name) for name in ("train", "held_out"))


def read_work(run: RunDirectory) -> dict[str, Any]:
    """Returns the content of work.json about the run's speed, without its phases."""
    phases.save()
    return {part: found for part, found in run.read_work().items() if part != "phases"}


def describe_data(examples: Examples, material: Material) -> dict[str, Any]:
    """Returns counts and digests of the training and evaluation data; the digests are of token ids."""
    digests = examples.fingerprints()
    if material.held_out.pairs is not None and material.held_out.pairs is not examples.tokenized.held_out:
        digests["pairs"] = hash_rows(material.held_out.pairs)
    if material.neutral:
        ids = json.dumps([list(sequence.input_ids) for sequence in material.neutral])
        digests["neutral_texts"] = hashlib.sha256(ids.encode()).hexdigest()
    return {"sha256": digests, **examples.tokenized.notes.to_dict()}


def describe_sources(config: TrainConfig, examples: Examples) -> dict[str, object]:
    """Describes the files and the tokenizer that the tokens were made from; see `describe_origin`."""
    return describe_origin(sources_of(config), examples.tokenizer)


def choose_folder(
    config: TrainConfig, run: RunDirectory, examples: Examples, material: Material, *, is_test: bool = False
) -> Path:
    """Returns the folder for the report of a later evaluation: `report/` for the run's own data, else one beside it.

    Data are compared by digests of the measured rows: a held-out file that has changed since counts as other data.
    Test data go to `report-test`; with a digest in its name, if they are not those of the run's settings, or others
    than those that were measured there before.
    """
    measured = describe_data(examples, material)["sha256"]
    own = run.read_provenance().get("data", {}).get("sha256", {})
    if measured["train"] != own.get("train"):
        logger.warning(
            "evaluation: the training data are not those of the run, so the overfitting gap is to other data"
        )
    digests = [measured.get(part) for part in MEASURED]
    trained = read_config(run.config)
    if is_test:
        folder = run.path / f"{run.report.name}-{TEST}"
        before = _digests_of(folder)
        is_own = places(config.data.held_out) == places(trained.data.test)
        return folder if is_own and before in (None, digests) else _with_digest(folder, [TEST, *digests])
    if digests == [own.get(part) for part in MEASURED]:
        return run.report
    is_of_pairs = measured.get("held_out") == own.get("held_out")
    name = _short_name(config.evaluation.pairs if is_of_pairs else config.data.held_out)
    folder = _with_digest(run.path / f"{run.report.name}-{name}", digests)
    logger.info("evaluation: not the held-out data of the run, so its report stays and this one goes to %s", folder)
    return folder


def _digests_of(folder: Path) -> list[str | None] | None:
    """Returns the digests of the rows that the report in a folder was measured on; None if there is no report."""
    report = read_report(folder / "report.json")[0]
    if report is None:
        return None
    known = ((report.get("provenance") or {}).get("data") or {}).get("sha256") or {}
    return [known.get(part) for part in MEASURED]


def _with_digest(folder: Path, digests: Sequence[str | None]) -> Path:
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return folder.with_name(f"{folder.name}-{digest[:8]}")


def _short_name(data: object) -> str:
    """Returns a short name of a data set for use in a folder's name: its first file name without endings."""
    first = next(iter(paths_of(data)), None)
    stem = Path(str(first or "held_out")).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-")[:40] or "data"


def _name_held_out(config: TrainConfig, run: RunDirectory, digests: Mapping[str, str]) -> str:
    """Names the measured data; says so if they are no longer what the run had under this name."""
    name = str(config.data.held_out or f"{config.data.held_out_fraction:.0%} of the training prompts")
    known = run.read_provenance().get("data", {}).get("sha256", {}).get("held_out")
    if known in (None, digests.get("held_out")) or config.data.held_out != read_config(run.config).data.held_out:
        return name
    return f"{name} (changed since the run was trained)"


def describe_run(
    config: TrainConfig, data: TokenizedSplits, metrics: list[dict[str, Any]], names: Mapping[str, str]
) -> dict[str, object]:
    """Returns the settings of the run for the head of the report: model, data, algorithm, steps.

    Args:
        config: Configuration of the run, with the settings of this evaluation.
        data: Its rows.
        metrics: The lines of metrics.jsonl.
        names: Where the rows come from: those of `train`, and the measured ones under the name of their split.
    """
    algorithm = config.algorithm
    return {
        "name": config.run.name,
        "algorithm": algorithm.name.value,
        "model": config.model.path,
        "data": {
            **names,
            **{
                f"num_{split}": 0 if rows is None else len(rows)
                for split, rows in zip(names, (data.train, data.held_out), strict=True)
            },
            **({} if config.evaluation.pairs is None else {"pairs": str(config.evaluation.pairs)}),
        },
        "seed": config.run.seed,
        "steps": max((record["step"] for record in metrics), default=0),
        "epochs": _count_epochs(config, data, metrics),
        "beta": algorithm.reward_scale,
        "learning_rate": config.optim.learning_rate,
        "method": "full" if config.peft.method.value == "none" else config.peft.method.value,
    }


def _count_epochs(config: TrainConfig, data: TokenizedSplits, metrics: list[dict[str, Any]]) -> float | None:
    """Returns the passes over the training data up to the last step; None if `trainer.max_steps` is set."""
    if config.trainer.max_steps is not None:
        return None
    return round(metrics[-1]["pairs"] / len(data.train), 4) if metrics else config.trainer.num_epochs


def describe_flaws(run: RunDirectory, metrics: list[dict[str, Any]]) -> dict[str, object]:
    """Returns the damage to the run's files, for the findings: lost log lines, an unsealed model."""
    lost = run.count_lost_records(metrics)
    flaws: dict[str, Any] = {"lost_records": lost} if lost else {}
    return flaws if is_sealed(run.model) else {**flaws, "model_is_sealed": False}


def throughput(metrics: list[dict[str, Any]]) -> dict[str, float | None]:
    """Returns examples and tokens per second of training steps over all attempts. MFU is None: the peak is unknown."""
    last = metrics[-1] if metrics else {"pairs": 0, "tokens": 0, "training_s": 0.0}
    # Earlier versions logged only the whole time.
    trained_s: float = last["training_s"] if "training_s" in last else last["time_s"]
    seconds = max(trained_s, 1e-9)
    return {
        "pairs_per_s": last["pairs"] / seconds,
        "tokens_per_s": last["tokens"] / seconds,
        "train_time_s": trained_s,
        "mfu": None,
    }


def describe_contestants(config: TrainConfig, material: Material) -> dict[str, dict[str, Any]]:
    """Returns of each contestant which model answered, and what it was told; `sha256` of that without tuning."""
    own: dict[str, Any] = {"model": config.model.path, "is_untuned": True}
    found = {BASE: own, TUNED: {**own, "model": TUNED, "is_untuned": False}}
    found |= {rival.name: rival.describe() for rival in material.rivals}
    for name, digest in digest_untuned(config, material).items():
        found[name]["sha256"] = digest
    return found


def show_answers(
    measured: Mapping[str, Measured],
    answers: Mapping[str, Sequence[Answer]],
    material: Material,
    judged: Judged,
    tokenizer: "PreTrainedTokenizerBase",
    most: int,
) -> Samples:
    """Returns the answers that the report shows, the base's first: the judged ones; else, greedy ones."""
    greedy = {} if material.are_judged else {name: model.shown for name, model in measured.items()}
    read: dict[str, Sequence[Answer]] = {**answers, **greedy}
    names = dict.fromkeys([BASE, *measured, *(rival.name for rival in material.rivals)])
    return choose_samples(
        material.asked,
        {name: [each.text for each in read[name]] for name in names if name in read},
        judged,
        [BASE, *(rival.name for rival in material.rivals if rival.is_untuned)],
        most=most,
        ranked=rank_prompts(material, measured[TUNED].held_out_pairs),
        rendered=[str(tokenizer.decode(ids)) for ids in material.prompts],
    )
