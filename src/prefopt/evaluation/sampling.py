"""Generates a model's answers to prompts: sampled ones to measure drift, greedy ones for people to read."""

import logging
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt.distributed.group import place, pool
from prefopt.evaluation.key_values import Sharing, left_pad
from prefopt.evaluation.scoring import Scorer
from prefopt.process.errors import UserError
from prefopt.process.pace import Pace

TOKENS_PER_BATCH = 2**15
"""Most tokens of a batch: prompts, answers and padding. For Llama 3.1 8B they need 4 GiB of keys and values."""
TOKENS_AT_A_TIME = 16
"""Tokens after which answers that have ended leave their batch."""

logger = logging.getLogger(__name__)


class NoNumbersError(UserError):
    """A model's logits are NaN or infinite: it has no distribution from which an answer could be drawn."""

    def __init__(self) -> None:
        super().__init__("The model gives no numbers: its logits are NaN or infinite, so it has no answers.")


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    Attributes:
        ids: Its tokens, with the end-of-sequence if it reached one.
        finished: It reached one before the limit of tokens.
        text: The tokens in words, without control tokens and outer blanks.
    """

    ids: list[int]
    finished: bool
    text: str = ""

    @property
    def repetition(self) -> float:
        """Share of 4-grams that occurred before in the same answer, in [0, 1]."""
        grams = [tuple(self.ids[i : i + 4]) for i in range(len(self.ids) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Question:
    """A prompt to answer, as token ids: sampled with `seed` at temperature 1 from the whole vocabulary, or greedy."""

    prompt: Sequence[int]
    seed: int | None = None


def generate(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[Answer]:
    """Answers all questions, in their order; an answer depends neither on the other questions nor on the batches.

    Connected ranks divide the questions among them, and each returns all answers.

    Args:
        scorer: Holds the model.
        tokenizer: Has the end-of-sequence token; the model's generation settings may have more.
        questions: Sampled and greedy ones are batched together, by length of the prompt.
        max_new_tokens: Most tokens of an answer.
        tokens_per_batch: Most tokens of a batch: prompts, answers and padding. Halved when memory runs out.

    Raises:
        NoNumbersError: Logits are not finite, on any of the ranks.
    """
    ends = _end_ids(scorer.model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=scorer.pad_token_id,
        do_sample=False,
        use_cache=True,
    )
    rank, num_ranks = place()
    mine = _by_length(questions, range(len(questions)))[rank::num_ranks]
    answers: dict[int, Answer] = {}
    gives_numbers, sharing = True, Sharing(scorer, settings)
    pace = Pace("evaluation: answers", len(mine), logger)
    while len(answers) < len(mine):
        left = [row for row in mine if row not in answers]
        try:
            with torch.inference_mode(), scorer.autocast(), _plainly(scorer.model):
                for rows in _batches(questions, left, max_new_tokens, tokens_per_batch):
                    new = _answer(scorer, [questions[row] for row in rows], settings, sharing, ends)
                    answers |= {row: _cut(ids, ends) for row, ids in zip(rows, new, strict=True)}
                    pace.advance(len(rows))
        except NoNumbersError:
            gives_numbers = False
            break
        except torch.OutOfMemoryError:
            if tokens_per_batch <= 2 * max_new_tokens:
                raise
        else:
            break
        tokens_per_batch //= 2  # answers do not depend on the batches
        logger.warning("evaluation: out of memory; goes on with %d tokens per batch of answers", tokens_per_batch)
        torch.cuda.empty_cache()
    parts = pool((answers, gives_numbers))
    if not all(gives for _, gives in parts):
        raise NoNumbersError  # on all ranks: none goes on to wait for the others
    everyone = ChainMap(*(each for each, _ in parts))
    return [everyone[row] for row in range(len(questions))]


def _answer(
    scorer: Scorer, asked: Sequence[Question], settings: GenerationConfig, sharing: Sharing, ends: Set[int]
) -> list[list[int]]:
    """Returns the token ids generated for one batch, including those after an end-of-sequence token.

    Where a beginning is shared, answers that have ended leave the batch every few tokens: most are much shorter than
    the limit, and few are as long.
    """
    prompts = [question.prompt for question in asked]
    cache, num_shared = sharing.begin(prompts)
    ids, mask = left_pad(prompts, scorer, num_shared)
    noise = GumbelNoise([question.seed for question in asked], scorer.device)
    shared = {} if cache is None else {"past_key_values": cache}
    new: list[list[int]] = [[] for _ in asked]
    rows, left = list(range(len(asked))), settings.max_new_tokens
    while True:
        steps = left if cache is None else min(left, TOKENS_AT_A_TIME)
        left -= steps
        some = copy(settings)
        some.max_new_tokens = steps
        out = scorer.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=some,
            logits_processor=LogitsProcessorList([noise]), **shared,
        )  # fmt: skip
        found = out[:, ids.shape[1] :].tolist()
        if not noise.are_finite:
            raise NoNumbersError
        for row, more in zip(rows, found, strict=True):
            new[row] += more
        going = [at for at, more in enumerate(found) if ends.isdisjoint(more)]
        if not going or not left:
            return new
        rows = [rows[at] for at in going]
        ids, mask = out[going], pad(mask[going], (0, out.shape[1] - ids.shape[1]), value=1)
        noise.keep(going)
        if cache is not None:
            cache.batch_select_indices(torch.tensor(going, device=scorer.device))


@contextmanager
def _plainly(model: PreTrainedModel) -> Iterator[None]:
    """Puts a model's own generation settings aside: an answer follows its plain distribution, and no length is forced.

    `generate` would take them for all that is not set, such as `min_new_tokens` or `guidance_scale`.
    """
    owners = [model, model.get_base_model()] if hasattr(model, "peft_config") else [model]
    own = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, settings in zip(owners, own, strict=True):
            owner.generation_config = settings


class GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to logits: their argmax then is a sample of the softmax (Gumbel 1954; Maddison et al. 2014).

    Each row has its own random generator, so its sample is the same in any batch; a row without a seed gets no noise.
    Rounding errors of the logits change a sample only if its two largest noisy logits nearly tie.
    """

    def __init__(self, seeds: Sequence[int | None], device: torch.device) -> None:
        self._num_rows = len(seeds)
        self._generators = {
            row: torch.Generator(device).manual_seed(seed) for row, seed in enumerate(seeds) if seed is not None
        }
        self._are_finite = torch.ones((), dtype=torch.bool, device=device)

    @property
    def are_finite(self) -> bool:
        """Whether all rows had a likeliest token so far; single logits may be -inf."""
        return bool(self._are_finite)

    def keep(self, rows: Sequence[int]) -> None:
        """Leaves out all other rows; each goes on with its generator."""
        self._generators = {new: self._generators[old] for new, old in enumerate(rows) if old in self._generators}
        self._num_rows = len(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns noisy logits, shape (rows, vocabulary), in float64: random numbers in float32 are too coarse."""
        assert len(scores) == self._num_rows, "each question has one row"
        self._are_finite &= scores.amax(dim=-1).isfinite().all()  # stays on the device: reading it there would wait
        noisy = scores.to(torch.float64, copy=True)
        waits = torch.empty_like(noisy[0])
        for row, generator in self._generators.items():
            noisy[row] -= waits.exponential_(generator=generator).log_()
        return noisy


def _batches(
    questions: Sequence[Question], rows: Sequence[int], max_new_tokens: int, budget: int
) -> Iterator[list[int]]:
    """Yields batches of the given rows, longest prompts first."""
    order = _by_length(questions, rows)
    start = 0
    while start < len(order):
        size = max(1, budget // (len(questions[order[start]].prompt) + max_new_tokens))
        yield order[start : start + size]
        start += size


def _by_length(questions: Sequence[Question], rows: Iterable[int]) -> list[int]:
    """Sorts rows by length of the prompt, longest first."""
    return sorted(rows, key=lambda row: -len(questions[row].prompt))


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return ends | {tokenizer.eos_token_id}


def _cut(ids: list[int], ends: set[int]) -> Answer:
    for position, token in enumerate(ids):
        if token in ends:
            return Answer(ids[: position + 1], finished=True)
    return Answer(ids, finished=False)
