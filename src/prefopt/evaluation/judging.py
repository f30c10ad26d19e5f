"""What judges say of the answers of two contestants: verdicts in both orders, win rates, and what a judge is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.intervals import Z_95
from prefopt.evaluation.judges.judge import Judge, LabelledPair, Matchup
from prefopt.evaluation.length import adjust_for_length, length_coefficient, length_gaps
from prefopt.evaluation.statistics import Estimate, Floats, Prompts, change_of_means

MATCHED = 0.1
"""Two answers are about equally long if their numbers of characters differ by at most this share of the longer one."""


@dataclass(frozen=True)
class Verdicts:
    """A judge's verdicts on two contestants' answers, seen from the first one; arrays of shape (prompts,).

    Attributes:
        forward: With the first contestant's answer shown first: 1 it is better, -1 worse, 0 tie, NaN no verdict.
        backward: The same matchups with it shown second, turned so that 1 still means that it is better.
        lengths: Characters of the first contestant's answer minus those of the second's, as a share of the longer.
    """

    forward: Floats
    backward: Floats
    lengths: Floats

    @property
    def outcomes(self) -> Floats:
        """1, 0 or -1 per prompt: what both orders agree on, and 0 where they do not; NaN without both verdicts."""
        agreed = np.where(self.forward == self.backward, self.forward, 0.0)
        return np.where(np.isnan(self.forward) | np.isnan(self.backward), nan, agreed)

    @property
    def readings(self) -> list[str]:
        """What the judge says of each prompt, in words: one of `READINGS`."""
        return [read_orders(*each) for each in zip(self.forward.tolist(), self.backward.tolist(), strict=True)]

    @property
    def is_read(self) -> NDArray[np.bool_]:
        """Whether there is a verdict in both orders, shape (prompts,)."""
        return ~np.isnan(self.outcomes)

    @property
    def consistency(self) -> float:
        """Share of read prompts on which both orders give the same verdict; NaN if none was read."""
        read = self.is_read
        return float((self.forward[read] == self.backward[read]).mean()) if read.any() else nan

    @property
    def first_slot(self) -> float:
        """Share of verdicts other than ties that went to the answer shown first: 0.5 without a bias; NaN of none."""
        wins_first = int((self.forward == 1).sum() + (self.backward == -1).sum())
        decided = int((np.abs(self.forward) == 1).sum() + (np.abs(self.backward) == 1).sum())
        return wins_first / decided if decided else nan

    def select(self, rows: NDArray[Any]) -> "Verdicts":
        """Returns the verdicts on some prompts."""
        return Verdicts(self.forward[rows], self.backward[rows], self.lengths[rows])


WIN, LOSS, TIE, INCONSISTENT, UNREAD = READINGS = (
    "win", "loss", "tie", "inconsistent under swap", "no verdict",
)  # fmt: skip
"""What a judge may say of two answers in both orders; an inconsistent verdict counts as a tie."""


def read_orders(forward: float | None, backward: float | None) -> str:
    """Returns what a judge's verdicts in both orders say, seen from the first contestant.

    Args:
        forward: 1, 0 or -1; None or NaN without a verdict.
        backward: The same of the other order, turned so that 1 still means that the first contestant is better.
    """
    if forward is None or backward is None or isnan(forward) or isnan(backward):
        return UNREAD
    if forward != backward:
        return INCONSISTENT
    return {1: WIN, 0: TIE, -1: LOSS}[int(forward)]


def judge_answers(judge: Judge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
    """Asks a judge about two contestants' answers to the same prompts, in both orders if it may see the order."""
    matchups = [Matchup(*each) for each in zip(prompts, first, second, strict=True)]
    forward = judge.read(matchups)
    backward = -judge.read([each.swapped for each in matchups]) if judge.sees_order else forward
    return Verdicts(forward, backward, length_gaps(first, second))


@dataclass(frozen=True)
class WinRate:
    """How often a contestant's answers were judged better than another's; a tie counts half.

    Attributes:
        a: Name of the contestant.
        b: Name of the other one.
        judge: Name of the judge.
        estimate: The win rate of `a`, with its interval.
        num_ties: Ties among the read prompts, also those where both orders disagreed.
        num_unread: Prompts without a verdict; they count nowhere else.
        consistency: Share of read prompts with the same verdict in both orders.
        first_slot: Share of decided verdicts for the answer shown first.
        matched: The win rate among answers of about equal length; None if there are none.
        adjusted: The win rate that a regression on the difference in length gives at no difference; None if it cannot
            be told. It is not AlpacaEval's length-controlled win rate, which has terms for each prompt and model.
        num_longer: Read prompts on which the answer of `a` is the longer one.
        num_shorter: Read prompts on which it is the shorter one.
    """

    a: str
    b: str
    judge: str
    estimate: Estimate
    num_ties: int = 0
    num_unread: int = 0
    consistency: float = nan
    first_slot: float = nan
    matched: Estimate | None = None
    adjusted: Estimate | None = None
    num_longer: int = 0
    num_shorter: int = 0

    @property
    def gain(self) -> Estimate:
        """The win rate above one half: 0 if both are equally good."""
        return replace(
            self.estimate, value=self.estimate.value - 0.5, low=self.estimate.low - 0.5, high=self.estimate.high - 0.5
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of `win_rates` in report.json."""
        names = {"a": self.a, "b": self.b, "judge": self.judge}
        told = {
            "ties": self.num_ties,
            "unread": self.num_unread,
            "consistency": self.consistency,
            "first_slot": self.first_slot,
            "longer": self.num_longer,
            "shorter": self.num_shorter,
        }
        further = {name: getattr(self, name) for name in ("matched", "adjusted")}
        written = {name: each.to_dict() for name, each in further.items() if each is not None}
        return {**names, **self.estimate.to_dict(), **told, **written}

    @property
    def discordant(self) -> float:
        """Share of read prompts that are no ties."""
        return 1 - self.num_ties / self.estimate.n if self.estimate.n else nan


def win_rate(outcomes: Floats, prompts: Prompts) -> Estimate:
    """Returns the mean of (outcome + 1) / 2 with the interval for paired shares (Bonett and Price 2012).

    Args:
        outcomes: 1 won, 0 tie, -1 lost, or anything between for a judge that gives probabilities; shape (prompts,).
        prompts: Of the outcomes.
    """
    if not len(outcomes):
        return Estimate(nan, nan, nan, 0, 0)
    found, _ = change_of_means(outcomes, prompts)
    return replace(found, value=0.5 + found.value / 2, low=0.5 + found.low / 2, high=0.5 + found.high / 2)


def cohens_kappa(outcomes: Floats, prompts: Prompts) -> Estimate:
    """Returns Cohen's kappa (1960) between a judge's verdicts and the data's labels, with its 95 % interval.

    Each pair counts in both orders, so that the labels are half one answer, half the other. Of the shares p right, q
    wrong and t tied, p agrees; chance agrees on (1 - t) / 2, since no label is a tie. Hence kappa = (p - q) / (1 + t).
    The interval is that of the ratio by the delta method at the effective number of pairs; as in `change_of_means`,
    two imagined pairs, of which one is right, keep it from being too narrow. Without ties, it is the same as there.

    Args:
        outcomes: 1 the judge is right, 0 it ties, -1 it is wrong; shape (pairs,).
        prompts: Of the pairs.
    """
    if not len(outcomes):
        return Estimate(nan, nan, nan, 0, 0)
    right, tied, wrong = (float((outcomes == each).mean()) for each in (1, 0, -1))
    value = (right - wrong) / (1 + tied)
    n = prompts.effective_n(outcomes - value * (1 + (outcomes == 0)))
    right, tied, wrong = (n * right + 1) / (n + 2), n * tied / (n + 2), (n * wrong + 1) / (n + 2)
    centre = (right - wrong) / (1 + tied)
    spread = right * (1 - centre) ** 2 + wrong * (1 + centre) ** 2 + tied * (2 * centre) ** 2
    reach = Z_95 * sqrt(spread / (n + 2)) / (1 + tied)
    return Estimate(value, max(centre - reach, -1.0), min(centre + reach, 1.0), len(outcomes), prompts.num)


def standard_error(outcomes: Floats) -> float:
    """Returns the standard error of a win rate as AlpacaEval prints it: the sample's deviation by the root of n."""
    return float(outcomes.std(ddof=1) / 2 / sqrt(len(outcomes))) if len(outcomes) > 1 else nan


def sum_up(a: str, b: str, judge: str, verdicts: Verdicts, prompts: Prompts) -> WinRate:
    """Returns the win rate of contestant `a` over `b`, from whose side the verdicts are, also at equal length."""
    read = verdicts.is_read
    outcomes, lengths, seen = verdicts.outcomes[read], verdicts.lengths[read], prompts.select(np.flatnonzero(read))
    matched = np.abs(lengths) <= MATCHED
    return WinRate(
        a,
        b,
        judge,
        win_rate(outcomes, seen),
        num_ties=int((outcomes == 0).sum()),
        num_unread=int((~read).sum()),
        consistency=verdicts.consistency,
        first_slot=verdicts.first_slot,
        matched=win_rate(outcomes[matched], seen.select(np.flatnonzero(matched))) if matched.any() else None,
        adjusted=adjust_for_length(outcomes, lengths, seen),
        num_longer=int((lengths > 0).sum()),
        num_shorter=int((lengths < 0).sum()),
    )


@dataclass(frozen=True)
class Standing:
    """What a judge is worth: how it reads held-out pairs of which the data say which answer is better.

    Attributes:
        kappa: Cohen's kappa between its verdicts, ties among them, and the data; see `cohens_kappa`.
        agreement: Share of pairs that it gets right, a tie counting half.
        consistency: As of a `WinRate`.
        first_slot: As of a `WinRate`.
        length_coefficient: Correlation of its verdicts with the difference in length.
        label_length_coefficient: That of the data's own labels, on the pairs that it read.
        num_unread: Pairs without a verdict.
        facts: What the judge says of itself.
    """

    kappa: Estimate
    agreement: Estimate
    consistency: float = nan
    first_slot: float = nan
    length_coefficient: float = nan
    label_length_coefficient: float = nan
    num_unread: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of `judges` in report.json."""
        return {
            "kappa": self.kappa.to_dict(),
            "agreement": self.agreement.to_dict(),
            "consistency": self.consistency,
            "first_slot": self.first_slot,
            "length_coefficient": self.length_coefficient,
            "label_length_coefficient": self.label_length_coefficient,
            "unread": self.num_unread,
            "facts": self.facts,
        }


def try_judge(judge: Judge, pairs: Sequence[LabelledPair], prompts: Prompts) -> Standing:
    """Lets a judge read held-out pairs, and compares its verdicts with the data's labels.

    Args:
        judge: The judge.
        pairs: Pairs that it has not learned from.
        prompts: Of the pairs.
    """
    columns = zip(*((pair.prompt, pair.chosen, pair.rejected) for pair in pairs), strict=True)
    verdicts = judge_answers(judge, *(list(column) for column in columns))
    read = verdicts.is_read
    agreement = win_rate(verdicts.outcomes[read], prompts.select(np.flatnonzero(read)))
    return Standing(
        cohens_kappa(verdicts.outcomes[read], prompts.select(np.flatnonzero(read))),
        agreement,
        verdicts.consistency,
        verdicts.first_slot,
        length_coefficient(verdicts.outcomes[read], verdicts.lengths[read]),
        length_coefficient(np.ones(int(read.sum())), verdicts.lengths[read]),
        int((~read).sum()),
        dict(judge.describe()),
    )
