"""From a matplotlib figure to an inline SVG that takes its colours and font from the page's CSS."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSS_COLOURS = ("page", "ink", "muted", "grid", "base", "tuned", "chosen", "rejected", "bad")
"""CSS variables of the page that a plot may use."""

SENTINELS = {name: f"#0a0b{index:02x}" for index, name in enumerate(CSS_COLOURS, start=0x10)}
"""What matplotlib draws in place of each variable: colours that nothing else produces."""

POINTS_PER_INCH = 72
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefopt",
    "font.size": 11.0,
    "axes.edgecolor": SENTINELS["grid"],
    "axes.labelcolor": SENTINELS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1.0,
    "grid.color": SENTINELS["grid"],
    "grid.linewidth": 1.0,
    "xtick.color": SENTINELS["grid"],
    "ytick.color": SENTINELS["grid"],
    "xtick.labelcolor": SENTINELS["muted"],
    "ytick.labelcolor": SENTINELS["muted"],
    "ytick.major.size": 0.0,
    "text.color": SENTINELS["ink"],
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draws with prefopt's style only, whatever the user's matplotlibrc says."""
    import matplotlib.style  # lazy: matplotlib takes a second to import

    with matplotlib.style.context(["default", STYLE]):
        yield


def new_axes(width: int, height: int, margins: tuple[int, int, int, int]) -> "tuple[Figure, Axes]":
    """A figure with one axes. Sizes in pixels; `margins` are left, right, top, bottom."""
    from matplotlib.figure import Figure  # lazy: matplotlib takes a second to import

    left, right, top, bottom = margins
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def to_svg(figure: "Figure", *, name: str, description: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        figure: Drawn with `SENTINELS` colours only.
        name: Prefix of all ids, unique on the page.
        description: What a screen reader says in place of the picture.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    body = text[text.index("<g id=") :]
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None, "matplotlib writes a viewBox"
    opening = f'<svg role="img" aria-label="{escape(description)}" viewBox="{view_box[1]}">\n'
    return opening + _for_page(body, name).strip()


def _for_page(body: str, name: str) -> str:
    body = re.sub(r'(?<=\s)id="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    for colour, sentinel in SENTINELS.items():
        body = body.replace(sentinel, f"var(--{colour})")
    return body
