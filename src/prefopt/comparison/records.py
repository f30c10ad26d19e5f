"""The record of one run, the same for a run folder and for W&B."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

DONE, RUNNING, NOT_BEGUN = "done", "running", "not begun"
OPEN_STATES = (RUNNING, NOT_BEGUN)
"""States that may still change without a new command."""
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
        pairs: Pairs (SFT: rows) seen so far; None if it is missing in a line.
        tokens: Tokens seen so far; None if it is missing in a line.
        values: Values of the metric.
        num_logged: Number of points before thinning.
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
    """The margins of a run per held-out pair.

    Attributes:
        pairs: Digest of the pairs in their order, and of their prompts: runs with equal digests can be compared pair
            by pair.
        margins: Key of a line of pairs.jsonl -> its value per pair.
        prompts: Number of each pair's prompt; None in files of earlier versions, which do not have it.
    """

    pairs: str
    margins: dict[str, "array[float]"]
    prompts: "array[int] | None" = None

    @property
    def num_pairs(self) -> int:
        return len(next(iter(self.margins.values())))


@dataclass(frozen=True, slots=True)
class Wins:
    """How the answers of a run fared against those of its best contestant without tuning, prompt by prompt.

    Attributes:
        judge: Name of the judge that decides.
        judge_digest: Digest of what decides its verdicts; None in reports of earlier versions.
        opponent: Name of that contestant.
        opponent_digest: Digest of what decides its answers; None in reports of earlier versions.
        prompts: Digest of the prompts in their order.
        numbers: Number of each prompt; equal prompts have equal numbers.
        outcomes: 1 won, 0.5 tied, 0 lost, NaN without a verdict.
    """

    judge: str
    judge_digest: str | None
    opponent: str
    opponent_digest: str | None
    prompts: str
    numbers: "array[int]"
    outcomes: "array[float]"


class Mode(Enum):
    """Whether a run's copy in W&B is online, or still offline on the run's machine."""

    online = "online"
    offline = "offline"


@dataclass(frozen=True, slots=True)
class WandbPlace:
    """Where a run is, or will be, in Weights & Biases. `url`: the group's page; None: built from the other fields."""

    mode: Mode
    entity: str | None
    project: str
    group: str | None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that a comparison knows of one run.

    Attributes:
        name: Unique within a comparison.
        where: Its folder, or its URL.
        state: A state of status.json, `not begun`, `unknown`, or W&B's name of a state.
        step: The last logged step.
        settings: Dotted name -> value; for a run that has not begun, only the settings that its sweep changes.
        metrics: Key of `METRICS` -> value.
        not_finite: Keys of those that its report holds as no finite number; they are not in `metrics`.
        measured_at: None if `metrics` come from the report, else the step of their held-out evaluation.
        has_report: Whether `metrics` come from a readable report.json (W&B: from the summary of a finished run).
        decision: Decision of the report: ship, do_not_ship or undecided.
        reason: The finding that decided against shipping.
        constraint: The constraint of its sweep: key of a metric -> its largest allowed value.
        curves: Key of `CURVES` -> points.
        held_out_data: Digest of the held-out data.
        outcomes: Margins per held-out pair; None if the report folder has none.
        wins: Outcomes of judged answers per prompt; None if the report folder has none.
        message: Message of status.json: why the run ended early.
        is_abandoned: Whether its status says running, but its process is gone.
        is_queued_again: Whether it ended early, and its job has queued it again.
        problems: Sentences on files that could not be read.
        wandb: Its place in W&B; None if it is not logged there.
    """

    name: str
    where: str
    state: str
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    not_finite: frozenset[str] = frozenset()
    measured_at: int | None = None
    has_report: bool = False
    decision: str | None = None
    reason: str | None = None
    constraint: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    held_out_data: str | None = None
    outcomes: Outcomes | None = None
    wins: Wins | None = None
    message: str = ""
    is_abandoned: bool = False
    is_queued_again: bool = False
    problems: tuple[str, ...] = ()
    wandb: WandbPlace | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether it is done and has the numbers of its report; half-measured runs are not ranked."""
        return self.state == DONE and self.has_report

    @property
    def is_open(self) -> bool:
        """Whether it may still change: it has not begun, its process is running, or it waits for another attempt."""
        return self.is_queued_again or (self.state in OPEN_STATES and not self.is_abandoned)

    @property
    def seed(self) -> object:
        return self.settings.get(SEED)

    @property
    def algorithm(self) -> str | None:
        return self.settings.get("algorithm.name")
