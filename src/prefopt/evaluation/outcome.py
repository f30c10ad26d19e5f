"""What follows from the contestants' answers, with a run or without: verdicts, checks, findings and the decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.config.schema import TrainConfig
from prefopt.evaluation.checked import TaskResult, check_answers, sum_up_checks
from prefopt.evaluation.findings import assess
from prefopt.evaluation.gains import hardest_win
from prefopt.evaluation.judged import Judged, judge_all, slice_wins
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.material import Material
from prefopt.evaluation.measure import Measured
from prefopt.evaluation.metrics import BASE, REGRESSION, TUNED, WIN_RATE
from prefopt.evaluation.plain_answers import describe_answers
from prefopt.evaluation.regression import check_all
from prefopt.evaluation.report import Report
from prefopt.evaluation.sampling import Answer, NoNumbersError
from prefopt.evaluation.statistics import Bootstrap, Prompts
from prefopt.evaluation.style_distance import style_distance
from prefopt.process.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """What contestants answered, and what was found in it.

    Attributes:
        material: What they were asked.
        measured: Name of a measured model -> its results.
        answers: Name of a contestant -> its answers as text, one per prompt; without those that have none.
        failures: Name of a contestant without answers, of a judge or, as `task <name>`, of a task that failed -> why.
        without_numbers: Names of the contestants whose logits are NaN or infinite.
        judged: What the judges say.
        tasks: What the tasks and the regression suite found.
    """

    material: Material
    measured: Mapping[str, Measured]
    answers: Mapping[str, Sequence[str]]
    failures: Mapping[str, str]
    without_numbers: Sequence[str]
    judged: Judged
    tasks: Mapping[str, TaskResult]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of answers.jsonl; none if answers were neither judged nor compared."""
        if not (self.material.are_judged or self.material.rivals):
            return []
        return self.judged.per_prompt(self.material.asked, self.answers)

    def conclude(self, report: Report, config: TrainConfig) -> None:
        """Completes a report by what the answers say, and by the findings and the decision that follow from it all.

        Args:
            report: Has all that is not of answers, such as drift.
            config: The settings of this evaluation.
        """
        report.win_rates = list(self.judged.win_rates) or None
        report.judges = dict(self.judged.standings) or None
        report.judge_digests = dict(self.judged.digests) or None
        report.failures = dict(self.failures) or None
        report.without_numbers = list(self.without_numbers) or None
        report.tasks = dict(self.tasks) or None
        report.answers = describe_answers(self.material.asked, self.answers) or None
        base, tuned = (self.measured[name].regression if name in self.measured else [] for name in (BASE, TUNED))
        if base and tuned:
            style = style_distance(base, tuned, config.run.seed)
            report.style = None if style is None else style.to_dict()
        hardest = hardest_win(report)
        if hardest is not None and hardest.estimate.n:
            report.held_out.models.setdefault(TUNED, {})[WIN_RATE] = hardest.estimate
            slices = slice_wins(self.judged, self.material.asked, hardest, config.data.tag, config.run.seed)
            report.answer_slices = slices.to_dict()
        report.decision, findings = assess(report, config.evaluation)
        report.verdict = [finding.to_dict() for finding in findings]


def read_answers(
    config: TrainConfig,
    material: Material,
    measured: Mapping[str, Measured],
    answers: Mapping[str, Sequence[Answer]],
    failures: Mapping[str, UserError],
    trained: Sequence[LabelledPair],
) -> Outcome:
    """Lets judges and tasks read the contestants' answers. Rank 0 only.

    Args:
        config: The settings of this evaluation.
        material: What the contestants were asked.
        measured: Name of a measured model -> its results.
        answers: Name of a contestant -> its answers, one per prompt.
        failures: Name of a contestant that has none -> why.
        trained: Training data as text, from which classifiers and tasks learn.

    Raises:
        UserError: A judge cannot be built.
    """
    bootstrap = Bootstrap(config.evaluation.bootstrap_resamples, config.run.seed)
    texts = {name: [each.text for each in found] for name, found in answers.items()}
    judged = judge_all(config, material.asked, texts, material.labelled, trained)
    tasks, failed = check_answers(config.evaluation.tasks, material.asked, texts, trained, bootstrap)
    kept = {name: found.regression for name, found in measured.items() if found.regression}
    if kept:
        questions = [question for question, _ in material.questions]
        checked = {name: check_all(questions, found) for name, found in kept.items()}
        tasks[REGRESSION] = sum_up_checks(checked, Prompts.all_different(len(questions)), bootstrap)
    told = {name: str(error) for name, error in failures.items()}
    without_numbers = [name for name, error in failures.items() if isinstance(error, NoNumbersError)]
    told |= {**judged.failures, **{f"task {name}": why for name, why in failed.items()}}
    return Outcome(material, measured, texts, told, without_numbers, judged, tasks)
