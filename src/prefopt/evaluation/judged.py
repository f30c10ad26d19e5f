"""Judges the contestants' answers: what each judge is worth, and who wins against whom."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any

import numpy as np

from prefopt.config.contestants import BASE, TUNED
from prefopt.config.judges import read_judges
from prefopt.config.schema import TrainConfig
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.identity import digest_judge
from prefopt.evaluation.judges import build_judges
from prefopt.evaluation.judges.judge import Judge, JudgeContext, LabelledPair
from prefopt.evaluation.judging import Standing, Verdicts, WinRate, judge_answers, sum_up, try_judge
from prefopt.evaluation.slices import Slices, as_rates, by_length, by_script, find_slices
from prefopt.evaluation.statistics import Prompts
from prefopt.process.errors import UserError
from prefopt.process.paths import cache_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What judges say of a run's answers.

    Attributes:
        standings: Name of a judge -> what it is worth, the deciding judge first; None where no pairs tell.
        win_rates: Of each judge's matches, one judge after another.
        verdicts: The verdicts behind each win rate.
        failures: Name of a judge that could not read -> why.
        digests: Name of a judge that could read -> SHA-256 of what decides its verdicts.
    """

    standings: Mapping[str, Standing | None] = field(default_factory=dict)
    win_rates: Sequence[WinRate] = ()
    verdicts: Sequence[Verdicts] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def per_prompt(self, asked: Sequence[Asked], answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """Returns the lines of answers.jsonl: each prompt with all answers, and who won by which judge.

        Args:
            asked: The prompts.
            answers: Name of a contestant -> its answers, one per prompt.
        """
        matches = [
            {"a": rate.a, "b": rate.b, "judge": rate.judge, "outcome": verdicts.outcomes, "forward": verdicts.forward,
             "backward": verdicts.backward, "reading": verdicts.readings}
            for rate, verdicts in zip(self.win_rates, self.verdicts, strict=True)
        ]  # fmt: skip
        lines = []
        for row, each in enumerate(asked):
            won = [{key: _of_prompt(value, row) for key, value in match.items()} for match in matches]
            wrote = {name: texts[row] for name, texts in answers.items()}
            lines.append({**asdict(each), "answers": wrote, "outcomes": won})
        return lines


def _of_prompt(value: object, row: int) -> object:
    """Returns what a line of answers.jsonl holds of a match: names as they are, verdicts as whole numbers or None."""
    if isinstance(value, np.ndarray):
        return None if isnan(value[row]) else int(value[row])
    return value[row] if isinstance(value, list) else value


def judge_all(
    config: TrainConfig,
    asked: Sequence[Asked],
    answers: Mapping[str, Sequence[str]],
    labelled: Sequence[LabelledPair],
    trained: Sequence[LabelledPair],
) -> Judged:
    """Lets the judges of `evaluation.judges` read the contestants' answers. Rank 0 only.

    Args:
        config: The settings of the run and of this evaluation.
        asked: The prompts.
        answers: Name of a contestant -> its answers, one per prompt.
        labelled: Held-out pairs by which judges are known.
        trained: Training data as text; from the pairs among them a classifier learns.

    Raises:
        UserError: A judge cannot be built.
    """
    wanted = read_judges(config.evaluation.judges)
    if not wanted or not asked:
        return Judged()
    judges = build_judges(wanted, judge_context(config, trained))
    of_labelled, of_asked = (Prompts.of_texts([each.prompt for each in found]) for found in (labelled, asked))
    return judge_contestants(judges, answers, [each.prompt for each in asked], of_asked, labelled, of_labelled)


def judge_context(config: TrainConfig, trained: Sequence[LabelledPair]) -> JudgeContext:
    """Returns what judges are built from: the training pairs, the settings, and the cache of verdicts."""
    return JudgeContext([pair for pair in trained if pair.rejected], config, cache_folder() / "verdicts")


def judge_contestants(
    judges: Sequence[Judge],
    answers: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    of_answers: Prompts,
    labelled: Sequence[LabelledPair],
    of_labelled: Prompts,
) -> Judged:
    """Lets each judge read the held-out pairs, by which it is known, and then the contestants' answers.

    The tuned model meets every other contestant, and every other contestant meets the base. A judge that fails, such
    as one whose server is down, is told of and left out: what was measured without it is not lost.

    Args:
        judges: The deciding one first.
        answers: Name of a contestant -> its answers, one per prompt.
        prompts: The prompts, as text.
        of_answers: Which prompts are the same.
        labelled: Held-out pairs of which the data say which answer is better.
        of_labelled: Which of their prompts are the same.
    """
    standings: dict[str, Standing | None] = {}
    win_rates: list[WinRate] = []
    verdicts: list[Verdicts] = []
    failures: dict[str, str] = {}
    digests: dict[str, str] = {}
    for judge in judges:
        logger.info("evaluation: %s judges each contestant's answers to %d prompts", judge.name, len(prompts))
        try:
            standing = try_judge(judge, labelled, of_labelled) if labelled else None
            met = [(a, b, judge_answers(judge, prompts, answers[a], answers[b])) for a, b in _pairings(list(answers))]
        except UserError as error:
            logger.warning("evaluation: the judge %s reads nothing. %s", judge.name, error)
            standings[judge.name], failures[judge.name] = None, str(error)
            continue
        verdicts += [read for _, _, read in met]
        win_rates += [sum_up(a, b, judge.name, read, of_answers) for a, b, read in met]
        digests[judge.name] = digest_judge(judge)
        # What it counts, such as replies without a verdict, includes the contestants' answers.
        standings[judge.name] = standing and replace(standing, facts=dict(judge.describe()))
    return Judged(standings, win_rates, verdicts, failures, digests)


def slice_wins(judged: Judged, asked: Sequence[Asked], hardest: WinRate, column: str | None, seed: int) -> Slices:
    """Returns the slices of the prompts by the win rate over the best contestant without tuning.

    Args:
        judged: What the judges said.
        asked: The prompts.
        hardest: That win rate.
        column: Name of the column of tags; None without tags.
        seed: Of the shuffles that tell chance.
    """
    verdicts = judged.verdicts[list(judged.win_rates).index(hardest)]
    prompts = [each.prompt for each in asked]
    groupings = {
        "source": [each.slice for each in asked],
        column or "tag": [each.tag for each in asked],
        "length of the prompt": by_length(prompts),
        "script": by_script(prompts),
    }
    return find_slices(as_rates(verdicts.outcomes), groupings, seed)


def _pairings(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns who meets whom: the tuned model all others, and all others the base."""
    found = [(TUNED, name) for name in names if name != TUNED] if TUNED in names else []
    return found + [(name, BASE) for name in names if name not in (TUNED, BASE) and BASE in names]
