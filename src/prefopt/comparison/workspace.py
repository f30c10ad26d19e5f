"""A saved view of a W&B project with the panels by which runs are compared: `prefopt sync --workspace`.

The package `wandb-workspaces` builds and saves it. The view's internal name follows from its project and its name, so
that the same command finds and updates the same view, from any machine.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.cluster import NEUTRAL_RATIO
from prefopt.config.schema import TrainConfig
from prefopt.evaluation.metrics import ACCURACY, BY_KEY, KL, LOSS, REWARD_MARGIN, WIN_RATE, Metric, logged_metric
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.runs.settings import read_config
from prefopt.tracking.credentials import base_url, has_api_key
from prefopt.tracking.wandb import interval_keys

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

PACKAGE = "wandb_workspaces"
NAME_LETTERS = 11
"""Length of W&B's own names of views."""
AXES = {"step": "train/global_step", "pairs": "{split}/pairs", "tokens": "{split}/tokens"}
"""What curves are drawn against -> its name in W&B's history; `split` is one of `SPLITS`."""
SPLITS = {"eval": "Held-out", "train": "Training"}
SETTINGS = {"algorithm.beta": "beta", "optim.learning_rate": "learning rate"}
"""Settings that are axes of the parallel coordinates -> their labels; both scales are logarithmic."""


@dataclass(frozen=True, slots=True)
class View:
    """What a saved view shows.

    Attributes:
        entity: User or team of W&B; None: the default of the API key.
        project: The project.
        name: The view's name.
        group: The group that all of its runs have in W&B, now and later; None: they have several.
        run_ids: W&B's ids of the runs.
        metrics: The metrics that decide, the first one first.
        curves: The metrics that are drawn over the training.
    """

    entity: str | None
    project: str
    name: str
    group: str | None
    run_ids: tuple[str, ...]
    metrics: tuple[Metric, ...]
    curves: tuple[Metric, ...]


def check_workspace() -> None:
    """Checks, before anything is uploaded, that a view can be saved from here.

    Raises:
        UserError: The package is missing, there is no key, or W&B is switched off.
    """
    if find_spec(PACKAGE) is None:
        raise UserError("--workspace needs the package wandb-workspaces: pip install 'prefopt[workspace]'")
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled"):
        raise UserError(
            f"--workspace saves a view on W&B's server, and WANDB_MODE={mode} forbids to reach it. Run this where "
            "there is a network, with WANDB_MODE=online before the command."
        )
    if not has_api_key():
        raise UserError(
            f"--workspace needs a key for {base_url()}. Run `wandb login` once on this machine, or set WANDB_API_KEY."
        )


def plan_view(targets: Sequence[Path], runs: Sequence[Path]) -> View:
    """Reads from the runs what a view of them shows.

    Args:
        targets: The folders that were named; the view is called after them.
        runs: The runs in them that W&B has recorded, at least one.

    Raises:
        UserError: The settings of a run cannot be read, or the runs are in several projects.
    """
    configs = [read_config(RunDirectory(run).config) for run in runs]
    places = {(config.logger.entity, config.logger.project) for config in configs}
    if len(places) > 1:
        found = ", ".join(sorted(f"{entity or '(default)'}/{project}" for entity, project in places))
        raise UserError(
            f"--workspace: a view shows the runs of one W&B project, found {found}. Name the folders of one at a time."
        )
    ((entity, project),) = places
    groups = {config.logger.group for config in configs}
    ids = [RunDirectory(run).read_wandb_id() for run in runs]
    is_of_pairs = any(config.algorithm.rows == "preference" for config in configs)
    return View(
        entity=entity,
        project=project,
        name=", ".join(target.resolve().name for target in targets),
        group=groups.pop() if len(groups) == 1 else None,
        run_ids=tuple(sorted(each for each in ids if each)),
        metrics=_deciding(configs, is_of_pairs),
        curves=(BY_KEY[ACCURACY], logged_metric(LOSS, "preference"), BY_KEY[REWARD_MARGIN])
        if is_of_pairs
        else (BY_KEY[LOSS],),
    )


def _deciding(configs: Sequence[TrainConfig], is_of_pairs: bool) -> tuple[Metric, ...]:
    judged = [WIN_RATE] if any(config.evaluation.judges for config in configs) else []
    return tuple(BY_KEY[key] for key in (*judged, ACCURACY if is_of_pairs else LOSS))


def save_view(view: View) -> str:
    """Creates the view, or updates the one that an earlier call has created, and returns its address.

    Raises:
        UserError: There is no such project, or W&B refused or could not be reached.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        entity = view.entity or wandb.Api().default_entity
        if not entity:
            raise UserError("--workspace: this key has no default user or team in W&B. Set logger.entity in the runs.")
        workspace = build_workspace(view, entity)
        workspace._internal_name, workspace._internal_id = _find(view, entity)
        workspace.save()
        return str(workspace.url)
    except UserError:
        raise
    except Exception as error:  # W&B's client fails in many ways, and has no common class for them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"--workspace: W&B has not saved the view {view.name!r} of the project {view.project!r} at {base_url()} "
            f"({reason}). Check logger.project and logger.entity of the runs, the key, and its rights."
        ) from error


def _find(view: View, entity: str) -> tuple[str, str]:
    """Returns the internal name of the view, and the id that W&B has given to it; "" before it is saved.

    Raises:
        ValueError: There is no such project.
    """
    import wandb_workspaces.workspaces as ws

    digest = hashlib.sha256(f"{view.project} {view.name}".encode()).hexdigest()[:NAME_LETTERS]
    name = f"nw-{digest}-v"
    try:
        return name, ws.Workspace.from_url(f"{base_url()}/{entity}/{view.project}?nw={digest}")._internal_id
    except ValueError as error:
        if str(error).startswith("Workspace "):  # else it is the project that was not found
            return name, ""
        raise


def build_workspace(view: View, entity: str) -> "ws.Workspace":
    """Returns the view with its panels, unsaved."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    is_in = expr.Metric("Group") == view.group if view.group else expr.Metric("ID").isin(list(view.run_ids))
    outcomes = [*(_scatter(metric) for metric in view.metrics), _parallel(view)]
    curves = {
        axis: [_curve(metric, axis, split) for metric in view.curves for split in _splits(metric)] for axis in AXES
    }
    return ws.Workspace(
        entity=entity,
        project=view.project,
        name=view.name,
        sections=[
            ws.Section(name="Outcomes", panels=outcomes, is_open=True),
            *(ws.Section(name=f"Against {axis}", panels=drawn, is_open=True) for axis, drawn in curves.items()),
        ],
        settings=ws.WorkspaceSettings(x_axis=AXES["step"]),
        runset_settings=ws.RunsetSettings(filters=[is_in], pinned_columns=list_columns(view)),
    )


def list_columns(view: View) -> list[str]:
    """Returns the columns of the table of runs: the decision, and the numbers that it follows from."""
    columns = ["decision"]
    for metric in view.metrics:
        columns += [_summary(metric), *interval_keys(_summary(metric))]
    return [f"summary:{name}" for name in (*columns, _summary(BY_KEY[KL]), _summary(BY_KEY[NEUTRAL_RATIO]))]


def _scatter(metric: Metric) -> "wr.ScatterPlot":
    import wandb_workspaces.reports.v2 as wr

    kl = BY_KEY[KL]
    title = f"{metric.title} against KL per token"
    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(_summary(kl)), y=wr.SummaryMetric(_summary(metric)))


def _parallel(view: View) -> "wr.ParallelCoordinatesPlot":
    import wandb_workspaces.reports.v2 as wr

    def column(metric: Any, label: str, log: bool | None = None) -> Any:
        return wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=label, log=log)

    shown = (view.metrics[0], BY_KEY[KL])
    columns = [column(wr.Config(key), label, True) for key, label in SETTINGS.items()]
    columns += [column(wr.SummaryMetric(_summary(metric)), metric.label) for metric in shown]
    return wr.ParallelCoordinatesPlot(title="Settings and outcomes", columns=columns)


def _curve(metric: Metric, axis: str, split: str) -> "wr.LinePlot":
    import wandb_workspaces.reports.v2 as wr

    title = f"{SPLITS[split]} {metric.name.lower()}"
    return wr.LinePlot(title=title, x=AXES[axis].format(split=split), y=[f"{split}/{metric.logged}"])


def _splits(metric: Metric) -> list[str]:
    """In which lines of the history a metric is: held-out accuracy is in no line of training."""
    return [split for split in SPLITS if split == "eval" or metric.key != ACCURACY]


def _summary(metric: Metric) -> str:
    """The metric's name in W&B's summary."""
    return "/".join(metric.path)
