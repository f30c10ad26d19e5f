"""The content of report.json: built by `evaluation`, written and rendered by `reports`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import nan
from numbers import Real
from typing import Any

from prefopt.evaluation.checked import TaskResult
from prefopt.evaluation.decision import Decision
from prefopt.evaluation.judging import Standing, WinRate
from prefopt.evaluation.statistics import Estimate
from prefopt.process.version import __version__
from prefopt.runs.files import REPORT_FORMAT, is_audit

Block = dict[str, Any]
Estimates = dict[str, Estimate]
"""Key of a metric -> its estimate."""
COMPARED, RULES = ("p_value", "discordant", "effective_n"), ("baselines", "over_baselines", "ties")
"""Entries of `held_out.gain` that are no metrics, and those of `held_out` that are no models."""
Gap = dict[str, Estimate | float]
"""`train`, `held_out` and `gap`: train minus held-out; for a loss, held-out minus train."""


@dataclass(frozen=True)
class AnswersEstimate(Estimate):
    """An estimate over answers, some of them cut at the token limit: a cut answer counts only up to the cut.

    Attributes:
        num_cut: Number of answers that were cut.
        cut_at: The limit in tokens; None if no answer was cut.
    """

    num_cut: int = 0
    cut_at: int | None = None

    def to_dict(self) -> Block:
        return {**super().to_dict(), "num_cut": self.num_cut, "cut_at": self.cut_at}


@dataclass
class HeldOut:
    """Results of the contestants on the held-out data.

    Attributes:
        n: Number of held-out pairs or demonstrations.
        models: Name of a contestant -> its metrics.
        gain: Paired differences, tuned minus base.
        p_value: P-value of the gain in preference accuracy, from the same numbers as its interval; None without pairs.
        discordant: Share of pairs that only one of base and tuned ranks right; None without pairs.
        effective_n: Independent pairs that the held-out pairs are worth for that gain; None without pairs.
        baselines: Accuracies of rules that need no model, such as `longer_wins`; None without pairs.
        over_baselines: Paired differences, tuned minus each of these rules; None without pairs.
        ties: Name of a contestant -> number of pairs whose margin is 0, None if some margins are not finite; None
            without pairs.
    """

    n: int | None = None
    models: dict[str, Estimates] = field(default_factory=dict)
    gain: Estimates = field(default_factory=dict)
    p_value: float | None = None
    discordant: float | None = None
    effective_n: float | None = None
    baselines: Estimates | None = None
    over_baselines: Estimates | None = None
    ties: dict[str, int | None] | None = None

    def model(self, name: str) -> Estimates:
        """The metrics of a contestant, empty if it was not measured."""
        return self.models.get(name, {})

    def to_dict(self) -> Block:
        compared = {key: getattr(self, key) for key in COMPARED if getattr(self, key) is not None}
        optional = {key: getattr(self, key) for key in RULES}
        measured = {key: _write(block) for key, block in optional.items() if block is not None}
        return {"n": self.n, **_write(self.models), "gain": {**_write(self.gain), **compared}, **measured}

    @classmethod
    def from_dict(cls, block: Mapping[str, Any]) -> "HeldOut":
        rest = {key: _mapping(value) for key, value in block.items() if key != "n"}
        gain = rest.pop("gain", {})
        rules = {key: rest.pop(key, {}) for key in RULES}
        ties = {name: _number(num) for name, num in rules.pop("ties").items()}
        models = {name: _estimates(found) for name, found in rest.items()}
        estimated: Block = {key: _estimates(found) or None for key, found in rules.items()}
        compared: Block = {key: _number(gain.get(key)) for key in COMPARED}
        return cls(block.get("n"), models, _estimates(gain), ties=ties or None, **estimated, **compared)


@dataclass
class Report:
    """The results of an evaluation. Reports of earlier versions lack some fields.

    Attributes:
        format: See `REPORT_FORMAT`.
        version: Version of prefopt that wrote it.
        date: Time of the measurement, ISO 8601 in UTC.
        run: Settings of the run: model, data, algorithm, steps.
        measured_on: The settings that name the measured data.
        held_out: Results on the held-out data.
        slices: Of each part of a mixture its `name`, `n` and held-out metrics: those of the tuned model by their keys,
            the base's under `base`, and the paired difference under `gain`. None if the data has no parts.
        overfitting: Key of a metric -> its values on training and held-out data, and their gap.
        drift: Key of a metric -> an estimate of tuned against base, or an estimate per contestant and their `ratio`.
        likelihood: Changes of held-out log-probs per token; None without pairs.
        throughput: Speeds and times, and what work.json holds beside the phases.
        data: Notes and counts from reading the data.
        audit: What the audit of the data has found before training, as `prefopt.data.audit.finding.Audit` is written.
        samples: Prompts, each with every contestant's answer, those in the data and what the judges say; see
            `prefopt.evaluation.samples.Samples`.
        sample_counts: Of how many answered prompts these are, and how many were lost or have a wrongly ranked pair.
        provenance: Origin of code, data and model.
        overlap: Held-out prompts that are also training prompts: `prompts`, how many there are, and of these `exact`
            and `near`, those that are nearly one; null where it was not looked for.
        test: How often these test data were looked at, as `prefopt.evaluation.looks.record_look` returns it; None of a
            report on other data.
        contestants: Name of a contestant -> the model and the prompt with which it answered.
        win_rates: Of each judge, who won how often against whom.
        judges: Name of a judge -> what it is worth, the deciding one first; None where no held-out pairs tell.
        judge_digests: Name of a judge -> SHA-256 of what decides its verdicts.
        failures: Name of a judge or a contestant that failed, or `task <name>` -> why.
        without_numbers: Names of the contestants that failed because their logits are NaN or infinite.
        tasks: Name of a task -> what it found in each contestant's answers.
        answers: Name of a contestant -> how many of its answers are empty or the same, as
            `prefopt.evaluation.plain_answers.describe_answers` returns it.
        answer_slices: The win rate over the best contestant without tuning in each slice of the prompts, and the
            `worst` slice if chance does not explain it, as `prefopt.evaluation.slices.Slices` is written.
        style: How far the styles of base and tuned are apart in answers to unrelated questions, as
            `prefopt.evaluation.style_distance.StyleDistance` is written.
        evidence: SHA-256 of each thing that the decision rests on; see `prefopt.evaluation.evidence`.
        decision: Whether to ship, with its reasons and what would decide.
        verdict: The findings, worst first.
        phases: Seconds per part of the run.
    """

    format: int = REPORT_FORMAT
    version: str | None = __version__
    date: str | None = None
    run: Block | None = None
    measured_on: Block | None = None
    held_out: HeldOut = field(default_factory=HeldOut)
    slices: list[Block] | None = None
    overfitting: dict[str, Gap] = field(default_factory=dict)
    drift: dict[str, Estimate | Estimates] = field(default_factory=dict)
    likelihood: Estimates | None = None
    throughput: Block | None = None
    data: Block | None = None
    audit: Block | None = None
    samples: list[Block] | None = None
    sample_counts: Block | None = None
    provenance: Block | None = None
    overlap: Block | None = None
    test: Block | None = None
    contestants: dict[str, Block] | None = None
    win_rates: list[WinRate] | None = None
    judges: dict[str, Standing | None] | None = None
    judge_digests: dict[str, str] | None = None
    failures: dict[str, str] | None = None
    without_numbers: list[str] | None = None
    tasks: dict[str, TaskResult] | None = None
    answers: dict[str, Block] | None = None
    answer_slices: Block | None = None
    style: Block | None = None
    evidence: Block | None = None
    decision: Decision | None = None
    verdict: list[dict[str, str]] | None = None
    phases: dict[str, float] | None = None

    def to_dict(self) -> Block:
        """Returns the content of report.json: all known fields; `likelihood` is null without pairs."""
        written = {each.name: _write(getattr(self, each.name)) for each in fields(self)}
        return {key: block for key, block in written.items() if block is not None or key == "likelihood"}

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> "Report":
        """Reads the content of report.json, also of earlier versions.

        An entry that is absent, null, or no mapping where results are, was not measured.
        """
        known: Block = {each.name: written.get(each.name) for each in fields(cls)}
        blocks = ("held_out", "drift", "overfitting", "likelihood")
        held_out, drift, overfitting, likelihood = (_mapping(known[key]) for key in blocks)
        known |= {
            "format": known["format"] or REPORT_FORMAT,
            "held_out": HeldOut.from_dict(held_out),
            "slices": [_slice(found) for found in known["slices"] or [] if _mapping(found)] or None,
            "overfitting": {key: _gap(found) for key, found in overfitting.items() if _mapping(found)},
            "drift": {key: _estimate(found) or _estimates(found) for key, found in drift.items() if _mapping(found)},
            "likelihood": _estimates(likelihood) or None,
            "overlap": dict(_mapping(known["overlap"])) or None,
            "test": dict(_mapping(known["test"])) or None,
            "contestants": {name: dict(_mapping(each)) for name, each in _mapping(known["contestants"]).items()}
            or None,
            "win_rates": [_win_rate(each) for each in known["win_rates"] or [] if _estimate(each)] or None,
            "judges": {name: _standing(each) for name, each in _mapping(known["judges"]).items()} or None,
            "sample_counts": dict(_mapping(known["sample_counts"])) or None,
            "judge_digests": {name: str(each) for name, each in _mapping(known["judge_digests"]).items()} or None,
            "failures": {name: str(each) for name, each in _mapping(known["failures"]).items()} or None,
            "without_numbers": _names(known["without_numbers"]) or None,
            "tasks": {name: _task(each) for name, each in _mapping(known["tasks"]).items()} or None,
            "answers": {name: dict(_mapping(each)) for name, each in _mapping(known["answers"]).items()} or None,
            "style": dict(_mapping(known["style"])) or None,
            "evidence": dict(_mapping(known["evidence"])) or None,
            "answer_slices": dict(_mapping(known["answer_slices"])) or None,
            "decision": Decision.from_written(known["decision"]),
            "audit": known["audit"] if is_audit(known["audit"]) else None,
        }
        return cls(**known)


WRITTEN = (Estimate, HeldOut, Decision, WinRate, Standing, TaskResult)
"""Classes of parts that write themselves."""


def _write(value: object) -> Any:
    """Returns `value` with its estimates converted to dicts."""
    if isinstance(value, dict):
        return {key: _write(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_write(item) for item in value]
    return value.to_dict() if isinstance(value, WRITTEN) else value


def _mapping(value: object) -> Mapping[str, Any]:
    """Returns `value`, or an empty mapping for anything else."""
    return value if isinstance(value, Mapping) else {}


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _slice(block: Block) -> Block:
    nested = {key: _estimates(_mapping(block.get(key))) for key in ("base", "gain")}
    return {"name": str(block.get("name")), "n": block.get("n"), **_estimates(block), **nested}


def _gap(block: Mapping[str, object]) -> Gap:
    return {key: entry for key, entry in block.items() if isinstance(entry, float)} | _estimates(block)


def _estimates(block: Mapping[str, object]) -> Estimates:
    found = {key: _estimate(entry) for key, entry in block.items()}
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def _estimate(entry: object) -> Estimate | None:
    """Parses an entry `{value, ci95, n}`; what is no number becomes NaN. None if it is no such entry."""
    if not isinstance(entry, Mapping) or "value" not in entry:
        return None
    bounds = entry.get("ci95")
    low, high = bounds if isinstance(bounds, Sequence) and len(bounds) == 2 else (None, None)
    value, low, high = (_number(each, nan) for each in (entry["value"], low, high))
    n, num_prompts, num_cut, cut_at = (_number(entry.get(key)) for key in ("n", "n_prompts", "num_cut", "cut_at"))
    if "num_cut" not in entry:
        return Estimate(value, low, high, n, num_prompts)
    return AnswersEstimate(value, low, high, n, num_prompts, num_cut or 0, cut_at)


def _win_rate(entry: Mapping[str, Any]) -> WinRate:
    a, b, judge = (str(entry.get(key)) for key in ("a", "b", "judge"))
    ties, unread = (_number(entry.get(key), 0) for key in ("ties", "unread"))
    consistency, first_slot = (_number(entry.get(key), nan) for key in ("consistency", "first_slot"))
    estimate, matched, adjusted = (_estimate(each) for each in (entry, entry.get("matched"), entry.get("adjusted")))
    assert estimate is not None
    longer, shorter = (_number(entry.get(key), 0) for key in ("longer", "shorter"))
    return WinRate(a, b, judge, estimate, ties, unread, consistency, first_slot, matched, adjusted, longer, shorter)


def _task(entry: object) -> TaskResult:
    found = _mapping(entry)
    contestants = {name: _mapping(each) for name, each in _mapping(found.get("contestants")).items()}
    values = {name: _estimates(_mapping(each.get("values"))) for name, each in contestants.items()}
    details = {name: each.get("details") for name, each in contestants.items()}
    gains = _estimates(_mapping(found.get("gains")))
    without = {name: _number(each.get("without_value"), 0) for name, each in contestants.items()}
    return TaskResult(
        str(found.get("main")),
        found.get("is_share") is True,
        values,
        gains,
        details,
        {name: num for name, num in without.items() if num},
        _number(found.get("without_reference"), 0),
        str(found.get("kind") or ""),
    )


def _standing(entry: object) -> Standing | None:
    """Parses what a judge is worth; None if it is not known."""
    found = _mapping(entry)
    kappa, agreement = (_estimate(found.get(key)) for key in ("kappa", "agreement"))
    if kappa is None or agreement is None:
        return None
    keys = ("consistency", "first_slot", "length_coefficient", "label_length_coefficient")
    consistency, first_slot, of_judge, of_labels = (_number(found.get(key), nan) for key in keys)
    unread, facts = _number(found.get("unread"), 0), dict(_mapping(found.get("facts")))
    return Standing(kappa, agreement, consistency, first_slot, of_judge, of_labels, unread, facts)


def _number(value: object, otherwise: Any = None) -> Any:
    """Returns `value` if it is a number, and no truth, else `otherwise`."""
    return value if isinstance(value, Real) and not isinstance(value, bool) else otherwise
