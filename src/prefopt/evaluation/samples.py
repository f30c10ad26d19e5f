"""The answers that a report shows side by side: the ones to worry about first, with what each judge says of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from prefopt.config.contestants import TUNED
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.judged import Judged
from prefopt.evaluation.judging import LOSS
from prefopt.evaluation.material import Material
from prefopt.evaluation.scoring import PairScores


@dataclass(frozen=True)
class Ranked:
    """How many held-out pairs of a prompt there are, and how many of them the tuned model ranks wrongly."""

    num_pairs: int = 0
    num_wrong: int = 0


@dataclass(frozen=True)
class Samples:
    """What a report shows of the answers.

    Attributes:
        shown: Of each shown prompt its text, every contestant's answer, those of the data as `chosen` and `rejected`,
            the prompt as the model sees it as `rendered`, what the judges say as `readings`, and its `ranking`.
        counts: Number of `prompts` that were answered, of those that the tuned model `lost`, and of those with a
            `wrongly_ranked` pair.
    """

    shown: list[dict[str, Any]]
    counts: dict[str, int]


def choose_samples(
    asked: Sequence[Asked],
    answers: Mapping[str, Sequence[str]],
    judged: Judged,
    untuned: Sequence[str],
    *,
    most: int,
    ranked: Sequence[Ranked] = (),
    rendered: Sequence[str] = (),
) -> Samples:
    """Chooses the answers to show: those that the tuned model lost first, then wrongly ranked pairs, then others.

    Lost is what the deciding judge says of its answer against any contestant without tuning; of more of them, earlier.

    Args:
        asked: The prompts.
        answers: Name of a contestant -> its answers; where nothing was judged, only to the first prompts.
        judged: What the judges said.
        untuned: Names of the contestants without tuning.
        most: Most prompts that are shown.
        ranked: How the pairs of each prompt are ranked; nothing without pairs.
        rendered: Each prompt as the model sees it; nothing where that is not known.
    """
    num = min([len(asked), *map(len, answers.values())])
    losses = _count_losses(judged, untuned, num)
    wrong = [each.num_wrong for each in ranked[:num]] or [0] * num
    readings = _readings(judged, num)
    order = sorted(range(num), key=lambda row: (losses[row] == 0, -losses[row], wrong[row] == 0))
    shown = [
        {
            "prompt": asked[row].prompt,
            **{name: texts[row] for name, texts in answers.items()},
            "chosen": asked[row].chosen,
            "rejected": asked[row].rejected,
            "rendered": rendered[row] if rendered else None,
            "readings": readings[row],
            "ranking": {"lost": losses[row], "wrong": wrong[row], "pairs": ranked[row].num_pairs if ranked else 0},
        }
        for row in order[:most]
    ]
    counts = {"prompts": num, "lost": sum(map(bool, losses)), "wrongly_ranked": sum(map(bool, wrong))}
    return Samples(shown, counts)


def _count_losses(judged: Judged, untuned: Sequence[str], num: int) -> list[int]:
    """Returns to how many contestants without tuning each prompt was lost, by the judge that decides."""
    deciding = next(iter(judged.standings), None)
    losses = [0] * num
    for rate, verdicts in zip(judged.win_rates, judged.verdicts, strict=True):
        if (rate.a, rate.judge) == (TUNED, deciding) and rate.b in untuned:
            losses = [lost + (word == LOSS) for lost, word in zip(losses, verdicts.readings, strict=False)]
    return losses


def _readings(judged: Judged, num: int) -> list[list[dict[str, str]]]:
    """Returns of each prompt what every judge says of the tuned model's answer against others; without it, of all."""
    has_tuned = any(rate.a == TUNED for rate in judged.win_rates)
    found: list[list[dict[str, str]]] = [[] for _ in range(num)]
    for rate, verdicts in zip(judged.win_rates, judged.verdicts, strict=True):
        if rate.a == TUNED or not has_tuned:
            for said, word in zip(found, verdicts.readings, strict=False):
                said.append({"a": rate.a, "b": rate.b, "judge": rate.judge, "reading": word})
    return found


def rank_prompts(material: Material, scores: PairScores | None) -> list[Ranked]:
    """Counts the held-out pairs of each answered prompt that a model ranks wrongly; nothing without pairs.

    Those of which it gives no finite number are not ranked, and not counted.

    Args:
        material: The pairs and the prompts.
        scores: Of the pairs by the tuned model.
    """
    if scores is None or material.held_out.pairs is None:
        return []
    prompts = [tuple(ids) for ids in material.held_out.pairs["prompt_ids"]]
    margins = [(prompt, margin) for prompt, margin in zip(prompts, scores.margins, strict=True) if isfinite(margin)]
    pairs = Counter(prompt for prompt, _ in margins)
    wrong = Counter(prompt for prompt, margin in margins if margin <= 0)
    return [Ranked(pairs[key], wrong[key]) for key in map(tuple, material.prompts)]
