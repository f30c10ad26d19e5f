"""Keys and values of many answers at once: a shared beginning is read once, and a new token copies none."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from prefopt.evaluation.scoring import Scorer

LIMIT, LIMIT_OF_HALF = 1e-4, 0.02
"""Largest accepted mean difference of logits or log-probs from those of whole prompts, relative to their mean absolute
value: in float32, and in half precision."""
CLOSE = 1e-5
"""The same of logits in float32 where answers are sampled from them."""

logger = logging.getLogger(__name__)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer with room for those to come, into which they are written.

    Its parent makes new tensors of all keys and all values for each token, which costs more than the attention itself
    where many long sequences are generated at once.

    Args:
        layer: Keys and values of one sequence, shape (1, heads, tokens, features).
        num_rows: Sequences that go on from there.
        room: Tokens to come. Of more than these, each is appended as the parent does.
    """

    def __init__(self, layer: DynamicLayer, num_rows: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._buffers = tuple(_widen(each, num_rows, room) for each in (layer.keys, layer.values))
        self.keys, self.values = (each[:, :, : layer.keys.shape[2]] for each in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds keys and values of new tokens, shape (rows, heads, new, features), and returns those of all tokens."""
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if not self._is_in_place() or end > self._buffers[0].shape[2]:
            both: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return both
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (each[:, :, :end] for each in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Leaves out all other rows."""
        if not self._is_in_place():
            super().batch_select_indices(indices)
            return
        num_tokens = self.keys.shape[2]
        self._buffers = tuple(each[indices] for each in self._buffers)
        self.keys, self.values = (each[:, :, :num_tokens] for each in self._buffers)

    def _is_in_place(self) -> bool:
        """Returns whether the keys lie in their buffer: methods of the parent put other tensors in their place."""
        return self.keys.data_ptr() == self._buffers[0].data_ptr()


class Sharing:
    """Reads what the prompts of a batch begin with once, for models of which that changes no answer.

    The padding stands after the shared beginning then, and a model that counts places by tokens and padding alike sees
    it further away. So the first batch with padding is tried in both ways, and models with a window or
    ALiBi are left out.

    Args:
        scorer: Holds the model.
        settings: Of the generation.
    """

    def __init__(self, scorer: Scorer, settings: GenerationConfig) -> None:
        self._scorer, self._settings = scorer, settings
        self._is_exact = False if _sees_padding(scorer.model.config.to_dict()) else None

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache | None, int]:
        """Returns keys and values of what the prompts begin with, and of how many tokens; None and 0 without."""
        num = count_shared(prompts)
        if not num or self._is_exact is False:
            return None, 0
        shortest, longest = min(prompts, key=len), max(prompts, key=len)
        if self._is_exact is None and len(shortest) < len(longest):
            self._is_exact = self._is_same([longest, shortest], num)
            if not self._is_exact:
                logger.info("evaluation: this model reads each prompt from its beginning, shared or not")
                return None, 0
        cache = self._read(prompts, num)
        return cache, 0 if cache is None else num

    def _read(self, prompts: Sequence[Sequence[int]], num: int) -> DynamicCache | None:
        """Returns keys and values of the first `num` tokens; None if the model has others than of all tokens."""
        scorer, room = self._scorer, max(map(len, prompts)) - num + self._settings.max_new_tokens
        ids = torch.tensor([list(prompts[0][:num])], device=scorer.device)
        whole = scorer.model.get_base_model() if hasattr(scorer.model, "peft_config") else scorer.model
        last = {"logits_to_keep": 1} if "logits_to_keep" in signature(whole.forward).parameters else {}
        cache: Any = getattr(scorer.model(input_ids=ids, use_cache=True, **last), "past_key_values", None)
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        cache.layers = [RoomyLayer(layer, len(prompts), room) for layer in cache.layers]
        found: DynamicCache = cache
        return found

    def _is_same(self, prompts: Sequence[Sequence[int]], num: int) -> bool:
        """Whether the next tokens are as likely after a beginning that was read once as after whole prompts."""
        cache = self._read(prompts, num)
        if cache is None:
            return False
        shared, plain = self._first_logits(prompts, num, past_key_values=cache), self._first_logits(prompts, 0)
        is_half = self._scorer.model.dtype != torch.float32 or torch.is_autocast_enabled(self._scorer.device.type)
        return float((shared - plain).abs().mean() / plain.abs().mean()) <= (LIMIT_OF_HALF if is_half else CLOSE)

    def _first_logits(self, prompts: Sequence[Sequence[int]], num: int, **given: Any) -> torch.Tensor:
        ids, mask = left_pad(prompts, self._scorer, num)
        one = copy(self._settings)
        one.max_new_tokens, one.output_logits, one.return_dict_in_generate = 1, True, True
        out = self._scorer.model.generate(input_ids=ids, attention_mask=mask, generation_config=one, **given)
        logits: torch.Tensor = out.logits[0].float()
        return logits


def _sees_padding(settings: Mapping[str, Any]) -> bool:
    """Whether a model's configuration tells of ALiBi, or of layers that see the last tokens alone.

    Of these some count padding as distance, and with a window a longer answer would be the first to show it.
    """
    return any(
        _sees_padding(value)
        if isinstance(value, Mapping)
        else (name == "alibi" and value) or (str(name).endswith(("window", "window_size")) and isinstance(value, int))
        for name, value in settings.items()
    )


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all prompts begin with: a system prompt, or the first ones of a chat template."""
    ordered = sorted(map(list, prompts))  # all others begin like the first and the last
    most = min(map(len, prompts)) - 1  # something is left to be read for each
    pairs = zip(ordered[0][:most], ordered[-1][:most], strict=True)
    num = next((at for at, (a, b) in enumerate(pairs) if a != b), most)
    return num if len(prompts) > 1 else 0


def left_pad(
    prompts: Sequence[Sequence[int]], scorer: Scorer, num_shared: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns prompts of equal width and their mask; the padding stands before what they do not share."""
    width = max(len(prompt) for prompt in prompts)
    ids, masks = [], []
    for prompt in prompts:
        tokens, gap = list(prompt), width - len(prompt)
        ids.append(tokens[:num_shared] + [scorer.pad_token_id] * gap + tokens[num_shared:])
        masks.append([1] * num_shared + [0] * gap + [1] * (len(tokens) - num_shared))
    return torch.tensor(ids, device=scorer.device), torch.tensor(masks, device=scorer.device)


def _widen(states: torch.Tensor, num_rows: int, room: int) -> torch.Tensor:
    """Returns a tensor that begins in each row with `states`, shape (rows, heads, tokens + room, features)."""
    _, num_heads, num_tokens, num_features = states.shape
    wide = states.new_empty((num_rows, num_heads, num_tokens + room, num_features))
    wide[:, :, :num_tokens] = states
    return wide
