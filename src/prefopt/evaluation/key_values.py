"""Keys and values of many answers at once: a shared beginning is read once, and a new token copies none."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from prefopt.evaluation.scoring import Scorer


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


def read_beginning(scorer: Scorer, tokens: Sequence[int], num_rows: int, room: int) -> DynamicCache | None:
    """Returns keys and values of a beginning that several prompts share, which is read once.

    None if they are more than keys and values of all tokens: padding after the beginning would move a sliding window.

    Args:
        scorer: Holds the model.
        tokens: The beginning.
        num_rows: Prompts that go on from there.
        room: Most tokens that follow, padding included.
    """
    ids = torch.tensor([list(tokens)], device=scorer.device)
    whole = scorer.model.get_base_model() if hasattr(scorer.model, "peft_config") else scorer.model
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(whole.forward).parameters else {}
    cache = scorer.model(input_ids=ids, use_cache=True, **last).past_key_values
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(layer, num_rows, room) for layer in cache.layers]
    return cache


def _widen(states: torch.Tensor, num_rows: int, room: int) -> torch.Tensor:
    """Returns a tensor that begins in each row with `states`, shape (rows, heads, tokens + room, features)."""
    _, num_heads, num_tokens, num_features = states.shape
    wide = states.new_empty((num_rows, num_heads, num_tokens + room, num_features))
    wide[:, :, :num_tokens] = states
    return wide
