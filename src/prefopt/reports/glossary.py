"""The glossary: what each metric means and how it can mislead, in the sentences of the table of metrics."""

from dataclasses import dataclass
from typing import Any

from prefopt.evaluation.metrics import HELD_OUT, METRICS, Better, Metric

DIRECTIONS = {
    Better.higher: "higher",
    Better.lower: "lower",
    Better.near_zero: "nearer to 0",
    Better.neither: "\u2013",
}


@dataclass(frozen=True)
class Term:
    """An explained term; it is shown only if report.json has a value at `path`."""

    name: str
    meaning: str
    trap: str
    path: tuple[str, ...]


INTERVALS = Term(
    "95 % interval and n",
    "The range in which the true value plausibly lies, given n measured items: Wilson's for shares, a bootstrap over"
    " prompts for means. At n = 100 an accuracy is known to about 10 points, at n = 1,000 to about 3.",
    "Intervals cover the choice of held-out pairs, not the luck of one training run: repeat with other seeds too.",
    (HELD_OUT,),
)


def terms() -> list[Term]:
    """Returns what the table of metrics explains, and what an interval is."""
    return [*(Term(m.name, m.hint, m.trap, m.path) for m in METRICS if m.trap and m.path), INTERVALS]


def terms_for(report: dict[str, Any]) -> list[Term]:
    """Returns the terms that report.json uses."""
    return [term for term in terms() if _holds(report, term.path)]


def _holds(values: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        values = (values or {}).get(key)
    return values is not None


def reading_table() -> str:
    """Returns README's table of what the numbers mean, as Markdown: all metrics that have a trap."""
    rows = [
        f"| {_place(metric)} | {DIRECTIONS[metric.better]} | {metric.hint} | {metric.trap} |"
        for metric in METRICS
        if metric.trap
    ]
    return "\n".join(["| metric | better | is | trap |", "|---|---|---|---|", *rows])


def _place(metric: Metric) -> str:
    return f"`{'.'.join(metric.path)}`" if metric.path else f"`{metric.logged}` in `metrics.jsonl`"
