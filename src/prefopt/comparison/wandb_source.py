"""Reads the runs of a W&B group as records, for runs on another machine."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import quote

from prefopt.comparison.log import from_rows
from prefopt.comparison.metrics import HELD_OUT, SPLIT, from_summary
from prefopt.comparison.read import from_log
from prefopt.comparison.records import DONE, NOT_BEGUN, RUNNING, Mode, RunRecord, WandbPlace
from prefopt.comparison.settings import flatten
from prefopt.comparison.thinning import points_for, read_curves
from prefopt.config.schema import TrainConfig
from prefopt.evaluation.metrics import BY_KEY
from prefopt.process.errors import UserError

TIMEOUT_S = 30
EVALUATED, TRAINED = "eval/", "train/"
STEP = "train/global_step"
STATES = {
    "running": RUNNING,
    "pending": NOT_BEGUN,
    "crashed": "failed",
    "killed": "preempted",
    "preempting": "preempted",
}
"""State in W&B -> state of prefopt, where they differ; `finished` is `done` if the summary has a decision."""
NOT_TRAINING = ("reference", "eval")
"""Job types of W&B runs that are no training: shared references (earlier versions) and later evaluations."""
CONFIG_GROUPS = frozenset(f.name for f in dataclasses.fields(TrainConfig))


class WandbRun(Protocol):
    """The part of `wandb.apis.public.Run` that is read."""

    name: str
    state: str
    job_type: str
    url: str
    config: Mapping[str, Any]
    summary: Any

    def scan_history(self) -> Iterable[Mapping[str, Any]]: ...


class WandbApi(Protocol):
    """The part of `wandb.Api` that is used."""

    def runs(self, path: str, filters: dict[str, str], *, lazy: bool) -> Iterable[WandbRun]: ...


@dataclass(frozen=True, slots=True)
class WandbGroup:
    """A group of W&B, written `entity/project/group`."""

    entity: str
    project: str
    group: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.group}"


def parse_group(target: str) -> WandbGroup | None:
    """Parses `entity/project/group`; None if `target` is not three names, for example a path such as `/runs/a`."""
    parts = target.removesuffix("/").split("/")
    if len(parts) != 3 or not all(parts) or parts[0] in (".", "..", "~"):
        return None
    return WandbGroup(*parts)


def read_group(group: WandbGroup, api: WandbApi | None = None) -> list[RunRecord]:
    """Reads all runs of the group, in W&B's order.

    Args:
        group: The group to read.
        api: The client; None: `wandb.Api` with the user's key.

    Raises:
        UserError: There is no key, there is no such group, or W&B cannot be reached.
    """
    failures: tuple[type[Exception], ...] = (ValueError, OSError)  # requests' errors are OSErrors
    if api is None:
        api, failures = _open_api(group, failures)
    try:
        project, filters = f"{group.entity}/{group.project}", {"group": group.group}
        runs = list(api.runs(project, filters=filters, lazy=False))  # lazy: one more request per run
        records = [_read(run, group, points_for(len(runs))) for run in runs if run.job_type not in NOT_TRAINING]
    except failures as error:
        raise UserError(
            f"{group}: no such folder, and as a group of W&B it could not be read ({_first_line(error)}). "
            "Check the path, or the entity, the project and the key."
        ) from error
    if not records:
        raise UserError(
            f"{group}: no such folder, and W&B's {group.entity}/{group.project} has no run in group {group.group!r}. "
            "The group is logger.group of the runs."
        )
    return records


def _open_api(
    group: WandbGroup, failures: tuple[type[Exception], ...]
) -> tuple[WandbApi, tuple[type[Exception], ...]]:
    from prefopt.tracking.credentials import has_api_key

    if not has_api_key():
        raise UserError(
            f"{group}: no such folder, and it cannot be a group of W&B without an API key. "
            "Check the path, or set WANDB_API_KEY (or run wandb login)."
        )
    import wandb  # slow to import, and only this source needs it

    os.environ.setdefault("WANDB_SILENT", "true")
    failures = (*failures, wandb.Error)
    try:
        return wandb.Api(timeout=TIMEOUT_S), failures
    except failures as error:
        raise UserError(f"{group}: W&B could not be opened ({_first_line(error)}). Check the key.") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read(run: WandbRun, group: WandbGroup, max_points: int) -> RunRecord:
    settings = flatten({key: value for key, value in run.config.items() if key in CONFIG_GROUPS})
    log = from_rows(to_lines(run.scan_history()))
    summary = run.summary
    decision = summary.get("decision")
    state = DONE if run.state == "finished" and decision else STATES.get(run.state, str(run.state))
    is_done = state == DONE
    live, measured_at = from_log(log, settings.get("algorithm.name"))
    speed = {key: live[key] for key in live if BY_KEY[key].is_speed}
    return RunRecord(
        name=str(run.name),
        where=str(run.url),
        state=state,
        step=log.last_step,
        settings=settings,
        metrics={**speed, **from_summary(summary)} if is_done else live,
        measured_at=None if is_done else measured_at,
        has_report=is_done,
        decision=decision if isinstance(decision, str) else None,
        curves=read_curves(log, max_points),
        wandb=WandbPlace(Mode.online, group.entity, group.project, group.group, _group_url(run, group)),
    )


def to_lines(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Converts the rows of W&B's history to lines of metrics.jsonl, sorted by step."""
    lines: list[dict[str, Any]] = []
    for row in history:
        step = row.get(STEP)
        if not isinstance(step, int | float):
            continue
        for prefix, split in ((TRAINED, {}), (EVALUATED, {SPLIT: HELD_OUT})):
            names = (key.removeprefix(prefix) for key in row if key.startswith(prefix) and key != STEP)
            values = {name: float(row[prefix + name]) for name in names if isinstance(row[prefix + name], int | float)}
            if values:
                lines.append({"step": int(step), **split, **values})
    return sorted(lines, key=lambda line: int(line["step"]))


def _group_url(run: WandbRun, group: WandbGroup) -> str | None:
    """Returns the URL of the group's page on the server of the run; None if the run's URL has another form."""
    project, found, _ = str(run.url).partition("/runs/")
    return f"{project}/groups/{quote(group.group, safe='')}" if found else None


def distinct(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Returns the records with unique names: W&B lets several runs have one name."""
    counts = Counter(record.name for record in records)
    return [
        replace(record, name=f"{record.name} ({record.where.rsplit('/', 1)[-1]})")
        if counts[record.name] > 1
        else record
        for record in records
    ]
