"""Computes the numbers of the report from the contestants' measurements."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.measure import Material, Measured
from prefopt.evaluation.metrics import (
    ACCURACY,
    BASE,
    CHOSEN,
    CHOSEN_FELL,
    DRIFT,
    FINISHED,
    HELD_OUT,
    KL,
    KL_PER_RESPONSE,
    LENGTH,
    LONGER_WINS,
    LOSS,
    MARGIN,
    OF_ALL,
    PERPLEXITY,
    REJECTED,
    REPETITION,
    REWARD_ACCURACY,
    REWARD_MARGIN,
    SHORTER_WINS,
    TUNED,
    Metric,
    add,
)
from prefopt.evaluation.metrics import OF_PAIRS as PREFERENCE_ROWS
from prefopt.evaluation.report import AnswersEstimate, Estimates, Gap, HeldOut
from prefopt.evaluation.sampling import Answer
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.statistics import Bootstrap, Estimate, Floats, share, sign_test
from prefopt.process.errors import UserError, shorten

Clusters = NDArray[np.int64] | None

OF_PAIRS: dict[str, Callable[[PairScores], NDArray[Any]]] = {
    ACCURACY: lambda pairs: pairs.margins > 0,
    MARGIN: lambda pairs: pairs.margins,
}
"""Metric -> its value for each pair; booleans are reported as their share, numbers as their mean."""
OF_REWARDS: dict[str, Callable[[Floats], NDArray[Any]]] = {
    REWARD_ACCURACY: lambda margins: margins > 0,
    REWARD_MARGIN: lambda margins: margins,
}
"""Metric -> its value for each pair, from the margins of the implicit rewards."""
OF_ANSWERS: dict[str, Callable[[Sequence[Answer]], Floats]] = {
    LENGTH: lambda answers: np.array([float(len(answer.ids)) for answer in answers]),
    FINISHED: lambda answers: np.array([float(answer.finished) for answer in answers]),
    REPETITION: lambda answers: np.array([float(answer.repetition) for answer in answers]),
}
"""Metric -> its value for each of the answers that a model generated; the mean is reported."""
AGAIN = "Mend it, and start again: what was trained is kept."


def register(
    metric: Metric,
    *,
    of_pairs: Callable[[PairScores], NDArray[Any]] | None = None,
    of_answers: Callable[[Answer], float] | None = None,
) -> None:
    """Adds a metric to reports, comparisons and W&B, for this process; one of its key from before is replaced.

    Args:
        metric: How it is called, written and read; its `path`, `rows` and `of_pairs` follow from the function.
        of_pairs: From one model's scores of the held-out pairs to an array of shape (pairs,). Of truths the share is
            reported, of numbers the mean.
        of_answers: From one of the model's own answers to a number; the mean is reported.

    Raises:
        UserError: Its key is taken, or there is not one function. The evaluation checks what the function returns.
    """
    given = of_pairs if of_answers is None else of_answers
    if given is not None and not callable(given):
        raise UserError(f"metric {metric.key!r}: its function cannot be called, found {shorten(repr(given))}.")
    if (of_pairs is None) == (of_answers is None):
        raise UserError(f"metric {metric.key!r}: give one function, either of_pairs or of_answers.")
    path = (DRIFT, metric.key, TUNED) if of_pairs is None else (HELD_OUT, TUNED, metric.key)
    rows = OF_ALL if of_pairs is None else PREFERENCE_ROWS
    add(replace(metric, path=path, rows=rows, of_pairs=of_pairs is not None, is_relative=False, logged=None))
    OF_PAIRS.pop(metric.key, None)
    OF_ANSWERS.pop(metric.key, None)
    if of_pairs is not None:
        OF_PAIRS[metric.key] = _one_per_pair(metric.key, of_pairs)
    if of_answers is not None:
        OF_ANSWERS[metric.key] = _one_per_answer(metric.key, of_answers)


def _one_per_pair(key: str, of_pairs: Callable[[PairScores], NDArray[Any]]) -> Callable[[PairScores], NDArray[Any]]:
    """The function, whose values are truths or finite numbers, one for each pair."""

    def checked(pairs: PairScores) -> NDArray[Any]:
        values = np.asarray(of_pairs(deepcopy(pairs)))  # other metrics are computed from the same arrays
        if values.shape != pairs.margins.shape or values.dtype.kind not in "bif":
            shape = pairs.margins.shape
            raise UserError(
                f"metric {key}: its function must return an array of truths or numbers of shape {shape}, found "
                f"{values.dtype} in shape {values.shape}. {AGAIN}"
            )
        return values if values.dtype == bool else _finite(key, values.astype(float), "pairs")

    return checked


def _one_per_answer(key: str, of_answers: Callable[[Answer], float]) -> Callable[[Sequence[Answer]], Floats]:
    """The function for many answers; its values are truths or finite numbers."""

    def checked(answers: Sequence[Answer]) -> Floats:
        values = [of_answers(deepcopy(answer)) for answer in answers]
        for value in values:
            if not isinstance(value, int | float | np.number | np.bool_):
                found = shorten(repr(value))
                raise UserError(f"metric {key}: its function must return a truth or a number, found {found}. {AGAIN}")
        return _finite(key, np.array(values, dtype=float), "answers")

    return checked


def _finite(key: str, values: Floats, items: str) -> Floats:
    """Returns `values`, shape (items,).

    Raises:
        UserError: Some are not finite: neither a mean nor an interval would be.
    """
    num = np.count_nonzero(~np.isfinite(values))
    if num:
        raise UserError(f"metric {key}: its function is not finite for {num} of {len(values)} {items}. {AGAIN}")
    return values


class Summary:
    """Computes the blocks of the report.

    Args:
        measured: Name of a contestant -> its results; `base` and `tuned` are compared.
        material: The data that they were measured on.
        beta: DPO's beta; None without implicit rewards.
        bootstrap: Computes the intervals of means.
    """

    def __init__(
        self, measured: Mapping[str, Measured], material: Material, *, beta: float | None, bootstrap: Bootstrap
    ) -> None:
        self.base, self.tuned = measured[BASE], measured[TUNED]
        self.models = {BASE: self.base, **measured}
        self.clusters, self.sources = material.clusters, material.sources
        self.groupings = [np.array(names) for names in (material.slices, material.tags)]
        self.beta = beta
        self.bootstrap = bootstrap

    def held_out(self) -> HeldOut:
        """Metrics of each contestant on the held-out data, and the gain of the tuned model over the base."""
        found = HeldOut(self._num_held_out(), {name: self._of_model(model) for name, model in self.models.items()})
        found.gain = self._loss_gain()
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return found
        gain = (tuned.margins > 0).astype(float) - (base.margins > 0).astype(float)
        wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
        longer = base.chosen.lengths - base.rejected.lengths
        found.gain[ACCURACY] = self._mean(gain, self.clusters)
        found.p_value = sign_test(wins, losses) if wins + losses else 1.0
        found.baselines = {
            LONGER_WINS: share(longer > 0, self.clusters),
            SHORTER_WINS: share(longer < 0, self.clusters),
        }
        pairs = {name: model.held_out_pairs for name, model in self.models.items()}
        found.ties = {name: int((scores.margins == 0).sum()) for name, scores in pairs.items() if scores is not None}
        return found

    def slices(self) -> list[dict[str, Any]]:
        """Held-out metrics of each part of a mixture and of each tag, in the order of the first example of each."""
        return [
            {"name": name, "n": int((names == name).sum()), **self._of_slice(np.flatnonzero(names == name))}
            for names in self.groupings
            for name in dict.fromkeys(names.tolist())
        ]

    def _of_slice(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Metrics of some held-out examples: of preference pairs, or the loss of demonstrations."""
        base_rows, tuned_rows = self.base.held_out_rows, self.tuned.held_out_rows
        if base_rows is not None and tuned_rows is not None:
            lengths, base, tuned = base_rows.lengths[rows], base_rows.logps[rows], tuned_rows.logps[rows]
            of_base, of_tuned, gain = (self.bootstrap.ratio(x, lengths) for x in (-base, -tuned, base - tuned))
            return {LOSS: of_tuned, "base": {LOSS: of_base}, "gain": {LOSS: gain}}
        base_pairs, tuned_pairs = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base_pairs is None or tuned_pairs is None:
            return {}
        clusters = None if self.clusters is None else np.unique(self.clusters[rows], return_inverse=True)[1]
        margins = {BASE: base_pairs.margins[rows], TUNED: tuned_pairs.margins[rows]}
        found = {
            name: {ACCURACY: share(each > 0, clusters), MARGIN: self._mean(each, clusters)}
            for name, each in margins.items()
        }
        gain = (margins[TUNED] > 0).astype(float) - (margins[BASE] > 0).astype(float)
        return {**found[TUNED], "base": found[BASE], "gain": {ACCURACY: self._mean(gain, clusters)}}

    def overfitting(self) -> dict[str, Gap]:
        """Train and held-out metrics of the tuned model, and their gap (train minus held-out; for a loss reversed)."""
        block: dict[str, Gap] = {}
        held_out, train = self.tuned.held_out_pairs, self.tuned.train_pairs
        if held_out is not None and train is not None:
            block[ACCURACY] = self._gap(train.margins > 0, held_out.margins > 0)
            base_held_out, base_train = self.base.held_out_pairs, self.base.train_pairs
            if self.beta is not None and base_held_out is not None and base_train is not None:
                rewards = _rewards(base_train, train, self.beta), _rewards(base_held_out, held_out, self.beta)
                block[REWARD_ACCURACY] = self._gap(rewards[0] > 0, rewards[1] > 0)
        if self.tuned.held_out_rows is not None and self.tuned.train_rows is not None:
            on_train, on_held_out = (self._loss(rows) for rows in (self.tuned.train_rows, self.tuned.held_out_rows))
            gap = on_held_out.value - on_train.value
            block[LOSS] = {"train": on_train, "held_out": on_held_out, "gap": gap}
        return block

    def drift(self) -> dict[str, Estimate | Estimates]:
        """How far the tuned model moved from its base, on its own answers and on text outside the task."""
        block: dict[str, Estimate | Estimates] = {}
        by_base, by_tuned = (model.answers_of.get(TUNED) for model in (self.base, self.tuned))
        if by_base is not None and by_tuned is not None:
            log_ratios = by_tuned.logps - by_base.logps
            block[KL] = self.bootstrap.ratio(log_ratios, by_tuned.lengths)
            per_response = self._mean(log_ratios)
            block[KL_PER_RESPONSE] = AnswersEstimate(**vars(per_response), **_count_cut(self.tuned.samples))
            for key, value_of in OF_ANSWERS.items():
                block[key] = {name: self._mean(value_of(model.samples)) for name, model in self.models.items()}
        neutral = {name: model.neutral for name, model in self.models.items() if model.neutral is not None}
        if BASE in neutral and TUNED in neutral:
            base, tuned = neutral[BASE], neutral[TUNED]
            ratio = _exp(self.bootstrap.ratio(base.logps - tuned.logps, base.lengths))
            block[PERPLEXITY] = {name: _exp(self._loss(rows)) for name, rows in neutral.items()} | {"ratio": ratio}
        return block

    def likelihood(self) -> Estimates | None:
        """Change of the held-out completions' log-prob per token, tuned minus base."""
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return None
        chosen = tuned.chosen.avg_logps - base.chosen.avg_logps
        return {
            CHOSEN: self._mean(chosen, self.clusters),
            REJECTED: self._mean(tuned.rejected.avg_logps - base.rejected.avg_logps, self.clusters),
            CHOSEN_FELL: share(chosen < 0, self.clusters),
        }

    def per_pair(self) -> list[dict[str, object]]:
        """One row per held-out pair, for charts and for a look at single failures."""
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return []
        rewards = _rewards(base, tuned, self.beta) if self.beta is not None else [None] * len(self.sources)
        columns = zip(self.sources, base.margins, tuned.margins, rewards, strict=True)
        return [
            {
                "source": source,
                "base_margin": float(base_margin),
                "tuned_margin": float(tuned_margin),
                "reward_margin": None if reward is None else float(reward),
            }
            for source, base_margin, tuned_margin, reward in columns
        ]

    def _num_held_out(self) -> int:
        if self.tuned.held_out_pairs is not None:
            return len(self.tuned.held_out_pairs.margins)
        return len(self.tuned.held_out_rows.logps) if self.tuned.held_out_rows is not None else 0

    def _of_model(self, model: Measured) -> Estimates:
        found: Estimates = {}
        pairs, base = model.held_out_pairs, self.base.held_out_pairs
        if pairs is not None:
            found |= {key: self._estimate(value_of(pairs)) for key, value_of in OF_PAIRS.items()}
        if model.held_out_rows is not None:
            loss = self._loss(model.held_out_rows)
            found |= {LOSS: loss, PERPLEXITY: _exp(loss)}
        if self.beta is not None and pairs is not None and base is not None and model is not self.base:
            margins = _rewards(base, pairs, self.beta)
            found |= {key: self._estimate(value_of(margins)) for key, value_of in OF_REWARDS.items()}
        return found

    def _estimate(self, values: NDArray[Any]) -> Estimate:
        """Estimates the share (of booleans) or the mean over held-out pairs."""
        return share(values, self.clusters) if values.dtype == bool else self._mean(values, self.clusters)

    def _loss(self, rows: Scores) -> Estimate:
        return self.bootstrap.ratio(-rows.logps, rows.lengths)

    def _loss_gain(self) -> Estimates:
        """Paired change of the loss per token, tuned minus base: negative is better."""
        base, tuned = self.base.held_out_rows, self.tuned.held_out_rows
        if base is None or tuned is None:
            return {}
        return {LOSS: self.bootstrap.ratio(base.logps - tuned.logps, base.lengths)}

    def _gap(self, train: NDArray[np.bool_], held_out: NDArray[np.bool_]) -> Gap:
        """Shares and their difference, with Newcombe's interval of a difference of two independent shares."""
        a, b = share(train), share(held_out, self.clusters)
        gap = a.value - b.value
        low = gap - np.hypot(a.value - a.low, b.high - b.value)
        high = gap + np.hypot(a.high - a.value, b.value - b.low)
        return {"train": a, "held_out": b, "gap": Estimate(gap, float(low), float(high), b.n)}

    def _mean(self, values: Floats, clusters: Clusters = None) -> Estimate:
        return self.bootstrap.mean(values, clusters)


def _count_cut(answers: list[Answer]) -> dict[str, Any]:
    """Counts the answers that were cut at the token limit: sums over them miss the part after the cut."""
    cut = [len(answer.ids) for answer in answers if not answer.finished]
    return {"num_cut": len(cut), "cut_at": max(cut, default=None)}


def _rewards(base: PairScores, tuned: PairScores, beta: float) -> Floats:
    """Margins of the implicit rewards beta * (log p_tuned - log p_base), summed over tokens as TRL defines them."""
    chosen = tuned.chosen.logps - base.chosen.logps
    rejected = tuned.rejected.logps - base.rejected.logps
    return np.asarray(beta * (chosen - rejected))


def _exp(estimate: Estimate) -> Estimate:
    value, low, high = (float(x) for x in np.exp([estimate.value, estimate.low, estimate.high]))
    return Estimate(value, low, high, estimate.n)
