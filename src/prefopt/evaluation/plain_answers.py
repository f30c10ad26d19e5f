"""What is plain to see in answers without a judge: that they are empty, or that all are the same."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.intervals import wilson
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.decision import Finding
from prefopt.evaluation.metrics import TUNED

MOST_EMPTY = 0.05
"""Share of empty answers from which a report warns: no judge can say that an empty answer is a good one."""
MOST_SAME = 0.5
"""Share of different prompts with the same answer from which a report warns."""
FEWEST_PROMPTS = 10
"""Different prompts below which the same answer to most of them may be chance."""


def describe_answers(asked: Sequence[Asked], answers: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Returns the entry `answers` of report.json.

    Args:
        asked: The prompts.
        answers: Name of a contestant -> its answers, one per prompt.

    Returns:
        For each contestant: `n` answers, `empty` ones among them, different `prompts`, and to how many of these it
        gave the `same` answer, its most frequent one; as `same_in_data`, how many have the same answer in the data.
    """
    first = {each.prompt: row for row, each in reversed([*enumerate(asked)])}
    rows = sorted(first.values())
    in_data = _most_frequent([asked[row].chosen or "" for row in rows])
    return {
        name: {
            "n": len(texts),
            "empty": sum(not text.strip() for text in texts),
            "prompts": len(rows),
            "same": _most_frequent([texts[row] for row in rows]),
            "same_in_data": in_data,
        }
        for name, texts in answers.items()
        if texts
    }


def _most_frequent(texts: Sequence[str]) -> int:
    """Returns how often the most frequent text occurs that is not empty."""
    return max(Counter(text.strip() for text in texts if text.strip()).values(), default=0)


def judge_plainly(described: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Returns the findings on empty answers of any contestant, and on answers of the tuned model that are the same."""
    findings = [
        finding for name, found in described.items() for finding in _on_empty(name, found["empty"], found["n"])
    ]
    tuned = described.get(TUNED)
    return findings + (_on_same(tuned) if tuned is not None else [])


def _on_empty(name: str, empty: int, num: int) -> list[Finding]:
    """Says that a contestant leaves prompts without an answer: the tuned model is ruined, or another is not beaten."""
    if empty <= MOST_EMPTY * num:
        return []
    evidence = f"{empty} of {num} answers are empty"
    if name != TUNED:
        text = f"{name} gives empty answers, so a win against it shows nothing."
        remedy = f"Answers of {name} that are not empty: see what its model is told, and whether it ends at once."
        return [Finding("warning", text, evidence, is_severe=True, remedy=remedy)]
    if wilson(empty, num)[0] > MOST_EMPTY:
        return [Finding("bad", "The model was ruined: it gives empty answers.", evidence)]
    remedy = "More answers: a larger evaluation.num_judged tells how often they are empty."
    return [Finding("warning", "The model gives empty answers.", evidence, is_severe=True, remedy=remedy)]


def _on_same(found: Mapping[str, int]) -> list[Finding]:
    """Warns if the tuned model says the same to most prompts, and the data do not."""
    same, num = found["same"], found["prompts"]
    if num < FEWEST_PROMPTS or same <= MOST_SAME * num or same <= found["same_in_data"] / MOST_SAME:
        return []
    text = "The model gives the same answer to most prompts, whatever they ask."
    evidence = f"{same} of {num} different prompts; in the data {found['same_in_data']} have the same answer"
    remedy = "A model whose answers depend on the prompt: train less, or lower optim.learning_rate."
    return [Finding("warning", text, evidence, is_severe=True, remedy=remedy)]
