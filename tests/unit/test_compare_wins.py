"""Win rates of several runs: compared prompt by prompt where the same judge read answers to the same prompts."""

import csv
import io
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefopt.comparison.csv_file import write_csv
from prefopt.comparison.noise import Method
from prefopt.comparison.page import render_page
from prefopt.comparison.places import find_places
from prefopt.comparison.ranking import NOT_COMPARED, WITHIN_NOISE, Comparison, build_comparison
from prefopt.comparison.read import RunReader
from prefopt.comparison.table import print_table
from prefopt.data.intervals import Z_95
from prefopt.evaluation.metrics import BY_KEY
from tests.fake_runs import write_fake_run

WIN_RATE = BY_KEY["win_rate"]
Outcomes = Sequence[int | None]
Change = Callable[[dict[str, Any], list[dict[str, Any]]], None]


def rate_of(outcomes: Outcomes) -> float:
    return statistics.fmean((each + 1) / 2 for each in outcomes if each is not None)


def write_judged(
    folder: Path,
    outcomes: Outcomes,
    *,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    change: Change | None = None,
) -> Path:
    """A finished run whose answers were judged: 1 won, 0 tied, -1 lost, None without a verdict, for each prompt.

    Args:
        folder: Of the run.
        outcomes: Against the base with a prompt, which is the hardest to beat; the base lost everywhere.
        prompts: Texts of the prompts; None: all different.
        seed: Of its training; runs of a name's first letter differ in nothing else.
        change: Changes the report and the lines of answers.jsonl before they are written.
    """
    write_fake_run(folder, settings={"run.seed": seed, "algorithm.beta": float(ord(folder.name[0]))})
    file = folder / "report" / "report.json"
    report = json.loads(file.read_text())
    judges = {name: {"kappa": {"value": 0.8}, "agreement": {"value": 0.9}} for name in ("voice", "other")}
    of_brief = {"value": rate_of(outcomes), "ci95": [0.1, 0.9], "n": len(outcomes)}
    easy = {"value": 0.99, "ci95": [0.95, 1.0], "n": len(outcomes)}
    report |= {
        "judges": judges,
        "judge_digests": {"voice": "1" * 64, "other": "2" * 64},
        "contestants": {
            "base": {"model": "m", "is_untuned": True, "sha256": "3" * 64},
            "tuned": {"model": "tuned", "is_untuned": False},
            "brief": {"model": "base", "is_untuned": True, "sha256": "4" * 64},
        },
        "win_rates": [
            {"a": "tuned", "b": "base", "judge": "voice", **easy},
            {"a": "tuned", "b": "brief", "judge": "voice", **of_brief},
            {"a": "tuned", "b": "brief", "judge": "other", **easy},
        ],
    }
    report["held_out"]["tuned"]["win_rate"] = of_brief
    lines = [
        {
            "prompt": prompt,
            "answers": {"tuned": "t", "base": "b"},
            "outcomes": [
                {"a": "tuned", "b": "base", "judge": "voice", "outcome": 1},
                {"a": "tuned", "b": "brief", "judge": "other", "outcome": 1},
                {"a": "tuned", "b": "brief", "judge": "voice", "outcome": outcome},
            ],
        }
        for prompt, outcome in zip(prompts or [f"prompt {n}" for n in range(len(outcomes))], outcomes, strict=True)
    ]
    if change is not None:
        change(report, lines)
    file.write_text(json.dumps(report))
    folder.joinpath("report", "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def compare(*folders: Path) -> Comparison:
    runs = RunReader().read(find_places(list(folders)))
    return build_comparison(runs, title="t", metric=WIN_RATE)


def drawn(chance: random.Random, num: int, share_won: float) -> list[int]:
    return [1 if chance.random() < share_won else chance.choice((0, -1)) for _ in range(num)]


def test_the_difference_of_two_runs_is_that_of_a_slow_paired_computation(tmp_path: Path) -> None:
    chance = random.Random(1)
    first = drawn(chance, 150, 0.7)
    second = [each if chance.random() < 0.7 else chance.choice((-1, 0, 1)) for each in first]
    better, worse = sorted((first, second), key=rate_of, reverse=True)
    row = compare(write_judged(tmp_path / "a", better), write_judged(tmp_path / "b", worse)).rows[1]
    found = row.difference
    assert found is not None
    assert found.method is Method.by_prompt
    total = squares = 0.0
    for of_best, of_other in zip(better, worse, strict=True):
        change = (of_other - of_best) / 2
        total, squares = total + change, squares + change * change
    num = len(better)
    centre = total / (num + 2)  # Bonett and Price: two imagined prompts, of which each run wins one
    half = Z_95 * math.sqrt(((squares + 2) / (num + 2) - centre**2) / (num + 2))
    assert (found.value, found.low, found.high) == pytest.approx((total / num, centre - half, centre + half))


def test_the_interval_is_near_that_of_a_bootstrap_that_draws_whole_prompts(tmp_path: Path) -> None:
    chance = random.Random(2)
    prompts = [f"prompt {number // 3}" for number in range(300)]
    luck = [chance.choice((-1, 0, 1)) for _ in range(100)]
    better = [min(luck[number // 3] + (chance.random() < 0.5), 1) for number in range(300)]
    worse = [luck[number // 3] if number % 6 < 3 else min(luck[number // 3] + 1, 1) for number in range(300)]
    row = compare(
        write_judged(tmp_path / "a", better, prompts=prompts), write_judged(tmp_path / "b", worse, prompts=prompts)
    ).rows[1]
    found = row.difference
    assert found is not None
    changes: dict[str, list[float]] = {name: [] for name in prompts}
    sides = sorted((better, worse), key=rate_of, reverse=True)
    for name, of_best, of_other in zip(prompts, *sides, strict=True):
        changes[name].append((of_other - of_best) / 2)
    means = []
    for _ in range(3000):
        taken = [changes[name] for name in chance.choices(list(changes), k=len(changes))]
        means.append(statistics.fmean(value for values in taken for value in values))
    means.sort()
    assert found.low == pytest.approx(means[75], abs=0.02)
    assert found.high == pytest.approx(means[-75], abs=0.02)


def test_prompt_by_prompt_shows_what_the_runs_own_intervals_cannot(tmp_path: Path) -> None:
    chance = random.Random(3)
    better = drawn(chance, 200, 0.6)
    worse = [each - 1 if number % 12 == 0 and each > -1 else each for number, each in enumerate(better)]
    row = compare(write_judged(tmp_path / "a", better), write_judged(tmp_path / "b", worse)).rows[1]
    assert row.verdict == "worse"


def test_of_many_rows_each_interval_is_wider_than_that_of_two(tmp_path: Path) -> None:
    chance = random.Random(4)
    runs = [write_judged(tmp_path / name, drawn(chance, 120, 0.5)) for name in "abcdefgh"]
    rows = compare(*runs).rows
    first, last = (tmp_path / rows[place].group.name for place in (0, -1))
    of_many, of_two = rows[-1].difference, compare(first, last).rows[1].difference
    assert of_many is not None
    assert of_two is not None
    assert of_many.value == of_two.value
    assert of_many.high - of_many.low > 1.1 * (of_two.high - of_two.low)


def test_equal_runs_are_within_noise_and_not_called_equal(tmp_path: Path) -> None:
    outcomes = drawn(random.Random(5), 60, 0.5)
    row = compare(*(write_judged(tmp_path / name, outcomes) for name in "ab")).rows[1]
    assert row.verdict == WITHIN_NOISE
    assert row.difference is not None
    assert row.difference.low < 0 < row.difference.high


def test_prompts_that_one_of_the_runs_has_no_verdict_on_are_left_out_of_the_difference(tmp_path: Path) -> None:
    chance = random.Random(6)
    better, worse = drawn(chance, 100, 0.8), drawn(chance, 100, 0.3)
    whole = compare(write_judged(tmp_path / "a", better[5:]), write_judged(tmp_path / "b", worse[5:])).rows[1]
    partly = compare(
        write_judged(tmp_path / "c", [None, None, *better[2:]]),
        write_judged(tmp_path / "d", [*worse[:2], None, None, None, *worse[5:]]),
    ).rows[1]
    assert partly.difference == whole.difference


def test_seeds_of_one_configuration_are_one_row_that_is_compared(tmp_path: Path) -> None:
    chance = random.Random(7)
    runs = [
        write_judged(tmp_path / f"{name}{seed}", drawn(chance, 90, share), seed=seed)
        for name, share in (("a", 0.9), ("b", 0.2))
        for seed in (0, 1)
    ]
    row = compare(*runs).rows[1]
    assert len(row.group.members) == 2
    assert row.difference is not None
    assert row.verdict == "worse"


def of_another_judge(report: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    report["judge_digests"]["voice"] = "9" * 64


def of_another_contestant(report: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    report["contestants"]["brief"]["sha256"] = "9" * 64


def of_other_prompts(report: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    lines[3]["prompt"] = "another prompt"


def of_an_earlier_version(report: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    del report["judge_digests"]


def without_verdicts(report: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    for line in lines[:20]:
        line["outcomes"][2]["outcome"] = None


REASONS: dict[Change, str] = {
    of_another_judge: "another judge read its answers (voice)",
    of_another_contestant: "its answers met another contestant, of the name brief",
    of_other_prompts: "its answers are to other prompts",
    of_an_earlier_version: "prefopt evaluate run=<folder> writes it again",
    without_verdicts: "its judge gave no verdict on 20 of 100 prompts",
}


@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_a_win_rate_that_means_another_thing_is_shown_with_the_reason_and_not_compared(
    change: Change, tmp_path: Path
) -> None:
    chance = random.Random(8)
    better, other = drawn(chance, 100, 0.9), drawn(chance, 100, 0.4)
    found = compare(write_judged(tmp_path / "a", better), write_judged(tmp_path / "b", other, change=change))
    row = found.rows[1]
    assert (row.verdict, row.difference) == (NOT_COMPARED, None)
    assert REASONS[change] in row.not_compared
    written = io.StringIO()
    print_table(found, Console(file=written, width=400), limit=9)
    page = render_page(found)
    shown = f"{100 * rate_of(other):.1f} %"
    for text in (written.getvalue(), page):
        assert shown in text
        assert "10.0 to 90.0" in text, "with its interval"
        assert REASONS[change].replace("<", "&lt;").replace(">", "&gt;") in text or REASONS[change] in text
    write_csv(found, tmp_path / "compare.csv")
    (line,) = (each for each in csv.DictReader((tmp_path / "compare.csv").open()) if each["run"] == "b")
    assert REASONS[change] in line["against_first"]
    assert (line["win_rate"], line["win_rate_low"]) == (str(rate_of(other)), "0.1")
    assert line["difference"] == ""


def test_a_first_row_that_cannot_be_compared_says_so_in_every_other_row(tmp_path: Path) -> None:
    chance = random.Random(9)
    first = write_judged(tmp_path / "a", drawn(chance, 100, 0.95), change=of_an_earlier_version)
    others = [write_judged(tmp_path / name, drawn(chance, 100, 0.3)) for name in "bc"]
    rows = compare(first, *others).rows
    assert [row.verdict for row in rows] == ["best", NOT_COMPARED, NOT_COMPARED]
    assert all(row.not_compared.startswith("#1 cannot be compared: its report") for row in rows[1:])


def test_a_damaged_file_of_answers_is_named_and_the_win_rate_still_shown(tmp_path: Path) -> None:
    runs = [write_judged(tmp_path / name, [1, 0, -1] * 20) for name in "ab"]
    (runs[1] / "report" / "answers.jsonl").write_text('{"prompt": "p", "outcomes": [{"a": "tuned"')
    found = compare(*runs)
    assert found.rows[1].verdict == NOT_COMPARED
    assert any("answers.jsonl is damaged" in warning for warning in found.warnings)


def test_where_another_metric_ranks_the_way_to_compare_win_rates_is_said(tmp_path: Path) -> None:
    runs = [write_judged(tmp_path / name, [1, 0, -1] * 20) for name in "ab"]
    found = build_comparison(RunReader().read(find_places(runs)), title="t")
    written = io.StringIO()
    print_table(found, Console(file=written, width=400), limit=9)
    assert "--rank-by win_rate" in written.getvalue()
    assert "50.0 % (10.0 to 90.0)" in written.getvalue()
