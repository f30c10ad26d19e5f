"""Numbers and judgements of a comparison as text, the same in the terminal and on the page."""

from dataclasses import replace

from prefopt.comparison.groups import Group
from prefopt.comparison.metrics import as_text
from prefopt.comparison.noise import EXPLANATIONS, Method
from prefopt.comparison.ranking import Comparison, Row, count_states
from prefopt.comparison.records import Measure, RunRecord
from prefopt.comparison.settings import MISSING, shown
from prefopt.evaluation.metrics import BY_KEY, COMPARED, PERCENT, POINTS, WIN_RATE, Metric
from prefopt.process.terminal import one_line
from prefopt.reports.numbers import Cell

DECISIONS = {"ship": "ship", "do_not_ship": "do not ship", "undecided": "undecided"}
OTHER_DATA, AFTER_ALL = "*", "\u2020"
"""Marks of rows: measured on other held-out data than #1; after all others whatever its numbers."""

MAX_REASONS = 3
CSV = "compare.csv"


def summary_text(comparison: Comparison) -> str:
    """The number of runs, their states, and the metric that ranks them."""
    states = ", ".join(f"{number} {one_line(state)}" for state, number in count_states(comparison.runs).items())
    runs = "1 run" if len(comparison.runs) == 1 else f"{len(comparison.runs):,} runs"
    return f"{runs}: {states}. Ranked by {comparison.metric.key} ({comparison.metric.better.value})."


def rank_text(row: Row) -> str:
    """The rank: `1`; `2=` if it is shared; a dash if there is none."""
    return MISSING if row.rank is None else f"{row.rank}{'=' if row.is_tied else ''}"


def label_of(row: Row, comparison: Comparison) -> str:
    """The label of a row: its settings that differ from other rows, or its name if none does."""
    settings = row.group.settings
    parts = [f"{name} {shown(settings, key)}" for key, name in comparison.settings.items() if key in settings]
    seeds = f" ({len(row.group.members)} seeds)" if len(row.group.members) > 1 else ""
    return one_line(", ".join(parts) + seeds if parts else row.group.name)


def name_of(row: Row) -> str:
    """The name of the row's group, on one line."""
    return one_line(row.group.name)


def seeds_text(row: Row) -> str:
    """The number of finished seeds: `3`, or `2 of 3` if one is not finished."""
    done, planned = len(row.group.members), row.group.num_planned
    return str(done) if done == planned else f"{done} of {planned}"


def decision_text(row: Row) -> str:
    """The decision of the reports; if seeds disagree, each decision with its count."""
    found = {DECISIONS.get(name, name): number for name, number in row.group.decisions.items()}
    if len(found) <= 1:
        return one_line(next(iter(found), MISSING))
    return one_line(", ".join(f"{name} {number}" for name, number in found.items()))


def spread_cell(metric: Metric, group: Group) -> Cell:
    """`97.7 %` with its interval for a run, `97.5 ± 0.4 %` over seeds, a dash if nothing was measured.

    If not all seeds have the metric, the number of those that have it replaces the interval.
    """
    spread = group.spread(metric)
    if spread is None:
        return Cell(MISSING)
    number = f"n={len(spread.values)}" if len(spread.values) < len(group.members) else None
    if spread.sd is None:
        assert spread.single is not None, "a single value is a run's own"
        return as_text(metric, spread.single) if number is None else Cell(as_text(metric, spread.single).value, number)
    mean = as_text(metric, Measure(spread.mean)).value
    if metric.is_speed:
        return Cell(mean, number)
    plain = replace(metric, unit=replace(metric.unit, signed=False, prefix=""))
    deviation = as_text(plain, Measure(spread.sd)).value
    return Cell(f"{mean.removesuffix(metric.unit.suffix)} ± {deviation}", number)


def difference_text(row: Row, metric: Metric) -> str:
    """The difference to the first row with its interval; empty if there is none."""
    found = row.difference
    if found is None:
        return ""
    unit = POINTS if metric.unit is PERCENT else replace(metric.unit, signed=True, prefix="")
    signed = replace(metric, unit=unit)
    return as_text(signed, Measure(found.value, found.low, found.high)).short


def last_held_out(run: RunRecord) -> str:
    """The first metric of an unfinished run's last held-out evaluation, with the step of that evaluation."""
    found = next((metric for metric in COMPARED if metric.logged is not None and metric.key in run.metrics), None)
    if run.measured_at is None or found is None:
        return MISSING
    return f"{found.label} {as_text(found, run.metrics[found.key]).value} at step {run.measured_at}"


def speed_text(run: RunRecord, key: str) -> str:
    """Time or throughput so far; a dash if it is not known."""
    return as_text(BY_KEY[key], run.metrics[key]).value if key in run.metrics else MISSING


def state_text(run: RunRecord) -> str:
    """The state of a run; `process gone` is added if its status says running but it has no process."""
    return one_line(run.state) + (", process gone" if run.is_abandoned else "")


def verdict_text(row: Row) -> str:
    """The comparison with the first row, with the marks of the row."""
    marks = (OTHER_DATA if row.has_other_data else "") + (AFTER_ALL if row.refusal else "")
    return row.verdict + marks


def describe_noise(comparison: Comparison) -> list[str]:
    """Explains how rows were compared with #1, what its own number is worth, and the marks of rows."""
    lines = []
    judged = [row.difference for row in comparison.rows if row.difference is not None]
    if judged:
        num_noise = sum(difference.is_noise for difference in judged)
        how = "; ".join(EXPLANATIONS[method] for method in Method if method in comparison.methods)
        rows = "1 other row" if len(judged) == 1 else f"{len(judged):,} other rows"
        lines.append(
            f"Within noise of #1: {num_noise:,} of {rows}. Were all equally good models, any would be called worse "
            "in at most 1 of 20 such rankings."
        )
        lines.append(f"The interval of a difference: {how}. {_about_seeds(comparison)}")
    lines += [describe_winner(comparison)] if comparison.winner is not None else []
    lines += _about_win_rates(comparison)
    refused = [row for row in comparison.rows if row.refusal]
    if refused:
        reasons = list(dict.fromkeys(one_line(row.refusal) for row in refused))
        more = f", and {len(reasons) - MAX_REASONS} more reasons" if len(reasons) > MAX_REASONS else ""
        lines.append(f"{AFTER_ALL} After all others, whatever its numbers: {', '.join(reasons[:MAX_REASONS])}{more}.")
    return lines


def _about_win_rates(comparison: Comparison) -> list[str]:
    """Says which win rates are shown, but not compared, and how to compare them where another metric ranks."""
    if comparison.metric.key != WIN_RATE:
        num = sum(WIN_RATE in run.metrics for run in comparison.runs)
        return [f"Win rates are compared prompt by prompt with --rank-by {WIN_RATE}."] if num > 1 else []
    reasons: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.not_compared:
            reasons.setdefault(one_line(row.not_compared), []).append(name_of(row))
    lines = [
        f"Its win rate is shown, not compared with that of #1, since {why}: {_some(names)}."
        for why, names in [*reasons.items()][:MAX_REASONS]
    ]
    more = len(reasons) - MAX_REASONS
    return [*lines, f"And {more} more reasons, in {CSV}."] if more > 0 else lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_REASONS]) + (f" and {len(names) - MAX_REASONS} more" if names[MAX_REASONS:] else "")


def _about_seeds(comparison: Comparison) -> str:
    if comparison.has_seed_luck:
        return "The luck of a training's seed is in it."
    return (
        "The luck of a training's seed, which may make a row worse too, is not in it: repeat the best few with others."
    )


def describe_winner(comparison: Comparison) -> str:
    """Says what the number of the first row is worth, which was chosen by it; empty if that is not known."""
    found, metric = comparison.winner, comparison.metric
    if found is None:
        return ""
    measured = as_text(metric, Measure(found.value)).value
    likely = as_text(metric, Measure(found.likely, found.low, found.high))
    return f"#1 of {found.num:,} was chosen by these numbers: measured {measured}, more likely {likely.short}."
