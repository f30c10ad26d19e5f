"""The word of whole runs on data whose worth is known: misleading, too small, or seen before (issue 15)."""

import random
from pathlib import Path

import pytest

from tests.study_runs import RANKS_BETTER, TWELVE_STEPS, Pair, Runs, read_pairs, runs_in, said, swapped, text, words_of

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return runs_in(tmp_path)


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
