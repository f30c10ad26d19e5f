"""Models of judges: where they come from, how their input is written, and in which batches they read it."""

import logging
import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from transformers import AutoTokenizer

from prefopt.config.choices import WeightsDtype
from prefopt.config.schema import ModelConfig
from prefopt.evaluation.measure import release_memory
from prefopt.models.fingerprint import describe_model, fingerprint_reading
from prefopt.models.load import choose_device, from_pretrained
from prefopt.process.errors import UserError, first_line
from prefopt.process.pace import Pace
from prefopt.process.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reader = TypeVar("Reader")
Item = TypeVar("Item", bound=Hashable)

logger = logging.getLogger(__name__)

RENDER_LIMIT_S = 10.0
"""Time limit in seconds of one call of a chat template."""
TOKENS_PER_BATCH = 2**14
"""Most tokens of a batch, padding included. Halved when memory runs out."""


def judge_model(path: str, revision: str | None, attention: str) -> ModelConfig:
    """Returns the settings by which a judge's model is loaded; code of its repository is never run.

    On a GPU its weights stay as they are stored; a CPU computes in float32, since half precision is slow or missing
    there.
    """
    dtype = WeightsDtype.auto if choose_device().type == "cuda" else WeightsDtype.fp32
    return ModelConfig(path=path, revision=revision, dtype=dtype, attn_implementation=attention)


def load_judge_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer, of which no padding token is needed."""
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, config)
    return tokenizer


def find_context(tokenizer: "PreTrainedTokenizerBase", of_model: int | None) -> int | None:
    """Returns the most tokens that model and tokenizer both take; None if neither says."""
    limits = [limit for limit in (of_model, tokenizer.model_max_length) if limit is not None and limit < 10**9]
    return int(min(limits)) if limits else None


def render(
    where: str, tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    """Returns a conversation in the words of the tokenizer's chat template; models that can think begin to answer.

    Raises:
        UserError: The template refuses it, or takes too long.
    """
    try:
        with time_limit(RENDER_LIMIT_S):
            text: Any = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
            )
    except Exception as error:  # a template is a program, and any of its operations may fail
        raise UserError(
            f"{where} the chat template of its model refuses {' and '.join(each['role'] for each in messages)} "
            f"({type(error).__name__}: {first_line(error)}). Take another model, or mend its template."
        ) from error
    return str(text)


def describe_weights(config: ModelConfig) -> dict[str, Any]:
    """Returns what tells a judge's model from others: path, revision, commit, and the digests of its files.

    `fingerprint` is of the weights, `reading` of tokenizer and chat template: by another one it is asked otherwise.
    """
    found = describe_model(config)
    kept = {key: found[key] for key in ("revision", "commit", "fingerprint")}
    return {"model": found["path"], **kept, "reading": fingerprint_reading(config)}


class Held(Generic[Reader]):
    """What a judge reads with, loaded when it first reads.

    It stays in memory until another judge's is loaded or its own judge is gone, so that one model is there at a time
    and a judge that reads again and again loads it once.

    Args:
        load: Loads it. It must not refer to the judge, which would then live on with its model.
    """

    def __init__(self, load: Callable[[], Reader]) -> None:
        self._load = load
        self._reader: Reader | None = None

    def get(self) -> Reader:
        """Returns it; frees that of another judge first if it has to be loaded."""
        global _last
        if self._reader is None:
            other = _last()
            if other is not None:
                other._reader = None
            release_memory()
            self._reader = self._load()
            _last = weakref.ref(self)
        return self._reader


_last: Callable[[], Held[Any] | None] = lambda: None  # noqa: E731
"""Gives what was loaded last, while its judge lives."""


def find_fitting(where: str, rows: Mapping[Item, Sequence[int]], context: int | None, what: str) -> list[Item]:
    """Returns the items that a judge's model can read whole; says how many are too long, which have no verdict.

    Args:
        where: Names the judge in the log.
        rows: Token ids by item.
        context: Most tokens that the model reads; None: unknown, all fit.
        what: What the items are, in the log.
    """
    fits = [item for item, ids in rows.items() if context is None or len(ids) <= context]
    if num_too_long := len(rows) - len(fits):
        logger.warning(
            "%s %d of %d %s are longer than the %s tokens that it reads; they have no verdict",
            where, num_too_long, len(rows), what, context,
        )  # fmt: skip
    return fits


def report_missing(where: str, values: Sequence[float], what: str) -> bool:
    """Says for how many items a judge's model gave no number, and returns whether there are any.

    A judge says so of the first such items alone; what it tells of itself in the report counts all.
    """
    num_nan = sum(map(math.isnan, values))
    if num_nan:
        logger.warning(
            "%s gives %d of %d %s no number; they have no verdict. The report counts them and those that follow",
            where, num_nan, len(values), what,
        )  # fmt: skip
    return num_nan > 0


def prepare(model: "PreTrainedModel") -> "PreTrainedModel":
    """Returns a model ready to be read with, on this process's device."""
    ready: PreTrainedModel = model.eval().requires_grad_(False).to(choose_device())
    return ready


def in_batches(
    rows: Sequence[Sequence[int]], read: Callable[[list[int]], Sequence[float]], *, most_rows: int | None = None
) -> list[float]:
    """Returns a number per row, from batches of rows of similar length, the longest first.

    Args:
        rows: Token ids.
        read: From the indices of a batch to its numbers; called again with fewer rows if memory runs out.
        most_rows: Most rows of a batch; None: as many as `TOKENS_PER_BATCH` allows.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    found: dict[int, float] = {}
    budget, start = TOKENS_PER_BATCH, 0
    pace = Pace("evaluation: judged texts", len(rows), logger)
    while start < len(order):
        size = max(1, budget // max(1, len(rows[order[start]])))
        batch = order[start : start + min(size, most_rows or size)]
        try:
            found |= zip(batch, read(batch), strict=True)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            budget //= 2
            logger.warning("evaluation: out of memory; a judge goes on with %d tokens per batch", budget)
            torch.cuda.empty_cache()
        else:
            start += len(batch)
            pace.advance(len(batch))
    return [found[row] for row in range(len(rows))]


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Returns token ids of shape (rows, longest row) on this process's device."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=choose_device())
