"""The search space: settings with an interval, a range or choices, in Hydra's override grammar."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Sweep

from prefopt.config.overrides import parse
from prefopt.process.errors import UserError
from prefopt.sweeps.points import as_overrides, list_values

LOG = "log"
GRAMMAR = "interval(a,b), int(interval(a,b)), tag(log, interval(a,b)), range(a,b,step), choice(a,b,...) or a list"
Number = int | float
Drawn = str | int | float


@dataclass(frozen=True)
class Parameter:
    """A searched setting: an interval of numbers, or choices.

    Attributes:
        key: Name of the setting.
        choices: Values as they are typed in an override; None for an interval.
        low: Least value; an int if the setting takes whole numbers.
        high: Greatest value, of the same type.
        step: Distance between neighbouring values; None if all values in between are allowed.
        log: Whether values are drawn uniformly on a logarithmic scale.
    """

    key: str
    choices: list[str] | None = None
    low: Number = 0
    high: Number = 0
    step: Number | None = None
    log: bool = False

    def ends(self) -> list[str]:
        """Returns the overrides with extreme values: all choices, or the least and the greatest value."""
        return [self.override(value) for value in self.choices or (self.low, self.high)]

    def override(self, value: Drawn) -> str:
        """Returns the override that sets the setting to `value`."""
        return f"{self.key}={value}"


@dataclass(frozen=True)
class Space:
    """The parameters that a search draws, and the overrides that all its trials share.

    Attributes:
        base: Overrides that all trials share.
        parameters: Searched parameters, in the order in which they are drawn.
    """

    base: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)


def read_space(overrides: Sequence[str], parameters: Mapping[str, object], config_dir: str | None = None) -> Space:
    """Returns the search space, given the command line and `sweep.parameters`.

    Args:
        overrides: Overrides of the command line. One with an interval or several values is searched; one with a single
            value removes its setting from the search.
        parameters: Values by setting, in Hydra's grammar or as a list; a single value is shared by all trials.
        config_dir: Folder of the user's own config groups, which glob() searches too.

    Raises:
        UserError: A value cannot be searched, or nothing is searched.
    """
    shared: dict[str, str] = {}
    searched: dict[str, Parameter] = {}
    for key, values in parameters.items():
        lines = as_overrides(key, values)
        parsed = parse(lines)
        if not parsed:
            raise UserError(f"sweep.parameters: {key} has no values.")
        if isinstance(values, list | tuple):
            bad = [line for line, item in zip(lines, parsed, strict=True) if item.is_sweep_override()]
            if bad:
                raise UserError(f"sweep.parameters: {bad[0]}: an item of a list is one value. Quote it, or list each.")
            searched[parsed[0].key_or_group] = _with_choices(parsed[0].key_or_group, lines)
        elif parsed[0].is_sweep_override():
            searched[parsed[0].key_or_group] = _read(parsed[0], config_dir)
        else:
            shared[parsed[0].key_or_group] = lines[0]
    given: list[str] = []
    for line, override in zip(overrides, parse(overrides), strict=True):
        shared.pop(override.key_or_group, None)
        if override.is_sweep_override():
            searched[override.key_or_group] = _read(override, config_dir)
        else:
            searched.pop(override.key_or_group, None)
            given.append(line)
    if not searched:
        raise UserError(f"sweep.search: nothing is searched. Give sweep.parameters, each as {GRAMMAR}.")
    return Space([*shared.values(), *given], list(searched.values()))


def _read(override: Override, config_dir: str | None) -> Parameter:
    key, sweep, line = override.key_or_group, override.value(), override.input_line
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    if tags - {LOG}:
        raise UserError(f"{line}: unknown tag {', '.join(sorted(tags - {LOG}))}. A search knows log.")
    is_log = LOG in tags
    if isinstance(sweep, IntervalSweep):
        return _with_interval(key, sweep.start, sweep.end, None, is_log, line)
    if isinstance(sweep, RangeSweep):
        return _with_range(key, sweep, is_log, line)
    if is_log:
        raise UserError(f"{line}: log is for numbers between two ends. Use tag(log, interval(a,b)).")
    if isinstance(sweep, ChoiceSweep):
        sweep.shuffle = False
    return _with_choices(key, list_values(override, config_dir))


def _with_choices(key: str, lines: Sequence[str]) -> Parameter:
    values = [line.partition("=")[2] for line in lines]
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise UserError(f"{key}: the choice {twice[0]} is listed twice.")
    return Parameter(key, choices=values)


def _with_interval(key: str, low: Any, high: Any, step: Any, is_log: bool, line: str | None) -> Parameter:
    if not (abs(low) < 2**63 and abs(high) < 2**63 and low < high):
        raise UserError(f"{line}: the first end must be below the second, and both finite.")
    if is_log and low <= 0:
        raise UserError(f"{line}: a logarithmic scale needs ends > 0.")
    return Parameter(key, low=low, high=high, step=step, log=is_log)


def _with_range(key: str, sweep: RangeSweep, is_log: bool, line: str | None) -> Parameter:
    """Returns the parameter of a range, which does not include its stop, as in Hydra."""
    numbers = [Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step)]
    start, stop, step = numbers
    count = math.ceil((stop - start) / step) if step and all(number.is_finite() for number in numbers) else 0
    if count < 1:
        raise UserError(f"{line}: holds no value.")
    last = start + (count - 1) * step
    is_whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
    as_number = int if is_whole else float
    low, high, width = (as_number(number) for number in (min(start, last), max(start, last), abs(step)))
    if count == 1:
        return Parameter(key, choices=[str(low)])
    if is_log and (not is_whole or width != 1):
        raise UserError(f"{line}: values at equal distances have no logarithmic scale. Use tag(log, interval(a,b)).")
    return _with_interval(key, low, high, width, is_log, line)
