"""The data that an evaluation measures on: chosen, tokenised, and the same for all contestants."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.choices import DataFormat
from prefopt.config.judges import read_judges
from prefopt.config.schema import EvaluationConfig, TrainConfig
from prefopt.config.tasks import read_tasks
from prefopt.data.files import iter_rows
from prefopt.data.loading import read_pairs
from prefopt.data.records import Record, SFTExample
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.tags import fold_tags
from prefopt.data.token_splits import load_tokenized
from prefopt.data.values import RowError, check_text
from prefopt.evaluation.asked import Asked, labelled_pairs, read_trained
from prefopt.evaluation.judged import judge_context
from prefopt.evaluation.judges import check_judges
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.overlap import find_overlap
from prefopt.evaluation.prompting import Prefix, encode_prompts
from prefopt.evaluation.regression import Question as RegressionQuestion
from prefopt.evaluation.regression import read_regression
from prefopt.evaluation.rivals import Rival, build_rivals
from prefopt.evaluation.scoring import IGNORED, ScoredSequence
from prefopt.evaluation.statistics import Prompts
from prefopt.evaluation.tasks import check_tasks
from prefopt.evaluation.tasks.task import TaskContext
from prefopt.models.examples import Examples
from prefopt.models.limits import Limits
from prefopt.process.errors import UserError
from prefopt.process.paths import resolve

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

NEUTRAL_MAX_TOKENS = 512
UNSAMPLED = "evaluation.num_samples=0"
UNJUDGED = f"evaluation.judges=[] evaluation.tasks=[] 'evaluation.contestants=[base,tuned]' {UNSAMPLED}"
"""What leaves all answers out: where they are judged or checked, `evaluation.num_samples` has no say."""
REGRESSION_TOKENS = 64
"""Most tokens of an answer to a question of the regression suite."""
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
        asked: The same prompts as text.
        sources: Location of each held-out pair, `file:line`.
        neutral: Texts unrelated to the task.
        slices: For each held-out example the name of its part, where the data is a mixture.
        tags: For each held-out example its tag, with the column that holds it; empty if rows have no tags.
        is_train_whole: Whether `train` is all of the training examples, and no sample of them.
        overlap: How many held-out prompts are training prompts, as in a report; None if nothing is held out.
        rivals: Contestants that only answer the prompts.
        labelled: Held-out pairs as text by which judges are known, if answers are judged.
        questions: The regression suite, and the token ids of its prompts.
        are_judged: Whether the sampled answers are judged or checked: then they are also those that the report shows.
    """

    held_out: Split
    train: Split
    sources: list[str]
    prompts: list[list[int]]
    asked: Sequence[Asked]
    neutral: list[ScoredSequence]
    slices: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    is_train_whole: bool = False
    overlap: dict[str, int | None] | None = None
    rivals: Sequence[Rival] = ()
    labelled: Sequence[LabelledPair] = ()
    questions: Sequence[tuple[RegressionQuestion, Sequence[int]]] = ()
    are_judged: bool = False

    @property
    def has_pairs(self) -> bool:
        """Whether the material contains preference pairs."""
        return self.held_out.pairs is not None or self.train.pairs is not None

    @property
    def answer_prompts(self) -> Prompts:
        """The prompt of each answer that a contestant samples: held-out pairs may share one."""
        return number_prompts(self.prompts)


def build_material(config: TrainConfig, examples: Examples) -> Material:
    """Chooses the data that both models will be measured on; reads every file that the evaluation needs.

    Raises:
        UserError: A file of the evaluation is missing or unusable; this is found before training begins.
    """
    settings, seed = config.evaluation, config.run.seed
    data, tokenizer = examples.tokenized, examples.tokenizer
    train = take_sample(data.train, settings.max_train_examples, seed)
    held_out = data.held_out if data.held_out is not None else data.train.select([])
    are_judged = bool(settings.judges or settings.tasks)
    answered = _choose_answered(held_out, config, are_judged=are_judged)
    wanted = set(answered["source"])
    records = (examples.records.held_out or []) if wanted else []
    by_source = {record.source: record for record in records if record.source in wanted}
    has_pairs = config.algorithm.trains_pairs
    apart = None if has_pairs else _read_pairs(config, examples)
    pairs = (held_out if len(held_out) else None) if has_pairs else (None if apart is None else apart.tokens)
    prompts = [list(i) for i in answered["prompt_ids"]] if has_pairs else [prompt_of(row) for row in to_rows(answered)]
    if examples.limits is not None:
        without = UNJUDGED if are_judged else UNSAMPLED
        examples.limits.check_answers(prompts, settings.max_new_tokens, without)
    asked = [by_source[source] for source in answered["source"]]
    described = [Asked.of(record) for record in asked]
    if are_judged:
        check_readers(config, read_trained(examples.records.train, seed), described)
    return Material(
        held_out=Split.of(pairs, None if has_pairs else held_out),
        train=Split.of(pairs=train) if has_pairs else Split.of(rows=train),
        sources=list(pairs["source"]) if pairs is not None else [],
        prompts=prompts,
        asked=described,
        slices=_slices_of(held_out, examples),
        tags=_tags_of(held_out, examples, config.data.tag),
        neutral=read_neutral_texts(settings, tokenizer, None if examples.limits is None else examples.limits.context),
        is_train_whole=len(data.train) <= settings.max_train_examples,
        overlap=find_overlap(examples, config.data, [] if apart is None else [(apart.records, apart.tokens)]),
        rivals=build_rivals(config, asked, tokenizer, examples.limits),
        labelled=choose_labelled(apart.records if apart is not None else examples.records.held_out, config)
        if are_judged
        else [],
        questions=read_questions(config, tokenizer, examples.limits) if are_judged else [],
        are_judged=are_judged,
    )


def check_readers(config: TrainConfig, trained: Sequence[LabelledPair], asked: Sequence[Asked]) -> None:
    """Finds what can be found of judges and tasks that cannot read the answers, before anything is answered.

    Args:
        config: The settings of this evaluation.
        trained: Training data as text.
        asked: The prompts that will be answered.

    Raises:
        UserError: A judge or a task cannot be built, or the data have nothing to compare answers with.
    """
    check_judges(read_judges(config.evaluation.judges), judge_context(config, trained))
    context = TaskContext(trained, config.run.seed)
    check_tasks(read_tasks(config.evaluation.tasks), context, [each.chosen for each in asked])


def _choose_answered(held_out: "Dataset", config: TrainConfig, *, are_judged: bool) -> "Dataset":
    """Chooses the examples whose prompts are answered; if answers are judged, each prompt once."""
    settings, seed = config.evaluation, config.run.seed
    num = settings.num_judged if are_judged else settings.num_samples
    if not num or not len(held_out):
        return held_out.select([])
    if are_judged:
        ids = held_out["prompt_ids"] if config.algorithm.trains_pairs else map(prompt_of, to_rows(held_out))
        first = {tuple(prompt): row for row, prompt in reversed([*enumerate(ids)])}
        held_out = held_out.select(sorted(first.values()))
    return take_sample(held_out, num, seed)


def read_questions(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", limits: Limits | None
) -> list[tuple[RegressionQuestion, list[int]]]:
    """Reads the regression suite, and encodes its questions as prompts: as chats if the model has a chat template.

    Args:
        config: Names the suite (`evaluation.regression`); without one there are no questions.
        tokenizer: Of the model that answers.
        limits: Of that model; None if they were not looked up.

    Raises:
        UserError: The file is missing, or a line of it is no question; or none of them fits the model's context.
    """
    if config.evaluation.regression is None:
        return []
    questions = read_regression(config.evaluation.regression)
    records = [SFTExample(prompt=each.prompt, completion=each.reference, source=each.id) for each in questions]
    ids = encode_prompts(records, Prefix(), tokenizer, config.data)
    longest = max(map(len, ids), default=0)
    if limits is not None and limits.context is not None and longest + REGRESSION_TOKENS > limits.context:
        raise UserError(
            f"evaluation.regression={config.evaluation.regression}: after its longest question, {longest} tokens, an "
            f"answer of {REGRESSION_TOKENS} would go beyond the {limits.context} that {limits.model} reads at most. "
            "Name a file of shorter questions, or ask none: evaluation.regression=null"
        )
    return list(zip(questions, ids, strict=True))


def choose_labelled(records: Sequence[Record] | None, config: TrainConfig) -> list[LabelledPair]:
    """Chooses the held-out pairs by which judges are known."""
    pairs = labelled_pairs(records)
    rows = sample_rows(len(pairs), config.evaluation.num_judged, config.run.seed)
    return [pairs[row] for row in rows.tolist()]


def _slices_of(held_out: "Dataset", examples: Examples) -> list[str]:
    """Returns for each held-out example the name of its part; nothing if the data is no mixture."""
    if not examples.records.notes.slices.get("held_out"):
        return []
    names = {record.source: record.slice for record in examples.records.held_out or []}
    return [names[source] for source in held_out["source"]]


def _tags_of(held_out: "Dataset", examples: Examples, column: str | None) -> list[str]:
    """Returns for each held-out example its tag, as `topic=billing`; nothing without `data.tag`."""
    if column is None:
        return []
    tags = {record.source: record.tag for record in examples.records.held_out or []}
    return [f"{column}={tag}" for tag in fold_tags([tags[source] for source in held_out["source"]])]


@dataclass(frozen=True)
class Apart:
    """The preference pairs on which an SFT run is measured too: their records, and their token ids."""

    records: Sequence[Record]
    tokens: "Dataset"


def _read_pairs(config: TrainConfig, examples: Examples) -> Apart | None:
    """Reads the preference pairs on which an SFT run is measured too; None if `evaluation.pairs` is not set."""
    if config.evaluation.pairs is None:
        return None
    whole = {
        "train": config.evaluation.pairs,
        "held_out": None,
        "held_out_fraction": 0.0,
        "format": DataFormat.auto,
        "tag": None,
    }
    source = dataclasses.replace(config.data, **whole)
    splits = read_pairs(source, examples.records.train)
    pairs = load_tokenized(splits, examples.tokenizer, source).train
    if examples.limits is not None:
        examples.limits.check_rows(pairs, "evaluation.pairs")
    return Apart(splits.train, pairs)


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
