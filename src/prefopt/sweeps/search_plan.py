"""Plans a search before it is submitted: checks its parameters at their ends, its metric and its pruning."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from prefopt.config.cluster import SearchConfig, SweepConfig
from prefopt.config.load import complete, fingerprint
from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.evaluation.metrics import ACCURACY, COMPARED, HELD_OUT, REWARD_MARGIN, TUNED, Better, Metric
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch
from prefopt.runs.find import CONSTRAINT
from prefopt.sweeps.definition import Search
from prefopt.sweeps.points import Composer, Plan, Point
from prefopt.sweeps.space import Space, read_space


@dataclass(frozen=True)
class SearchPlan:
    """A search that has no folder yet.

    Attributes:
        search: The definition for sweep.json.
        corners: Points at the ends of the parameters' ranges, with the digest of what the search computes.
    """

    search: Search
    corners: Plan


def plan_search(sweep: SweepConfig, overrides: Sequence[str], config_dir: str | None, launch: Launch) -> SearchPlan:
    """Reads the parameters of a search and checks the search.

    Args:
        sweep: Settings of the sweep, with `search.num_trials` set.
        overrides: Overrides of the runs, as on the command line.
        config_dir: Absolute path of the user's own config groups; None if there are none.
        launch: How each run will be started.

    Raises:
        UserError: A parameter does not exist, a run at an end of a range is invalid, runs do not have the metric,
            pruning could never happen, or Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise UserError("sweep.search needs Optuna, which is not installed: pip install 'prefopt[search]'.")
    if sweep.points:
        raise UserError("sweep.points with sweep.search: a search draws its points. Leave one of them out.")
    space = read_space(overrides, sweep.parameters, config_dir)
    corners = _compose_corners(space, config_dir, launch)
    wanted = sweep.search
    assert wanted.num_trials is not None
    metric = _find_metric(wanted, corners.configs, [parameter.key for parameter in space.parameters])
    search = Search(
        parameters=space.parameters,
        overrides=space.base,
        config_dir=config_dir,
        num_ranks=launch.num_ranks,
        is_launched=launch.is_launched,
        num_trials=wanted.num_trials,
        metric=metric.key,
        logged=metric.logged,
        maximise=wanted.maximise,
        sampler_seed=wanted.sampler_seed,
        num_startup_trials=wanted.num_startup_trials,
        prune=wanted.prune,
        min_examples=_find_min_examples(wanted, metric, corners.configs, launch) if wanted.prune else 0,
        reduction_factor=wanted.reduction_factor,
    )
    return SearchPlan(search, Plan(corners.points, corners.label, _digest(sweep, space, corners), corners.configs))


def list_corners(space: Space) -> list[list[str]]:
    """Lists overrides of each parameter at each of its ends, with the others at their first; and all at their last."""
    ends = [parameter.ends() for parameter in space.parameters]
    first, last = [each[0] for each in ends], [each[-1] for each in ends]
    varied = [[*first[:place], end, *first[place + 1 :]] for place, each in enumerate(ends) for end in each[1:]]
    return [first, *varied, *([last] if last not in [first, *varied] else [])]


def _compose_corners(space: Space, config_dir: str | None, launch: Launch) -> Plan:
    composer, problems = Composer(config_dir), []
    plan = Plan([], "", "", [])
    label = ""
    identities: dict[str, str] = {}
    for index, chosen in enumerate(list_corners(space)):
        words = ", ".join(chosen)
        try:
            composed = composer.compose([*space.base, *chosen])
            config = complete(composed, launch)
        except UserError as error:
            problems.append(f"{words}: {error}")
            continue
        identity = fingerprint(config)
        if identity in identities:
            problems.append(f"{words}: the same run as {identities[identity]}; what differs changes no result")
        identities.setdefault(identity, words)
        label = label or composed.label or config.algorithm.name.value
        plan.points.append(Point(index, "", {}, [*space.base, *chosen]))
        plan.configs.append(config)
    if problems:
        raise UserError("\n  ".join(["this search cannot run; nothing was submitted.", *problems]))
    return Plan(plan.points, label, "", plan.configs)


def _find_metric(wanted: SearchConfig, configs: Sequence[TrainConfig], searched: Sequence[str]) -> Metric:
    """Returns the metric to optimise, which every trial must have.

    Raises:
        UserError: Some trial would not have it, it cannot compare trials, or `maximise` is wrong for it.
    """
    known = [metric for metric in COMPARED if metric.path[:2] == (HELD_OUT, TUNED)]
    allowed = [metric for metric in known if all(_is_reported(metric, config) for config in configs)]
    metric = next((metric for metric in allowed if wanted.metric in (metric.key, metric.logged)), None)
    keys = [each.key for each in allowed if each.better in (Better.higher, Better.lower)]
    choices = f"Allowed here: {', '.join(keys) or 'none, since nothing is held out'}."
    if metric is None:
        raise UserError(
            f"sweep.search.metric={wanted.metric}: no held-out metric that the reports of all trials have. {choices}"
        )
    if metric.key not in keys:
        raise UserError(
            f"sweep.search.metric={metric.key}: {metric.better.value}, but a search maximises or minimises. {choices}"
        )
    if (metric.better is Better.higher) != wanted.maximise:
        right = str(not wanted.maximise).lower()
        raise UserError(f"sweep.search.metric={metric.key}: {metric.better.value}; set sweep.search.maximise={right}.")
    if metric.key == REWARD_MARGIN and "algorithm.beta" in searched:
        raise UserError(
            f"sweep.search.metric={REWARD_MARGIN} scales with algorithm.beta, which is searched: the largest beta "
            f"would win. Set sweep.search.metric={ACCURACY}, or leave beta out."
        )
    if len({_held_out_of(config) for config in configs}) > 1:
        raise UserError(
            "sweep.parameters: trials would be measured on different held-out data, which cannot be compared. "
            "Search nothing that changes what is held out; with data.held_out set, run.seed does not."
        )
    return metric


def _is_reported(metric: Metric, config: TrainConfig) -> bool:
    """Returns whether the report of a run has this metric of its held-out data."""
    if config.data.held_out is None and config.data.held_out_fraction == 0:
        return False
    has_pairs = metric.of_pairs and config.evaluation.pairs is not None
    return has_pairs or config.algorithm.rows in metric.rows


def _held_out_of(config: TrainConfig) -> str:
    data = config.data
    split = None if data.held_out is not None else (str(data.train), data.held_out_fraction, config.run.seed)
    return repr((str(data.held_out), split, str(config.evaluation.pairs)))


def _find_min_examples(wanted: SearchConfig, metric: Metric, configs: Sequence[TrainConfig], launch: Launch) -> int:
    """Returns the number of examples after which every trial has had `min_evaluations`, whatever its batch size.

    Raises:
        UserError: Pruning is not possible.
    """
    off = "or set sweep.search.prune=false"
    for config in configs:
        trainer = config.trainer
        if trainer.eval_every is None:
            raise UserError(f"sweep.search.prune needs held-out metrics on the way: set trainer.eval_every, {off}.")
        if trainer.tokens_per_device is not None:
            raise UserError(
                "sweep.search.prune compares trials after the same number of examples, and with "
                f"trainer.tokens_per_device steps differ in it. Set trainer.per_device_batch_size instead, {off}."
            )
        if metric.logged not in config.algorithm.held_out_metrics:
            raise UserError(
                f"sweep.search.metric={metric.key}: algorithm={config.algorithm.name.value} measures it at the end "
                f"alone, so no trial can be pruned by it. Set another metric, {off}."
            )
    sizes = [StepSize.total_of(config, launch.num_ranks) for config in configs]
    least = wanted.min_evaluations * max(config.trainer.eval_every or 0 for config in configs) * max(sizes)
    before_last = [_examples_before_end(config, size) for config, size in zip(configs, sizes, strict=True)]
    if all(examples is not None and examples < least for examples in before_last):
        raise UserError(
            f"sweep.search.prune could never end a trial: the first comparison is after {least} examples, and no "
            f"trial is evaluated then before its last step. Lower trainer.eval_every, {off}."
        )
    return least


def _examples_before_end(config: TrainConfig, batch_size: int) -> int | None:
    """Returns the examples at the last evaluation before the last step; None if the size of the data decides."""
    steps, every = config.trainer.max_steps, config.trainer.eval_every
    return None if steps is None or every is None else (steps - 1) // every * every * batch_size


def _digest(sweep: SweepConfig, space: Space, corners: Plan) -> str:
    """Returns the SHA-256 (hex) of all that decides the trials, except their number."""
    settings: dict[str, Any] = {**asdict(sweep.search), "num_trials": None, CONSTRAINT: sweep.constraint}
    drawn = [asdict(parameter) for parameter in space.parameters]
    identities = [fingerprint(config) for config in corners.configs]
    return hashlib.sha256(json.dumps([settings, drawn, identities], sort_keys=True).encode()).hexdigest()
