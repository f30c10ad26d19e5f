"""Preference pairs of a model's own answers: several samples per prompt, the best against the worst by a judge."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.config.schema import TrainConfig
from prefopt.data.records import Record
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.judges.judge import Judge
from prefopt.evaluation.judging import judge_answers
from prefopt.evaluation.measure import seeds
from prefopt.evaluation.prompting import Prefix, are_texts, encode_prompts, question_of
from prefopt.evaluation.sampling import Answer, Question, generate
from prefopt.evaluation.scoring import Scorer
from prefopt.evaluation.statistics import Floats
from prefopt.models.limits import Limits
from prefopt.models.load import load_model, load_tokenizer, straight_to_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What has become of the prompts and their answers.

    Attributes:
        num_prompts: Different prompts that were asked.
        num_held_out: Prompts that were not asked, since they are held out.
        num_answers: Sampled answers.
        num_cut: Answers cut at the limit of tokens: none is used, since training would teach to end there.
        num_empty: Answers that ended before their first word.
        num_equal: Answers that another one of the same prompt repeats.
        num_alone: Prompts with fewer than two answers left.
        num_tied: Prompts whose best answer the judge does not find better than the worst.
        num_unread: Prompts on whose best and worst answer the judge gave no verdict.
        num_pairs: Pairs that are left.
    """

    num_prompts: int = 0
    num_held_out: int = 0
    num_answers: int = 0
    num_cut: int = 0
    num_empty: int = 0
    num_equal: int = 0
    num_alone: int = 0
    num_tied: int = 0
    num_unread: int = 0
    num_pairs: int = 0

    def line(self) -> str:
        """Returns the counts as a sentence."""
        left_out = f"{self.num_alone:,} with fewer than two whole different answers, {self.num_tied:,} tied"
        left_out += f", {self.num_unread:,} without a verdict" if self.num_unread else ""
        cut = f"{self.num_answers:,} answers, {self.num_cut:,} cut at the limit, {self.num_equal:,} repeated"
        cut += f", {self.num_empty:,} empty" if self.num_empty else ""
        held_out = f"; {self.num_held_out:,} more are held out and were not asked" if self.num_held_out else ""
        return f"{self.num_prompts:,} prompts: {self.num_pairs:,} pairs, {left_out} ({cut}){held_out}"

    def remedy(self) -> str:
        """Returns what would give pairs, by what took most prompts or answers, as a sentence."""
        if 2 * self.num_cut > self.num_answers:
            return "Most answers were cut at the limit: a larger evaluation.max_new_tokens lets them end."
        if 2 * self.num_unread > self.num_prompts:
            return "The judge gave hardly any verdict: another one in evaluation.judges may."
        if 2 * self.num_tied > self.num_prompts:
            return "The judge finds most answers equal: another one in evaluation.judges may not."
        return "More samples of each prompt may differ more, and another judge may tell them apart."


def sample_answers(config: TrainConfig, records: Sequence[Record], num_samples: int) -> list[list[Answer]]:
    """Returns sampled answers of `model` to the prompts of records: for each, `num_samples`.

    Raises:
        UserError: The model cannot be loaded, or a prompt leaves no room for an answer.
    """
    tokenizer, limits = load_tokenizer(config.model), Limits.of(config.model)
    prompts = encode_prompts(records, Prefix(), tokenizer, config.data)
    limits.check_answers(prompts, config.evaluation.max_new_tokens)
    scorer = Scorer.of(load_model(config.model, placement=straight_to_device()), config, tokenizer.pad_token_id)
    own = seeds(config.run.seed)
    questions = [Question(prompt, next(own)) for prompt in prompts for _ in range(num_samples)]
    found = generate(scorer, tokenizer, questions, max_new_tokens=config.evaluation.max_new_tokens)
    is_text = are_texts(records, tokenizer, config.data)
    read = [
        continue_text(question.prompt, each.ids, tokenizer) if is_text else _decode(each.ids, tokenizer).strip()
        for question, each in zip(questions, found, strict=True)
    ]
    answers = [Answer(each.ids, each.finished, text) for each, text in zip(found, read, strict=True)]
    return [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]


def continue_text(prompt: Sequence[int], ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns what follows a text, as it is written after it: alone, many tokenizers decode it without its blank.

    Args:
        prompt: Token ids of the text.
        ids: Token ids of what follows.
        tokenizer: Of both.
    """
    opening = _decode(prompt, tokenizer)
    whole = _decode([*prompt, *ids], tokenizer)
    return whole.removeprefix(opening) if whole.startswith(opening) else _decode(ids, tokenizer)


def _decode(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def make_pairs(
    records: Sequence[Record], answers: Sequence[Sequence[Answer]], judge: Judge, counts: Counts
) -> Iterator[dict[str, Any]]:
    """Yields rows of pairs: the best of each prompt's answers against the worst.

    Every two different whole answers of a prompt meet. An answer's score is its wins less its losses; of equal scores
    the earlier sample counts. A pair is left out unless the judge finds the best better than the worst itself.

    Args:
        records: Have the prompts.
        answers: Of each prompt.
        judge: Says which of two answers is better.
        counts: Is filled in.
    """
    kept = [_choose_whole(own, counts) for own in answers]
    counts.num_prompts = len(records)
    asked = [Asked.of(record).prompt for record in records]
    meetings = [(row, a, b) for row, own in enumerate(kept) for a, b in combinations(range(len(own)), 2)]
    verdicts = judge_answers(
        judge,
        [asked[row] for row, _, _ in meetings],
        [kept[row][a] for row, a, _ in meetings],
        [kept[row][b] for row, _, b in meetings],
    )
    outcomes: dict[int, dict[tuple[int, int], float]] = {}
    for (row, a, b), outcome in zip(meetings, verdicts.outcomes.tolist(), strict=True):
        outcomes.setdefault(row, {})[a, b] = outcome
    for row, record in enumerate(records):
        if len(kept[row]) < 2:
            counts.num_alone += 1
            continue
        scores = _score(outcomes[row], len(kept[row]))
        best, worst = int(scores.argmax()), int(scores.argmin())
        outcome = _meeting(outcomes[row], best, worst)
        if np.isnan(outcome):
            counts.num_unread += 1
            continue
        if not outcome > 0:
            counts.num_tied += 1
            continue
        counts.num_pairs += 1
        yield _to_row(record, kept[row][best], kept[row][worst], float(scores[best]), float(scores[worst]))


def _choose_whole(answers: Sequence[Answer], counts: Counts) -> list[str]:
    """Returns the different answers that ended by themselves and are not empty."""
    counts.num_answers += len(answers)
    whole = [each.text for each in answers if each.finished and each.text.strip()]
    num_cut = sum(not each.finished for each in answers)
    counts.num_cut += num_cut
    counts.num_empty += len(answers) - num_cut - len(whole)
    different = list(dict.fromkeys(whole))
    counts.num_equal += len(whole) - len(different)
    return different


def _score(outcomes: dict[tuple[int, int], float], num: int) -> Floats:
    scores = np.zeros(num)
    for (a, b), outcome in outcomes.items():
        known = 0.0 if np.isnan(outcome) else outcome
        scores[a] += known
        scores[b] -= known
    return scores


def _meeting(outcomes: dict[tuple[int, int], float], first: int, second: int) -> float:
    """Returns the outcome of two answers' meeting from the side of the first; NaN without a verdict.

    An answer that meets itself is both the best and the worst: all are tied, or there is no verdict on any.
    """
    if first == second:
        return nan if np.isnan(list(outcomes.values())).all() else 0.0
    return outcomes[first, second] if first < second else -outcomes[second, first]


def _to_row(record: Record, chosen: str, rejected: str, best: float, worst: float) -> dict[str, Any]:
    prompt = question_of(record)
    texts = (chosen, rejected) if isinstance(prompt, str) else (_said(chosen), _said(rejected))
    return {
        "prompt": prompt,
        "chosen": texts[0],
        "rejected": texts[1],
        "score_chosen": best,
        "score_rejected": worst,
        "source": record.source,
    }


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
