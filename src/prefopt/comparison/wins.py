"""Whose answers won, prompt by prompt, from `report/answers.jsonl`; and which runs' win rates mean the same.

A run's win rate is that over its best contestant without tuning, by its deciding judge. Two of them are compared only
where the same judge read answers to the same prompts against the same contestant.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.comparison.groups import Group
from prefopt.comparison.records import RunRecord, Wins
from prefopt.evaluation.gains import hardest_win
from prefopt.evaluation.judging import WinRate
from prefopt.evaluation.metrics import TUNED, WIN_RATE
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Floats, Prompts
from prefopt.storage.reading import parse_json, read_file

FILE = "answers.jsonl"
"""File with one object per answered prompt, as `evaluation.judged.Judged.per_prompt` returns them."""
MOST_UNREAD = 0.1
"""Share of prompts without a verdict above which those that have one are no fair sample."""
NO_VERDICTS = "it has no verdicts by prompt"
EARLIER = "its report does not tell by which judge and against what; prefopt evaluate run=<folder> writes it again"


def read_wins(folder: Path, report: Mapping[str, Any]) -> Wins | None:
    """Reads who won on each prompt; None if no answers were judged, or the folder has no such file.

    Args:
        folder: The folder `report/` of a run.
        report: The content of its report.json.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / FILE
    if not report.get("win_rates") or not path.is_file():
        return None
    read = Report.from_dict(report)
    hardest = hardest_win(read)
    if hardest is None:
        return None
    try:
        rows = parse_json(b"[" + read_file(path).strip().replace(b"\n", b",") + b"]")
        texts = [str(row["prompt"]) for row in rows]
        outcomes = array("d", [_find_outcome(row, hardest) for row in rows])
    except (ValueError, TypeError, KeyError, StopIteration) as error:
        raise ValueError(f"{FILE} is damaged ({error})") from error
    return Wins(
        hardest.judge,
        (read.judge_digests or {}).get(hardest.judge),
        hardest.b,
        (read.contestants or {}).get(hardest.b, {}).get("sha256"),
        hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        array("q", Prompts.of_texts(texts).numbers.tolist()),
        outcomes,
    )


def _find_outcome(row: Mapping[str, Any], match: WinRate) -> float:
    """Returns 1 for a win, 0.5 for a tie, 0 for a loss, NaN without a verdict."""
    names = (TUNED, match.b, match.judge)
    found = next(each["outcome"] for each in row["outcomes"] if (each["a"], each["b"], each["judge"]) == names)
    if found not in (1, 0, -1, None):
        raise ValueError(f"no outcome can be {str(found)[:40]}")
    return nan if found is None else (found + 1) / 2


def why_not_compared(run: RunRecord, first: RunRecord) -> str:
    """Returns why the win rates of two runs cannot be compared; empty if they can."""
    ours, theirs = run.wins, first.wins
    if ours is None or theirs is None:
        return NO_VERDICTS
    if None in (ours.judge_digest, ours.opponent_digest):
        return EARLIER
    if ours.prompts != theirs.prompts:
        return "its answers are to other prompts"
    if ours.judge_digest != theirs.judge_digest:
        return f"another judge read its answers ({ours.judge})"
    if ours.opponent_digest != theirs.opponent_digest:
        is_named_so = ours.opponent == theirs.opponent
        names = f"of the name {ours.opponent}" if is_named_so else f"{ours.opponent}, not {theirs.opponent}"
        return f"its answers met another contestant, {names}"
    num = sum(value != value for value in ours.outcomes)  # NaN alone is not itself
    if num > MOST_UNREAD * len(ours.outcomes):
        return f"its judge gave no verdict on {num} of {len(ours.outcomes)} prompts"
    return ""


def why_not_of_group(group: Group, first: Group) -> str:
    """Returns why the win rate of a group of seeds cannot be compared with that of the first; empty if it can."""
    of_first = _first_reason(first, first)
    if of_first:
        return f"#1 cannot be compared: {of_first}"
    return _first_reason(group, first)


def _first_reason(group: Group, first: Group) -> str:
    other = _measured(first)[0]
    return next((why for run in _measured(group) if (why := why_not_compared(run, other))), "")


def _measured(group: Group) -> list[RunRecord]:
    return [run for run in group.members if WIN_RATE in run.metrics]


def shared_wins(groups: Sequence[Group]) -> tuple[Prompts | None, list[Floats | None]]:
    """Returns the outcomes of the groups that can be compared with the first, on prompts that all of them have read.

    Args:
        groups: Those of a ranking by win rate.

    Returns:
        The prompts, and the outcomes of each group, shape (seeds, prompts): 1 won, 0.5 tied, 0 lost; None for a group
        that cannot be compared, and for all groups if the first one cannot.
    """
    nothing: list[Floats | None] = [None] * len(groups)
    if not groups or why_not_of_group(groups[0], groups[0]):
        return None, nothing
    found = [None if why_not_of_group(group, groups[0]) else _outcomes(group) for group in groups]
    known = [outcomes for outcomes in found if outcomes is not None]
    is_read = np.isfinite(np.concatenate(known)).all(axis=0)
    if not is_read.any():
        return None, nothing
    wins = _measured(groups[0])[0].wins
    assert wins is not None, "a group that can be compared has wins"
    numbers = np.asarray(wins.numbers)[is_read]
    order = np.argsort(numbers, kind="stable")  # sums by prompt are fastest in this order
    shared = [None if each is None else each[:, is_read][:, order] for each in found]
    return Prompts.of(numbers[order]), shared


def _outcomes(group: Group) -> Floats:
    return np.array([run.wins.outcomes for run in _measured(group) if run.wins is not None])
