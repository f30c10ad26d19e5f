"""What tasks, the regression suite and slices say of the tuned model's answers."""

from math import isfinite

from prefopt.config.schema import EvaluationConfig
from prefopt.evaluation.checked import TaskResult
from prefopt.evaluation.decision import Finding
from prefopt.evaluation.gains import untuned_gains
from prefopt.evaluation.in_words import CHANGE, PERCENT, POINTS, SCORE, list_names, tell, tell_value
from prefopt.evaluation.metrics import BASE, REGRESSION, TUNED
from prefopt.evaluation.report import Report
from prefopt.evaluation.statistics import Estimate
from prefopt.evaluation.win_findings import MOST_UNREAD

KEPT = "A run that keeps what its base could do: lower optim.learning_rate, train less, or mix in other data."
OF_THE_TASK = (
    "A run whose style stays with its task: mix in pairs of other tasks in the base's style. Where it is wanted "
    "everywhere, raise evaluation.limits.style_ratio."
)


def judge_tasks(report: Report, settings: EvaluationConfig) -> list[Finding]:
    """Returns the findings on tasks, on the regression suite, and on the worst slice."""
    findings = []
    for name, task in (report.tasks or {}).items():
        if name == REGRESSION:
            findings += _on_regression(task, settings)
        else:
            no_number = _on_no_number(name, task)
            gains = untuned_gains(report, task).items()
            findings += no_number
            findings += [
                _on_task(name, task, other, gain, settings) for other, gain in gains if gain.n or not no_number
            ]
            if gains and not no_number:
                findings += _on_missing(name, task, [TUNED, *(other for other, _ in gains)])
    return [*findings, *_on_slices(report), *_on_style(report, settings)]


def _on_task(name: str, task: TaskResult, other: str, gain: Estimate, settings: EvaluationConfig) -> Finding:
    """Says whether the tuned model does better in a task than one contestant."""
    evidence = f"{task.main}: {_sides(task, other)}, {_change(gain, task)}"
    least = settings.min_gain if task.is_share else 0.0
    if not gain.has_interval or (gain.num_prompts or 0) < settings.min_prompts:
        text = f"Too few answers to say whether it does better than {other} in {name}; {settings.min_prompts} are the"
        return Finding("warning", f"{text} least.", evidence)
    if gain.high < 0:
        is_bad = gain.value <= -least
        return Finding(
            "bad" if is_bad else "warning", f"Its answers do worse than those of {other} in {name}.", evidence
        )
    if gain.low <= 0:
        return Finding("warning", f"Its answers are not shown to do better than those of {other} in {name}.", evidence)
    if gain.low <= least:
        return Finding("info", f"Its answers do better than those of {other} in {name}, perhaps a little.", evidence)
    return Finding("good", f"Its answers do better than those of {other} in {name}.", evidence, of_gain=name)


def _on_missing(name: str, task: TaskResult, names: list[str]) -> list[Finding]:
    """Warns if a task has no value for many answers of a contestant: the others are then chosen by the task itself."""
    without = {each: task.without_value.get(each, 0) for each in names}
    found = {each: num for each, num in without.items() if num > MOST_UNREAD * task.num_of(each)}
    if not found:
        return []
    text = f"The task {name} has no value for many answers of {list_names(found)}."
    evidence = ", ".join(f"{each}: {num} of {task.num_of(each)}" for each, num in found.items())
    remedy = f"A task {name} with a value for every answer: a wrong or an odd answer gets false or 0, and not none."
    return [Finding("warning", text, evidence, is_severe=True, remedy=remedy)]


def _on_no_number(name: str, task: TaskResult) -> list[Finding]:
    """Names a task whose main number is none although it was measured, and says why."""
    main = {each: values[task.main] for each, values in task.values.items() if task.main in values}
    broken = [each for each, found in main.items() if found.n and not isfinite(found.value)]
    if broken:
        text = f"In {name}, {task.main} is not a finite number for {list_names(broken)}."
        evidence = "the numbers of the answers are too large to be added up"
        remedy = f"Smaller numbers in {name}, such as at most 1e100: mend what computes them, and measure again."
        return [Finding("warning", text, evidence, remedy=remedy)]
    strange = [(task.details.get(each) or {}).get("num_without_label") for each in main]
    if not strange or not strange[0] or any(found.n for found in main.values()):
        return []
    text = f"No held-out answer of the data is one of the labels of {name}, so nothing tells which answers are right."
    remedy = (
        f"Labels of {name} as the held-out answers are written: set its labels, or its pattern for where they stand."
    )
    return [Finding("warning", text, f"chosen answers without a label: {strange[0]} of {strange[0]}", remedy=remedy)]


def _on_regression(task: TaskResult, settings: EvaluationConfig) -> list[Finding]:
    """Says whether the tuned model still answers what its base could: plain questions outside the task."""
    change = task.gains.get(BASE)
    if change is None or not isfinite(change.value):
        return []
    evidence = f"right: {_sides(task, BASE)}, {_change(change, task)}"
    if change.high < 0:
        is_bad = change.value <= -settings.min_gain
        text = "It answers plain questions worse than its base: the tuning broke something beside the task."
        return [Finding("bad" if is_bad else "warning", text, evidence, remedy=KEPT, is_harm=True)]
    base = task.values.get(BASE, {}).get(task.main)
    if base is not None and base.value < settings.min_gain:
        text = "Its base answers hardly any plain questions right, so these cannot show what the tuning broke."
        return [Finding("info", text, evidence, is_harm=True)]
    return [Finding("info", "It answers plain questions about as well as its base.", evidence, is_harm=True)]


def _on_slices(report: Report) -> list[Finding]:
    """Names the slice of prompts in which the answers do worse than elsewhere, beyond chance."""
    found = report.answer_slices or {}
    worst = found.get("worst")
    if not worst:
        return []
    entry = next(each for each in found["slices"] if all(each[key] == worst[key] for key in ("grouping", "name")))
    text = f"Its answers do worst where {worst['grouping']} is {worst['name']}."
    rate = entry["rate"]["value"]
    if rate is None or not isfinite(rate):
        return []
    evidence = (
        f"win rate {100 * rate:.1f} % of {entry['rate']['n']} prompts, p = {entry['p_value']:.2g} for all slices"
    )
    return [Finding("warning", text, evidence)]


def _on_style(report: Report, settings: EvaluationConfig) -> list[Finding]:
    """Warns if the style moved far in answers that have nothing to do with the task."""
    found = report.style or {}
    ratio = ((found.get("distances") or {}).get("ngram_cosine") or {}).get("ratio")
    if not found.get("differs") or ratio is None or ratio < settings.limits.style_ratio:
        return []
    text = "Its style moved far from its base's in answers to unrelated questions, too."
    evidence = (
        f"letters {ratio:.1f} times as far apart as halves of the base's own answers, n = {found.get('n_texts')}"
    )
    return [Finding("warning", text, evidence, remedy=OF_THE_TASK, is_harm=True)]


def _sides(task: TaskResult, other: str) -> str:
    form = PERCENT if task.is_share else SCORE
    sides = [(name, task.values.get(name, {}).get(task.main)) for name in (other, TUNED)]
    return ", ".join(f"{name} {tell_value(found, form)}" for name, found in sides if found is not None)


def _change(gain: Estimate, task: TaskResult) -> str:
    return f"change {tell(gain, POINTS if task.is_share else CHANGE)}, n = {gain.n}"
