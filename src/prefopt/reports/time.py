"""The time of a run as one bar: its parts in groups, in the order of a run, one colour per group."""

from dataclasses import dataclass

from prefopt.evaluation.report import Report
from prefopt.process.phases import OTHER, label
from prefopt.reports.numbers import duration

GROUPS: dict[str, tuple[str, ...]] = {
    "start": ("imports", "configuration"),
    "data": ("reading", "tokenising"),
    "model": ("hashing", "model_load", "set_up"),
    "reference": ("reference",),
    "training": ("first_step", "training"),
    "held-out": ("held_out_evaluation",),
    "saving": ("checkpoints", "final_model"),
    "evaluation": ("evaluation",),
    "report": ("report", "wandb"),
    OTHER: (),
}
"""Group (also the CSS class of its colour) -> its parts, by their names up to the first slash."""
GROUP_OF = {part: group for group, parts in GROUPS.items() for part in parts}
ORDER = [*GROUP_OF, OTHER]


@dataclass(frozen=True)
class Share:
    """A part or a group: its name, its seconds as text, and its share of the total in percent."""

    name: str
    time: str
    percent: float
    group: str


@dataclass(frozen=True)
class TimeBlock:
    """The `segments` of the bar, and all `parts` of the run; both add up to `total`."""

    total: str
    outside: str
    segments: list[Share]
    parts: list[Share]

    @property
    def description(self) -> str:
        """The bar in words."""
        return f"{self.total}: " + ", ".join(f"{share.name} {share.time}" for share in self.segments)


def time_block(report: Report) -> TimeBlock | None:
    """Returns the time of a run from its report; None if it was not recorded."""
    seconds: dict[str, float] = report.phases or {}
    total = sum(seconds.values())
    if total <= 0:
        return None
    parts = sorted(seconds, key=lambda part: (_place(part), part.endswith(f"/{OTHER}")))
    sums: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
    for part in parts:
        sums[_group(part)] += seconds[part]
    return TimeBlock(
        duration(total),
        duration(total - sums["training"]),
        [_share(group, value, total, group) for group, value in sums.items() if value > 0],
        [_share(label(part), seconds[part], total, _group(part)) for part in parts],
    )


def _share(name: str, seconds: float, total: float, group: str) -> Share:
    return Share(name, duration(seconds), 100 * seconds / total, group)


def _group(part: str) -> str:
    return GROUP_OF.get(part.split("/")[0], OTHER)


def _place(part: str) -> int:
    first = part.split("/")[0]
    return ORDER.index(first) if first in ORDER else len(ORDER)
