"""What a shown gain does not prove: it follows from what the judge or the task that shows it reads, and what not."""

from prefopt.evaluation.checked import TaskResult
from prefopt.evaluation.judging import Standing

OF_WORDING = ("rule", "classifier")
"""Kinds of judges that understand nothing of what they read."""
OF_TASKS = {
    "label": "that an answer is right where the data are not: the task {} compares it with the label in the data",
    "text_overlap": "that the answers are true or well written: the task {} compares letters with the chosen answers",
    "style": "that the answers are true or make sense: the task {} reads wording alone",
    "code": "that the code does what was asked: the task {} parses it and runs nothing",
    "custom": "that the answers are true, or that people like them better: the task {} is a function of yours",
    "json_schema": "that what the answers say is right: the task {} reads their form alone",
}
"""Kind of a task -> what a gain in it does not prove."""
OF_NUMBERS = {
    ("json_schema", "field_f1"): "that a field is right where the data are not: the task {} compares it with the "
    "chosen answer",
}
"""Kind of a task, and its main number -> the same, where this number reads more than others."""
OF_ANY = "that the answers are true, or that people like them better: the task {} sees only what it checks"


def caveat_of_judge(name: str, standing: Standing | None) -> str:
    """Returns what a win by a judge does not prove, as it follows `It does not prove`; empty if nothing is known."""
    if standing is None:
        return ""
    if standing.facts.get("kind") in OF_WORDING:
        return f"that the answers are true or make sense: the judge {name} reads wording alone"
    agrees = f"agrees with the data on {standing.agreement.value:.0%} of held-out pairs"
    return f"that the answers are true, or that people like them better: the judge {name} {agrees}"


def caveat_of_task(name: str, task: TaskResult) -> str:
    """Returns what a gain in a task does not prove, as it follows `It does not prove`."""
    known = OF_NUMBERS.get((task.kind, task.main)) or OF_TASKS.get(task.kind, OF_ANY)
    return known.format(name)
