"""The word of whole runs whose worth is known: ruined, misled, too small, and good ones (issue 15)."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from prefopt.train import main as train
from tests.conftest import STUDY

pytestmark = pytest.mark.slow

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


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    """Trains the shipped study with changes, and returns its report."""

    def start(*overrides: str, experiment: str = "dpo_brand_voice", **files: Iterable[Pair]) -> dict[str, Any]:
        files = {"held_out": read_pairs("held_out.jsonl"), **files} if files else {}
        changed = []
        for split, rows in files.items():
            path = tmp_path / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            changed.append(f"data.{split}={path}")
        train([f"+experiment={experiment}", *BRIEF, f"run.root={tmp_path}", "run.name=run", *changed, *overrides])
        report: dict[str, Any] = json.loads((tmp_path / "run" / "report" / "report.json").read_text(encoding="utf-8"))
        return report

    return start


def words_of(report: dict[str, Any]) -> str:
    return " ".join(report["decision"]["reasons"])


def test_a_learning_rate_of_1e_2_ruins_the_model(run: Runs) -> None:
    report = run("optim.learning_rate=1e-2", *TWELVE_STEPS)
    assert report["decision"]["word"] == "do_not_ship", report["decision"]
    assert "ruined" in words_of(report)


def test_flipped_labels_do_not_ship(run: Runs) -> None:
    report = run(*TWELVE_STEPS, train=map(swapped, read_pairs("train.jsonl")))
    assert report["decision"]["word"] == "do_not_ship", report["decision"]
    assert "ranks held-out pairs worse than its base" in words_of(report)


def test_random_labels_decide_nothing(run: Runs) -> None:
    rng = random.Random(0)
    pairs = [swapped(pair) if rng.random() < 0.5 else pair for pair in read_pairs("train.jsonl")]
    report = run(*TWELVE_STEPS, train=pairs)
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert RANKS_BETTER not in words_of(report)


def test_one_row_160_times_decides_nothing(run: Runs) -> None:
    report = run(train=read_pairs("train.jsonl")[:1] * 160)
    assert report["decision"]["word"] == "undecided", report["decision"]


def test_a_learning_rate_of_1e_7_moves_nothing(run: Runs) -> None:
    report = run("optim.learning_rate=1e-7", *TWELVE_STEPS)
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert RANKS_BETTER not in words_of(report)
    assert any("hardly moved" in finding["finding"] for finding in report["verdict"])


def test_the_main_job_ranks_better_and_its_answers_were_not_judged(run: Runs) -> None:
    report = run()
    assert report["decision"]["word"] == "undecided"
    assert report["decision"]["reasons"] == [RANKS_BETTER]
    assert report["decision"]["would_decide"]


def test_twelve_steps_of_the_main_job_rank_better_too(run: Runs) -> None:
    report = run("trainer.max_steps=12")
    assert report["decision"]["word"] == "undecided"
    assert report["decision"]["reasons"] == [RANKS_BETTER]


def test_a_learning_rate_of_5e_4_drifts(run: Runs) -> None:
    report = run("optim.learning_rate=5e-4")
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "The model drifted far from its base" in report["decision"]["reasons"][0]


def test_where_length_is_all_that_differs_the_rule_is_named(run: Runs) -> None:
    """Both answers are of the same author, and the chosen one is two of them."""

    def lengthened(pairs: list[Pair]) -> list[Pair]:
        others = [pair["rejected"] for pair in pairs]
        return [
            {"prompt": pair["prompt"], "chosen": said(f"{text(own)} {text(other)}"), "rejected": own}
            for pair, own, other in zip(pairs, others, [*others[1:], others[0]], strict=True)
        ]

    report = run(
        *TWELVE_STEPS, train=lengthened(read_pairs("train.jsonl")), held_out=lengthened(read_pairs("held_out.jsonl"))
    )
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "A rule without a model does as well: longer wins." in words_of(report)


def test_held_out_prompts_that_are_nearly_those_of_training_are_named(run: Runs) -> None:
    pairs = read_pairs("train.jsonl")[:192]
    held_out = [{**pair, "prompt": said(f"{text(pair['prompt'])} please", "user")} for pair in pairs[:60]]
    report = run(*TWELVE_STEPS, train=pairs, held_out=held_out)
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "Held-out prompts are also training prompts" in words_of(report)


def test_one_held_out_prompt_with_40_pairs_is_too_little(run: Runs) -> None:
    pairs = read_pairs("held_out.jsonl")[:40]
    report = run(*TWELVE_STEPS, held_out=[{**pair, "prompt": pairs[0]["prompt"]} for pair in pairs])
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "1 prompt are too few" in words_of(report)
    gain = report["held_out"]["gain"]["preference_accuracy"]
    assert (gain["n"], gain["n_prompts"]) == (40, 1)
    assert gain["ci95"][0] < 0


def test_four_steps_on_demonstrations_decide_nothing(run: Runs) -> None:
    report = run("trainer.max_steps=4", "optim.learning_rate=1e-5", experiment="sft_brand_voice")
    assert report["decision"]["word"] == "undecided", report["decision"]
    assert "not judged" not in words_of(report)
