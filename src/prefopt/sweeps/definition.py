"""The definition of a search, stored in sweep.json, from which each task of the job array reads its trial."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from prefopt.process.errors import UserError
from prefopt.runs.find import SEARCH
from prefopt.sweeps.folder import SweepFolder
from prefopt.sweeps.points import Point
from prefopt.sweeps.space import Parameter

TRIAL = "trial.json"
"""File in the `slurm/` folder of a trial's run: names the sweep and the trial, so that training can be pruned."""


@dataclass(frozen=True)
class Search:
    """The settings of a search: the searched parameters, the metric, and the rules of pruning.

    Attributes:
        parameters: Parameters that are drawn for each trial.
        overrides: Overrides that all trials share.
        config_dir: Absolute path of the user's own config groups; None if there are none.
        num_ranks: Processes of each run.
        is_launched: Whether torchrun starts the runs.
        num_trials: Number of trials, one for each task of the job array.
        metric: Name of the optimised metric in the report, under `held_out.tuned`.
        logged: Name of this metric in the held-out evaluations during training; None if it is not measured there.
        maximise: True if higher is better, False if lower is.
        sampler_seed: Seed of the sampler, >= 0.
        num_startup_trials: Number of first trials that are drawn at random.
        prune: Whether trials may end early.
        min_examples: Training examples (pairs or rows) of each trial before it may be pruned.
        reduction_factor: Of this many trials, one continues at each rung of successive halving.
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
        """Returns the search that a sweep's folder defines.

        Raises:
            UserError: The folder defines none, or one of another version.
        """
        try:
            values: dict[str, Any] = folder.read()[SEARCH]
            return cls(**{**values, "parameters": [Parameter(**each) for each in values["parameters"]]})
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder.path}: holds no search of this version of prefopt ({error}).") from error

    def to_record(self) -> dict[str, object]:
        """Returns the entry of sweep.json."""
        return asdict(self)

    @property
    def arguments(self) -> list[str]:
        """Arguments of `prefopt.train` besides overrides."""
        return [] if self.config_dir is None else ["--config-dir", self.config_dir]

    def continued(self, folder: SweepFolder) -> "Search":
        """Returns this search as continuation of the one in the folder, whose `min_examples` (pruning rungs) it keeps.

        Raises:
            UserError: This search has fewer trials.
        """
        earlier = Search.read(folder)
        if self.num_trials < earlier.num_trials:
            raise UserError(
                f"sweep.search.num_trials={self.num_trials}: {folder.path} has {earlier.num_trials} trials already. "
                "Their number can be raised, not lowered."
            )
        return replace(self, min_examples=earlier.min_examples)

    def points(self) -> list[Point]:
        """Returns the trials as points of a sweep, without settings, since these are drawn when a task starts."""
        return [Point(index, name_of(index), {}, []) for index in range(self.num_trials)]


def name_of(index: int) -> str:
    """Returns the folder name of a trial's run; it does not depend on the number of trials, which may be raised."""
    return f"trial-{index:03d}"
