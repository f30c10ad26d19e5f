"""A finished run → its report."""

import dataclasses
import json
import time
from typing import Any

from prefopt.choices import DataFormat
from prefopt.data.loading import TokenizedSplits, load_tokenized, read_splits
from prefopt.data.messages import trained_turns
from prefopt.data.records import PreferencePair, SFTExample
from prefopt.data.split import find_overlap
from prefopt.distributed import group
from prefopt.distributed.ranks import is_main
from prefopt.errors import UserError
from prefopt.evaluation.measure import (
    Comparison,
    Material,
    Split,
    compare_models,
    number_prompts,
    prompt_of,
    read_neutral_texts,
    take_sample,
    to_rows,
)
from prefopt.evaluation.statistics import Bootstrap
from prefopt.evaluation.summary import Summary
from prefopt.evaluation.verdict import judge
from prefopt.examples import Examples
from prefopt.files import read_lines, write_text
from prefopt.report.render import render_report
from prefopt.run_directory import RunDirectory
from prefopt.schema import DPOAlgorithmConfig, TrainConfig
from prefopt.tracking import phases

FORMAT = 1
"""Version of report.json; raised when a key changes its meaning."""

PAIRS = "pairs.jsonl"
"""In `report/`: a line per held-out pair, by which `prefopt compare` compares runs pair by pair."""


def evaluate_run(
    config: TrainConfig, run: RunDirectory, examples: Examples, material: Material
) -> dict[str, Any] | None:
    """Measures `model/` of a run against its base, writes `report/`, and returns what report.json holds.

    All ranks measure, disconnect, and are free then; rank 0 alone goes on to the report, and the others get None.
    """
    started = time.monotonic()
    tokenizer, data = examples.tokenizer, examples.tokenized
    with phases.group("evaluation"), group.during("the final evaluation", may_take_long=True):
        comparison = compare_models(config, run.model, tokenizer, material)
    group.stop()
    if not is_main():
        return None
    algorithm = config.algorithm
    summary = Summary(
        comparison,
        material,
        beta=algorithm.beta if isinstance(algorithm, DPOAlgorithmConfig) else None,
        bootstrap=Bootstrap(config.evaluation.bootstrap_resamples, config.run.seed),
    )
    metrics = list(read_lines(run.metrics)) if run.metrics.exists() else []
    report: dict[str, Any] = {
        "format": FORMAT,
        "run": describe_run(config, data, metrics),
        "held_out": summary.held_out(),
        "overfitting": summary.overfitting(),
        "drift": summary.drift(),
        "likelihood": summary.likelihood(),
        "throughput": {**throughput(metrics), "evaluation_time_s": time.monotonic() - started, **read_work(run)},
        "data": {"notes": data.notes.lines(), "counts": data.notes.to_dict()},
        "samples": describe_samples(comparison, material, tokenizer),
        "provenance": json.loads(run.provenance.read_text(encoding="utf-8")),
    }
    report["decision"], report["verdict"] = judge(report)
    pairs = summary.per_pair()
    with phases.of("report"):
        render_report(report, metrics, pairs, run.report, lambda: read_phases(run))
        write_text(run.report / PAIRS, "".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return report


def read_work(run: RunDirectory) -> dict[str, Any]:
    """What work.json holds about the run's speed, beside its phases."""
    phases.save()
    return {part: found for part, found in run.read_work().items() if part != "phases"}


def read_phases(run: RunDirectory) -> dict[str, float]:
    """Seconds of the run by part until now; of a run that is evaluated once more, those of its own command."""
    phases.save()
    found: dict[str, float] = run.read_work().get("phases", {})
    return found


def build_material(config: TrainConfig, examples: Examples) -> Material:
    """Chooses what both models will be measured on; reads every file that the evaluation needs.

    Raises:
        UserError: A file of the evaluation is missing or unusable; training has not begun then.
    """
    settings, seed = config.evaluation, config.run.seed
    data, tokenizer = examples.tokenized, examples.tokenizer
    train = take_sample(data.train, settings.max_train_examples, seed)
    held_out = data.held_out if data.held_out is not None else data.train.select([])
    answered = take_sample(held_out, settings.num_samples, seed) if settings.num_samples else held_out.select([])
    by_source = {record.source: record for record in examples.records.held_out or []}
    is_dpo = isinstance(config.algorithm, DPOAlgorithmConfig)
    pairs = (held_out if len(held_out) else None) if is_dpo else _read_pairs(config, examples)
    return Material(
        held_out=Split(pairs, None if is_dpo or not len(held_out) else to_rows(held_out)),
        train=Split(pairs=train) if is_dpo else Split(rows=to_rows(train)),
        clusters=number_prompts(pairs) if pairs is not None else None,
        sources=list(pairs["source"]) if pairs is not None else [],
        prompts=[list(i) for i in answered["prompt_ids"]] if is_dpo else [prompt_of(row) for row in to_rows(answered)],
        texts=[_texts(by_source[source]) for source in answered["source"]],
        neutral=read_neutral_texts(settings, tokenizer),
    )


def _read_pairs(config: TrainConfig, examples: Examples) -> Any:
    """The preference pairs on which an SFT run is measured as well, or None."""
    if config.evaluation.pairs is None:
        return None
    whole = {"train": config.evaluation.pairs, "held_out": None, "held_out_fraction": 0.0, "format": DataFormat.auto}
    source = dataclasses.replace(config.data, **whole)
    splits = read_splits(source, kind="preference", seed=config.run.seed)
    overlap = find_overlap(examples.records.train, splits.train)
    if overlap:
        first = overlap[0]
        raise UserError(
            f"evaluation.pairs: {len(overlap)} training prompts are among them, first {first.train.source} in "
            f"{first.held_out.source}, so they are not held out. Drop them from one side."
        )
    return load_tokenized(splits, examples.tokenizer, source).train


def describe_run(config: TrainConfig, data: TokenizedSplits, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What was trained on what, for the head of the report."""
    algorithm = config.algorithm
    return {
        "name": config.run.name,
        "algorithm": algorithm.name.value,
        "model": config.model.path,
        "data": {
            "train": str(config.data.train),
            "held_out": str(config.data.held_out or f"{config.data.held_out_fraction:.0%} of the training prompts"),
            "num_train": len(data.train),
            "num_held_out": len(data.held_out) if data.held_out is not None else 0,
        },
        "seed": config.run.seed,
        "steps": max((record["step"] for record in metrics), default=0),
        "epochs": config.trainer.num_epochs if config.trainer.max_steps is None else None,
        "beta": algorithm.beta if isinstance(algorithm, DPOAlgorithmConfig) else None,
        "learning_rate": config.optim.learning_rate,
        "method": "full" if config.peft.method.value == "none" else config.peft.method.value,
    }


def throughput(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Examples and tokens per second of training time, over all attempts. MFU is unknown without the peak."""
    last = metrics[-1] if metrics else {"pairs": 0, "tokens": 0, "time_s": 0.0}
    seconds = max(last["time_s"], 1e-9)
    return {
        "pairs_per_s": last["pairs"] / seconds,
        "tokens_per_s": last["tokens"] / seconds,
        "train_time_s": last["time_s"],
        "mfu": None,
    }


def describe_samples(comparison: Comparison, material: Material, tokenizer: Any) -> list[dict[str, Any]]:
    """Prompt, both models' greedy answers, and the answer in the data."""

    def text(ids: Any) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    answers = zip(material.texts, comparison.base.shown, comparison.tuned.shown, strict=False)
    return [
        {"prompt": prompt, "base": text(base.ids), "tuned": text(tuned.ids), "chosen": chosen}
        for (prompt, chosen), base, tuned in answers
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


def _plain(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return str(content[0].get("content") or content[0].get("tool_calls") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in content)
