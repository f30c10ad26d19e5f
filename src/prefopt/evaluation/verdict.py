"""Turns the numbers of a report into findings, each with its evidence, and into a decision."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefopt.evaluation.metrics import (
    ACCURACY,
    BASE,
    CHOSEN,
    FINISHED,
    KL,
    LENGTH,
    LOSS,
    PERPLEXITY,
    REJECTED,
    REPETITION,
    REWARD_ACCURACY,
    TUNED,
)
from prefopt.evaluation.report import Estimates, Gap, HeldOut, Report
from prefopt.evaluation.statistics import Estimate, detectable_shift

Level = Literal["good", "info", "warning", "bad"]
Decision = Literal["ship", "do_not_ship", "undecided"]

RUINED_PERPLEXITY_RATIO = 5.0
"""Perplexity of neutral text, tuned / base, from which on a model counts as ruined."""
DRIFTED_PERPLEXITY_RATIO = 1.5
RUINED_KL_PER_TOKEN = 2.0
"""In nats: on average, a token of its own answers is e^2 times likelier to the tuned model than to the base."""
DRIFTED_KL_PER_TOKEN = 1.0
OVERFITTING_GAP = 0.1
DISPLACED_PER_TOKEN = 0.5
"""Nats per token by which chosen completions may become less likely without a warning."""
LENGTH_RATIO = 1.5
REPETITION_RISE = 0.2
UNFINISHED_RISE = 0.2
STILL_PER_TOKEN = 0.001
"""Nats per token: if chosen and rejected both changed by less, the model counts as not moved."""
MIN_HELD_OUT = 30
"""Least number of held-out pairs or demonstrations for a judgement: with fewer, intervals are not reliable."""


@dataclass(frozen=True)
class Finding:
    level: Level
    finding: str
    evidence: str


def judge(report: Report) -> tuple[Decision, list[dict[str, str]]]:
    """Returns the decision and the findings, worst first.

    `do_not_ship`: a finding is `bad`, such as a ruined or measurably worse model. `ship`: no finding is `bad`, and the
    model is measurably better. `undecided`: otherwise.
    """
    findings = [
        *_preference(report.held_out),
        *_loss(report.held_out),
        *_ruin(report),
        *(_stillness(report.likelihood) or _overfitting(report.overfitting)),
        *_displacement(report.likelihood),
        *_answers(report.drift),
        *_files(report.run or {}),
    ]
    order = ["bad", "warning", "good", "info"]
    findings.sort(key=lambda finding: order.index(finding.level))
    levels = {finding.level for finding in findings}
    decision: Decision = "do_not_ship" if "bad" in levels else "ship" if "good" in levels else "undecided"
    return decision, [asdict(finding) for finding in findings]


def _preference(held_out: HeldOut) -> list[Finding]:
    gain, n = held_out.gain.get(ACCURACY), held_out.n
    if gain is None or n is None:
        return []
    base, tuned = held_out.models[BASE][ACCURACY], held_out.models[TUNED][ACCURACY]
    evidence = (
        f"base {_percent(base)}, tuned {_percent(tuned)}, gain {_points(gain)}, "
        f"sign test p = {held_out.p_value:.2g}, n = {n}"
    )
    findings = []
    if gain.high < 0:
        findings.append(Finding("bad", "The tuned model ranks held-out pairs worse than its base.", evidence))
    elif gain.low > 0 and n < MIN_HELD_OUT:
        text = f"Held-out pairs show a gain, but there are too few of them to judge by; {MIN_HELD_OUT} are the least."
        findings.append(Finding("warning", text, evidence))
    elif gain.low <= 0:
        shift = 100 * detectable_shift(n)
        findings.append(
            Finding(
                "warning",
                "The held-out pairs do not show a gain: it is not there, or there are too few pairs to see it.",
                f"{evidence}; {n} pairs show shifts of about {shift:.0f} points or more",
            )
        )
    else:
        findings.append(Finding("good", "The tuned model ranks held-out pairs better than its base.", evidence))
    for name, baseline in (held_out.baselines or {}).items():
        if baseline.value >= tuned.value:
            rule = name.replace("_", " ")
            findings.append(
                Finding(
                    "warning",
                    f"A rule without a model does as well: {rule}.",
                    f"{rule} {_percent(baseline)}, tuned {_percent(tuned)}",
                )
            )
    return findings


def _loss(held_out: HeldOut) -> list[Finding]:
    change = held_out.gain.get(LOSS)
    if change is None:
        return []
    base, tuned = held_out.models[BASE][LOSS], held_out.models[TUNED][LOSS]
    evidence = (
        f"loss per token: base {base.value:z.3f}, tuned {tuned.value:z.3f}, change {_interval(change)}, n = {change.n}"
    )
    if (change.n or 0) < MIN_HELD_OUT:
        text = f"There are too few held-out demonstrations to judge by; {MIN_HELD_OUT} are the least."
        return [Finding("warning", text, evidence)]
    if change.high < 0:
        return [Finding("good", "Held-out demonstrations became more likely.", evidence)]
    if change.low > 0:
        return [Finding("bad", "Held-out demonstrations became less likely.", evidence)]
    return [Finding("warning", "Held-out demonstrations are about as likely as before.", evidence)]


def _ruin(report: Report) -> list[Finding]:
    """Judges drift by neutral text and KL: a ruined model can still win every comparison on its own task."""
    perplexity, kl = _sides(report.drift, PERPLEXITY), report.drift.get(KL)
    ratio = perplexity["ratio"].value if perplexity else 1.0
    nats = kl.value if isinstance(kl, Estimate) else 0.0
    parts = []
    if perplexity:
        parts.append(
            f"perplexity of neutral text {perplexity[BASE].value:.1f} -> {perplexity[TUNED].value:.1f} "
            f"(x{ratio:.2f}, n = {perplexity['ratio'].n})"
        )
    if isinstance(kl, Estimate):
        parts.append(f"KL to the base {nats:z.2f} nats per token of its own answers (n = {kl.n})")
    evidence = "; ".join(parts)
    if ratio >= RUINED_PERPLEXITY_RATIO or nats >= RUINED_KL_PER_TOKEN:
        tuned = report.held_out.model(TUNED).get(ACCURACY)
        despite = f", although it ranks {_percent(tuned)} of held-out pairs right" if tuned else ""
        advice = "Train less, lower optim.learning_rate, or raise algorithm.beta."
        return [Finding("bad", f"The model was ruined{despite}. {advice}", evidence)]
    if ratio >= DRIFTED_PERPLEXITY_RATIO or nats >= DRIFTED_KL_PER_TOKEN:
        return [
            Finding("warning", "The model drifted far from its base: check it on tasks it must not lose.", evidence)
        ]
    if not parts:
        return [Finding("info", "Drift was not measured, so a ruined model would not be seen here.", "no drift block")]
    return [Finding("info", "The model stayed close to its base.", evidence)]


def _stillness(block: Estimates | None) -> list[Finding]:
    """Warns if the model has hardly moved: it then ranks pairs by differences that mean nothing."""
    if block is None:
        return []
    chosen, rejected = block[CHOSEN].value, block[REJECTED].value
    if max(abs(chosen), abs(rejected)) >= STILL_PER_TOKEN:
        return []
    return [
        Finding(
            "warning",
            "The model has hardly moved. Raise optim.learning_rate, or train longer.",
            f"log-prob per token: chosen {chosen:+.5f}, rejected {rejected:+.5f}, n = {block[CHOSEN].n}",
        )
    ]


def _overfitting(block: dict[str, Gap]) -> list[Finding]:
    for name in (REWARD_ACCURACY, ACCURACY):
        if name not in block:
            continue
        train, held_out, gap = (block[name][key] for key in ("train", "held_out", "gap"))
        assert isinstance(train, Estimate)
        assert isinstance(held_out, Estimate)
        assert isinstance(gap, Estimate)
        evidence = f"{name}: train {_percent(train)}, held-out {_percent(held_out)}, gap {_points(gap)}"
        if (held_out.n or 0) < MIN_HELD_OUT and gap.low > 0:
            text = "Better on the pairs it was trained on, as far as so few held-out pairs tell."
            return [Finding("info", text, f"{evidence}, n = {held_out.n}")]
        if gap.low > OVERFITTING_GAP:
            return [Finding("warning", "Overfitting: much better on the pairs it was trained on.", evidence)]
        if gap.low > 0:
            return [Finding("info", "Somewhat better on the pairs it was trained on.", evidence)]
        if gap.high < 0:
            text = "Better on held-out pairs than on those it was trained on: the two sets are not alike."
            return [Finding("info", text, evidence)]
        return [Finding("info", "Training and held-out pairs are ranked about alike.", evidence)]
    return []


def _displacement(block: Estimates | None) -> list[Finding]:
    if block is None:
        return []
    chosen, rejected = block[CHOSEN].value, block[REJECTED].value
    evidence = f"log-prob per token: chosen {chosen:+z.2f}, rejected {rejected:+z.2f}, n = {block[CHOSEN].n}"
    if chosen < -DISPLACED_PER_TOKEN:
        return [
            Finding(
                "warning",
                "Chosen answers became much less likely too (likelihood displacement). "
                "Add an SFT term (algorithm.loss_type=[sigmoid,sft]), or lower optim.learning_rate.",
                evidence,
            )
        ]
    return []


def _answers(drift: dict[str, Estimate | Estimates]) -> list[Finding]:
    length, finished, repetition = (_sides(drift, key) for key in (LENGTH, FINISHED, REPETITION))
    if not length:
        return []
    findings = []
    ratio = length[TUNED].value / max(length[BASE].value, 1.0)
    if not 1 / LENGTH_RATIO < ratio < LENGTH_RATIO:
        evidence = f"tokens per answer: base {_interval(length[BASE], 0)}, tuned {_interval(length[TUNED], 0)}"
        findings.append(Finding("warning", f"Answers are {ratio:.1f} times as long as before.", evidence))
    if finished[BASE].value - finished[TUNED].value > UNFINISHED_RISE:
        evidence = f"ended by themselves: base {_percent(finished[BASE])}, tuned {_percent(finished[TUNED])}"
        findings.append(Finding("warning", "More answers run into the length limit than before.", evidence))
    if repetition[TUNED].value - repetition[BASE].value > REPETITION_RISE:
        evidence = f"repeated 4-grams: base {_percent(repetition[BASE])}, tuned {_percent(repetition[TUNED])}"
        findings.append(Finding("bad", "The model repeats itself.", evidence))
    return findings


def _files(run: dict[str, Any]) -> list[Finding]:
    """Warns of files of the run that cannot be trusted."""
    findings = []
    if run.get("lost_records"):
        text = "Curves and speeds leave out what metrics.jsonl has lost."
        findings.append(Finding("warning", text, f"{run['lost_records']} of its lines are gone"))
    if run.get("model_is_sealed") is False:
        text = "Nobody can tell whether model/ is what training left there."
        findings.append(
            Finding("warning", text, "it has no manifest.json: an earlier version wrote it, or it was edited")
        )
    return findings


def _sides(drift: dict[str, Estimate | Estimates], key: str) -> Estimates:
    """Returns a metric of drift by contestant; empty if it was not measured."""
    found = drift.get(key)
    return found if isinstance(found, dict) else {}


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:z.1f} % [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"


def _points(found: Estimate) -> str:
    return f"{100 * found.value:+z.1f} points [{100 * found.low:+z.1f}, {100 * found.high:+z.1f}]"


def _interval(found: Estimate, digits: int = 3) -> str:
    return f"{found.value:z.{digits}f} [{found.low:z.{digits}f}, {found.high:z.{digits}f}]"
