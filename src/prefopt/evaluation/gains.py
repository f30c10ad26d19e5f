"""The gains of a tuned model over its base that a report measures, with what else would explain them."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from math import ceil, inf, isfinite, sqrt

from prefopt.config.schema import EvaluationConfig
from prefopt.data.intervals import Z_95
from prefopt.evaluation.caveats import caveat_of_judge, caveat_of_task
from prefopt.evaluation.checked import TaskResult
from prefopt.evaluation.decision import NO_DATA, Gain
from prefopt.evaluation.judging import WinRate
from prefopt.evaluation.metrics import ACCURACY, BASE, LOSS, REGRESSION, TUNED, WIN_RATE
from prefopt.evaluation.report import HeldOut, Report
from prefopt.evaluation.statistics import Z_80, Estimate, detectable_gain

UNREAD = "A judge that reads the answers."
MORE = "more prompts in data.held_out, or a larger data.held_out_fraction"


def find_gains(report: Report, settings: EvaluationConfig) -> list[Gain]:
    """Returns the gains in judged answers, in ranking and in loss, as far as they were measured."""
    held_out = report.held_out
    of_answers = (_find_wins(report, settings), *_find_task_gains(report, settings))
    found = (*of_answers, _find_ranking(held_out, settings), _find_likelier(held_out, settings))
    return [gain for gain in found if gain is not None]


def find_lack(report: Report) -> tuple[str, str]:
    """Returns why a report has no gains, if so, and what would change that."""
    if not (report.held_out.n or report.answers):
        return NO_DATA
    if report.judges or any(name != REGRESSION for name in report.tasks or {}):
        return (
            "Nothing compares the answers of tuned with those of another contestant.",
            "Answers of tuned and of others: name base, tuned and a base with a prompt in evaluation.contestants, and "
            "mend those that failed.",
        )
    return (
        "Answers to held-out prompts are there, but no judge and no task has read them.",
        "Who reads the answers: evaluation.judges, such as 'evaluation.judges=[{kind: rule, patterns: [...]}]', or "
        "evaluation.tasks.",
    )


def untuned_gains(report: Report, task: TaskResult) -> dict[str, Estimate]:
    """Returns the gains in a task over each contestant without tuning, by its name."""
    known = report.contestants or {}
    return {name: gain for name, gain in task.gains.items() if known.get(name, {}).get("is_untuned", True)}


def _find_task_gains(report: Report, settings: EvaluationConfig) -> Iterator[Gain]:
    """The gains in each task over the best contestant without tuning; the regression suite is none to win."""
    for name, task in (report.tasks or {}).items():
        gains = untuned_gains(report, task)
        if name == REGRESSION or not gains:
            continue
        best = min(gains, key=lambda each: _sure_gain(gains[each]))
        obstacles = _obstacle_of_rivals(report, gains)
        yield Gain(
            name,
            f"{name} over {best}",
            f"Its answers do better than those of {_list_rivals(report, gains)} in {name}",
            gains[best],
            _least_of(task, settings),
            is_of_answers=True,
            obstacles=tuple(obstacles),
            remedy=" ".join([*([PROMPTED] if obstacles else []), _needed_answers(name, task, best, settings)]).strip(),
            caveat=caveat_of_task(name, task),
        )


def _least_of(task: TaskResult, settings: EvaluationConfig) -> float:
    """The gain in a task above which it decides: numbers on another scale than [0, 1] have no limit of their own."""
    return settings.min_gain if task.is_share else 0.0


def _needed_answers(name: str, task: TaskResult, other: str, settings: EvaluationConfig) -> str:
    """Says how many prompts would show the measured gain in a task, how large a one these show, or what is missing."""
    gain, least = task.gains[other], _least_of(task, settings)
    num = gain.num_prompts or gain.n or 0
    if not num and task.num_without_reference:
        return f"Chosen answers in the held-out data with which the task {name} can compare."
    if not num or (num >= settings.min_prompts and not gain.has_interval):
        return f"A task {name} that has a value for each answer of tuned and {other}, not the same for all prompts."
    if num < settings.min_prompts:
        more = _more_answers(task.num_of(TUNED), settings.min_prompts, settings)
        return f"Answers to at least {settings.min_prompts} held-out prompts instead of {num}: {more}."
    if gain.low > least:
        return ""
    error = max(gain.value - gain.low, (gain.high - gain.low) / 2) / Z_95
    over = gain.value - least
    if over <= 0:
        shown, limit = (_amount(each, task) for each in (least + (Z_95 + Z_80) * error, least))
        return f"A larger gain in {name}: of about {shown} or more, these {num} prompts show that it is above {limit}."
    needed = max(ceil(num * ((Z_95 + Z_80) * error / over) ** 2), num + 1)
    more = _more_answers(task.num_of(TUNED), needed, settings)
    known = f"if the true gain over {other} in {name} is the measured one"
    return f"Answers to about {needed:,} held-out prompts instead of {num:,}, {known}: {more}."


def _amount(gain: float, task: TaskResult) -> str:
    return f"{100 * gain:.0f} points" if task.is_share else f"{gain:.3g}"


def _obstacle_of_rivals(report: Report, names: Iterable[str]) -> list[str]:
    """Says that no base with a prompt is among the contestants, if so; a model behind an endpoint may be one."""
    known = report.contestants or {}
    own = (BASE, known.get(BASE, {}).get("model"))
    for found in (known.get(name, {}) for name in names):
        if found.get("is_prompted") and (found.get("endpoint") or found.get("model") in own):
            return []
    return ["No base with a prompt competed, which is what one would do instead of tuning."]


def _list_rivals(report: Report, names: Collection[str]) -> str:
    """Returns names of contestants for a sentence; of a model behind an endpoint, also which one it is."""
    known = report.contestants or {}
    models = {name: known.get(name, {}).get("model") for name in names if known.get(name, {}).get("endpoint")}
    return " and ".join(f"{name} ({models[name]} behind an endpoint)" if name in models else name for name in names)


def deciding_wins(report: Report) -> list[WinRate]:
    """Returns the win rates of the tuned model over each contestant without tuning, by the first judge."""
    first = next(iter(report.judges or {}), None)
    return [] if first is None else wins_by(first, report)


def wins_by(judge: str, report: Report) -> list[WinRate]:
    """Returns the win rates of the tuned model over each contestant without tuning, by one judge."""
    known = report.contestants or {}
    return [
        found
        for found in report.win_rates or []
        if found.judge == judge and found.a == TUNED and known.get(found.b, {}).get("is_untuned", True)
    ]


def hardest_win(report: Report) -> WinRate | None:
    """Returns the win rate over the best contestant without tuning, by the first judge; None if nothing was judged.

    The best one is that against which the gain is smallest for sure: a gain over it is a gain over all, without a
    correction for how many there are (an intersection-union test; Berger 1982). One of whose answers no verdict was
    read is not known to be beaten.
    """
    return min(deciding_wins(report), key=lambda found: _sure_gain(found.gain), default=None)


def _sure_gain(gain: Estimate) -> float:
    """The gain that there is at least; without an interval, nothing is known."""
    return gain.low if gain.has_interval else -inf


def _find_wins(report: Report, settings: EvaluationConfig) -> Gain | None:
    """The win rate over one half against the best contestant without tuning."""
    wins, best = deciding_wins(report), hardest_win(report)
    if best is None:
        return None
    names = [found.b for found in wins]
    unprompted = _obstacle_of_rivals(report, names)
    obstacles, remedies = [*_obstacles_of(best.judge, report, settings), *unprompted], [PROMPTED] if unprompted else []
    gain = best.gain
    return Gain(
        WIN_RATE,
        f"the win rate over {best.b}",
        f"Its answers win against {_list_rivals(report, names)} (judge: {best.judge})",
        gain,
        settings.min_gain,
        is_of_answers=True,
        obstacles=tuple(obstacles),
        remedy=" ".join([*remedies, _needed_wins(best, settings)]).strip(),
        caveat=caveat_of_judge(best.judge, (report.judges or {}).get(best.judge)),
    )


PROMPTED = "A base with its best prompt: 'evaluation.contestants=[base,tuned,{name: prompted, system: <file>}]'."


def _obstacles_of(judge: str, report: Report, settings: EvaluationConfig) -> list[str]:
    """Says why a judge may not decide: it does not tell chosen from rejected answers, or nothing tells whether."""
    standing = (report.judges or {}).get(judge)
    if standing is None:
        return [f"Nothing tells what the judge {judge} is worth: there are no held-out pairs that it could read."]
    kappa, num = standing.kappa, standing.kappa.num_prompts or 0
    if num < settings.min_prompts:
        return [f"Pairs of {num} prompts are too few to tell what the judge {judge} is worth."]
    if not kappa.low > settings.limits.judge_kappa:
        return [f"The judge {judge} cannot tell chosen from rejected answers (kappa {kappa.value:.2f})."]
    return []


def _needed_wins(found: WinRate, settings: EvaluationConfig) -> str:
    """Says how many prompts would show the measured win rate; empty if it shows none above the least."""
    gain, num = found.gain, found.estimate.num_prompts or 0
    answered = num + found.num_unread
    if not num:
        return UNREAD
    if num < settings.min_prompts:
        more = _more_answers(answered, settings.min_prompts, settings)
        return f"Answers to at least {settings.min_prompts} held-out prompts instead of {num}: {more}."
    over = gain.value - settings.min_gain
    if gain.low > settings.min_gain or not isfinite(over):
        return ""
    spread = max(found.discordant / 4 - gain.value**2, 1 / num)
    if over <= 0:
        shown, least = (50 + 100 * (settings.min_gain + each) for each in ((Z_95 + Z_80) * sqrt(spread / num), 0.0))
        return f"A larger gain: of a win rate of {shown:.0f} %, these {num} prompts show that it is above {least:g} %."
    needed = max(ceil((Z_95 + Z_80) ** 2 * spread / over**2), num + 1)
    more = _more_answers(answered, needed, settings)
    return f"Answers to about {needed:,} held-out prompts instead of {num:,}, if {found.b} loses as often: {more}."


def _more_answers(num: int, needed: int, settings: EvaluationConfig) -> str:
    """Says what gives so many answers instead of `num`: a setting, where it is that which ended their number."""
    return MORE if num < settings.num_judged else f"evaluation.num_judged={needed}, and as many in data.held_out"


def _find_ranking(held_out: HeldOut, settings: EvaluationConfig) -> Gain | None:
    """The gain in preference accuracy, with what else would explain it."""
    gain, tuned = held_out.gain.get(ACCURACY), held_out.model(TUNED).get(ACCURACY)
    if gain is None or tuned is None:
        return None
    rules = [name for name, rule in (held_out.baselines or {}).items() if rule.value >= tuned.value]
    obstacles = [f"A rule without a model does as well: {name.replace('_', ' ')}." for name in rules]
    if tuned.value < 0.5:
        obstacles.append("It ranks fewer than half of the held-out pairs right: chance would do better.")
    return Gain(
        ACCURACY,
        "preference accuracy",
        "Ranks held-out pairs better",
        gain,
        settings.min_gain,
        obstacles=tuple(obstacles),
        remedy=_needed_prompts(gain, held_out, settings),
    )


def _needed_prompts(gain: Estimate, held_out: HeldOut, settings: EvaluationConfig) -> str:
    """Says how many held-out prompts would show the measured gain; empty if these do, if there is no number, or in
    earlier reports."""
    num, discordant, effective_n = gain.num_prompts, held_out.discordant, held_out.effective_n
    if num is None or discordant is None or effective_n is None or not isfinite(gain.value):
        return ""
    if num < settings.min_prompts:
        return f"At least {settings.min_prompts} held-out prompts instead of {num}: {MORE}."
    if gain.low > settings.min_gain:
        return ""
    per_prompt = effective_n / num
    over = gain.value - settings.min_gain
    if over <= 0:
        shown = 100 * (settings.min_gain + detectable_gain(effective_n, discordant))
        least = f"more than {100 * settings.min_gain:g} points"
        return f"A larger gain: of about {shown:.0f} points or more, these {num} prompts show that it is {least}."
    spread = max(discordant - gain.value**2, 1 / effective_n)
    needed = max(ceil((Z_95 + Z_80) ** 2 * spread / over**2 / per_prompt), num + 1)
    return f"About {needed:,} held-out prompts instead of {num:,}, if the true gain is the measured one: {MORE}."


def _find_likelier(held_out: HeldOut, settings: EvaluationConfig) -> Gain | None:
    """The gain in the loss of demonstrations."""
    change = held_out.gain.get(LOSS)
    if change is None:
        return None
    turned = replace(change, value=-change.value, low=-change.high, high=-change.low)
    remedy = f"Lower loss on more held-out prompts than {change.num_prompts or change.n}: {MORE}."
    sentence = "Held-out demonstrations became likelier"
    return Gain(LOSS, "the loss of demonstrations", sentence, turned, settings.min_loss_gain, remedy=remedy)
