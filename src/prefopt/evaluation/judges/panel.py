"""A judge that is the majority of other judges."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.config.judges import PanelJudgeConfig
from prefopt.evaluation.judges.judge import Judge, Matchup
from prefopt.evaluation.statistics import Floats


class PanelJudge:
    """The verdict that more than half of the voting judges give; a tie where there is none.

    A judge without a verdict abstains. Where more than half of the judges abstain, the panel has no verdict either:
    a single voice is no panel.

    Args:
        config: Its name.
        judges: Its members, at least three.
    """

    def __init__(self, config: PanelJudgeConfig, judges: Sequence[Judge]) -> None:
        self.name = config.name
        self.sees_order = any(judge.sees_order for judge in judges)
        self._judges = judges
        self._num_read = self._num_without_majority = self._num_without_quorum = 0

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup."""
        votes = np.stack([judge.read(matchups) for judge in self._judges])
        num_voting = (~np.isnan(votes)).sum(axis=0)
        verdicts = np.zeros(len(matchups))
        has_majority = np.zeros(len(matchups), bool)
        for verdict in (-1.0, 0.0, 1.0):
            wins = 2 * (votes == verdict).sum(axis=0) > num_voting
            verdicts[wins] = verdict
            has_majority |= wins
        has_quorum = 2 * num_voting >= len(self._judges)
        self._num_read += len(matchups)
        self._num_without_majority += int((has_quorum & ~has_majority).sum())
        self._num_without_quorum += int((~has_quorum).sum())
        return np.where(has_quorum, verdicts, np.nan)

    def describe(self) -> Mapping[str, Any]:
        """Returns its members, and how often they had no majority (a tie) or mostly abstained (no verdict)."""
        return {
            "kind": "panel",
            "of": {judge.name: dict(judge.describe()) for judge in self._judges},
            "num_read": self._num_read,
            "num_without_majority": self._num_without_majority,
            "num_without_quorum": self._num_without_quorum,
        }
