"""Runs the checks: rows pass through all of them in chunks, in several processes if there are many rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName
from prefopt.data.audit.check import SPLITS, Check, Chunk, Found, Sides
from prefopt.data.records import Record
from prefopt.process.parallel import map_in_processes, processes_for

if TYPE_CHECKING:
    from prefopt.data.audit.tokens import Reader

CHUNK_ROWS = 2000
"""Rows that a check sees at once."""
READ_BY_THE_READER = CheckName.schema
"""The check that has no module: rows that cannot be read are found while reading."""

NOTHING = "these data have nothing that it could look at"

Progress = Callable[[int, int], None]


class Outcome(NamedTuple):
    """What one check has come to: its finding, or why there is none."""

    found: Found | None
    skipped: str


@dataclass(frozen=True)
class Work:
    """The rows and the checks of one audit."""

    records: Mapping[str, Sequence[Record]]
    checks: Mapping[CheckName, Check[Any]]
    reader: "Reader | None"

    def chunks(self) -> list[tuple[str, int]]:
        """The split and the first row of each chunk."""
        return [(split, start) for split, rows in self.records.items() for start in range(0, len(rows), CHUNK_ROWS)]

    def examine(self, place: tuple[str, int]) -> list[Any]:
        """Passes one chunk through all checks that see its split; None for the others.

        Checks that examine rows by the same function get the same result.
        """
        split, start = place
        records = [*self.records[split][start : start + CHUNK_ROWS]]
        chunk = Chunk(split=split, start=start, records=records, reader=self.reader)
        seen = [check for check in self.checks.values() if check.compares or split in SPLITS]
        results = {examine: examine(chunk) for examine in {check.examine: None for check in seen}}
        return [results[check.examine] if check in seen else None for check in self.checks.values()]


def run_checks(
    records: Mapping[str, Sequence[Record]],
    *,
    kind: Kind,
    reader: "Reader | None" = None,
    num_processes: int | None = None,
    progress: Progress | None = None,
    only: Sequence[CheckName] = tuple(CheckName),
) -> dict[CheckName, Outcome]:
    """Runs all checks for rows of a kind, in the order of `CheckName`.

    Args:
        records: The rows by split: `train`, `held_out`, and the names of files to compare with.
        kind: Whether the rows are preference pairs or demonstrations.
        reader: Turns rows into tokens; None leaves out the checks that need a model.
        num_processes: Processes that look at chunks; unset: one for each core, fewer for few rows.
        progress: Called with (rows looked at, all rows).
        only: The checks to run.

    Raises:
        EndedError: A process died, most often because memory ran out.
    """
    checks: dict[CheckName, Check[Any]] = {}
    outcomes: dict[CheckName, Outcome] = {}
    wanted = [name for name in CheckName if name in only and name is not READ_BY_THE_READER]
    if not any(len(records.get(split, ())) for split in SPLITS):
        return {name: Outcome(None, "no rows could be read") for name in wanted}
    for name in wanted:
        check, reason = load_check(name, kind, with_model=reader is not None)
        if check is None:
            outcomes[name] = Outcome(None, reason)
        else:
            checks[name] = check
    work = Work({split: rows for split, rows in records.items() if len(rows)}, checks, reader)
    places = work.chunks()
    num_rows = sum(map(len, work.records.values()))
    seen: list[list[tuple[str, int, Any]]] = [[] for _ in checks]
    for number, (place, results) in enumerate(zip(places, _examine_all(work, places, num_processes), strict=True)):
        for of_check, result in zip(seen, results, strict=True):
            if result is not None:
                of_check.append((*place, result))
        if progress is not None:
            progress(min((number + 1) * CHUNK_ROWS, num_rows), num_rows)
    so_far: dict[CheckName, Found] = {}
    sides = Sides(work.records, so_far)
    for (name, check), of_check in zip(checks.items(), seen, strict=True):
        found = check.conclude(of_check, sides)
        of_check.clear()
        if isinstance(found, Found):
            so_far[name] = found
            outcomes[name] = Outcome(found, "")
        else:
            outcomes[name] = Outcome(None, found or NOTHING)
    return {name: outcomes[name] for name in wanted}


def load_check(name: CheckName, kind: Kind, *, with_model: bool) -> tuple[Check[Any] | None, str]:
    """Returns a check; or None and why it cannot be run for rows of a kind."""
    module = f"prefopt.data.audit.{name.value}"
    if find_spec(module) is None:
        return None, "this version of prefopt has no such check"
    check: Check[Any] = import_module(module).CHECK
    if kind not in check.kinds:
        return None, "it is for preference pairs"
    if check.needs is not None and not is_installed(check.needs):
        return None, "not checked: pip install 'prefopt[audit]'"
    if check.needs_model and not with_model:
        return None, "not checked: name a model, such as model=llama3_2_1b or model=hf model.path=<id or folder>"
    return check, ""


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return find_spec(package) is not None


def _examine_all(work: Work, places: Sequence[tuple[str, int]], num_processes: int | None) -> Iterator[list[Any]]:
    wanted = num_processes or processes_for(len(places))
    return map_in_processes(work.examine, places, num_processes=wanted, doing="audit")
