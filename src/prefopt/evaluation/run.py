"""Evaluates a finished run: chooses the data, measures the models, builds the report."""

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.choices import DataFormat
from prefopt.config.mixture import paths_of
from prefopt.config.schema import TrainConfig
from prefopt.data.loading import read_pairs
from prefopt.data.messages import Content, trained_turns
from prefopt.data.origin import describe_origin
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.sources import sources_of
from prefopt.data.tags import fold_tags
from prefopt.data.token_splits import TokenizedSplits, load_tokenized
from prefopt.distributed import group
from prefopt.evaluation.contestants import of_run
from prefopt.evaluation.findings import assess
from prefopt.evaluation.measure import (
    Material,
    Measured,
    Split,
    measure_contestants,
    prompt_of,
    read_neutral_texts,
    take_sample,
    to_rows,
)
from prefopt.evaluation.metrics import BASE
from prefopt.evaluation.overlap import find_overlap
from prefopt.evaluation.report import Report
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
    from datasets import Dataset

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
    """

    report: Report
    records: list[dict[str, Any]]
    pairs: list[dict[str, Any]]

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
        measured = measure_contestants(of_run(run.model), config, tokenizer, material)
    group.stop()
    if not is_main():
        return None
    algorithm = config.algorithm
    summary = Summary(
        measured,
        material,
        beta=algorithm.reward_scale,
        bootstrap=Bootstrap(config.evaluation.bootstrap_resamples, config.run.seed),
    )
    metrics = run.read_records()
    described = describe_data(examples, material)
    split = "held_out" if test is None else TEST
    names = {"train": str(config.data.train), split: _name_held_out(config, run, described["sha256"])}
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
        samples=describe_samples(measured, material),
        provenance={**run.read_provenance(), "data": described},
    )
    report.decision, findings = assess(report, config.evaluation)
    report.verdict = [finding.to_dict() for finding in findings]
    return Evaluation(report, metrics, summary.per_pair())


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


def build_material(config: TrainConfig, examples: Examples) -> Material:
    """Chooses the data that both models will be measured on; reads every file that the evaluation needs.

    Raises:
        UserError: A file of the evaluation is missing or unusable; this is found before training begins.
    """
    settings, seed = config.evaluation, config.run.seed
    data, tokenizer = examples.tokenized, examples.tokenizer
    train = take_sample(data.train, settings.max_train_examples, seed)
    held_out = data.held_out if data.held_out is not None else data.train.select([])
    answered = take_sample(held_out, settings.num_samples, seed) if settings.num_samples else held_out.select([])
    wanted = set(answered["source"])
    records = (examples.records.held_out or []) if wanted else []
    by_source = {record.source: record for record in records if record.source in wanted}
    has_pairs = config.algorithm.trains_pairs
    apart = None if has_pairs else _read_pairs(config, examples)
    pairs = (held_out if len(held_out) else None) if has_pairs else (None if apart is None else apart.tokens)
    prompts = [list(i) for i in answered["prompt_ids"]] if has_pairs else [prompt_of(row) for row in to_rows(answered)]
    if examples.limits is not None:
        examples.limits.check_answers(prompts, settings.max_new_tokens)
    return Material(
        held_out=Split.of(pairs, None if has_pairs else held_out),
        train=Split.of(pairs=train) if has_pairs else Split.of(rows=train),
        sources=list(pairs["source"]) if pairs is not None else [],
        prompts=prompts,
        texts=[_texts(by_source[source]) for source in answered["source"]],
        slices=_slices_of(held_out, examples),
        tags=_tags_of(held_out, examples, config.data.tag),
        neutral=read_neutral_texts(settings, tokenizer, None if examples.limits is None else examples.limits.context),
        is_train_whole=len(data.train) <= settings.max_train_examples,
        overlap=find_overlap(examples, config.data, [] if apart is None else [(apart.records, apart.tokens)]),
    )


def _slices_of(held_out: "Dataset", examples: Examples) -> list[str]:
    """Returns for each held-out example the name of its part; nothing if the data is no mixture."""
    if not examples.records.notes.slices.get("held_out"):
        return []
    names = {record.source: record.slice for record in examples.records.held_out or []}
    return [names[source] for source in held_out["source"]]


def _tags_of(held_out: "Dataset", examples: Examples, column: str | None) -> list[str]:
    """Returns for each held-out example its tag, as `topic=billing`; nothing without `data.tag`."""
    if column is None:
        return []
    tags = {record.source: record.tag for record in examples.records.held_out or []}
    return [f"{column}={tag}" for tag in fold_tags([tags[source] for source in held_out["source"]])]


@dataclass(frozen=True)
class Apart:
    """The preference pairs on which an SFT run is measured too: their records, and their token ids."""

    records: Sequence[Record]
    tokens: "Dataset"


def _read_pairs(config: TrainConfig, examples: Examples) -> Apart | None:
    """Reads the preference pairs on which an SFT run is measured too; None if `evaluation.pairs` is not set."""
    if config.evaluation.pairs is None:
        return None
    whole = {
        "train": config.evaluation.pairs,
        "held_out": None,
        "held_out_fraction": 0.0,
        "format": DataFormat.auto,
        "tag": None,
    }
    source = dataclasses.replace(config.data, **whole)
    splits = read_pairs(source, examples.records.train)
    pairs = load_tokenized(splits, examples.tokenizer, source).train
    if examples.limits is not None:
        examples.limits.check_rows(pairs, "evaluation.pairs")
    return Apart(splits.train, pairs)


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


def describe_samples(measured: Mapping[str, Measured], material: Material) -> list[dict[str, str | None]]:
    """Returns per prompt: its text, every contestant's greedy answer (the base's first), the answer in the data."""
    shown = {BASE: measured[BASE].shown, **{name: model.shown for name, model in measured.items()}}
    return [
        {"prompt": prompt, **{name: each.text for name, each in zip(shown, answers, strict=True)}, "chosen": chosen}
        for (prompt, chosen), *answers in zip(material.texts, *shown.values(), strict=False)
    ]


def _texts(record: PreferencePair | SFTExample) -> tuple[str, str | None]:
    if isinstance(record, PreferencePair):
        return _plain(record.prompt), _plain(record.chosen)
    if record.text is not None:
        return record.text, None
    if record.messages is not None:
        first = trained_turns(record.messages)[0]
        return _plain(record.messages[:first]), _plain(record.messages[first : first + 1])
    return _plain(record.prompt or ""), _plain(record.completion or "")


def _plain(content: Content) -> str:
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return str(content[0].get("content") or content[0].get("tool_calls") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in content)
