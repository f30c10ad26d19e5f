"""The gate of the audit: from which share of the rows on a finding is a warning or an error."""

from dataclasses import dataclass, field

from prefopt.config.choices import CheckName, GateName
from prefopt.config.ranges import require

Limits = dict[str, float | None]


def _warnings() -> Limits:
    return {
        "schema": 0.0,
        "identical": 0.0,
        "near_identical": 0.01,
        "empty": 0.0,
        "contradictory": 0.0,
        "duplicate": 0.01,
        "near_duplicate": 0.05,
        "leakage": 0.0,
        "near_leakage": 0.0,
        "prompt_mismatch": 0.0,
        "length_bias": 0.65,
        "refusal": 0.05,
        "truncation": 0.02,
        "control_tokens": 0.0,
        "role_order": 0.0,
        "language": 0.05,
        "control_characters": 0.01,
        "mojibake": 0.001,
        "secrets": 0.0,
        "personal_data": 0.01,
        "label_noise": 0.05,
        "separability": 0.9,
    }


def _errors() -> Limits:
    return {"schema": 0.0, "contradictory": 0.05, "leakage": 0.0, "prompt_mismatch": 0.05}


@dataclass(kw_only=True)
class GateConfig:
    """What findings of the audit stop a run (`data/gate=strict`, `default` or `off`)."""

    name: GateName = GateName.default
    """Name of these limits, for reports: strict, default or off."""
    warn: dict[str, float | None] = field(default_factory=_warnings)
    """Check -> share of rows, in [0, 1], above which its finding is a warning; null or no entry: never."""
    error: dict[str, float | None] = field(default_factory=_errors)
    """Check -> share of rows, in [0, 1], above which its finding stops a run; null or no entry: never."""

    def __post_init__(self) -> None:
        names = [name.value for name in CheckName]
        for level, limits in (("warn", self.warn), ("error", self.error)):
            for check, limit in limits.items():
                require(
                    check in names, f"data.gate.{level}.{check}: no such check. The audit has: {', '.join(names)}."
                )
                require(
                    limit is None or 0 <= limit <= 1,
                    f"data.gate.{level}.{check}: must be a share in [0, 1], or null, found {limit}.",
                )
