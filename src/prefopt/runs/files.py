"""Reads the JSON files of a run and checks their shape; refuses damaged ones and says what to do.

A user may have edited a file, or a disk damaged it. Callers can rely on the shapes that are checked here.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.process.errors import UserError
from prefopt.storage.files import read_lines, read_object
from prefopt.storage.reading import parse_json, read_file

LARGEST = 2**63
REPORT_FORMAT = 2
"""Version of the format of report.json; raised when a key changes its meaning, so that a later one is not read."""
Shape = Callable[[Any], bool] | Mapping[str, Any]
"""A check of a value: a test function or, for an object, the shape of each of its required keys."""


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_object(value: object) -> bool:
    return isinstance(value, dict)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def of_each(test: Callable[[object], bool]) -> Callable[[object], bool]:
    """Returns a test that accepts an object whose values all pass `test`."""
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


def or_null(test: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or test(value)


def is_audit(value: object) -> bool:
    """Returns whether a value is an audit of data, as far as reports show one."""
    return (
        isinstance(value, dict)
        and is_text(value.get("gate"))
        and is_count(value.get("rows"))
        and isinstance(value.get("checks"), list)
        and all(map(_is_finding, value["checks"]))
    )


def _is_finding(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(is_text(value.get(key)) for key in ("check", "level", "summary"))
        and is_count(value.get("count"))
        and is_number(value.get("share"))
    )


def _is_data(value: object) -> bool:
    return (
        isinstance(value, dict) and of_each(is_text)(value.get("sha256", {})) and or_null(is_audit)(value.get("audit"))
    )


STATUS: Mapping[str, Shape] = {
    "state": is_text,
    "step": is_count,
    "attempts": is_count,
    "message": is_text,
    "records": or_null(is_count),
}
PROVENANCE: Mapping[str, Shape] = {
    "command": is_text,
    "program": is_text,
    "versions": of_each(is_text),
    "data": _is_data,
    "model": lambda value: is_object(value) and or_null(of_each(is_text))(value.get("sha256")),
    "step_size": {"per_device": is_count, "accumulation": is_count, "num_ranks": is_count},
    "fit": {"tokens": or_null(is_count), "checkpointing": lambda value: isinstance(value, bool)},
    "num_samples": is_count,
    "earlier": lambda value: isinstance(value, list) and all(map(is_object, value)),
}
RECORD: Mapping[str, Shape] = {
    "step": is_count,
    "time_s": is_number,
    "training_s": is_number,
    "pairs": is_count,
    "tokens": is_count,
}
"""The keys of a line of metrics.jsonl or rows.jsonl that are computed with."""
WORK: Mapping[str, Shape] = {
    "phases": of_each(is_number),
    "checkpoints": {"num": is_count, "bytes": is_count, "gb_per_s": or_null(is_number)},
    "reference": {"hit_rate": is_number, "num_pairs": is_count, "saved_s": is_number, "computed_s": is_number},
}


def read_run_file(path: Path, shape: Mapping[str, Shape]) -> dict[str, Any]:
    """Reads a file that a run can do without; returns an empty dict if there is none.

    Args:
        path: The file.
        shape: Shape of each key; every key may be absent.

    Raises:
        UserError: The file cannot be read, is damaged, or a value has another shape.
    """
    remedy = f"Remove it, and the run goes on without: rm {shlex.quote(str(path))}"
    value = read_object(path, remedy)
    wrong = _find_misfit(value, shape)
    if wrong is not None:
        raise UserError(f"{path}: is damaged ({wrong}). {remedy}")
    return value


def read_json(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns the object in a file and ""; (None, "") without a file, ({}, what is wrong) if it is damaged."""
    try:
        value = parse_json(read_file(path))
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return {}, f"{path.name} cannot be read ({error.strerror or error})"
    except ValueError as error:
        return {}, f"{path.name} is damaged ({str(error).splitlines()[0]})"
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} is damaged (not an object)")


def read_report(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns a report.json and what is wrong with it, as `read_json` does; that of a later version is not read."""
    report, problem = read_json(path)
    if not report or report.get("format") is None:
        return report, problem
    written = report["format"]
    if not is_count(written):
        return {}, f"{path.name} is damaged (no format can be {str(written)[:40]!r})"
    if written > REPORT_FORMAT:
        later = f"by a later version of prefopt (format {written}; this one reads up to {REPORT_FORMAT})"
        return {}, f"{path.name} was written {later}"
    return report, ""


def read_steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file whose lines each belong to a step.

    Raises:
        UserError: A line is damaged.
    """
    return read_lines(path, lambda record: _find_misfit(record, RECORD) if "step" in record else "it has no step")


def _find_misfit(value: Mapping[str, object], shape: Mapping[str, Shape]) -> str | None:
    wrong = next((key for key in shape if key in value and not _fits(value[key], shape[key])), None)
    return None if wrong is None else f"no {wrong} can be {str(value[wrong])[:40]!r}"


def _fits(value: object, shape: Shape) -> bool:
    if callable(shape):
        return shape(value)
    return isinstance(value, dict) and all(key in value and _fits(value[key], part) for key, part in shape.items())
