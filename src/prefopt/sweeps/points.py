"""The points of a sweep: combinations of values in Hydra's override grammar, each composed and checked as a run."""

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override, RangeSweep

from prefopt.config.composition import Composed
from prefopt.config.load import TRAIN, complete, fingerprint
from prefopt.config.overrides import assign, parse
from prefopt.config.schema import TrainConfig
from prefopt.process.errors import UserError
from prefopt.process.paths import expand, shipped
from prefopt.process.ranks import Launch

MAX_NAME = 80
"""Most characters of a point's name; a longer one is cut and ends in a hash."""
MAX_POINTS = 10_000
"""Most points of a sweep: each is composed and checked before anything is submitted."""
MAX_LISTED = 20
"""Most problems that one message lists."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        index: Index of the point, and of its task in a job array.
        name: Name of the run's folder in the sweep's folder.
        changes: Values of the swept settings, as they are typed in an override.
        overrides: All overrides of the run.
    """

    index: int
    name: str
    changes: dict[str, str]
    overrides: list[str]


@dataclass(frozen=True)
class Axes:
    """The axes of a sweep: their product is the list of points.

    Attributes:
        base: Overrides that all points share.
        parameters: For each swept setting, its overrides; a point has one of each.
        points: Lists of overrides; if there are any, a point has one list in addition.
    """

    base: list[str]
    parameters: dict[str, list[str]] = field(default_factory=dict)
    points: list[list[str]] = field(default_factory=list)

    def product(self) -> list[list[str]]:
        """Returns the overrides of every point, without the shared ones; the last parameter varies fastest.

        Raises:
            UserError: There are more than `MAX_POINTS`.
        """
        listed = self.points or [[]]
        lengths = {key: len(values) for key, values in self.parameters.items()}
        total = math.prod([len(listed), *lengths.values()])
        if total > MAX_POINTS:
            each = " x ".join(f"{length:,} ({key})" for key, length in lengths.items())
            raise UserError(
                f"this sweep has {each} = {total:,} points, and may have {MAX_POINTS:,}. Sweep less at once."
            )
        return [[*point, *values] for point in listed for values in itertools.product(*self.parameters.values())]


def read_axes(
    overrides: Sequence[str],
    parameters: Mapping[str, object],
    points: Sequence[object],
    config_dir: str | None = None,
) -> Axes:
    """Returns the axes of a sweep, given command line, `sweep.parameters` and `sweep.points`.

    Args:
        overrides: Overrides of the command line. They take precedence over `parameters`; those with several values
            become parameters.
        parameters: Values by setting, in Hydra's grammar or as a list.
        points: Lists of overrides.
        config_dir: Folder of the user's own config groups, which glob() searches too.

    Raises:
        UserError: A value is not a list of values, or a point has several values of a setting.
    """
    base, swept = [], _read_parameters(parameters, config_dir)
    for line in overrides:
        (override,) = parse([line])
        if override.is_sweep_override():
            swept[override.key_or_group] = list_values(override, config_dir)
        elif override.key_or_group in swept:
            swept[override.key_or_group] = [line]
        else:
            base.append(line)
    listed = []
    for number, point in enumerate(points):
        if not isinstance(point, list) or not all(isinstance(item, str) for item in point):
            raise UserError(f"sweep.points[{number}]: must be a list of overrides, found {point!r}.")
        for override in parse(point):
            if override.is_sweep_override():
                raise UserError(f"sweep.points[{number}]: one point takes one value, found {override.input_line}.")
        listed.append(list(point))
    return Axes(base, swept, listed)


def _read_parameters(parameters: Mapping[str, object], config_dir: str | None) -> dict[str, list[str]]:
    """Returns the overrides of `sweep.parameters` by setting, one per value."""
    swept: dict[str, list[str]] = {}
    for key, values in parameters.items():
        lines = as_overrides(key, values)
        for line, override in zip(lines, parse(lines), strict=True):
            several = override.is_sweep_override()
            if several and isinstance(values, list | tuple):
                raise UserError(f"sweep.parameters: {line}: an item of a list is one value. Quote it, or list each.")
            added = list_values(override, config_dir) if several else [line]
            swept.setdefault(override.key_or_group, []).extend(added)
    return swept


@dataclass(frozen=True)
class Plan:
    """The checked points of a sweep that has no folder yet.

    Attributes:
        points: The points, in order.
        label: Name of the experiment, or else of the algorithm.
        digest: SHA-256 (hex) of the fingerprints of all points: equal for sweeps with the same runs.
        configs: Configuration of each point.
    """

    points: list[Point]
    label: str
    digest: str
    configs: list[TrainConfig]

    def placed(self, folder: Path) -> list[Point]:
        """Returns the points with overrides that place their runs in a sweep's folder."""
        return [
            replace(point, overrides=[*point.overrides, *place_in(folder, point.name, point.overrides)])
            for point in self.points
        ]


def plan_points(axes: Axes, config_dir: str | None, launch: Launch) -> Plan:
    """Returns the points of a sweep, each composed and checked.

    Args:
        axes: Axes of the sweep.
        config_dir: Folder of the user's own config groups; None if there is none.
        launch: How each run will be started.

    Raises:
        UserError: Some points are invalid or duplicates; one message lists them, up to `MAX_LISTED`.
    """
    composer, problems = Composer(config_dir), []
    plan = Plan([], "", "", [])
    seen: dict[str, str] = {}
    for index, chosen in enumerate(axes.product()):
        changes = {key: value for key, _, value in (line.lstrip("+").partition("=") for line in chosen)}
        words = f"point {index} ({', '.join(chosen) or 'the only one'})"
        try:
            composed = composer.compose([*axes.base, *chosen])
            config = complete(composed, launch)
        except UserError as error:
            problems.append(f"{words}: {error}")
            continue
        identity = fingerprint(config)
        if identity in seen:
            problems.append(f"{words}: the same run as {seen[identity]}")
            continue
        seen[identity] = words
        name = _name(changes, identity)
        plan.points.append(Point(index, name, changes, [*axes.base, *chosen]))
        plan.configs.append(config)
        plan = replace(plan, label=plan.label or composed.label or config.algorithm.name.value)
    if problems:
        shown = problems[:MAX_LISTED]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise UserError("\n  ".join(["this sweep cannot run; nothing was submitted.", *shown, *more]))
    return replace(_with_distinct_names(plan, list(seen)), digest=_digest(seen))


def _digest(identities: Iterable[str]) -> str:
    return hashlib.sha256("".join(identities).encode()).hexdigest()


def _with_distinct_names(plan: Plan, identities: list[str]) -> Plan:
    """Returns the plan with a hash appended to each name that several points have."""
    counts = Counter(point.name for point in plan.points)
    points = [
        point if counts[point.name] == 1 else replace(point, name=f"{point.name}-{identity[:8]}")
        for point, identity in zip(plan.points, identities, strict=True)
    ]
    return replace(plan, points=points)


def place_in(folder: Path, name: str, overrides: Iterable[str]) -> list[str]:
    """Returns overrides that place a run in a sweep's folder and, unless `overrides` set another, in its W&B group."""
    own_group = [] if sets(overrides, "logger.group") else [assign("logger.group", folder.name)]
    return [assign("run.root", str(folder)), assign("run.name", name), *own_group]


def sets(overrides: Iterable[str], key: str) -> bool:
    """Returns whether one of `overrides` sets the setting `key`."""
    return any(line.lstrip("+").partition("=")[0] == key for line in overrides)


class Composer:
    """Composes runs that differ in a few settings; Hydra composes once for each choice of config groups."""

    def __init__(self, config_dir: str | None) -> None:
        self._config_dir = config_dir
        self._bases: dict[tuple[str, ...], Composed] = {}
        self._read_lines: dict[str, tuple[str, Any]] = {}

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Returns the composed configuration of a run.

        Raises:
            UserError: As for `TRAIN.compose`.
        """
        groups, settings = [], []
        for line in overrides:
            key, value = self._read(line)
            if TRAIN.is_choice(key, value):
                groups.append(line)
            else:
                settings.append((key, value))
        base = self._bases.get(tuple(groups))
        if base is None:
            base = self._bases[tuple(groups)] = TRAIN.compose(groups, self._config_dir)
        return base.changed(settings)

    def _read(self, line: str) -> tuple[str, Any]:
        """Returns the setting or group of an override, and its value."""
        if line not in self._read_lines:
            (override,) = parse([TRAIN.normalise(override) for override in parse([line])])
            self._read_lines[line] = override.key_or_group, override.value()
        return self._read_lines[line]


def as_overrides(key: str, values: object) -> list[str]:
    """Returns a setting's entry in `sweep.parameters` as overrides: one per item of a list, otherwise one."""
    if isinstance(values, list | tuple):
        return [f"{key}={_as_text(value)}" for value in values]
    return [f"{key}={_as_text(values)}"]


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_as_text(item) for item in value)}]"
    return "null" if value is None else str(value)


def list_values(override: Override, config_dir: str | None) -> list[str]:
    """Returns one override for each value of an override with several values.

    Raises:
        UserError: It is an interval, is shuffled, has no value, or has more than `MAX_POINTS` values.
    """
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: an interval has no list of values. Use a list, choice() or range(), or search it "
            "with sweep=optuna_dpo."
        )
    value = override.value()
    if getattr(value, "shuffle", False):
        raise UserError(f"{override.input_line}: points keep their order, else a resume would not find them.")
    if isinstance(value, Glob):
        names = value.filter(_options_of(override.key_or_group, config_dir))
        if not names:
            raise UserError(f"{override.input_line}: no option of {override.key_or_group} matches.")
        return [f"{key}={name}" for name in names]
    if isinstance(value, RangeSweep) and not _can_be_listed(value):
        raise UserError(f"{override.input_line}: start and end of a range must be finite, and its steps not 0.")
    texts = list(itertools.islice(override.sweep_string_iterator(), MAX_POINTS + 1))
    if not texts:
        raise UserError(f"{override.input_line}: holds no value; a range leaves out its end.")
    if len(texts) > MAX_POINTS:
        raise UserError(
            f"{override.input_line}: has more values than the {MAX_POINTS:,} points that a sweep may have."
        )
    return [f"{key}={text}" for text in texts]


def _can_be_listed(sweep: RangeSweep) -> bool:
    numbers = (sweep.start, sweep.stop, sweep.step)
    return bool(sweep.step) and all(isinstance(number, int) or math.isfinite(number or 0) for number in numbers)


def _options_of(group: str, config_dir: str | None) -> list[str]:
    folders = [shipped("conf") / group, *([expand(config_dir) / group] if config_dir else [])]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _name(changes: Mapping[str, str], identity: str) -> str:
    """Returns a folder name made of the swept settings and their values."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in changes.items()]
    name = re.sub(r"[^\w.-]+", "-", "_".join(parts)).strip("-.") or "run"
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 9].rstrip('-_.')}-{identity[:8]}"
    return name
