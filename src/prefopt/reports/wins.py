"""The tables of judged answers: who wins against whom, and what the judges are worth."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import isfinite, nan
from typing import Any

from prefopt.evaluation.judging import Standing, WinRate
from prefopt.evaluation.metrics import NUMBER, PERCENT
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.numbers import NOT_APPLICABLE, Cell, cell, count
from prefopt.reports.sections import Row, Table


def wins_table(report: Report) -> Table | None:
    """Returns the win rates, a row for each two contestants and judge; None if no answers were judged."""
    wins = report.win_rates or []
    if not wins:
        return None
    rows = [
        Row(
            f"{found.a} against {found.b}",
            [cell(found.estimate, PERCENT), _of_some(found.matched), _of_all(found.adjusted)],
            _hint(found),
        )
        for found in wins
    ]
    notes = describe_unread(report)
    notes += [
        "A tie counts half: 50 % is no difference. A judge that sees two answers at once saw them in both orders; "
        "where it then says another thing, it is a tie.",
        "Adjusted: at no difference in length, by a regression; this is not AlpacaEval's length-controlled win rate. "
        "There is none where the answers are nearly always the longer ones, or the shorter ones.",
    ]
    return Table(["Win rate", "Of equal length", "Adjusted for length"], rows, notes)


def _further(estimate: Estimate | None) -> Cell:
    return NOT_APPLICABLE if estimate is None else cell(estimate, PERCENT)


def _of_some(estimate: Estimate | None) -> Cell:
    """Returns a share of fewer answers than the row's, which are told beside it."""
    found = _further(estimate)
    return found if not found.num else replace(_of_all(estimate), value=f"{found.value} of {found.num}")


def _of_all(estimate: Estimate | None) -> Cell:
    return replace(_further(estimate), num=None, num_prompts=None)


def _hint(found: WinRate) -> str:
    parts = [f"judge: {found.judge}", f"{found.num_ties} {'tie' if found.num_ties == 1 else 'ties'}"]
    parts += [f"{found.num_unread} without a verdict"] if found.num_unread else []
    parts += [f"same verdict in both orders {found.consistency:.0%}"] if found.consistency < 1 else []
    return ", ".join(parts)


def describe_unread(report: Report) -> list[str]:
    """Says of each judge that gave no verdict on some answers on how many, and how often it gave no number at all."""
    wins, lines, judges = report.win_rates or [], [], report.judges or {}
    for judge in dict.fromkeys(found.judge for found in wins):
        unread = [_of_answers(found) for found in wins if found.judge == judge and found.num_unread]
        parts = [f"no verdict on {', '.join(unread)}"] if unread else []
        parts += _numberless(judges.get(judge), judges)
        lines += [f"{judge}: {'; '.join(parts)}."] if parts else []
    return [*lines, READINGS] if any(_numberless(standing, judges) for standing in judges.values()) else lines


def _of_answers(found: WinRate) -> str:
    num = found.num_unread + (found.estimate.n or 0)
    return f"{count(found.num_unread)} of {count(num)} ({found.a} against {found.b})"


READINGS = (
    "A reading is of one answer, or of two answers in one order; those of held-out pairs, by which a judge is known, "
    "count too."
)


def _numberless(standing: Standing | None, judges: Collection[str]) -> list[str]:
    """How much of what a judge read it gave no number for, in a few words; nothing where it gave one for all."""
    num = _count_numberless({} if standing is None else standing.facts, judges)
    return [f"{count(num)} reading{'' if num == 1 else 's'} without a number"] if num else []


def _count_numberless(facts: Mapping[str, Any], judges: Collection[str]) -> int:
    """Counts what a judge, or the members of a panel, read and gave no number for: NaN or infinite logits.

    A member that is also one of `judges` is told of there.
    """
    members, own = facts.get("of"), facts.get("num_without_number")
    return (own if isinstance(own, int) else 0) + sum(
        _count_numberless(each, judges)
        for name, each in (members.items() if isinstance(members, Mapping) else ())
        if name not in judges
    )


def judges_table(report: Report) -> Table | None:
    """Returns how each judge reads held-out pairs whose better answer is known; None if there were no judges."""
    judges = report.judges or {}
    rows = [_judge_row(name, standing, judges) for name, standing in judges.items() if standing is not None]
    if not rows:
        return None
    notes = ["Read on held-out pairs: chance has a kappa of 0. The first judge is the one that decides."]
    return Table(["Kappa", "Agreement", "Same in both orders", "First slot", "Longer"], rows, notes)


def _judge_row(name: str, standing: Standing, judges: Collection[str]) -> Row:
    shares = (standing.consistency, standing.first_slot)
    cells = [cell(standing.kappa, NUMBER), cell(standing.agreement, PERCENT)]
    cells += [Cell(f"{each:.0%}") if isfinite(each) else NOT_APPLICABLE for each in shares]
    length = standing.length_coefficient
    cells.append(Cell(f"{length:+.2f}") if isfinite(length) else NOT_APPLICABLE)
    return Row(name, cells, _learned(standing, judges))


def _learned(standing: Standing, judges: Collection[str]) -> str:
    """What a judge says of itself, in a few words."""
    kind, model = standing.facts.get("kind"), standing.facts.get("model")
    return ", ".join(str(each) for each in (kind, model, *_numberless(standing, judges)) if each)


def tasks_table(report: Report) -> Table | None:
    """Returns what was checked in the answers: a row for each number, a column for each contestant."""
    tasks = report.tasks or {}
    names = list(dict.fromkeys(name for task in tasks.values() for name in task.values))
    rows = []
    for title, task in tasks.items():
        keys = dict.fromkeys(key for found in task.values.values() for key in found)
        for key in keys:
            found = [task.values.get(name, {}).get(key) for name in names]
            are_shares = all(each is None or 0 <= each.value <= 1 for each in found)
            cells = [_further(each) if are_shares else _number(each) for each in found]
            rows.append(Row(key.replace("_", " "), cells, title if key != task.main else f"{title}, its main number"))
    return Table([name.capitalize() for name in names], rows, describe_missing(report)) if rows else None


def describe_missing(report: Report) -> list[str]:
    """Says of each task how many answers of whom it has no value for, and how many prompts lack a reference."""
    lines = []
    for title, task in (report.tasks or {}).items():
        of_whom = [f"{count(num)} of {count(task.num_of(name))} of {name}" for name, num in task.without_value.items()]
        parts = [f"no value for {', '.join(of_whom)}"] if of_whom else []
        num = task.num_without_reference
        parts += [f"nothing in the data to compare with on {count(num)} prompts, left out"] if num else []
        lines += [f"{title}: {'; '.join(parts)}."] if parts else []
    return lines


def _number(estimate: Estimate | None) -> Cell:
    return NOT_APPLICABLE if estimate is None else cell(estimate, NUMBER)


def answer_slices_table(report: Report) -> Table | None:
    """Returns the win rate over the best contestant without tuning in each slice of the prompts; None without any."""
    slices = (report.answer_slices or {}).get("slices") or []
    rows = [
        Row(str(each["name"]), [cell(_estimate(each["rate"]), PERCENT)], str(each["grouping"]))
        for each in slices
        if isinstance(each, dict) and isinstance(each.get("rate"), dict)
    ]
    notes = [
        "Each interval as if its slice were the only one; a slice is named above if it is worse than chance explains."
    ]
    if left_out := (report.answer_slices or {}).get("num_without_outcome"):
        notes.append(f"Left out: {count(left_out)} prompt{'' if left_out == 1 else 's'} without a verdict.")
    return Table(["Win rate"], rows, notes) if rows else None


def _estimate(entry: dict[str, Any]) -> Estimate:
    low, high = (nan if bound is None else bound for bound in entry.get("ci95") or (nan, nan))
    value = entry.get("value")
    return Estimate(nan if value is None else value, low, high, entry.get("n"), entry.get("n_prompts"))
