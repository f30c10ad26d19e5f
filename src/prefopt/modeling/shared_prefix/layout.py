"""Where the tokens of a pair batch stand once every prompt is kept a single time and nothing is padded.

A batch of B pairs becomes one row of T tokens, pair after pair, each as `[prompt | chosen | rejected]`. P, C and R are
the lengths of a pair's three segments. A prompt too short to be worth sharing stands in front of each completion
instead: its first segment is empty then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

SEGMENTS = 3
"""prompt, chosen, rejected."""

SHARE_FROM = 32
"""Tokens of a prompt from which on sharing it saves more than a further attention call costs."""

Indices = NDArray[np.int64]


class VarlenIndices(NamedTuple):
    """What a variable-length attention kernel needs. Queries: P, C, R of each pair; keys: P, P + C, P + R.

    Attributes:
        cu_seqlens_q: Cumulative query lengths, int32, shape (3 B + 1,).
        cu_seqlens_k: Cumulative key lengths, int32, shape (3 B + 1,).
        max_q: Longest query segment, in tokens.
        max_k: Longest key segment, in tokens.
        keys: For each key its place in the row, shape (Σ 3 P + C + R,).
        copies: For each token of the row the places of its copies among the keys, shape (T, 3); the number of keys
            stands where there is no further copy.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_q: int
    max_k: int
    keys: torch.Tensor
    copies: torch.Tensor


@dataclass(frozen=True)
class PairLayout:
    """The shared-prefix form of a padded batch `[chosen; rejected]` of shape (2 B, width), right-padded.

    Attributes:
        segments: Tokens of each pair's three segments in the row.
        width: Width of the padded batch.
        source: For each token of the row its place in the flattened padded batch, shape (T,).
        position_ids: Positions, which restart after the prompt for the rejected completion, shape (1, T).
        predictors: For each scored token the place in the row of the token before it, shape (N,). The last token of a
            prompt is there twice: it predicts the first token of both completions.
        targets: For each scored token its place in the row, shape (N,).
        scored: For each scored token its place in the flattened (2 B, width - 1) output, shape (N,).
    """

    segments: tuple[tuple[int, int, int], ...]
    width: int
    source: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    scored: torch.Tensor

    @classmethod
    def build(cls, lengths: Sequence[tuple[int, int, int]], width: int, share_from: int = 0) -> "PairLayout":
        """Lays out pairs.

        Without a prompt (P = 0) nothing predicts a completion's first token, which then is not scored, as in TRL.

        Args:
            lengths: Tokens of prompt, chosen and rejected of each pair; completions have at least one.
            width: Of the padded batch.
            share_from: A prompt of fewer tokens is computed with each completion.
        """
        pairs = len(lengths)
        prompts = np.array([prompt for prompt, *_ in lengths], dtype=np.int64)
        segments = to_segments(np.array(lengths, dtype=np.int64).reshape(-1, SEGMENTS), share_from)
        segment_lengths = segments.reshape(-1)
        starts = np.cumsum(segment_lengths) - segment_lengths
        segment = np.repeat(np.arange(SEGMENTS * pairs), segment_lengths)
        pair, kind = np.divmod(segment, SEGMENTS)
        token = np.arange(len(segment))
        within = token - starts[segment]
        position = within + np.where(kind > 0, segments[:, 0][pair], 0)
        row = pair + np.where(kind == 2, pairs, 0)
        last_of_prompt = (starts[0::SEGMENTS] + segment_lengths[0::SEGMENTS] - 1)[pair]
        before = np.where(within == 0, last_of_prompt, token - 1)
        is_scored = (kind > 0) & (position >= np.maximum(prompts, 1)[pair])
        return cls(
            segments=tuple((prompt, chosen, rejected) for prompt, chosen, rejected in segments.tolist()),
            width=width,
            source=torch.from_numpy(row * width + position),
            position_ids=torch.from_numpy(position[None]),
            predictors=torch.from_numpy(before[is_scored]),
            targets=torch.from_numpy(token[is_scored]),
            scored=torch.from_numpy((row * (width - 1) + position - 1)[is_scored]),
        )

    @property
    def num_pairs(self) -> int:
        return len(self.segments)

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed, T."""
        return self.source.numel()

    @cached_property
    def split(self) -> list[int]:
        """Lengths of all segments in the order of the row."""
        return [length for pair in self.segments for length in pair]

    @cached_property
    def masks(self) -> dict[Any, torch.Tensor | None]:
        """Masks of completions, one per shape; all layers of a forward use the same."""
        return {}

    @cached_property
    def varlen(self) -> VarlenIndices:
        """Indices for a variable-length kernel, on the device of the layout."""
        device = self.source.device
        segment_lengths = np.array(self.segments, dtype=np.int64).reshape(-1)
        starts = np.cumsum(segment_lengths) - segment_lengths
        prompt_length = np.repeat(segment_lengths[0::SEGMENTS], SEGMENTS)
        prompt_length[0::SEGMENTS] = 0
        prompt_start = np.repeat(starts[0::SEGMENTS], SEGMENTS)
        key_lengths = prompt_length + segment_lengths
        segment = np.repeat(np.arange(len(key_lengths)), key_lengths)
        within = np.arange(len(segment)) - (np.cumsum(key_lengths) - key_lengths)[segment]
        in_prompt = within < prompt_length[segment]
        own = starts[segment] + within - prompt_length[segment]
        keys = np.where(in_prompt, prompt_start[segment] + within, own)
        return VarlenIndices(
            cu_seqlens_q=_cumulative(segment_lengths, device),
            cu_seqlens_k=_cumulative(key_lengths, device),
            max_q=int(segment_lengths.max()),
            max_k=int(key_lengths.max()),
            keys=torch.from_numpy(keys).to(device, non_blocking=True),
            copies=torch.from_numpy(_copies(keys, self.num_tokens)).to(device, non_blocking=True),
        )

    def to(self, device: Any, non_blocking: bool = False) -> "PairLayout":
        """Moves the tensors; called by accelerate for whatever a batch holds."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PairLayout":
        """Pins the tensors; called by torch's data loader for whatever a batch holds."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Any) -> "PairLayout":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PairLayout(**{k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()})


def to_segments(lengths: Indices, share_from: int = SHARE_FROM) -> Indices:
    """Turns lengths of prompt, chosen and rejected into those of the segments, shape (pairs, 3): what is computed."""
    prompts = lengths[:, :1]
    own = np.where(prompts < share_from, prompts, 0)
    segments: Indices = lengths + own * np.array([-1, 1, 1])
    return segments


def _cumulative(lengths: Indices, device: torch.device) -> torch.Tensor:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return torch.from_numpy(ends).to(device, non_blocking=True)


def _copies(keys: Indices, num_tokens: int) -> Indices:
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=num_tokens)
    first = np.cumsum(counts) - counts
    places = np.arange(len(keys)) - first[keys[order]]
    copies = np.full((num_tokens, SEGMENTS), len(keys))
    copies[keys[order], places] = order
    return copies
