"""Runs of the shipped study with changes, as short as their word allows."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prefopt.train import main as train
from tests.conftest import STUDY

RANKS_BETTER = "Ranks held-out pairs better; its answers were not judged."
BRIEF = [
    "logger=none",
    "evaluation.num_samples=8",
    "evaluation.judges=[]",
    "evaluation.contestants=[base,tuned]",
    "evaluation.max_new_tokens=24",
    "evaluation.max_train_examples=48",
    "trainer.eval_every=null",
]
TWELVE_STEPS = ["data.max_rows=192", "trainer.num_epochs=1"]
"""192 pairs in batches of 16."""
Pair = dict[str, Any]
Runs = Callable[..., dict[str, Any]]


def read_pairs(name: str) -> list[Pair]:
    return [json.loads(line) for line in (STUDY / name).read_text(encoding="utf-8").splitlines()]


def swapped(pair: Pair) -> Pair:
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}


def text(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"]


def said(content: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def runs_in(folder: Path) -> Runs:
    """Returns what trains the shipped study with changes in a folder, and returns its report."""

    def start(*overrides: str, experiment: str = "dpo_brand_voice", **files: Iterable[Pair]) -> dict[str, Any]:
        files = {"held_out": read_pairs("held_out.jsonl"), **files} if files else {}
        changed = []
        for split, rows in files.items():
            path = folder / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            changed.append(f"data.{split}={path}")
        train([f"+experiment={experiment}", *BRIEF, f"run.root={folder}", "run.name=run", *changed, *overrides])
        report: dict[str, Any] = json.loads((folder / "run" / "report" / "report.json").read_text(encoding="utf-8"))
        return report

    return start


def words_of(report: dict[str, Any]) -> str:
    return " ".join(report["decision"]["reasons"])
