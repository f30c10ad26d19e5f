"""Layout of the packed row: the tokens of a pair batch with every prompt stored once and without padding.

A batch of B pairs becomes one row of T tokens, pair after pair, each as `[prompt | chosen | rejected]`. P, C and R are
the lengths of a pair's three segments. A prompt that is too short to be worth sharing is part of both completion
segments instead, and its prompt segment is empty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

SEGMENTS = 3
"""Number of segments of a pair: prompt, chosen, rejected."""

SHARE_FROM = 32
"""Least length of a prompt, in tokens, at which sharing saves more time than the additional attention call costs."""

Indices = NDArray[np.int64]


class VarlenIndices(NamedTuple):
    """Indices for a variable-length attention kernel, which computes several causal sequences in one call.

    A pair `[prompt | chosen | rejected]` is two sequences. The first, prompt + chosen, has P + C queries and keys. The
    second has the R tokens of rejected as queries, and P + R keys: the prompt and rejected.

    Attributes:
        cu_seqlens_q: Cumulative query lengths, int32, shape (2 B + 1,).
        cu_seqlens_k: Cumulative key lengths, int32, shape (2 B + 1,).
        max_q: Longest query sequence, in tokens.
        max_k: Longest key sequence, in tokens.
        keys: Index in the row of each key, shape (Σ 2 P + C + R,); None if the keys are the row itself. An index
            occurs at most twice, so the sum of its gradients does not depend on their order.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_q: int
    max_k: int
    keys: torch.Tensor | None


@dataclass(frozen=True)
class PairLayout:
    """Maps a right-padded batch `[chosen; rejected]`, shape (2 B, width), to the packed row of T tokens and back.

    N is the number of scored tokens.

    Attributes:
        segments: Number of tokens of each pair's three segments in the row.
        width: Width of the padded batch.
        source: Index in the flattened padded batch of each token of the row, then of each scored token, shape
            (T + N,).
        position_ids: Positions, which continue from the prompt in both completions, shape (1, T).
        predictors: Index in the row of the token before each scored token, shape (N,). The last token of a prompt
            occurs twice, since it predicts the first token of both completions.
        scored: Index of each scored token in the flattened (2 B, width - 1) output, shape (N,).
        varlen: Indices for a variable-length kernel, computed with the layout on the CPU: computing them in a forward
            would make the host wait for the GPU.
    """

    segments: tuple[tuple[int, int, int], ...]
    width: int
    source: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    scored: torch.Tensor
    varlen: VarlenIndices

    @classmethod
    def build(
        cls,
        lengths: Sequence[tuple[int, int, int]],
        width: int,
        share_from: int = 0,
        completion_mask: Indices | None = None,
    ) -> "PairLayout":
        """Returns the layout of a batch of pairs.

        Without a prompt, nothing predicts a completion's first token, so it is not scored, as in TRL.

        Args:
            lengths: Tokens of prompt, chosen and rejected of each pair; completions have at least one.
            width: Width of the padded batch.
            share_from: Least length of a prompt that is shared; a shorter one is computed with each completion.
            completion_mask: Which tokens of the completions are scored, 1 or 0, shape (2 B, width). None: all.
        """
        pairs = len(lengths)
        prompts = np.array([prompt for prompt, *_ in lengths], dtype=np.int64)
        segments = to_segments(np.array(lengths, dtype=np.int64).reshape(-1, SEGMENTS), share_from)
        segment_lengths = segments.reshape(-1)
        starts = np.cumsum(segment_lengths) - segment_lengths
        segment = np.repeat(np.arange(SEGMENTS * pairs), segment_lengths)
        pair, part = np.divmod(segment, SEGMENTS)
        token = np.arange(len(segment))
        within = token - starts[segment]
        position = within + np.where(part > 0, segments[:, 0][pair], 0)
        row = pair + np.where(part == 2, pairs, 0)
        last_of_prompt = (starts[0::SEGMENTS] + segment_lengths[0::SEGMENTS] - 1)[pair]
        before = np.where(within == 0, last_of_prompt, token - 1)
        source = row * width + position
        is_scored = (part > 0) & (position >= np.maximum(prompts, 1)[pair])
        if completion_mask is not None:
            is_scored &= completion_mask[row, position] == 1
        return cls(
            segments=tuple((prompt, chosen, rejected) for prompt, chosen, rejected in segments.tolist()),
            width=width,
            source=torch.from_numpy(np.concatenate([source, source[is_scored]])),
            position_ids=torch.from_numpy(position[None]),
            predictors=torch.from_numpy(before[is_scored]),
            scored=torch.from_numpy((row * (width - 1) + position - 1)[is_scored]),
            varlen=_index_sequences(segments),
        )

    @property
    def num_pairs(self) -> int:
        return len(self.segments)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the row, T."""
        return self.position_ids.numel()

    @cached_property
    def split(self) -> list[int]:
        """Lengths of all segments, in the order of the row."""
        return [length for pair in self.segments for length in pair]

    @cached_property
    def masks(self) -> dict[tuple[int, int, int | None], torch.Tensor | None]:
        """Cache of attention masks by shape, shared by all layers of a forward."""
        return {}

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "PairLayout":
        """Returns the layout on another device; accelerate calls it for each entry of a batch."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PairLayout":
        """Returns the layout in pinned memory; torch's data loader calls it for each entry of a batch."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PairLayout":
        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, torch.Tensor) else value

        values = {field.name: changed(getattr(self, field.name)) for field in fields(self)}
        return PairLayout(**{**values, "varlen": VarlenIndices(*map(changed, self.varlen))})


def to_segments(lengths: Indices, share_from: int = SHARE_FROM) -> Indices:
    """Returns the segment lengths, shape (pairs, 3), given the lengths of prompt, chosen and rejected."""
    prompts = lengths[:, :1]
    own = np.where(prompts < share_from, prompts, 0)
    segments: Indices = lengths + own * np.array([-1, 1, 1])
    return segments


def _index_sequences(segments: Indices) -> VarlenIndices:
    """Returns the kernel indices of two sequences per pair, given the segment lengths, shape (pairs, 3)."""
    prompts, rejected = segments[:, 0], segments[:, 2]
    queries = np.stack([segments[:, :2].sum(axis=1), rejected], axis=1).reshape(-1)
    keys = np.stack([queries[0::2], prompts + rejected], axis=1).reshape(-1)
    return VarlenIndices(
        cu_seqlens_q=_cumulative(queries),
        cu_seqlens_k=_cumulative(keys),
        max_q=int(queries.max()),
        max_k=int(keys.max()),
        keys=torch.from_numpy(_places_of_keys(queries, keys, prompts)) if prompts.any() else None,
    )


def _places_of_keys(queries: Indices, keys: Indices, prompts: Indices) -> Indices:
    """Returns the index in the row of each key of each sequence; the second one of a pair begins with the prompt."""
    starts = np.cumsum(queries) - queries
    sequence = np.repeat(np.arange(len(keys)), keys)
    within = np.arange(len(sequence)) - (np.cumsum(keys) - keys)[sequence]
    repeated = np.where(sequence % 2, prompts[sequence // 2], 0)
    own = starts[sequence] + within - repeated
    of_prompt = starts[sequence - sequence % 2] + within
    places: Indices = np.where(within < repeated, of_prompt, own)
    return places


def _cumulative(lengths: Indices) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
