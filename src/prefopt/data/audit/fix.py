"""Writes a copy of data without the defects that can be removed, and a log of every change."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName
from prefopt.config.mixture import paths_of
from prefopt.config.schema import DataConfig
from prefopt.data.audit.check import SPLITS, say
from prefopt.data.audit.engine import run_checks
from prefopt.data.audit.reading import Material
from prefopt.data.bad_rows import MISREAD, MISREAD_SHARE
from prefopt.data.files import HUB, find_files, iter_rows
from prefopt.data.lines import GZIP
from prefopt.data.pairing import rows_of
from prefopt.data.records import NOT_CONTENT, Record
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.table import Table
from prefopt.process.errors import UserError, explained
from prefopt.storage.files import write_bytes

DROPPED = (
    CheckName.empty,
    CheckName.identical,
    CheckName.contradictory,
    CheckName.leakage,
    CheckName.duplicate,
)
"""Checks whose rows are dropped; a row is dropped for the first of them that has found it."""
NEAR = (CheckName.near_duplicate, CheckName.near_leakage)
"""Checks whose rows are dropped only if that is asked for: near-duplicates, held-out near leaks."""
REWRITTEN = (CheckName.mojibake, CheckName.control_characters)
"""Checks whose modules have `repair(text)`, which returns the text without the defect."""
CHANGES = "changes.jsonl"

Repair = tuple[str, Callable[[str], str]]
"""Name of a check, and its `repair(text)`."""


@dataclass(frozen=True)
class Change:
    """A row that the copy lacks, or has in another form."""

    source: str
    check: str
    action: str
    before: Any
    after: Any = None

    def to_line(self) -> bytes:
        return _as_line(vars(self))


def fix(config: DataConfig, material: Material, folder: Path, *, kind: Kind, with_near: bool) -> list[str]:
    """Writes `<name>.jsonl` for each file of `data.train` and `data.held_out`, and `changes.jsonl`, into a folder.

    Rows that cannot be read are dropped. Rows of JSON lines that are not changed keep their bytes. Of rows that
    contradict each other all are dropped, since nothing tells which is right; of duplicates the first stays; of leaks
    the training row goes.

    Args:
        config: The files, which stay as they are.
        material: Their rows.
        folder: Where the copy is written; it exists.
        kind: Whether the rows are preference pairs or demonstrations.
        with_near: Whether rows that nearly repeat others are dropped too.

    Returns:
        Lines that say what was written.

    Raises:
        UserError: Most rows cannot be read, or a file of the folder would replace a file of the data.
    """
    if material.unread["share"] > MISREAD_SHARE:
        raise UserError(f"--fix: {material.unread['summary']}, so nothing is written. {MISREAD}")
    repairs = [(name.value, repair) for name in REWRITTEN if (repair := _load_repair(name)) is not None]
    dropped, partly = _find_dropped(material, repairs, kind, (*DROPPED, *NEAR) if with_near else DROPPED)
    changes: list[Change] = []
    copies = {
        target: list(_mend(path, dropped, repairs, changes)) for path, target in _targets(config, folder).items()
    }
    for target, kept in copies.items():
        if not kept:
            raise UserError(
                f"--fix: no row would be left in {target.name}, so nothing is written: "
                f"{_count_dropped(changes)}. Correct the data, or leave that file out."
            )
    told = []
    for target, kept in copies.items():
        with explained(target, doing="written"):
            write_bytes(target, b"".join(kept))
        told.append(f"Written: {target} ({say(len(kept), 'row')})")
    with explained(folder / CHANGES, doing="written"):
        write_bytes(folder / CHANGES, b"".join(change.to_line() for change in changes))
    counts = {action: sum(change.action == action for change in changes) for action in ("dropped", "rewritten")}
    told.append(
        f"Written: {folder / CHANGES} ({say(counts['dropped'], 'row')} dropped, {counts['rewritten']:,} rewritten)"
    )
    if changes:
        told.append(f"{CHANGES} holds these rows whole, with the secrets in them: keep it where the data are kept.")
    if config.columns:
        told.append("Columns keep the names that they have in the file: read the copy with the same data.columns.")
    for check, count in partly.items():
        told.append(
            f"Not dropped: {say(count, 'row')} of {check}, since other pairs of the same rows are good. "
            "Correct them in the file."
        )
    return told


def without_limits(config: DataConfig) -> DataConfig:
    """Returns the settings with all rows of the files: a copy has all of them."""

    def whole(spec: Any) -> Any:
        if isinstance(spec, Mapping):
            return {key: value for key, value in spec.items() if key != "max_rows"}
        return [whole(item) for item in spec] if isinstance(spec, (list, tuple)) else spec

    train, held_out = whole(config.train), whole(config.held_out)
    return replace(config, train=train, held_out=held_out, max_rows=None, shuffle_seed=None)


def _count_dropped(changes: Sequence[Change]) -> str:
    counts = Counter(change.check for change in changes if change.action == "dropped")
    return f"dropped from all files: {', '.join(f'{check} {count:,}' for check, count in counts.most_common())}"


def _find_dropped(
    material: Material, repairs: Sequence[Repair], kind: Kind, checks: Sequence[CheckName]
) -> tuple[dict[str, str], Counter[str]]:
    """Returns the place of each row that is dropped with the check that has found it, and how many stay by check.

    The checks look at the rows as they are after the repairs: a text of invisible characters alone is empty then.
    A row of which several pairs are made is dropped if all of them are found; both rows of a pair that was joined.
    """
    repaired = {split: Table.of(_repair_records(rows, repairs)) for split, rows in material.records.items()}
    outcomes = run_checks(repaired, kind=kind, only=checks)
    found: dict[str, str] = {}
    for name in checks:
        outcome = outcomes[name].found
        for split, rows in ({} if outcome is None else outcome.rows).items():
            for row in rows.tolist() if split in SPLITS else ():
                found.setdefault(material.records[split][row].source, name.value)
    dropped = {row: CheckName.schema.value for place in material.unread_places for row in rows_of(place)}
    kept: dict[str, str] = {}
    pairs = (record.source for split in SPLITS for record in material.records.get(split, ()))
    for place in pairs if found else ():
        for row in rows_of(place):
            if place in found:
                dropped.setdefault(row, found[place])
            else:
                kept[row] = place
    partly = Counter(dropped.pop(row) for row in kept if row in dropped and dropped[row] != CheckName.schema.value)
    return dropped, partly


def _repair_records(records: Sequence[Record], repairs: Sequence[Repair]) -> Iterator[Record]:
    for record in records:
        content = {each.name: getattr(record, each.name) for each in fields(record) if each.name not in NOT_CONTENT}
        mended: dict[str, Any] = content
        for _, repair in repairs:
            mended = _repaired(mended, repair)
        yield record if mended is content else replace(record, **mended)


def _load_repair(name: CheckName) -> Callable[[str], str] | None:
    """Returns the function that mends a text; None without the package that it needs."""
    module = f"prefopt.data.audit.{name.value}"
    if find_spec(module) is None:
        return None
    from importlib import import_module

    loaded = import_module(module)
    needs = loaded.CHECK.needs
    repair: Callable[[str], str] | None = getattr(loaded, "repair", None)
    return repair if needs is None or find_spec(needs) is not None else None


def require_targets(config: DataConfig, folder: Path) -> None:
    """Refuses data of which no copy can be written into a folder, before they are read.

    Raises:
        UserError: A copy would replace the data, or they are on the hub.
    """
    _targets(config, folder)


def _targets(config: DataConfig, folder: Path) -> dict[Path, Path]:
    """Returns for each file of the data the file of its copy."""
    specs: list[Any] = [config.train, config.held_out]
    items = [str(path) for spec in specs for path in paths_of(spec)]
    if any(item.startswith(HUB) for item in items):
        raise UserError("--fix: writes copies of files, and these data are on the hub. Save them as files first.")
    targets: dict[Path, Path] = {}
    for path in dict.fromkeys(path for item in items for path in find_files(item)):
        stem = path.name.split(".")[0] or "data"
        names = [f"{stem}.jsonl", *(f"{stem}-{number}.jsonl" for number in range(2, 10_000))]
        target = next(folder / name for name in names if folder / name not in targets.values() and name != CHANGES)
        if target.exists() and target.resolve() == path.resolve():
            raise UserError(f"--fix: {target} is the data themselves, which are never changed. Name another --output.")
        targets[path] = target
    return targets


def _mend(
    path: Path,
    dropped: Mapping[str, str],
    repairs: Sequence[Repair],
    changes: list[Change],
) -> Iterator[bytes]:
    """Yields the lines of a file's copy, and adds what differs to `changes`."""
    raw = _raw_lines(path)

    def leave_out(source: str, found: str) -> None:
        before = raw.get(source, b"").decode("utf-8", "replace").rstrip("\n")
        changes.append(Change(source, CheckName.schema.value, "dropped", before))

    def as_it_was(row: Any, line: bytes | None) -> Any:
        """Returns the row; its line as text if it has a key twice, of which the row has the last value alone."""
        return line.decode("utf-8", "replace").rstrip("\n") if line and isinstance(row, RepeatingRow) else row

    for row, source in iter_rows(str(path), leave_out):
        line = raw.get(source)
        if source in dropped:
            changes.append(Change(source, dropped[source], "dropped", as_it_was(row, line)))
            continue
        mended = row
        for check, repair in repairs:
            with explained(source, "rewritten", "Take the column that is nested so deeply out of the row."):
                after = _repaired(mended, repair)
            if after != mended:
                before = as_it_was(row, line) if mended is row else mended
                changes.append(Change(source, check, "rewritten", before, after))
                mended = after
        if line is None or mended is not row:
            line = _as_line(mended)
        yield line


def _as_line(value: Any) -> bytes:
    """Returns a line of JSON; with escapes if it holds half of a UTF-16 pair, which UTF-8 cannot write."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"


def _repaired(value: Any, repair: Callable[[str], str]) -> Any:
    """Returns the same value, with all texts in it repaired; itself if nothing changes, however deep it is nested."""
    return _rebuilt(value, repair) if any(repair(text) != text for text in _texts(value)) else value


def _texts(value: Any) -> Iterator[str]:
    items = [value]
    for item in items:  # the list grows during the loop
        if isinstance(item, str):
            yield item
        elif isinstance(item, (list, dict)):
            items += item.values() if isinstance(item, dict) else item


def _rebuilt(value: Any, repair: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return repair(value)
    if isinstance(value, list):
        items = [_rebuilt(item, repair) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        made = {key: _rebuilt(item, repair) for key, item in value.items()}
        return made if any(made[key] is not value[key] for key in made) else value
    return value


def _raw_lines(path: Path) -> dict[str, bytes]:
    """Returns the bytes of each line of a file of JSON lines by its place; {} for other files."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith((".jsonl", ".ndjson", ".json")) or path.is_dir():
        return {}
    with explained(path), path.open("rb") as file:
        is_packed = file.read(2) == GZIP
    with explained(path), gzip.open(path) if is_packed else path.open("rb") as lines:
        return {
            f"{path}:{number}": line if line.endswith(b"\n") else line + b"\n"
            for number, line in enumerate(lines, start=1)
        }
