"""Where the tokens of a pair batch stand once every prompt is kept a single time and nothing is padded.

A batch of B pairs becomes one row of T tokens, pair after pair, each as `[prompt | chosen | rejected]`. P, C and R are
the lengths of a pair's three segments. A prompt too short to be worth sharing stands in front of each completion
instead: its first segment is empty then.
"""

from collections.abc import Callable, Sequence
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
    """What a variable-length attention kernel needs, which computes one causal sequence after the other.

    Of a pair `[prompt | chosen | rejected]` the first two are a sequence as they stand, of P + C tokens. The other one
    has the R tokens of rejected as queries, and P + R keys.

    Attributes:
        cu_seqlens_q: Cumulative query lengths, int32, shape (2 B + 1,).
        cu_seqlens_k: Cumulative key lengths, int32, shape (2 B + 1,).
        max_q: Longest query sequence, in tokens.
        max_k: Longest key sequence, in tokens.
        keys: For each key its place in the row, shape (Σ 2 P + C + R,); None where the row itself is the keys. A place
            occurs at most twice, so the sum of its gradients is the same in either order.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_q: int
    max_k: int
    keys: torch.Tensor | None


@dataclass(frozen=True)
class PairLayout:
    """The shared-prefix form of a padded batch `[chosen; rejected]` of shape (2 B, width), right-padded.

    Attributes:
        segments: Tokens of each pair's three segments in the row.
        width: Width of the padded batch.
        source: For each token of the row, and then for each scored token, its place in the flattened padded batch,
            shape (T + N,).
        position_ids: Positions, which restart after the prompt for the rejected completion, shape (1, T).
        predictors: For each scored token the place in the row of the token before it, shape (N,). The last token of a
            prompt is there twice: it predicts the first token of both completions.
        scored: For each scored token its place in the flattened (2 B, width - 1) output, shape (N,).
        varlen: For a variable-length kernel. Made here, on the CPU, and not in a forward, which would wait for a GPU.
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
        """Lays out pairs.

        Without a prompt (P = 0) nothing predicts a completion's first token, which then is not scored, as in TRL.

        Args:
            lengths: Tokens of prompt, chosen and rejected of each pair; completions have at least one.
            width: Of the padded batch.
            share_from: A prompt of fewer tokens is computed with each completion.
            completion_mask: Which tokens of the completions are scored, 1 or 0, shape (2 B, width). Unset: all.
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
        """Tokens that are computed, T."""
        return self.position_ids.numel()

    @cached_property
    def split(self) -> list[int]:
        """Lengths of all segments in the order of the row."""
        return [length for pair in self.segments for length in pair]

    @cached_property
    def masks(self) -> dict[Any, torch.Tensor | None]:
        """Masks of completions, one per shape; all layers of a forward use the same."""
        return {}

    def to(self, device: Any, non_blocking: bool = False) -> "PairLayout":
        """Moves the tensors; called by accelerate for whatever a batch holds."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PairLayout":
        """Pins the tensors; called by torch's data loader for whatever a batch holds."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PairLayout":
        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, torch.Tensor) else value

        values = {field.name: changed(getattr(self, field.name)) for field in fields(self)}
        return PairLayout(**{**values, "varlen": VarlenIndices(*map(changed, self.varlen))})


def to_segments(lengths: Indices, share_from: int = SHARE_FROM) -> Indices:
    """Turns lengths of prompt, chosen and rejected into those of the segments, shape (pairs, 3): what is computed."""
    prompts = lengths[:, :1]
    own = np.where(prompts < share_from, prompts, 0)
    segments: Indices = lengths + own * np.array([-1, 1, 1])
    return segments


def _index_sequences(segments: Indices) -> VarlenIndices:
    """Two sequences for each pair, from the tokens of its segments, shape (pairs, 3)."""
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
    """For each key of each sequence its place in the row: of the second of a pair, first those of the prompt."""
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
