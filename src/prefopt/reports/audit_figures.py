"""The charts of an audit: what its findings keep in `values`, drawn. A chart without its numbers is left out."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefopt.data.audit.finding import Audit, Finding
from prefopt.evaluation.metrics import PERCENT
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.audit_glossary import split_name, title_of
from prefopt.reports.charts.bars import Bar, bar_chart
from prefopt.reports.charts.counted import counted_histogram
from prefopt.reports.charts.drawing import Figure, is_drawable
from prefopt.reports.charts.intervals import IntervalRow, interval_chart
from prefopt.reports.numbers import cell, count

Values = Mapping[str, Any]
CHANCE = 0.5
MAX_BARS = 8
TIMES = {-4.0: "1/16", -3.0: "1/8", -2.0: "1/4", -1.0: "1/2", 0.0: "same", 1.0: "2x", 2.0: "4x", 3.0: "8x", 4.0: "16x"}
"""Binary logarithm of a ratio -> its label."""


def draw_finding(finding: Finding) -> list[Figure]:
    """Returns the charts of a finding; none for most checks."""
    figures = (draw(finding.values) for draw in DRAWN.get(finding.check, ()))
    return [figure for figure in figures if figure is not None]


def draw_splits(audit: Audit) -> Figure | None:
    """Returns the chart of the rows by split, and by file to compare with; None if there are at most
    two, which one line tells."""
    names = {split_name(name): number for name, number in audit.splits.items()}
    return _counts("Rows", "By split, and by file to compare with.", names) if len(names) > 2 else None


def _length_ratio(values: Values) -> Figure | None:
    medians = values.get("median_characters") or {}
    told = "Left of the line chosen is shorter, right of it longer; each mark doubles. The outer bars hold all beyond."
    if {"chosen", "rejected"} <= medians.keys():
        told += (
            f" Half of chosen have up to {medians['chosen']:,.0f} characters, of rejected {medians['rejected']:,.0f}."
        )
    return _histogram(
        values.get("log2_ratio"),
        "Length of chosen against rejected",
        told,
        x_label="characters of chosen / characters of rejected",
        unit="pairs",
        names=TIMES,
        mark=(0.0, ""),
        ends=("chosen shorter", "longer"),
    )


def _longer_wins(values: Values) -> Figure | None:
    rows = {"Longer answer": values.get("longer_is_chosen"), "Longer, of similar length": values.get("matched")}
    caption = "Share of pairs whose longer answer is chosen: 50 % if length does not matter. Bars: 95 % intervals. "
    return _intervals("How often the longer answer wins", caption + "Similar: within 10 %.", rows)


def _truncation(values: Values) -> Figure | None:
    limit, counted = values.get("max_length"), values.get("histogram") or {}
    longest = (values.get("tokens") or {}).get("1.0")
    caption = "Prompt and longer answer, as the model gets them."
    if longest is not None and counted.get("edges") and longest > counted["edges"][-1]:
        caption += f" The last bar holds all longer rows; the longest has {longest:,} tokens."
    return _histogram(
        counted,
        "Tokens per row",
        caption,
        x_label="tokens",
        unit="rows",
        mark=None if limit is None else (float(limit), f"data.max_length={limit}"),
    )


def _languages(values: Values) -> Figure | None:
    shares = {str(name): share for name, share in (values.get("languages") or {}).items()}
    return _shares("Languages of the chosen answers", "Share of rows; unknown: too few letters to tell.", shares)


def _refusals(values: Values) -> Figure | None:
    names = {
        "chosen_refusals": "Chosen refuses",
        "rejected_refusals": "Rejected refuses",
        "chosen_boilerplate": "Chosen ends with boilerplate",
        "rejected_boilerplate": "Rejected ends with boilerplate",
    }
    shares = {name: values[key] for key, name in names.items() if values.get(key)}
    caption = "Share of rows. What chosen does more often than rejected, the model learns to do."
    return _shares("Refusals and boilerplate", caption, shares, whole=0.0)


def _separability(values: Values) -> Figure | None:
    length = values.get("length_accuracy")
    rows = {"Words alone": values.get("accuracy"), "Length alone": None if length is None else {"value": length}}
    caption = "Share of unseen prompts whose chosen answer a classifier of words tells. Bars: 95 % intervals."
    return _intervals("What words alone tell", caption, rows)


def _label_noise(values: Values) -> Figure | None:
    title = "What the words of other pairs say about each label"
    caption = "Left of the line they contradict the label, the further the surer. The outer bars hold all beyond."
    return _histogram(
        values.get("log_odds"),
        title,
        caption,
        x_label="log-odds that chosen is better (classifier without this prompt)",
        unit="pairs",
        mark=(0.0, ""),
        ends=("swapped?", "as labelled"),
    )


def _margins(values: Values) -> Figure | None:
    caption = "By the file's own scores. Left of the line rejected is scored higher. The last bar holds all beyond."
    return _histogram(
        values.get("margins"),
        "Score of chosen less score of rejected",
        caption,
        x_label="margin",
        unit="pairs",
        mark=(0.0, ""),
        ends=("rejected higher", "chosen higher"),
    )


def _sources(values: Values) -> Figure | None:
    sizes = {each["name"]: each["rows"] for each in values.get("sources") or []}
    return _counts("Rows by source", "Training rows.", sizes)


def _tags(values: Values) -> Figure | None:
    sizes = {each["name"]: each["rows"] for each in values.get("tags") or []}
    return _counts("Rows by tag", "Training rows.", sizes)


def _uneven(values: Values) -> Figure | None:
    for first in values.get("uneven") or []:
        group = "tag" if "tag" in first else "source"
        groups = values.get(f"{group}s") or []
        shares = {each["name"]: each["findings"].get(first["check"], 0.0) for each in groups}
        ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
        caption = f"Share of the rows of each {group}, the highest first."
        return _shares(f"{title_of(first['check'])}, by {group}", caption, ordered, whole=0.0)
    return None


def _swapped(values: Values) -> Figure | None:
    accuracy = values.get("accuracy")
    rows = {
        "Labels that look swapped": values.get("estimate"),
        "Classifier agrees with label": {"value": accuracy, "ci95": values.get("ci95")},
    }
    return _intervals(
        "Labels against a classifier of words", "Share of pairs. Bars: 95 % intervals.", rows, chance=None
    )


def _group_sizes(values: Values) -> Figure | None:
    sizes = {f"{size} times": number for size, number in (values.get("group_sizes") or {}).items()}
    return _counts(
        "How often a row stands in the data",
        "Groups of rows that repeat each other, by their size.",
        sizes,
        order=False,
    )


def _leaks(values: Values) -> Figure | None:
    leaks = {split_name(name): number for name, number in (values.get("by_split") or {}).items()}
    return _counts("Where the repeated prompts are", "Prompts nearly those of training rows.", leaks)


def _matches(values: Values) -> Figure | None:
    return _counts("By kind", "Places in prompts and answers.", values.get("matches") or {})


def _faults(values: Values) -> Figure | None:
    return _counts("By kind", "Chats whose turns are out of order.", values.get("faults") or {})


DRAWN: dict[str, tuple[Callable[[Values], Figure | None], ...]] = {
    "length_bias": (_length_ratio, _longer_wins),
    "truncation": (_truncation,),
    "language": (_languages,),
    "refusal": (_refusals,),
    "separability": (_separability,),
    "label_noise": (_label_noise, _swapped),
    "score_margin": (_margins,),
    "slices": (_sources, _tags, _uneven),
    "duplicate": (_group_sizes,),
    "near_duplicate": (_group_sizes,),
    "near_leakage": (_leaks,),
    "secrets": (_matches,),
    "personal_data": (_matches,),
    "control_characters": (_matches,),
    "mojibake": (_matches,),
    "role_order": (_faults,),
}


def _histogram(counted: Any, title: str, caption: str, **options: Any) -> Figure | None:
    """Draws `{"counts": [...], "edges": [...]}`."""
    counts, edges = ((counted or {}).get(key) or [] for key in ("counts", "edges"))
    if not any(counts) or len(edges) != len(counts) + 1:
        return None
    description = f"{title}: {count(sum(counts))} {options['unit']}. {caption}"
    return Figure(title, caption, counted_histogram(counts, edges, description=description, **options))


def _intervals(
    title: str, caption: str, estimates: Mapping[str, Any], *, chance: float | None = CHANCE
) -> Figure | None:
    """Draws values with their intervals, each `{"value": ..., "ci95": [..., ...]}`; one without as a baseline."""
    rows = [row for label, written in estimates.items() if (row := _interval_row(label, written)) is not None]
    if not rows:
        return None
    description = f"{title}: " + "; ".join(f"{row.label} {row.text}" for row in rows)
    return Figure(title, caption, interval_chart(rows, is_share=True, chance=chance, description=description))


def _interval_row(label: str, written: Any) -> IntervalRow | None:
    value = (written or {}).get("value")
    if value is None or not is_drawable(value) or written.get("n") == 0:
        return None
    low, high = written.get("ci95") or (math.nan, math.nan)
    shown = cell(Estimate(value, low, high), PERCENT)
    bounds = None if math.isnan(low) else (low, high)
    return IntervalRow(label, value, bounds, shown.short, "tuned", is_baseline=bounds is None)


def _shares(title: str, caption: str, shares: Mapping[str, float], *, whole: float = 1.0) -> Figure | None:
    return _bars(title, caption, [(name, share, f"{100 * share:.1f} %") for name, share in shares.items()], whole)


def _counts(title: str, caption: str, counts: Mapping[str, int], *, order: bool = True) -> Figure | None:
    items: Iterable[tuple[str, int]] = counts.items()
    if order:
        items = sorted(items, key=lambda item: -item[1])
    return _bars(title, caption, [(name, number, count(number)) for name, number in items], 0.0)


def _bars(title: str, caption: str, items: list[tuple[str, float, str]], whole: float) -> Figure | None:
    """Draws the first `MAX_BARS`; of more, the caption says how many are left out. One alone compares with nothing."""
    if len(items) < 2:
        return None
    bars = [Bar(name, value, shown, _style(name)) for name, value, shown in items[:MAX_BARS]]
    more = f" {len(items) - MAX_BARS} more are not drawn." if len(items) > MAX_BARS else ""
    description = f"{title}: " + "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    whole = whole or max(bar.value for bar in bars)
    return Figure(title, f"{caption}{more}", bar_chart(bars, whole=whole, description=description))


def _style(name: str) -> str:
    """Returns the CSS class of a bar's colour: that of the side which its name begins with."""
    side = name.partition(" ")[0].lower()
    return side if side in ("chosen", "rejected") else "tuned"
