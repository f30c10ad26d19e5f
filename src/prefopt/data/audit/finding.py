"""The result of an audit: its findings with levels, as they are shown and written to audit.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from prefopt.config.choices import CheckName
from prefopt.config.gate import GateConfig


class Level(IntEnum):
    """How bad a finding is, worst first."""

    error = 0
    warning = 1
    note = 2
    ok = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found, with the gate's decision.

    Attributes:
        check: A name of `CheckName`.
        level: error, warning, note (found, but below the gate's limits) or ok (nothing found).
        count: Rows concerned.
        share: Their share of the rows that were looked at, unless the check says otherwise.
        gauge: The number that was compared with the gate's limits.
        limit: The limit that it exceeds; None if none.
        summary: One sentence with the numbers.
        remedy: What to do about it.
        examples: Rows: `source` (`file:line`), `detail`, `text`.
        values: Numbers for plots and programs.
    """

    check: str
    level: str
    count: int
    share: float
    gauge: float
    limit: float | None
    summary: str
    remedy: str
    examples: list[dict[str, str]]
    values: dict[str, Any]

    @classmethod
    def of(cls, measured: Mapping[str, Any], gate: GateConfig) -> "Finding":
        """Judges what a check has measured by the limits of a gate."""
        check, gauge = measured["check"], measured["gauge"]
        for level, limits in ((Level.error, gate.error), (Level.warning, gate.warn)):
            limit = limits.get(check)
            if limit is not None and gauge > limit:
                return cls(**measured, level=level.name, limit=limit)
        if measured["count"] > 0:
            return cls(**measured, level=Level.note.name, limit=None)
        return cls(**{**measured, "remedy": ""}, level=Level.ok.name, limit=None)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit, as audit.json holds it.

    Attributes:
        version: Version of prefopt.
        date: When the rows were looked at, ISO 8601 in UTC.
        gate: Name of the gate whose limits decided the levels.
        data: The settings that name the files.
        rows: Number of rows, without those of files to compare with.
        splits: Rows by split, and by file to compare with.
        checks: The findings, worst first.
        skipped: Checks that were not run, each as `check` and `reason`.
        remarks: What reading did with rows and columns, a sentence each.
        learning_curve: What `LearningCurve.to_dict` says; None if it was not measured.
    """

    version: str
    date: str
    gate: str
    data: dict[str, Any]
    rows: int
    splits: dict[str, int]
    checks: list[Finding]
    skipped: list[dict[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    learning_curve: dict[str, Any] | None = None

    def of_level(self, *levels: Level) -> list[Finding]:
        """The findings of some levels, worst first."""
        return [finding for finding in self.checks if Level[finding.level] in levels]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> "Audit":
        """Reads what `to_dict` has written."""
        return cls(**{**written, "checks": [Finding(**each) for each in written["checks"]]})


def sort_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings worst first: by level, then in the order of `CheckName`."""
    order = {name.value: number for number, name in enumerate(CheckName)}
    return sorted(findings, key=lambda finding: (Level[finding.level], order[finding.check]))
