"""Measures contestants on the same material, one model in memory at a time."""

import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.config.schema import EvaluationConfig, TrainConfig
from prefopt.data.files import iter_rows
from prefopt.data.ragged import PairTable
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.values import RowError, check_text
from prefopt.evaluation.contestants import Contestant
from prefopt.evaluation.sampling import Answer, Question, generate
from prefopt.evaluation.scoring import IGNORED, PairScores, ScoredSequence, Scorer, Scores, completion
from prefopt.evaluation.statistics import Prompts
from prefopt.models.reference import ReferenceStore, open_store
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.paths import resolve

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NEUTRAL_MAX_TOKENS = 512
TEXT_PROMPT_TOKENS = 16
"""For a row without a prompt, at most this many of its first tokens serve as the prompt."""


@dataclass(frozen=True)
class Split:
    """Token ids of one split: preference pairs, demonstrations, or both, and which prompts they belong to."""

    pairs: Any | None = None
    rows: Sequence[ScoredSequence] | None = None
    pair_prompts: Prompts | None = None
    row_prompts: Prompts | None = None

    @classmethod
    def of(cls, pairs: "Dataset | None" = None, rows: "Dataset | None" = None) -> "Split":
        """Returns the split of tokenised data sets; an empty one counts as none."""
        demonstrations = to_rows(rows) if rows is not None and len(rows) else None
        return cls(
            pairs if pairs is not None and len(pairs) else None,
            demonstrations,
            number_prompts(pairs["prompt_ids"]) if pairs is not None and len(pairs) else None,
            None if demonstrations is None else number_prompts([prompt_of(row) for row in demonstrations]),
        )


@dataclass(frozen=True)
class Material:
    """The data that all contestants are measured on.

    Attributes:
        held_out: Examples that training never saw.
        train: A sample of the training examples.
        prompts: Token ids of the prompts that every contestant answers.
        texts: For each prompt, its text and the answer in the data, if there is one.
        sources: Location of each held-out pair, `file:line`.
        neutral: Texts unrelated to the task.
        slices: For each held-out example the name of its part, where the data is a mixture.
        tags: For each held-out example its tag, with the column that holds it; empty if rows have no tags.
        is_train_whole: Whether `train` is all of the training examples, and no sample of them.
        overlap: How many held-out prompts are training prompts, as in a report; None if nothing is held out.
    """

    held_out: Split
    train: Split
    sources: list[str]
    prompts: list[list[int]]
    texts: list[tuple[str, str | None]]
    neutral: list[ScoredSequence]
    slices: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    is_train_whole: bool = False
    overlap: dict[str, int | None] | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether the material contains preference pairs."""
        return self.held_out.pairs is not None or self.train.pairs is not None

    @property
    def answer_prompts(self) -> Prompts:
        """The prompt of each answer that a contestant samples: held-out pairs may share one."""
        return number_prompts(self.prompts)


@dataclass(frozen=True)
class Measured:
    """Results of one model on the material; None or empty for a part that the material lacks."""

    held_out_pairs: PairScores | None
    train_pairs: PairScores | None
    held_out_rows: Scores | None
    train_rows: Scores | None
    neutral: Scores | None
    samples: list[Answer]
    shown: list[Answer]
    answers_of: dict[str, Scores] = field(default_factory=dict)
    """Name of a contestant -> this model's scores of that contestant's `samples`."""


def measure_contestants(
    contestants: Sequence[Contestant], config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", material: Material
) -> dict[str, Measured]:
    """Measures contestants one after another, one model in memory at a time.

    The base of an adapter is not loaded again: the adapter is disabled.

    Args:
        contestants: In the order of measurement; the base comes last, because it scores the answers of the others.
        config: Configuration of the run, with the settings of this evaluation.
        tokenizer: Tokenizer of the policy.
        material: The data to measure on.

    Returns:
        Name of a contestant -> its results.
    """
    measured: dict[str, Measured] = {}
    written: dict[str, list[ScoredSequence]] = {}
    model = scorer = None
    for contestant in contestants:
        is_below_adapter = contestant.is_base and hasattr(model, "disable_adapter")
        if scorer is None or not is_below_adapter:
            model = scorer = None
            release_memory()
            model = contestant.load(config)
            scorer = Scorer.of(model, config, tokenizer.pad_token_id)
        logger.info("evaluation: the %s model", contestant.name)
        store = open_store(config) if contestant.is_base and material.has_pairs else None
        with scorer.model.disable_adapter() if is_below_adapter else nullcontext():
            found = measure(scorer, tokenizer, material, config, store)
            own = [completion(p, a.ids) for p, a in zip(material.prompts, found.samples, strict=True)]
            read = written if contestant.is_base else {contestant.name: own}
            scores = {name: score_own(scorer, answers) for name, answers in read.items() if answers}
        written[contestant.name] = own
        measured[contestant.name] = replace(found, answers_of=scores)
    return measured


@phases.of("scoring_of_samples")
def score_own(scorer: Scorer, own: list[ScoredSequence]) -> Scores:
    """Scores a contestant's own answers."""
    return scorer.score(own)


def release_memory() -> None:
    """Frees unused models on host and device; needed because trainers hold their models in reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(
    scorer: Scorer,
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    config: TrainConfig,
    store: ReferenceStore | None = None,
) -> Measured:
    """Scores the material and answers its prompts with one model; log-probs of pairs that `store` has are reused."""

    def score_pairs(pairs: "Dataset | None") -> PairScores | None:
        if pairs is None or not len(pairs):
            return None
        table = PairTable.of(pairs)
        if store is None:
            return PairScores.of(table.trained(scorer.score_pairs(table)))
        try:
            logps, usage = store.complete(table, scorer.iterate_pairs)
        except UserError as error:
            logger.warning("evaluation: goes on without the store. %s", error)
            return PairScores.of(table.trained(scorer.score_pairs(table)))
        logger.info("evaluation: %s", usage)
        return PairScores.of_stored(table, logps)

    def score_rows(rows: Sequence[ScoredSequence] | None) -> Scores | None:
        return None if rows is None else scorer.score(rows)

    with phases.of("held_out"):
        held_out = score_pairs(material.held_out.pairs), score_rows(material.held_out.rows)
    with phases.of("train"):
        train = score_pairs(material.train.pairs), score_rows(material.train.rows)
    with phases.of("neutral_texts"):
        neutral = score_rows(material.neutral or None)
    with phases.of("sampling"):
        samples, shown = answer(scorer, tokenizer, material.prompts, config)
    return Measured(held_out[0], train[0], held_out[1], train[1], neutral, samples, shown)


def answer(
    scorer: Scorer, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Sequence[int]], config: TrainConfig
) -> tuple[list[Answer], list[Answer]]:
    """Returns sampled answers to all prompts, for metrics, and greedy answers to the first few, for people to read."""
    settings = config.evaluation
    sampled = [Question(prompt, seed) for seed, prompt in zip(seeds(config.run.seed), prompts, strict=False)]
    greedy = [Question(prompt) for prompt in prompts[: settings.num_shown_samples]]
    found = generate(scorer, tokenizer, [*sampled, *greedy], max_new_tokens=settings.max_new_tokens)
    texts = (str(tokenizer.decode(answer.ids, skip_special_tokens=True)).strip() for answer in found)
    answers = [replace(answer, text=text) for answer, text in zip(found, texts, strict=True)]
    return answers[: len(sampled)], answers[len(sampled) :]


def seeds(seed: int) -> Iterator[int]:
    """Yields a sampling seed per prompt, the same for all contestants, so that answers differ only by the model."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(2**63))


def read_neutral_texts(
    settings: EvaluationConfig, tokenizer: "PreTrainedTokenizerBase", context: int | None = None
) -> list[ScoredSequence]:
    """Tokenises the beginnings of the neutral texts; every token after the first is scored.

    Args:
        settings: Name the file (`neutral_texts`).
        tokenizer: Tokenizer of the policy.
        context: Context length of the model in tokens; None: no limit.

    Raises:
        UserError: The file is missing, or a line of it has no `text`.
    """
    if settings.neutral_texts is None:
        return []
    path = resolve(settings.neutral_texts)
    if not path.is_file():
        raise UserError(f"evaluation.neutral_texts: no such file: {path}. Set it to null to do without.")
    longest = min(NEUTRAL_MAX_TOKENS, context or NEUTRAL_MAX_TOKENS)
    sequences = []
    for row, source in iter_rows(path):
        try:
            if isinstance(row, RepeatingRow):
                row.require_whole(("text",))
            text = check_text(row.get("text"), "text")
        except RowError as error:
            raise UserError(f"{source}: {error} Each neutral text is an object with a field 'text'.") from error
        ids = tokenizer(text)["input_ids"][:longest]
        sequences.append(ScoredSequence(ids, [IGNORED, *ids[1:]]))
    return sequences


def take_sample(dataset: "Dataset", limit: int, seed: int) -> "Dataset":
    """Returns at most `limit` rows of a data set, drawn with `seed` and kept in their order."""
    return dataset if len(dataset) <= limit else dataset.select(sample_rows(len(dataset), limit, seed).tolist())


def sample_rows(num_rows: int, limit: int, seed: int) -> NDArray[np.int64]:
    """Returns the rows of a data set that `take_sample` takes, in their order."""
    if num_rows <= limit:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, size=limit, replace=False))


def number_prompts(prompts: Iterable[Sequence[int]]) -> Prompts:
    """Numbers the prompts of examples, given as token ids: equal prompts have equal numbers."""
    numbers: dict[tuple[int, ...], int] = {}
    return Prompts(np.array([numbers.setdefault(tuple(ids), len(numbers)) for ids in prompts], dtype=np.int64))


def to_rows(dataset: "Dataset") -> list[ScoredSequence]:
    """Converts a tokenised data set with the columns input_ids and labels to demonstrations."""
    return [ScoredSequence(i, label) for i, label in zip(dataset["input_ids"], dataset["labels"], strict=True)]


def prompt_of(row: ScoredSequence) -> list[int]:
    """Returns the tokens before the first trained one; for a row that is trained whole, its first tokens."""
    first = next((i for i, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
    return list(row.input_ids[: first or min(TEXT_PROMPT_TOKENS, len(row.input_ids) // 2)])
