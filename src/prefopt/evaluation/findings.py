"""What the numbers of a report say, each finding with its evidence."""

from dataclasses import replace
from math import inf, isfinite
from typing import Any

from prefopt.config.limits import LimitsConfig
from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.decision import LEVELS, Decision, Finding, Gain, decide
from prefopt.evaluation.gains import find_gains, find_lack
from prefopt.evaluation.in_words import LOG_PROB, PER_TOKEN, PERCENT, POINTS, WHOLE, tell, tell_n, tell_value
from prefopt.evaluation.looks import judge_looks
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
from prefopt.evaluation.not_finite import judge_numbers
from prefopt.evaluation.overlap import describe_overlap
from prefopt.evaluation.plain_answers import judge_plainly
from prefopt.evaluation.report import Estimates, HeldOut, Report
from prefopt.evaluation.statistics import Estimate, detectable_gain, difference
from prefopt.evaluation.task_findings import judge_tasks
from prefopt.evaluation.win_findings import judge_wins

FEWEST_ANSWERS = 5
"""Answers or texts below which a number without an interval is no proof."""
MEASURED_DRIFT = (
    "Drift from the base: evaluation.num_samples=32 evaluation.neutral_texts=prefopt:assets/neutral_texts.jsonl"
)
"""What lets a run's drift be measured."""
WITH_WEIGHTS = (
    "Drift from the base, which needs the weights of both and one vocabulary: model=hf model.path=<base> "
    "'evaluation.contestants=[base,{name: tuned, model: <folder>}]'"
)
NEARER = "A run that stays nearer to its base: lower optim.learning_rate, train less, or raise algorithm.beta."


def assess(report: Report, settings: EvaluationConfig) -> tuple[Decision, list[Finding]]:
    """Returns the decision on a report, and what it found, worst first."""
    limits, held_out = settings.limits, report.held_out
    gains = find_gains(report, settings)
    findings = [
        *_as_harm(judge_numbers(report)),
        *judge_wins(report, settings),
        *judge_plainly(report.answers or {}),
        *judge_tasks(report, settings),
        *_preference(held_out, gains, settings),
        *_loss(held_out, gains, settings),
        *_overlap(report.overlap or {}, limits),
        *judge_looks(report.test or {}, limits),
        *_as_harm(_ruin(report, limits)),
        *_unmeasured(report, has_gains=bool(gains)),
        *(_stillness(report.likelihood, limits) or _overfitting(report, settings)),
        *_as_harm(_displacement(report.likelihood, limits)),
        *_as_harm(_answers(report.drift, limits)),
        *_files(report.run or {}),
    ]
    findings.sort(key=lambda finding: (LEVELS.index(finding.level), not finding.is_severe))
    return decide(gains, findings, settings.min_prompts, find_lack(report)), findings


def _as_harm(findings: list[Finding]) -> list[Finding]:
    return [replace(finding, is_harm=True) for finding in findings]


def _preference(held_out: HeldOut, gains: list[Gain], settings: EvaluationConfig) -> list[Finding]:
    found = next((each for each in gains if each.metric == ACCURACY), None)
    if found is None or not isfinite(found.estimate.value):
        return []  # the latter is named among the numbers that are not finite
    gain = found.estimate
    base, tuned = held_out.model(BASE).get(ACCURACY), held_out.models[TUNED][ACCURACY]
    known = [f"base {tell(base, PERCENT)}"] if base else []
    known += [f"tuned {tell(tuned, PERCENT)}", f"gain {tell(gain, POINTS)}"]
    known += [] if held_out.p_value is None else [f"p = {held_out.p_value:.2g}"]
    evidence = f"{', '.join(known)}, {tell_n(gain)}"
    doubts = [*found.obstacles, *_rules_that_may_do(held_out)]
    obstacles = [Finding("warning", text, f"{_rules(held_out)}; tuned {tell(tuned, PERCENT)}") for text in doubts]
    if not found.has_prompts(settings.min_prompts):
        text = "Held-out pairs show a gain, but of" if gain.low > 0 else "The held-out pairs are of"
        few = f"{text} too few prompts to judge by; {settings.min_prompts} are the least."
        return [Finding("warning", few, evidence), *obstacles]
    if not gain.has_interval:
        return [
            Finding("warning", "The held-out pairs do not tell: their gain has no interval.", evidence),
            *obstacles,
        ]
    if gain.high < 0:
        is_bad = gain.value <= -settings.min_gain
        text = f"The tuned model ranks held-out pairs {'' if is_bad else 'a little '}worse than its base."
        return [Finding("bad" if is_bad else "warning", text, evidence), *obstacles]
    if gain.low <= 0:
        text = "The held-out pairs do not show a gain: it is not there, or there are too few of them to see it."
        return [Finding("warning", text, f"{evidence}{_power(held_out)}"), *obstacles]
    if gain.low <= settings.min_gain:
        least = 100 * settings.min_gain
        text = f"The tuned model ranks held-out pairs better, though the gain may be below {least:g} points."
        return [Finding("info", text, evidence), *obstacles]
    text = "The tuned model ranks held-out pairs better than its base."
    return [Finding("info" if found.obstacles else "good", text, evidence), *obstacles]


def _rules_that_may_do(held_out: HeldOut) -> list[str]:
    """Says which rules without a model may do as well as the tuned one: it is not shown to do better than they."""
    tuned, rules, over = held_out.models[TUNED][ACCURACY], held_out.baselines or {}, held_out.over_baselines or {}
    names = [
        name for name, rule in rules.items() if rule.value < tuned.value and name in over and not over[name].low > 0
    ]
    return [f"A rule without a model may do as well: {name.replace('_', ' ')}." for name in names]


def _rules(held_out: HeldOut) -> str:
    rules = held_out.baselines or {}
    return ", ".join(f"{name.replace('_', ' ')} {tell(rule, PERCENT)}" for name, rule in rules.items())


def _power(held_out: HeldOut) -> str:
    """Says which gain these pairs show; empty in reports of earlier versions."""
    if held_out.effective_n is None or held_out.discordant is None:
        return ""
    shown, changed = 100 * detectable_gain(held_out.effective_n, held_out.discordant), 100 * held_out.discordant
    if shown > changed:
        return f"; only {changed:.0f} % are ranked in another way than by the base, too few to show one"
    how = f"with {changed:.0f} % ranked in another way than by the base"
    return f"; {how}, they show gains of about {shown:.0f} points or more"


def _loss(held_out: HeldOut, gains: list[Gain], settings: EvaluationConfig) -> list[Finding]:
    found, change = next((each for each in gains if each.metric == LOSS), None), held_out.gain.get(LOSS)
    if found is None or change is None:
        return []
    base, tuned = (held_out.model(name).get(LOSS) for name in (BASE, TUNED))
    known = [f"{name} {tell_value(each, PER_TOKEN)}" for name, each in (("base", base), ("tuned", tuned)) if each]
    evidence = f"loss per token: {', '.join([*known, f'change {tell(change, PER_TOKEN)}'])}, {tell_n(change)}"
    if not found.has_prompts(settings.min_prompts):
        text = f"There are too few held-out prompts to judge by; {settings.min_prompts} are the least."
        return [Finding("warning", text, evidence)]
    if not change.has_interval:
        text = "The held-out demonstrations do not tell: most are of too few prompts, or they differ in nothing."
        return [Finding("warning", text, evidence)]
    if found.is_shown(settings.min_prompts):
        return [Finding("good", "Held-out demonstrations became more likely.", evidence)]
    if change.low > 0:
        is_bad = change.value >= settings.min_loss_gain
        text = f"Held-out demonstrations became {'' if is_bad else 'a little '}less likely."
        return [Finding("bad" if is_bad else "warning", text, evidence)]
    if change.high < 0:
        return [Finding("warning", "Held-out demonstrations became hardly more likely.", evidence)]
    return [Finding("warning", "Held-out demonstrations are about as likely as before.", evidence)]


def _overlap(overlap: dict[str, Any], limits: LimitsConfig) -> list[Finding]:
    """Warns of held-out prompts that training has seen, or nearly: they do not measure what is new to the model."""
    kinds, evidence, share = describe_overlap(overlap)
    if not kinds:
        return []
    return [
        Finding(
            "warning",
            f"Held-out prompts are also training prompts: {kinds}.",
            f"{evidence} held-out prompts",
            is_severe=share > limits.overlap,
            remedy="Held-out prompts that training has not seen: data.on_overlap=skip leaves the same ones out of "
            "training, and prefopt audit lists those that are nearly the same.",
        )
    ]


def _ruin(report: Report, limits: LimitsConfig) -> list[Finding]:
    """Judges drift by neutral text and KL: a ruined model can still win every comparison on its own task."""
    perplexity, kl = _sides(report.drift, PERPLEXITY), report.drift.get(KL)
    ratio = perplexity["ratio"].value if "ratio" in perplexity else 1.0
    nats = kl.value if isinstance(kl, Estimate) else 0.0
    if not (isfinite(ratio) and isfinite(nats)):
        return []  # said elsewhere
    parts = []
    if "ratio" in perplexity:
        sides = " -> ".join(f"{perplexity[name].value:.1f}" for name in (BASE, TUNED) if name in perplexity)
        parts.append(f"perplexity of neutral text {sides} (x{ratio:.2f}, n = {perplexity['ratio'].n})")
    if isinstance(kl, Estimate):
        parts.append(f"KL to the base {nats:z.2f} nats per token of its own answers (n = {kl.n})")
    evidence = "; ".join(parts)
    measured = perplexity.get("ratio"), kl if isinstance(kl, Estimate) else None
    is_sure = [_is_sure(side, drifted) for side, drifted in zip(measured, _drifted(limits), strict=True)]
    if (ratio >= limits.ruined_perplexity_ratio and is_sure[0]) or (nats >= limits.ruined_kl_per_token and is_sure[1]):
        advice = "Train less, lower optim.learning_rate, or raise algorithm.beta."
        return [Finding("bad", f"The model was ruined{_despite(report.held_out)}. {advice}", evidence)]
    if not 1 / limits.drifted_perplexity_ratio < ratio < limits.drifted_perplexity_ratio or (
        abs(nats) >= limits.drifted_kl_per_token
    ):
        text = "The model drifted far from its base: check it on tasks it must not lose."
        return [Finding("warning", text, evidence, is_severe=True, remedy=NEARER)]
    if not parts:
        return []
    unknown = [name for name, side in zip(("neutral text", "KL"), measured, strict=True) if side is None]
    as_far = f", as far as was measured: {unknown[0]} was not" if unknown else ""
    return [Finding("info", f"The model stayed close to its base{as_far}.", evidence)]


def _despite(held_out: HeldOut) -> str:
    """Says what a ruined model does well all the same: it ranks more pairs right than chance, or than its base."""
    base, tuned = (held_out.model(name).get(ACCURACY) for name in (BASE, TUNED))
    if tuned is None or not (tuned.value > 0.5 or (base is not None and tuned.value > base.value)):
        return ""
    return f", although it ranks {tell(tuned, PERCENT)} of held-out pairs right"


def _unmeasured(report: Report, *, has_gains: bool) -> list[Finding]:
    """Warns if nothing tells whether the tuned model is ruined: no neutral text, and no KL to its base."""
    is_measured = bool(_sides(report.drift, PERPLEXITY)) or isinstance(report.drift.get(KL), Estimate)
    if is_measured or (report.contestants is not None and TUNED not in report.contestants):
        return []
    text = "Drift was not measured, so a ruined model would not be seen here."
    evidence = "neither KL to the base nor perplexity of neutral text"
    if not has_gains:
        return [Finding("info", text, evidence)]
    remedy = MEASURED_DRIFT if report.contestants is None else WITH_WEIGHTS
    return [Finding("warning", text, evidence, is_severe=True, remedy=remedy)]


def _drifted(limits: LimitsConfig) -> tuple[float, float]:
    return limits.drifted_perplexity_ratio, limits.drifted_kl_per_token


def _is_sure(found: Estimate | None, limit: float) -> bool:
    """Whether a number is above a limit beyond doubt: its interval is, or it has none but some answers behind it."""
    if found is None:
        return False
    return found.low > limit if found.has_interval else (found.n or 0) >= FEWEST_ANSWERS


def _stillness(block: Estimates | None, limits: LimitsConfig) -> list[Finding]:
    """Warns if the model has hardly moved: it then ranks pairs by differences that mean nothing."""
    if block is None or CHOSEN not in block or REJECTED not in block:
        return []
    chosen, rejected = block[CHOSEN].value, block[REJECTED].value
    if not (abs(chosen) < limits.still_per_token and abs(rejected) < limits.still_per_token):  # NaN is not still
        return []
    return [
        Finding(
            "warning",
            "The model has hardly moved. Raise optim.learning_rate, or train longer.",
            f"log-prob per token: chosen {chosen:+.5f}, rejected {rejected:+.5f}, n = {block[CHOSEN].n}",
            remedy="A model that has moved: raise optim.learning_rate, or train longer.",
        )
    ]


def _overfitting(report: Report, settings: EvaluationConfig) -> list[Finding]:
    limits, block = settings.limits, report.overfitting
    is_other = (report.data or {}).get("is_other") is True
    for name in (REWARD_ACCURACY, ACCURACY, LOSS):
        found = block.get(name, {})
        train, held_out, gap = (found.get(key) for key in ("train", "held_out", "gap"))
        if not all(isinstance(each, Estimate) and isfinite(each.value) for each in (train, held_out, gap)):
            continue
        assert isinstance(train, Estimate)
        assert isinstance(held_out, Estimate)
        assert isinstance(gap, Estimate)
        is_loss = name == LOSS
        what, limit = ("demonstrations", limits.overfitting_loss_gap) if is_loss else ("pairs", limits.overfitting_gap)
        shown = (PER_TOKEN, PER_TOKEN) if is_loss else (PERCENT, POINTS)
        evidence = (
            f"{name}: train {tell(train, shown[0])}, held-out {tell(held_out, shown[0])}, gap {tell(gap, shown[1])}"
        )
        num = held_out.n if held_out.num_prompts is None else held_out.num_prompts
        if (num or 0) < settings.min_prompts and gap.low > 0:
            text = f"Better on the {what} it was trained on, as far as so few held-out {what} tell."
            return [Finding("info", text, f"{evidence}, {tell_n(held_out)}")]
        if is_other and gap.low > 0:
            text = f"Better on the {what} it was trained on than on these: other data than the run's own may differ."
            return [Finding("info", text, evidence)]
        if gap.low > limit:
            return [Finding("warning", f"Overfitting: much better on the {what} it was trained on.", evidence)]
        if gap.low > 0:
            return [Finding("info", f"Somewhat better on the {what} it was trained on.", evidence)]
        if gap.high < 0:
            text = f"Better on held-out {what} than on those it was trained on: the two sets are not alike."
            return [Finding("info", text, evidence)]
        if not gap.has_interval:
            continue
        if max(gap.high, -gap.low) > limit:
            text = f"No gap between training and held-out {what} is shown, nor that there is none."
            return [Finding("info", text, evidence)]
        how = "about equally likely" if is_loss else "ranked about alike"
        return [Finding("info", f"Training and held-out {what} are {how}.", evidence)]
    return []


def _displacement(block: Estimates | None, limits: LimitsConfig) -> list[Finding]:
    if block is None or CHOSEN not in block or REJECTED not in block:
        return []
    chosen, rejected = (tell_value(block[key], LOG_PROB) for key in (CHOSEN, REJECTED))
    if not -inf < block[CHOSEN].value < -limits.displaced_per_token:
        return []
    evidence = f"log-prob per token: chosen {chosen}, rejected {rejected}, n = {block[CHOSEN].n}"
    return [
        Finding(
            "warning",
            "Chosen answers became much less likely too (likelihood displacement). "
            "Add an SFT term (algorithm.loss_type=[sigmoid,sft]), or lower optim.learning_rate.",
            evidence,
            is_severe=True,
            remedy="A run in which chosen answers stay likely: algorithm.loss_type=[sigmoid,sft], or a lower "
            "optim.learning_rate.",
        )
    ]


def _answers(drift: dict[str, Estimate | Estimates], limits: LimitsConfig) -> list[Finding]:
    length, finished, repetition = (_sides(drift, key) for key in (LENGTH, FINISHED, REPETITION))
    findings = []
    if _are_measured(length):
        ratio = length[TUNED].value / max(length[BASE].value, 1.0)
        if not 1 / limits.length_ratio < ratio < limits.length_ratio:
            evidence = f"tokens per answer: base {tell(length[BASE], WHOLE)}, tuned {tell(length[TUNED], WHOLE)}"
            text = f"Answers are {ratio:.1f} times as long as before."
            remedy = (
                "Answers of about the same length as before: pairs in which length says nothing, or less training."
            )
            findings.append(Finding("warning", text, evidence, is_severe=True, remedy=remedy))
    if _are_measured(finished) and finished[BASE].value - finished[TUNED].value > limits.unfinished_rise:
        evidence = f"ended by themselves: base {tell(finished[BASE], PERCENT)}, tuned {tell(finished[TUNED], PERCENT)}"
        text = "More answers run into the length limit than before."
        remedy = "Answers that end: a larger evaluation.max_new_tokens tells whether they do so later."
        findings.append(Finding("warning", text, evidence, is_severe=True, remedy=remedy))
    if _are_measured(repetition) and repetition[TUNED].value - repetition[BASE].value > limits.repetition_rise:
        evidence = (
            f"repeated 4-grams: base {tell(repetition[BASE], PERCENT)}, tuned {tell(repetition[TUNED], PERCENT)}"
        )
        if difference(repetition[TUNED], repetition[BASE]).low > 0:
            findings.append(Finding("bad", "The model repeats itself.", evidence))
        else:
            remedy = "More answers: a larger evaluation.num_samples tells whether it repeats itself."
            text = "The model may repeat itself; so few answers do not tell."
            findings.append(Finding("warning", text, evidence, is_severe=True, remedy=remedy))
    return findings


def _are_measured(sides: Estimates) -> bool:
    return all(name in sides and isfinite(sides[name].value) for name in (BASE, TUNED))


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
