"""What tasks find in the contestants' answers, and how much better the tuned model does than each other one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.contestants import TUNED
from prefopt.config.tasks import kind_of, read_tasks
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.statistics import Bootstrap, Estimate, Floats, Prompts, change_of_means, share
from prefopt.evaluation.tasks import build_tasks
from prefopt.evaluation.tasks.task import Answered, Checked, TaskContext
from prefopt.process.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskResult:
    """What a task found in all contestants' answers.

    Attributes:
        main: Key of its main number.
        is_share: Whether the main number of an answer is a truth or lies in [0, 1].
        values: Name of a contestant -> key of a number -> its estimate.
        gains: Name of another contestant -> the main number of the tuned model minus that one's, turned so that above
            0 is better.
        details: Name of a contestant -> what else a report shows; JSON.
        without_value: Name of a contestant -> how many of its answers have no main number, although the data have
            what they are compared with; those without any are left out.
        kind: What kind of task it is; empty if it is none of `evaluation.tasks`, or in reports of earlier versions.
        num_without_reference: Prompts of which the data have nothing to compare an answer with.
    """

    main: str
    is_share: bool
    values: Mapping[str, Mapping[str, Estimate]]
    gains: Mapping[str, Estimate] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    without_value: Mapping[str, int] = field(default_factory=dict)
    num_without_reference: int = 0
    kind: str = ""

    def num_of(self, name: str) -> int:
        """Returns how many answers of a contestant could have a main number."""
        found = self.values.get(name, {}).get(self.main)
        return self.without_value.get(name, 0) + ((found.n or 0) if found is not None else 0)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of `tasks` in report.json."""
        return {
            "main": self.main,
            "kind": self.kind,
            "is_share": self.is_share,
            "contestants": {
                name: {
                    "values": {key: each.to_dict() for key, each in found.items()},
                    "details": self.details.get(name),
                    "without_value": self.without_value.get(name, 0),
                }
                for name, found in self.values.items()
            },
            "gains": {name: each.to_dict() for name, each in self.gains.items()},
            "without_reference": self.num_without_reference,
        }


def check_answers(
    given: object,
    asked: Sequence[Asked],
    answers: Mapping[str, Sequence[str]],
    trained: Sequence[LabelledPair],
    bootstrap: Bootstrap,
) -> tuple[dict[str, TaskResult], dict[str, str]]:
    """Checks all contestants' answers by the tasks of `evaluation.tasks`. Rank 0 only.

    A task that fails, such as one whose function does, is told of and left out, as a judge is: the answers were made,
    and what else is found in them is not lost.

    Args:
        given: The setting.
        asked: The prompts.
        answers: Name of a contestant -> its answers, one per prompt.
        trained: Training pairs, from which styles and labels are learned.
        bootstrap: Computes the intervals of means.

    Returns:
        Name of a task -> what it found; and name of a task that failed -> why.
    """
    configs = read_tasks(given) if asked else []
    if configs and not answers:
        logger.warning("evaluation: no contestant has answers, so evaluation.tasks check nothing")
        return {}, {}
    prompts = Prompts.of_texts([each.prompt for each in asked])
    given_to = {
        name: [Answered(ask.prompt, text, ask.chosen) for ask, text in zip(asked, texts, strict=True)]
        for name, texts in answers.items()
    }
    found, failures = {}, {}
    for config in configs:
        logger.info("evaluation: %s checks %d answers of each contestant", config.name, len(asked))
        try:
            (task,) = build_tasks([config], TaskContext(trained, bootstrap.seed))
            checked = {name: task.check(each) for name, each in given_to.items()}
        except UserError as error:
            logger.warning("evaluation: the task %s checks nothing. %s", config.name, error)
            failures[config.name] = str(error)
            continue
        found[config.name] = sum_up_checks(checked, prompts, bootstrap, kind_of(config))
    return found, failures


@np.errstate(over="ignore", invalid="ignore")  # numbers too large to be added up become a finding
def sum_up_checks(
    checked: Mapping[str, Checked], prompts: Prompts, bootstrap: Bootstrap, kind: str = ""
) -> TaskResult:
    """Returns estimates of what a task found, and the paired gains of the tuned model in its main number.

    Args:
        checked: Name of a contestant -> what was found in its answers.
        prompts: Of the answers.
        bootstrap: Computes the intervals of means.
        kind: Of the task.
    """
    first = next(iter(checked.values()))
    main = next(iter(first.values))
    numbers = {name: np.asarray(each.values[main], float) for name, each in checked.items()}
    is_share = all(_are_shares(each) for each in numbers.values())
    sign = 1.0 if first.higher_is_better[main] else -1.0
    values = {
        name: {key: _estimate(found, prompts, bootstrap) for key, found in each.values.items()}
        for name, each in checked.items()
    }
    gains = {
        name: _gain(sign * (numbers[TUNED] - each), prompts, bootstrap, is_share=is_share)
        for name, each in numbers.items()
        if TUNED in numbers and name != TUNED
    }
    without = {name: int(np.isnan(numbers[name]).sum()) - each.num_without_reference for name, each in checked.items()}
    return TaskResult(
        main,
        is_share,
        values,
        gains,
        {name: dict(each.details) for name, each in checked.items()},
        {name: num for name, num in without.items() if num},
        first.num_without_reference,
        kind,
    )


def _are_shares(values: Floats) -> bool:
    known = values[np.isfinite(values)]
    return bool(((known >= 0) & (known <= 1)).all())


def _estimate(values: NDArray[Any], prompts: Prompts, bootstrap: Bootstrap) -> Estimate:
    """Estimates the share of truths, or the mean of numbers, of the answers that have one."""
    numbers = np.asarray(values, float)
    known = np.flatnonzero(np.isfinite(numbers))
    if not len(known):
        return Estimate(np.nan, n=0)
    seen = prompts.select(known)
    return share(numbers[known], seen) if _are_shares(numbers) else bootstrap.mean(numbers[known], seen)


def _gain(changes: Floats, prompts: Prompts, bootstrap: Bootstrap, *, is_share: bool) -> Estimate:
    """Estimates the mean change over the answers for which both contestants have a number."""
    known = np.flatnonzero(np.isfinite(changes))
    if not len(known):
        return Estimate(np.nan, n=0)
    seen = prompts.select(known)
    return change_of_means(changes[known], seen)[0] if is_share else bootstrap.mean(changes[known], seen)
