"""Chart of quality against KL to the base: one point per configuration, and the Pareto front."""

from collections.abc import Sequence

from prefopt.comparison.colours import NUM_BEST, row_group, row_style
from prefopt.comparison.groups import Spread
from prefopt.comparison.ranking import Comparison, Row
from prefopt.evaluation.metrics import ACCURACY, BASE_ACCURACY, BY_KEY, KL, LOSS, Metric
from prefopt.reports.charts.drawing import (
    Box,
    Figure,
    Scale,
    circle,
    diamond,
    line,
    robust_range,
    svg,
    text,
    ticks,
    x_axis,
    y_axis,
)

Points = dict[int, tuple[Spread, Spread]]
"""Index of a row -> its KL per token, and its accuracy or loss."""

BOX = Box(width=520, height=380, left=58, right=26, top=14, bottom=46)
SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
LABEL_PLACES = tuple((12.0 * ring * dx, 12.0 * ring * dy) for ring in (1, 2, 3) for dx, dy in SIDES)
"""Positions of a label relative to its point in pixels, in order of preference."""
NAME_WIDTH = 22.0
"""Pixels from the base's mark to the middle of its name."""


def trade_off_figure(comparison: Comparison) -> Figure | None:
    """Draws accuracy, or else the loss, against KL per token; None unless at least two rows have both."""
    for key in (ACCURACY, LOSS):
        points = _points(comparison.rows, key)
        if len(points) >= 2:
            return _figure(points, BY_KEY[key], _base(comparison.rows) if key == ACCURACY else None)
    return None


def _figure(points: Points, quality: Metric, base: float | None) -> Figure:
    is_share = quality.unit.suffix == " %"
    x = BOX.x(*_range([kl for kl, _ in points.values()], [0.0]))
    low, high = _range([found for _, found in points.values()], [] if base is None else [base])
    y = BOX.y(low, min(high, 1.005) if is_share else high)
    front = find_front({row: (kl.mean, quality.badness(found.mean)) for row, (kl, found) in points.items()})
    ordered = sorted(points, reverse=True)
    chart = svg(
        BOX,
        [
            *y_axis(BOX, y, ticks(y.low, y.high, 5), is_share=is_share),
            *x_axis(BOX, x, ticks(x.low, x.high, 6), "KL to the base, nats per token of own answers"),
            *([] if base is None else [diamond(x.within(0), y.within(base), 6, "base value")]),
            _front_line([points[row] for row in front], x, y),
            *(_bars(row, *points[row], x, y) for row in ordered if row < NUM_BEST),
            *(_dot(row, *points[row], x, y) for row in ordered),
            *_labels(points, x, y, base),
        ],
        description=f"{quality.title} against KL per token of {len(points)} configurations; on the front: "
        + ", ".join(f"#{row + 1}" for row in front),
    )
    marks = [(kl.mean, found.mean) for kl, found in points.values()] + ([] if base is None else [(0.0, base)])
    num_beyond = sum(x(kl) != x.within(kl) or y(value) != y.within(value) for kl, value in marks)
    beyond = f" Far-off points stand at the edge: {num_beyond}." if num_beyond else ""
    caption = (
        "Dashed: the front, on which no configuration is better at less KL. "
        f"Bars: 95 % intervals, or ± 1 sd over seeds.{beyond}"
    )
    return Figure(f"{quality.title} against KL", caption, chart)


def _range(spreads: Sequence[Spread], others: Sequence[float]) -> tuple[float, float]:
    """Returns the range of an axis: all points and the bars of those in colour, except outliers."""
    ends = [end for spread in spreads[:NUM_BEST] for end in spread.bounds or ()]
    return robust_range([*(spread.mean for spread in spreads), *ends, *others])


def find_front(points: dict[int, tuple[float, float]]) -> list[int]:
    """Returns the keys of the Pareto front of points (cost, badness), where lower is better, sorted by cost."""
    front: list[int] = []
    best = float("inf")
    for key in sorted(points, key=lambda key: points[key]):
        if points[key][1] < best:
            best = points[key][1]
            front.append(key)
    return front


def _points(rows: Sequence[Row], quality: str) -> Points:
    found = ((index, row.group.spread(KL), row.group.spread(quality)) for index, row in enumerate(rows))
    return {index: (kl, value) for index, kl, value in found if kl is not None and value is not None}


def _base(rows: Sequence[Row]) -> float | None:
    found = [base.mean for row in rows if (base := row.group.spread(BASE_ACCURACY)) is not None]
    return found[0] if found and max(found) - min(found) < 1e-9 else None


def _front_line(points: Sequence[tuple[Spread, Spread]], x: Scale, y: Scale) -> str:
    corners = [f"{x.within(kl.mean):.1f} {y.within(found.mean):.1f}" for kl, found in points]
    return f'<path class="front" d="M{"L".join(corners)}"/>'


def _dot(row: int, kl: Spread, found: Spread, x: Scale, y: Scale) -> str:
    radius = 5.5 if row < NUM_BEST else 3
    return circle(x.within(kl.mean), y.within(found.mean), radius, row_style(row), row)


def _bars(row: int, kl: Spread, found: Spread, x: Scale, y: Scale) -> str:
    """Draws the interval of a run, or one standard deviation over seeds, in both directions."""
    at_x, at_y = x.within(kl.mean), y.within(found.mean)
    parts = [line(low, at_y, high, at_y, "bar") for low, high in _inside(kl, x)]
    parts += [line(at_x, low, at_x, high, "bar") for low, high in _inside(found, y)]
    return row_group(row, "".join(parts))


def _inside(found: Spread, scale: Scale) -> list[tuple[float, float]]:
    """Returns the ends of a bar, clamped to the plot; empty if the uncertainty is not known."""
    return [(scale.within(found.bounds[0]), scale.within(found.bounds[1]))] if found.bounds else []


def _labels(points: Points, x: Scale, y: Scale, base: float | None) -> list[str]:
    """Labels the best points with their ranks, and the base's mark, where they cover no point and no other label."""
    best = {row: point for row, point in points.items() if row < NUM_BEST}
    dots = {row: (x.within(kl.mean), y.within(found.mean)) for row, (kl, found) in best.items()}
    taken = list(dots.values())
    parts = []
    if base is not None:
        mark = x.within(0), y.within(base)
        parts.append(_base_name(mark, taken))
        taken.append(mark)
    for row, (across, up) in sorted(dots.items()):
        places = [(across + dx, up + dy) for dx, dy in LABEL_PLACES]
        place = next((spot for spot in places if not any(_overlap(spot, other) for other in taken)), places[0])
        taken.append(place)
        parts.append(row_group(row, text(place[0], place[1] + 4, str(row + 1), style="label")))
    return parts


def _base_name(mark: tuple[float, float], taken: list[tuple[float, float]]) -> str:
    """Draws the label beside the base's mark, inside the plot area, and adds its position to `taken`."""
    across, up = mark
    around = [(across + NAME_WIDTH, up), (across - NAME_WIDTH, up), (across, up + 15), (across, up - 15)]
    right, bottom = BOX.width - BOX.right, BOX.height - BOX.bottom
    sides = [(x, y) for x, y in around if BOX.left <= x <= right and BOX.top <= y <= bottom]
    spots = {side: [(side[0] + dx, side[1]) for dx in (-11, 0, 11)] for side in sides}
    free = (side for side in sides if not any(_overlap(s, other) for s in spots[side] for other in taken))
    place = next(free, sides[0])
    taken += spots[place]
    return text(place[0], place[1] + 4, "base")


def _overlap(spot: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(spot[0] - other[0]) < 11 and abs(spot[1] - other[1]) < 11
