"""A search as sweep.json holds it, so that no task needs anything else to know its trial."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from prefopt.process.errors import UserError
from prefopt.runs.find import SEARCH
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.points import Point
from prefopt.sweeps.space import Parameter

TRIAL = "trial.json"
"""In the `slurm/` of a trial's run: where training reports to, so that it can be pruned."""


@dataclass(frozen=True)
class Search:
    """What is drawn, what is optimised, and when a trial ends early.

    Attributes:
        parameters: What is drawn.
        overrides: What all trials share.
        config_dir: The user's own config groups, absolute; None without.
        num_ranks: Processes of each run.
        is_launched: By torchrun.
        num_trials: Tasks in all.
        metric: What is optimised: its name in the report, under `held_out.tuned`.
        logged: Its name in the held-out evaluations on the way; None if they do not have it.
        maximise: False: lower is better.
        sampler_seed: Of the sampler, >= 0.
        num_startup_trials: Trials drawn at random.
        prune: End trials early.
        min_examples: Pairs, or rows, that every trial sees before it may be pruned.
        reduction_factor: One of so many trials goes on at each rung.
    """

    parameters: list[Parameter]
    overrides: list[str]
    config_dir: str | None
    num_ranks: int
    is_launched: bool
    num_trials: int
    metric: str
    logged: str | None
    maximise: bool
    sampler_seed: int
    num_startup_trials: int
    prune: bool
    min_examples: int
    reduction_factor: int

    @classmethod
    def read(cls, folder: SweepFolder) -> "Search":
        """The search of a sweep's folder.

        Raises:
            UserError: There is none.
        """
        try:
            values: dict[str, Any] = folder.read()[SEARCH]
            return cls(**{**values, "parameters": [Parameter(**each) for each in values["parameters"]]})
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder.path}: holds no search of this version of prefopt ({error}).") from error

    def to_record(self) -> dict[str, Any]:
        """The entry of sweep.json."""
        return asdict(self)

    @property
    def arguments(self) -> list[str]:
        """What `prefopt.train` gets besides overrides."""
        return [] if self.config_dir is None else ["--config-dir", self.config_dir]

    def continued(self, folder: SweepFolder) -> "Search":
        """This search with what the one in the folder has fixed: its rungs.

        Raises:
            UserError: It would have fewer trials.
        """
        earlier = Search.read(folder)
        if self.num_trials < earlier.num_trials:
            raise UserError(
                f"sweep.search.num_trials={self.num_trials}: {folder.path} has {earlier.num_trials} trials already. "
                "Their number can be raised, not lowered."
            )
        return replace(self, min_examples=earlier.min_examples)

    def points(self) -> list[Point]:
        """The trials as points of a sweep, whose settings nobody knows yet."""
        return [Point(index, name_of(index), {}, []) for index in range(self.num_trials)]


def name_of(index: int) -> str:
    """Folder of a trial's run; it does not depend on the number of trials, which may be raised."""
    return f"trial-{index:03d}"
