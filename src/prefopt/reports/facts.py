"""How the run was made, as (label, text) pairs: settings, speed, provenance."""

from collections.abc import Callable
from typing import Any

from prefopt.config.algorithms import rows_of
from prefopt.evaluation.metrics import PERCENT
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.numbers import NOT_MEASURED, cell, count, duration, moment, number

Block = dict[str, Any]
Facts = list[tuple[str, str]]

RUN_LABELS = {
    "name": "Run",
    "algorithm": "Algorithm",
    "tuned": "Tuned model",
    "model": "Model",
    "method": "Method",
    "beta": "Beta",
    "learning_rate": "Learning rate",
    "epochs": "Epochs",
    "steps": "Steps",
    "seed": "Seed",
}
DATA_LABELS = {
    "train": ("Training data", "num_train"),
    "held_out": ("Held-out data", "num_held_out"),
    "test": ("Test data", "num_test"),
    "pairs": ("Preference pairs", "num_pairs"),
}
"""Key of the path -> (label, key of the count)."""

THROUGHPUT: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pairs_per_s": ("Pairs per second", number),
    "tokens_per_s": ("Tokens per second", number),
    "train_time_s": ("Training time", duration),
    "evaluation_time_s": ("Evaluation time", duration),
    "engine": ("Engine", str),
    "kernels": ("Fused layers", str),
    "reference": ("Reference log-probs", lambda usage: reference_text(usage)),
    "checkpoints": ("Checkpoints", lambda written: checkpoints_text(written)),
    "mfu": ("Model FLOP utilisation", lambda share: cell(Estimate(share), PERCENT).value),
}


def reference_text(usage: Block) -> str:
    """Describes in one line what the reference store saved."""
    stored = f"{usage['hit_rate']:.0%} of {count(usage['num_pairs'])} pairs from the store"
    return f"{stored}, {duration(usage['saved_s'])} saved, {duration(usage['computed_s'])} spent"


def checkpoints_text(written: Block) -> str:
    """Describes how many checkpoints were written, and how fast."""
    speed = f" at {number(written['gb_per_s'])} GB/s" if written["gb_per_s"] else ""
    return f"{count(written['num'])} written, {number(written['bytes'] / 1e9)} GB{speed}"


def subtitle(report: Report) -> str:
    """Returns one line with algorithm and model, or what was compared; sizes of the data; and the date."""
    run = report.run or {}
    data = run.get("data") or {}
    sizes = {"num_train": "for training", "num_held_out": "held out", "num_test": "of the test data"}
    rows = {"preference": "pairs"}.get(str(rows_of(run.get("algorithm"))), "examples")
    parts = [f"{count(data[key])} {rows} {words}" for key, words in sizes.items() if data.get(key) is not None]
    when = [f"measured on {moment(report.date)}"] if report.date else []
    return ", ".join([_title(run), *parts, *when])


def _title(run: Block) -> str:
    """Names the algorithm and its base; where models were compared without a run, these."""
    if "tuned" in run:
        return f"{run['tuned']} against {run['model']}" if run["tuned"] else f"Answers of {run['model']}"
    of = f" of {run['model']}" if run.get("model") else ""
    return f"{run.get('algorithm', 'tuning').upper()}{of}"


def run_facts(report: Report) -> Facts:
    """Returns the settings of the run: known ones first, then all others that are recorded."""
    run = report.run or {}
    known = [(label, _text(run[key])) for key, label in RUN_LABELS.items() if run.get(key) is not None]
    others = [(_label(key), _text(run[key])) for key in run if key not in RUN_LABELS and key != "data"]
    return known + _data_facts(run.get("data") or {}) + others


def throughput_facts(report: Report) -> Facts:
    """Returns speeds and times; empty if nothing was recorded."""
    throughput = report.throughput or {}
    if not throughput:
        return []
    return [
        (label, NOT_MEASURED.value if throughput[key] is None else write(throughput[key]))
        for key, (label, write) in THROUGHPUT.items()
        if key in throughput
    ]


def provenance_facts(report: Report) -> Facts:
    """Returns what was recorded about the origin of the run; of its data without counts of what did not occur."""
    recorded = dict(report.provenance or {})
    if recorded.get("data"):
        recorded["data"] = _occurring(recorded["data"])
    return [(_label(key), _text(value)) for key, value in recorded.items()]


def _occurring(value: object) -> object:
    """Returns nested tables without zeros, empty texts, and tables that hold nothing else."""
    if not isinstance(value, dict):
        return value
    left = {key: _occurring(item) for key, item in value.items()}
    return {key: item for key, item in left.items() if item not in (0, "", None, {}, [])}


def _data_facts(data: Block) -> Facts:
    return [
        (label, f"{data[key]} ({count(data[num])} rows)" if data.get(num) is not None else _text(data[key]))
        for key, (label, num) in DATA_LABELS.items()
        if data.get(key) is not None
    ]


def _label(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _text(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
