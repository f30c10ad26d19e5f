"""Shows a learning curve: a chart, a part of an HTML page, and lines for the terminal."""

import math
from dataclasses import dataclass

from prefopt.evaluation.learning_curve import SMALL_GAIN, LearningCurve, Size, Trained
from prefopt.evaluation.metrics import PERCENT
from prefopt.evaluation.statistics import Estimate
from prefopt.reports.charts.drawing import (
    Box,
    Figure,
    Scale,
    circle,
    group,
    line,
    svg,
    text,
    ticks,
    with_air,
    y_axis,
)
from prefopt.reports.numbers import cell, count, duration
from prefopt.reports.render import environment

BOX = Box(540, 300, left=44, right=20, top=34, bottom=42)
FEW_STEPS = 10
"""A training of fewer optimizer steps has hardly begun."""


@dataclass(frozen=True, slots=True)
class Band:
    """A number of training examples that people name as enough."""

    low: int
    high: int
    label: str


BANDS = (Band(80, 125, "about 100"), Band(200, 500, "200-500, style"), Band(500, 5000, "500-5,000"))
BANDS_NOTE = (
    "Shaded is what practitioners' articles call enough, unverified and at odds with each other: about 100 (with "
    "fewer, write a better prompt), 200-500 for a style, 500-5,000 in general. OpenAI's guide saw gains from 50-100 "
    "demonstrations; Amazon's recommends at least 1,000 pairs for Nova. The curve is measured, the bands are not."
)


def describe_start(num_rows: list[int], num_done: int, seconds: float | None) -> str:
    """Says what is about to be trained, and about how long it takes."""
    sizes = f"{count(min(num_rows))} to {count(max(num_rows))} training rows"
    todo = f"learning curve: {len(num_rows)} trainings on {sizes}"
    if num_done:
        todo += f", {num_done} of them done"
    if num_done == len(num_rows):
        return todo
    return f"{todo}, " + (f"about {duration(seconds)} to go" if seconds else "the first one tells how long")


def describe_point(place: str, trained: Trained, seconds: float, rest: float | None) -> str:
    """Says how one training ended, and about how long the others will take."""
    accuracy = f"accuracy {100 * trained.hits.mean():.1f} %"
    ends = f", about {duration(rest)} to go" if rest else ""
    return f"{place:>7}  {count(trained.n)} rows, seed {trained.seed}: {accuracy}, {duration(seconds)}{ends}"


def conclude(curve: LearningCurve) -> str:
    """Returns what the curve says about more data, in one sentence."""
    gain, target = curve.doubling, f"{count(2 * curve.sizes[-1].n)} {curve.rows}"
    if curve.shape == "steepening":
        last = f"The last doubling gained {_points(curve.last)}, more than those before it"
        left = f"at most {100 * gain.high:.1f} points are left"
        if gain.high < SMALL_GAIN:
            return f"{last}, and {left}: more of the same data will hardly help."
        return f"{last}: what {target} would gain cannot be told; {left}."
    verb = "is expected to gain" if curve.shape == "straight" else "would gain at most"
    expected = f"Doubling to {target} {verb} {_points(gain)}"
    if gain.high < SMALL_GAIN:
        return f"{expected}: more of the same data will hardly help."
    if gain.low > 0:
        return f"{expected}: more of the same data will help."
    return f"{expected}: these trainings cannot tell whether more of the same data will help."


def _points(gain: Estimate) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in (gain.low, gain.high))
    return f"{100 * gain.value:+.1f} points (95 % CI {low} to {high})"


def _whole_points(gain: float) -> str:
    return f"{100 * gain:g} point{'' if round(100 * gain) == 1 else 's'}"


def list_notes(curve: LearningCurve) -> list[str]:
    """Returns what one has to know to read the curve, one sentence or two each."""
    steps = sorted({point.steps for point in curve.points if point.steps is not None})
    notes = [_shape_note(curve), _steps_note(curve, steps)]
    notes += [
        f"These {count(curve.num_prompts)} held-out prompts show a gain of {100 * curve.detectable:.1f} points or "
        f"more: with 80 % power, two-sided at 5 %, pair by pair. {100 * curve.discordant:.1f} % of the pairs are "
        "answered differently by the models of the two largest sizes; the more, the more prompts it takes.",
        f"The intervals cover which prompts are held out and the {len(curve.points) // len(curve.sizes)} seeds, which "
        "draw the parts of the data and the order of training. The largest part is all the data for every seed, so "
        "its interval does not cover which data were collected.",
    ]
    return [note for note in notes if note]


def _shape_note(curve: LearningCurve) -> str:
    if curve.shape == "flattening":
        return "The curve flattens more than the fit can, so the gain of the last doubling is named: expect less."
    if curve.shape == "steepening":
        return (
            "The curve still gets steeper, as it does where training has only begun to work; the next doubling may "
            "gain as much again, or little."
        )
    return ""


def _steps_note(curve: LearningCurve, steps: list[int]) -> str:
    if not steps:
        return ""
    length = count(steps[0]) if len(steps) == 1 else f"{count(steps[0])} to {count(steps[-1])}"
    short = ", which may be too few to learn much" if steps[-1] < FEW_STEPS else ""
    return (
        f"All parts train for {length} steps{short}: the smaller ones see their rows more often. So the curve "
        "compares data, not the length of training. Whether longer training helps, trainer.num_epochs tells."
    )


def list_lines(curve: LearningCurve) -> list[str]:
    """Returns the curve as lines for the terminal: the conclusion, a table, the notes."""
    rows = [("rows", "accuracy", "95 % CI", "by seed"), *map(tuple, _rows(curve))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    needed = ", ".join(f"{_whole_points(gain)}: {count(prompts)}" for gain, prompts in curve.needed)
    return [conclude(curve), "", *table, "", f"held-out prompts that show a gain of {needed}", "", *list_notes(curve)]


def _rows(curve: LearningCurve) -> list[tuple[str, str, str, str]]:
    before = [] if curve.base is None else [("0", *_shown(curve.base), "")]
    return [*before, *((count(size.n), *_shown(size.accuracy), _by_seed(curve, size)) for size in curve.sizes)]


def _shown(estimate: Estimate) -> tuple[str, str]:
    shown = cell(estimate, PERCENT)
    return shown.value, shown.interval or ""


def _by_seed(curve: LearningCurve, size: Size) -> str:
    accuracies = (point.hits.mean() for point in curve.points if point.share == size.share)
    return ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)


def render_section(curve: LearningCurve) -> str:
    """Returns the curve as a `<section>` for a page that extends `page.html.j2` of the reports."""
    template = environment("prefopt.reports").get_template("learning_curve.html.j2")
    return template.render(
        conclusion=conclude(curve),
        figure=draw(curve),
        bands_note=BANDS_NOTE,
        rows=_rows(curve),
        unit=curve.rows,
        needed=[(_whole_points(gain), count(prompts)) for gain, prompts in curve.needed],
        notes=list_notes(curve),
    )


def draw(curve: LearningCurve) -> Figure:
    """Draws accuracy against the number of examples on a logarithmic axis, with intervals, seeds, fit and bands."""
    sizes = curve.sizes
    first, last = sizes[0].n, 2 * sizes[-1].n
    x = BOX.x(math.log2(first) - 0.35, math.log2(last) + 0.35)
    ends = _forecast(curve)
    heights = [*ends, *(point.hits.mean() for point in curve.points), *(curve.predict(size.n) for size in sizes)]
    heights += [bound for size in sizes for bound in (size.accuracy.low, size.accuracy.high)]
    heights += [] if curve.base is None else [curve.base.value]
    low, high = with_air(float(min(heights)), float(max(heights)))
    y = BOX.y(max(low, 0.0), high)
    parts = [*_bands(x), *y_axis(BOX, y, ticks(y.low, min(y.high, 1.0), 5), is_share=True), *_x_axis(curve, x)]
    if curve.base is not None:
        height = y(curve.base.value)
        parts += [line(BOX.left, height, BOX.width - BOX.right, height, "mark")]
        parts += [text(BOX.width - BOX.right, height - 5, "before training", anchor="end", style="word over")]
    forecast = _draw_forecast(ends, x(math.log2(last)), y)
    parts.append(group("tuned", "".join([*_lines(curve, x, y), *forecast, *_marks(curve, x, y)])))
    title = f"Held-out accuracy by the number of training {curve.rows}"
    fit = "the fit" if curve.shape == "straight" else "through the means, since the fit does not hold"
    beyond = ", dashed where it is continued to twice the data" if ends else ""
    caption = (
        "Large dots: mean over the seeds with its 95 % interval; small dots: single seeds. "
        f"Line: {fit}{beyond}. Shaded: what people call enough."
    )
    values = "; ".join(f"{count(size.n)}: {' '.join(_shown(size.accuracy))}" for size in sizes)
    return Figure(title, caption, svg(BOX, parts, description=f"{title}. {values}. {conclude(curve)}"))


def _forecast(curve: LearningCurve) -> list[float]:
    """Returns the accuracy expected of twice the data, and the ends of its interval; nothing if none is shown."""
    if not _has_forecast(curve):
        return []
    largest, gain = curve.sizes[-1], curve.doubling
    start = curve.predict(largest.n) if curve.shape == "straight" else largest.accuracy.value
    return [min(start + bound, 1.0) for bound in (gain.value, gain.low, gain.high)]


def _bands(x: Scale) -> list[str]:
    parts = []
    for number, band in enumerate(BANDS):
        left, right = (x.within(math.log2(end)) for end in (band.low, band.high))
        if right - left < 1:
            continue
        height = BOX.inner[1]
        style = "band" if number % 2 else "band pale"
        parts.append(
            f'<rect class="{style}" x="{left:.1f}" y="{BOX.top}" width="{right - left:.1f}" height="{height}"/>'
        )
        parts.append(text((left + right) / 2, BOX.top - 8 - 12 * (number % 2), band.label))
    return parts


def _x_axis(curve: LearningCurve, x: Scale) -> list[str]:
    bottom = BOX.height - BOX.bottom
    marks = [*(size.n for size in curve.sizes), 2 * curve.sizes[-1].n]
    labels = [text(x(math.log2(mark)), bottom + 17, count(mark)) for mark in marks]
    title = f"training {curve.rows} (logarithmic)"
    return [
        line(BOX.left, bottom, BOX.width - BOX.right, bottom, "grid"),
        *labels,
        text(x((x.low + x.high) / 2), bottom + 34, title),
    ]


def _lines(curve: LearningCurve, x: Scale, y: Scale) -> list[str]:
    """Draws the fit and its continuation to twice the data; where it does not fit, a line through the means."""
    end = math.log2(curve.sizes[-1].n)
    if curve.shape != "straight":
        means = [(x(math.log2(size.n)), y(size.accuracy.value)) for size in curve.sizes]
        expected = (x(end + 1), y(curve.sizes[-1].accuracy.value + curve.doubling.value))
        return [_path(means, "fit"), *([_path([means[-1], expected], "fit beyond")] if _has_forecast(curve) else [])]
    begin = math.log2(curve.sizes[0].n)
    measured = [begin + (end - begin) * step / 24 for step in range(25)]
    beyond = [end + step / 8 for step in range(9)]
    return [
        _path([(x(log), y(curve.predict(2**log))) for log in logs], style)
        for logs, style in ((measured, "fit"), (beyond, "fit beyond"))
    ]


def _has_forecast(curve: LearningCurve) -> bool:
    """Whether the chart shows what twice the data would reach."""
    return curve.shape != "steepening"


def _path(points: list[tuple[float, float]], style: str) -> str:
    return f'<path class="{style}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>'


def _draw_forecast(ends: list[float], place: float, y: Scale) -> list[str]:
    if not ends:
        return []
    value, low, high = map(y.within, ends)
    return [line(place, low, place, high, "forecast"), circle(place, value, 5, "forecast")]


def _marks(curve: LearningCurve, x: Scale, y: Scale) -> list[str]:
    parts = []
    for size in curve.sizes:
        place = x(math.log2(size.n))
        parts.append(line(place, y(size.accuracy.low), place, y(size.accuracy.high), "interval thin"))
        parts.append(circle(place, y(size.accuracy.value), 5, "value"))
    parts += [circle(x(math.log2(point.n)) - 9, y(float(point.hits.mean())), 2.5, "seed") for point in curve.points]
    return parts
