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
        "score_margin": 0.05,
    }


def _errors() -> Limits:
    return {"schema": 0.0, "contradictory": 0.05, "leakage": 0.0, "prompt_mismatch": 0.05}


@dataclass(kw_only=True)
class GateConfig:
    """What findings of the audit stop a run (`data/gate=strict`, `default` or `off`)."""

    name: GateName = GateName.default
    """Which limits these are, for reports; it comes with the option of `data/gate`, and must fit the limits."""
    warn: dict[str, float | None] = field(default_factory=_warnings)
    """Check -> share of rows, in [0, 1], above which its finding is a warning; null or no entry: never."""
    error: dict[str, float | None] = field(default_factory=_errors)
    """Check -> share of rows, in [0, 1], above which its finding stops a run; null or no entry: never."""

    @classmethod
    def off(cls) -> "GateConfig":
        """Returns the limits of `data/gate=off`, each null: an absent one comes back when settings are read again."""
        return cls(name=GateName.off, error=dict.fromkeys(_errors()))

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
        self._check_name()

    def _check_name(self) -> None:
        """A report that names the gate says by this what could stop the run."""
        stops = [check for check, limit in self.error.items() if limit is not None]
        listed = ", ".join(f"data.gate.error.{check}" for check in stops)
        require(
            self.name is not GateName.off or not stops,
            f"data.gate.name=off: but a run is stopped by {listed}. The name alone changes no limit: data/gate=off "
            "sets it and lifts all limits of data/gate=default; for limits of your own leave data/gate=off out.",
        )
        require(
            self.name is GateName.off or bool(stops),
            f"data.gate.name={self.name.value}: but data.gate.error has no limit, so nothing stops a run. Choose "
            "data/gate=off, which says so.",
        )
        require(
            self.name is not GateName.strict or not set(stops) <= set(_errors()),
            "data.gate.name=strict: but no more stops a run than with data/gate=default. The name alone changes "
            "no limit: choose data/gate=strict.",
        )
