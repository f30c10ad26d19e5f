"""What a causal model would say next, of which rows with a common beginning share the computation.

The matchups of a judge begin with the same rubric, and both orders of a pair with the same prompt, too. Computing the
beginning once saved 36 to 42 % of the time on a CPU (64 rows of 322 to 517 tokens, of which 134 are the rubric; the
shipped model, and one of 8 layers of width 512).
"""

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from prefopt.data.prefixes import common_prefix_length
from prefopt.evaluation.judges.loading import pad_right
from prefopt.evaluation.key_values import LIMIT, LIMIT_OF_HALF

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

FEWEST_SHARED = 16
"""Common tokens below which a second forward costs more than it saves."""


class NextToken:
    """Log-probs of the next token after each row of a batch.

    The first batch is computed in both ways; a model for which they differ, or that has no cache of keys and values to
    share, reads whole rows from then on.

    Args:
        model: A causal language model.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        self._keeps_some = "logits_to_keep" in parameters
        self._shares = None if "past_key_values" in parameters else False

    def __call__(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns log-probs of shape (rows, vocabulary), in float32."""
        num_shared = count_shared(rows)
        if self._shares is False or len(rows) < 2 or num_shared < FEWEST_SHARED:
            return self._read(rows)
        if self._shares:
            return self._read_shared(rows, num_shared)
        plain = self._read(rows)
        self._shares = self._is_equal(plain, rows, num_shared)
        return plain

    def _is_equal(self, plain: torch.Tensor, rows: Sequence[Sequence[int]], num_shared: int) -> bool:
        try:
            shared = self._read_shared(rows, num_shared)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            logger.debug("judge: %s cannot share beginnings (%s)", type(self._model).__name__, error)
            return False
        difference = float((shared - plain).abs().mean() / plain.abs().mean())
        is_equal = difference <= (LIMIT if self._model.dtype == torch.float32 else LIMIT_OF_HALF)
        logger.debug("judge: sharing beginnings changes log-probs by a share of %.2g: %s", difference, is_equal)
        return is_equal

    def _read_shared(self, rows: Sequence[Sequence[int]], num_shared: int) -> torch.Tensor:
        cache = DynamicCache(config=self._model.config)
        beginning = pad_right([rows[0][:num_shared]], 0)
        few = {"logits_to_keep": 1} if self._keeps_some else {}
        self._model(input_ids=beginning, past_key_values=cache, use_cache=True, **few)
        cache.batch_repeat_interleave(len(rows))
        return self._read([row[num_shared:] for row in rows], num_shared, past_key_values=cache, use_cache=True)

    def _read(self, rows: Sequence[Sequence[int]], num_before: int = 0, **given: Any) -> torch.Tensor:
        """Returns the log-probs after rows that follow `num_before` tokens in a cache."""
        ends = torch.tensor([len(row) - 1 for row in rows], device=self._model.device)
        kept, places = torch.unique(ends, return_inverse=True)
        if self._keeps_some:  # the logits of all positions would need more memory than the model
            given["logits_to_keep"] = kept
        mask = pad_right([[1] * (num_before + len(row)) for row in rows], 0)
        logits = self._model(input_ids=pad_right(rows, 0), attention_mask=mask, **{"use_cache": False, **given}).logits
        each = torch.arange(len(rows), device=self._model.device)
        return logits[each, places if self._keeps_some else ends].float().log_softmax(-1)  # type: ignore[no-any-return]


def count_shared(rows: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all rows begin with; at least one token of each row is left."""
    shortest = min(map(len, rows)) - 1
    return min(shortest, *(common_prefix_length(rows[0], row) for row in rows))
