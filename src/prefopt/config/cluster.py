"""The settings of `prefopt.submit`: the cluster, the points of a sweep, the stages of a chain."""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from prefopt.config.choices import ClusterKind
from prefopt.config.composition import Tree
from prefopt.config.limits import LimitsConfig
from prefopt.config.ranges import require, require_at_most, require_folder_name
from prefopt.process.errors import shorten

MAX_RANKS_PER_NODE = 1024
MAX_TRIALS = 10_000
MAX_ROUNDS = 1000
NEUTRAL_RATIO, KL_PER_TOKEN = "neutral_ratio", "kl_per_token"
"""Keys of metrics of a report, which the table of metrics in `prefopt.evaluation` describes."""
WORD = re.compile(r"[\w./:@%+,=\[\]&|*()-]+", re.ASCII)
"""A text that needs no quotes in an #SBATCH line."""


@dataclass(kw_only=True)
class ClusterConfig:
    """Where a run is executed, and with which resources."""

    kind: ClusterKind = MISSING
    """slurm: through sbatch. local: on this machine."""
    partition: str | None = None
    """SLURM partition; unset: the cluster's default."""
    account: str | None = None
    """SLURM account that is charged."""
    qos: str | None = None
    """SLURM quality of service."""
    constraint: str | None = None
    """Features a node must have, such as h100."""
    time: str = "24:00:00"
    """Limit of one attempt, [D-]HH:MM:SS. A run that needs longer is saved in time and queued again."""
    nodes: int = 1
    """Nodes per run."""
    gpus_per_node: int = 0
    """GPUs per node, with one rank each unless ranks_per_node is set; 0: a run on CPUs."""
    ranks_per_node: int | None = None
    """Processes per node; unset: one per GPU, and one without GPUs."""
    gres: str | None = None
    """Generic resources; unset: gpu:<gpus_per_node>. For example gpu:h100:8."""
    cpus_per_node: int | None = None
    """CPU cores per node; unset: one per rank on CPUs, eight per GPU."""
    memory: str | None = None
    """Memory per node, such as 64G; unset: the cluster's default."""
    exclude: str | None = None
    """Nodes not to use."""
    options: list[str] = field(default_factory=list)
    """Further options of sbatch, such as --reservation=name."""
    environment: str | None = None
    """A shell file that every job sources first: modules, the virtual environment, NCCL. See slurm/environment.sh."""
    container: str | None = None
    """An Apptainer image in which Python runs; unset: none."""
    container_options: list[str] = field(default_factory=list)
    """Options of `apptainer exec`, such as --nv and --bind=/data."""
    margin_s: int = 300
    """Seconds before the time limit at which a run is told to save and end. Must be enough for a step, an evaluation
    batch and a save."""
    max_attempts: int = 100
    """Attempts at a run, after which it is not queued again."""
    max_crashes: int = 3
    """Crashes in a row, each with progress since the one before, after which a run is not queued again."""
    preflight: bool = True
    """Check devices, disk, the run's folder and the network of every node before training."""
    min_free_gib: float = 10.0
    """Least free space where the run is written, GiB; below it the preflight fails."""
    max_parallel: int | None = None
    """Runs of a sweep at the same time; unset: no limit under SLURM, one on this machine."""

    @property
    def num_ranks_per_node(self) -> int:
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.num_ranks_per_node

    @property
    def num_cpus_per_node(self) -> int:
        return self.cpus_per_node or (8 * self.gpus_per_node or self.num_ranks_per_node)

    def __post_init__(self) -> None:
        for name in ("nodes", "max_attempts", "max_crashes", "margin_s"):
            require(getattr(self, name) >= 1, f"cluster.{name}: must be >= 1, found {getattr(self, name)}.")
        for name in ("ranks_per_node", "cpus_per_node", "max_parallel"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"cluster.{name}: must be >= 1 or null, found {value}.")
        for name in ("ranks_per_node", "gpus_per_node"):
            require_at_most(f"cluster.{name}", getattr(self, name), MAX_RANKS_PER_NODE, "each is a process")
        require(self.gpus_per_node >= 0, f"cluster.gpus_per_node: must be >= 0, found {self.gpus_per_node}.")
        require(
            re.fullmatch(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", self.time, re.ASCII) is not None,
            f"cluster.time: must be [D-]HH:MM:SS, found {shorten(repr(self.time))}. In YAML, quote it.",
        )
        for name in ("partition", "account", "qos", "constraint", "gres", "memory", "exclude"):
            value = getattr(self, name)
            require(
                value is None or WORD.fullmatch(value) is not None,
                f"cluster.{name}: must be one word of letters, digits and ./:@%+,=[]&|*()-, "
                f"found {shorten(repr(value))}.",
            )
        for option in self.options:
            require(
                option.startswith("--") and WORD.fullmatch(option) is not None,
                f"cluster.options: each must be one option such as --reservation=name, found {shorten(repr(option))}.",
            )
        require(
            self.kind is not ClusterKind.local or not self.gpus_per_node or (self.max_parallel or 1) == 1,
            f"cluster.max_parallel={self.max_parallel} with cluster=local and GPUs: the runs would share them.",
        )
        require(
            self.kind is not ClusterKind.local or self.nodes == 1,
            f"cluster.nodes={self.nodes} with cluster=local: this machine is one node.",
        )


@dataclass(kw_only=True)
class SearchConfig:
    """A search by Optuna in place of a grid."""

    num_trials: int | None = None
    """Total number of trials; unset: no search."""
    metric: str = "preference_accuracy"
    """The held-out metric to optimise; one that is in the evaluations during training and in the report."""
    maximise: bool = True
    """False: lower is better."""
    sampler_seed: int = 0
    """Seed of the sampler, >= 0. With trials in parallel, the order in which they end matters too."""
    num_startup_trials: int = 8
    """Trials drawn at random before the sampler learns from them."""
    prune: bool = True
    """End trials early that are worse than others at the same step (successive halving); needs trainer.eval_every."""
    min_evaluations: int = 1
    """Held-out evaluations that every trial gets before it may be ended early."""
    reduction_factor: int = 3
    """At each rung of successive halving, one of this many trials goes on."""

    def __post_init__(self) -> None:
        require(
            self.num_trials is None or self.num_trials >= 1,
            f"sweep.search.num_trials: must be >= 1 or null, found {self.num_trials}.",
        )
        require_at_most("sweep.search.num_trials", self.num_trials, MAX_TRIALS, "each is a run")
        require(self.sampler_seed >= 0, f"sweep.search.sampler_seed: must be >= 0, found {self.sampler_seed}.")
        for name in ("num_startup_trials", "min_evaluations"):
            require(getattr(self, name) >= 1, f"sweep.search.{name}: must be >= 1, found {getattr(self, name)}.")
        require(
            self.reduction_factor >= 2, f"sweep.search.reduction_factor: must be >= 2, found {self.reduction_factor}."
        )


@dataclass(kw_only=True)
class SweepConfig:
    """The points of a sweep: each combination of the values in `parameters`, with each of `points`."""

    label: str | None = None
    """Set by the chosen option; part of the default name."""
    name: str | None = None
    """Folder of the sweep under run.root, and its W&B group. Default: experiment, label and a hash of its points."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Values per setting in Hydra's grammar: "0.1,0.3", "range(1,5)", "choice(a,b)", "glob(*)", or a list."""
    points: list[Any] = field(default_factory=list)
    """Points given one by one, each a list of overrides such as [algorithm.beta=0.1, run.seed=1]."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Draw points instead of listing them: `parameters` then holds interval(a,b), int(interval(a,b)),
    tag(log, interval(a,b)) and choice(...)."""
    constraint: dict[str, Any] = field(
        default_factory=lambda: {
            NEUTRAL_RATIO: LimitsConfig.drifted_perplexity_ratio,
            KL_PER_TOKEN: LimitsConfig.drifted_kl_per_token,
        }
    )
    """Largest value of each of these metrics with which a run may be the best, in a search and in `prefopt compare`;
    by default where a report calls a model drifted. `sweep.constraint.<metric>=<value>`; null: no limit."""
    resume: bool = False
    """Submit the points of an existing sweep that are not done."""

    def __post_init__(self) -> None:
        for name in ("name", "label"):
            if getattr(self, name) is not None:
                require_folder_name(f"sweep.{name}", getattr(self, name))


@dataclass(kw_only=True)
class ChainConfig:
    """Runs that build on one another: each starts when the one before is done."""

    stages: list[Any] = field(default_factory=list)
    """Stages in order, each with name, overrides and command: train (also if unset), or sample, which writes
    `pairs.jsonl` to its folder. `{<name>}` in overrides is the folder of the last earlier stage of that name."""
    rounds: int | None = None
    """How many times the stages follow one another. Their folders' names have the number of the round, and the first
    round leaves out overrides that name a stage before it has been. Unset: once, and such a name is refused."""
    num_samples: int = 4
    """Answers to each prompt in stages that sample, >= 2."""

    def __post_init__(self) -> None:
        require(self.rounds is None or self.rounds >= 1, f"chain.rounds: must be >= 1 or null, found {self.rounds}.")
        require_at_most("chain.rounds", self.rounds, MAX_ROUNDS, "each is a job or more")
        require(self.num_samples >= 2, f"chain.num_samples: must be >= 2, found {self.num_samples}.")
        require(
            bool(self.stages) or self.rounds is None,
            f"chain.rounds={self.rounds} has no effect without a chain. Choose one, such as chain=iterative_dpo.",
        )


@dataclass(kw_only=True)
class SubmitOptions:
    """How to submit."""

    dry_run: bool = False
    """Print the script and submit nothing."""
    after: str | None = None
    """Start only when this is done: a run's folder or name, or a SLURM job id."""


@dataclass(kw_only=True)
class SubmitConfig:
    """The settings of `prefopt.submit` besides those of a run."""

    submit: SubmitOptions = field(default_factory=SubmitOptions)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)


SUBMIT = Tree("submit", SubmitConfig, open_tables=("sweep.constraint",))
GROUPS = ("submit", "cluster", "sweep", "chain")
"""Overrides of these go to `SubmitConfig`, all others to the runs."""
