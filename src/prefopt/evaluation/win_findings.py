"""What judged answers say: who wins, what the judges are worth, and whether length explains it."""

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.decision import Finding, Level
from prefopt.evaluation.gains import UNREAD, deciding_wins, wins_by
from prefopt.evaluation.in_words import KAPPA, PERCENT, tell, tell_n
from prefopt.evaluation.judging import Standing, WinRate
from prefopt.evaluation.metrics import BASE, TUNED, WIN_RATE
from prefopt.evaluation.not_finite import WHOLE_BASE
from prefopt.evaluation.report import Report

BETTER_JUDGE = "A judge that agrees with the data: another one first in evaluation.judges, or more held-out pairs."
NO_NUMBERS = "The tuned model gives no numbers, so it has no answers."
NO_BASE = "The base gives no numbers, so nothing is measured against it."
MOST_UNREAD = 0.1
"""Share of answers without a verdict from which the report warns."""
MOST_LENGTH = 0.3
"""How much more a judge's verdicts may correlate with length than the data's labels do before the report warns: with
50 pairs, chance alone moves the difference by about 0.15."""
LEAST_CONSISTENT = 0.75
"""Share of verdicts that are the same in both orders below which the report warns: a coin agrees on half."""


def judge_wins(report: Report, settings: EvaluationConfig) -> list[Finding]:
    """Returns the findings on judged answers; nothing if none were judged."""
    judges = report.judges or {}
    first = next(iter(judges), None)
    findings = [
        finding
        for name, standing in judges.items()
        for finding in _on_judge(name, standing, settings, is_deciding=name == first)
    ]
    findings += [_on_failure(name, why, report) for name, why in (report.failures or {}).items()]
    for found in deciding_wins(report):
        findings += [_on_win(found, settings)] if found.estimate.n else []
        findings += [*_on_length(found), *_on_unread(found)]
    return findings + _on_other_judges(report, settings, first)


def _on_failure(name: str, why: str, report: Report) -> Finding:
    """Says what a contestant, a judge or a task that failed means: only a tuned model without numbers is broken."""
    gives_no_numbers = name in (report.without_numbers or [])
    if gives_no_numbers and name == TUNED:
        return Finding("bad", NO_NUMBERS, why, is_harm=True)
    if gives_no_numbers and name == BASE:
        return Finding("warning", NO_BASE, why, is_severe=True, remedy=WHOLE_BASE)
    text = f"{name} failed, so it has no say."
    remedy = f"{name} working: mend what is wrong, and measure again with prefopt evaluate."
    return Finding("warning", text, why, is_severe=True, remedy=remedy)


def _on_judge(name: str, standing: Standing | None, settings: EvaluationConfig, *, is_deciding: bool) -> list[Finding]:
    """Warns of a judge that cannot tell chosen from rejected answers, or whose verdicts hang on the order."""
    if standing is None:
        return []
    findings = []
    level: Level
    kappa, agreement = standing.kappa, standing.agreement
    if not kappa.low > settings.limits.judge_kappa:
        text = f"The judge {name} is not shown to tell chosen from rejected held-out answers."
        evidence = f"kappa {tell(kappa, KAPPA)}, agreement {tell(agreement, PERCENT)}, {tell_n(kappa)}"
        if not kappa.n:
            text = f"The judge {name} gave no verdict on any held-out pair, so nothing tells what it is worth."
            evidence = f"{standing.num_unread} of {standing.num_unread}"
        level, remedy = ("warning", BETTER_JUDGE) if is_deciding else ("info", "")
        findings.append(Finding(level, text, evidence, remedy=remedy))
    if standing.consistency < LEAST_CONSISTENT:
        text = f"The judge {name} often says another thing when the answers change places; such pairs count as ties."
        told = (
            f"same verdict in both orders: {standing.consistency:.0%}; for the first answer: {standing.first_slot:.0%}"
        )
        findings.append(Finding("warning" if is_deciding else "info", text, told))
    of_judge, of_labels = standing.length_coefficient, standing.label_length_coefficient
    if abs(of_judge) > abs(of_labels) and abs(of_judge - of_labels) > MOST_LENGTH:
        better = "longer" if of_judge > 0 else "shorter"
        text = f"The judge {name} takes the {better} answer far more often than the data do."
        told = f"correlation with length on held-out pairs: the judge {of_judge:+.2f}, the labels {of_labels:+.2f}"
        findings.append(Finding("warning" if is_deciding else "info", text, told))
    return findings


def _on_win(found: WinRate, settings: EvaluationConfig) -> Finding:
    """Says whether the tuned model's answers win against one contestant."""
    gain, evidence = found.gain, describe_win(found)
    if (gain.num_prompts or 0) < settings.min_prompts:
        text = f"Too few answers were judged to say whether it beats {found.b}; {settings.min_prompts} are the least."
        return Finding("warning", text, evidence)
    if gain.high < 0:
        is_bad = gain.value <= -settings.min_gain
        return Finding("bad" if is_bad else "warning", f"Its answers lose to {found.b}.", evidence)
    if gain.low <= 0:
        return Finding("warning", f"Its answers are not shown to be better than those of {found.b}.", evidence)
    if gain.low <= settings.min_gain:
        least = 50 + 100 * settings.min_gain
        text = f"Its answers win against {found.b}, though the win rate may be below {least:g} %."
        return Finding("info", text, evidence)
    return Finding("good", f"Its answers win against {found.b}.", evidence, of_gain=WIN_RATE)


def _on_length(found: WinRate) -> list[Finding]:
    """Warns if at equal length nothing of a win is shown to be left, or if length cannot be told from quality."""
    if not found.gain.low > 0 or (found.adjusted is not None and found.adjusted.low > 0.5):
        return []
    if found.adjusted is None:
        text = f"Length cannot be told from quality: its answers are nearly always on one side of those of {found.b}."
        evidence = f"longer on {found.num_longer} of {found.estimate.n} prompts, shorter on {found.num_shorter}"
    else:
        text = f"Length may explain why its answers win against {found.b}: at equal length no win is shown."
        evidence = f"as they are {tell(found.estimate, PERCENT)}, adjusted for length {tell(found.adjusted, PERCENT)}"
    evidence += "" if found.matched is None else f", of about equal length {tell(found.matched, PERCENT)}"
    remedy = (
        "Answers of about the same length as before: pairs in which length says nothing, or more held-out prompts."
    )
    return [Finding("warning", text, evidence, is_severe=True, remedy=remedy)]


def _on_unread(found: WinRate) -> list[Finding]:
    num_read = found.estimate.n or 0
    num = found.num_unread + num_read
    if num_read and found.num_unread / num <= MOST_UNREAD:
        return []
    how_many = "many" if num_read else "any"
    text = f"The judge {found.judge} gave no verdict on {how_many} answers of {found.a} and {found.b}."
    return [Finding("warning", text, f"{found.num_unread} of {num}", is_severe=True, remedy=UNREAD)]


def _on_other_judges(report: Report, settings: EvaluationConfig, first: str | None) -> list[Finding]:
    """Warns if another judge that tells chosen from rejected answers says that the tuned model loses to a rival."""
    findings = []
    for name, standing in (report.judges or {}).items():
        if name == first or standing is None or not standing.kappa.low > settings.limits.judge_kappa:
            continue
        for found in wins_by(name, report):
            if found.gain.high < 0:
                text = f"The judges disagree: {name} finds the answers of {found.b} better."
                remedy = "Judges that agree, or people who read the answers without seeing which is whose."
                findings.append(Finding("warning", text, describe_win(found), is_severe=True, remedy=remedy))
    return findings


def describe_win(found: WinRate) -> str:
    """Returns the evidence of a win rate: `78.0 % [70.1, 84.2], 12 ties, n = 132 (judge: rule)`."""
    ties = f", {found.num_ties} ties" if found.num_ties != 1 else ", 1 tie"
    return f"win rate {tell(found.estimate, PERCENT)}{ties}, {tell_n(found.estimate)} (judge: {found.judge})"
