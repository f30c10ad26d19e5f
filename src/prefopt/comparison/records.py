"""What is known of one run, wherever it was read from."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

DONE, RUNNING, NOT_BEGUN = "done", "running", "not begun"
OPEN_STATES = (RUNNING, NOT_BEGUN)
"""States that may still change without anybody starting something."""
SEED = "run.seed"


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured number, with its 95 % interval and n where they are known. Always finite."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A logged metric, thinned out for drawing; all lists have one entry per point.

    Attributes:
        steps: Optimizer steps.
        pairs: Pairs (SFT: rows) seen by then; None if a line did not say.
        tokens: Tokens seen by then; None if a line did not say.
        values: The metric.
        num_logged: Points before thinning.
        trend: Means over neighbouring points, for a noisy curve.
    """

    steps: list[float]
    pairs: list[float] | None
    tokens: list[float] | None
    values: list[float]
    num_logged: int
    trend: "Curve | None" = None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a run did with each held-out pair.

    Attributes:
        pairs: Digest of which pairs these are, in their order: equal digests can be compared pair by pair.
        margins: Metric name -> its margin per pair.
    """

    pairs: str
    margins: dict[str, "array[float]"]


class Mode(Enum):
    """Where the mirror of a run lies."""

    online = "online"
    offline = "offline"


@dataclass(frozen=True, slots=True)
class WandbPlace:
    """Where a run is, or would be, in Weights & Biases. `url` is the group's page, None where it must be made up."""

    mode: Mode
    entity: str | None
    project: str
    group: str | None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run.

    Attributes:
        name: Unique within a comparison.
        where: Its folder, or its URL.
        state: A state of status.json, `not begun`, or W&B's own word.
        step: The last logged step.
        settings: Dotted name -> value; of a run that has not begun only what its sweep changes.
        metrics: Key of `METRICS` -> value.
        measured_at: None if `metrics` come from the report, else the step of the held-out evaluation behind them.
        has_report: `metrics` come from a whole report.json (W&B: from the summary that it left there).
        decision: Of the report: ship, do_not_ship or undecided.
        reason: The finding that decided against shipping.
        curves: Key of `CURVES` -> points.
        held_out_data: Digest of the held-out data.
        outcomes: Per held-out pair, where the report folder holds them.
        message: Of status.json: why the run ended early.
        is_abandoned: It is running by its status, but no process is behind it any more.
        is_queued_again: It ended early, and its job has queued it again.
        problems: What could not be read, in words.
        wandb: Where the mirror is.
    """

    name: str
    where: str
    state: str
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    measured_at: int | None = None
    has_report: bool = False
    decision: str | None = None
    reason: str | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    held_out_data: str | None = None
    outcomes: Outcomes | None = None
    message: str = ""
    is_abandoned: bool = False
    is_queued_again: bool = False
    problems: tuple[str, ...] = ()
    wandb: WandbPlace | None = None

    @property
    def is_ranked(self) -> bool:
        """Done, with the numbers of its report: what is half measured is not ranked."""
        return self.state == DONE and self.has_report

    @property
    def is_open(self) -> bool:
        """It may still move: it has not begun, it runs and its process lives, or it waits for another attempt."""
        return self.is_queued_again or (self.state in OPEN_STATES and not self.is_abandoned)

    @property
    def seed(self) -> Any:
        return self.settings.get(SEED)

    @property
    def algorithm(self) -> str | None:
        return self.settings.get("algorithm.name")
