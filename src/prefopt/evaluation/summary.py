"""Computes the numbers of the report from the contestants' measurements."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.material import Material
from prefopt.evaluation.measure import Measured
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
from prefopt.evaluation.slices import are_equal
from prefopt.evaluation.statistics import (
    Bootstrap,
    Estimate,
    Floats,
    Prompts,
    are_above_zero,
    change_of_share,
    difference,
    share,
)
from prefopt.process.errors import UserError, shorten

OF_PAIRS: dict[str, Callable[[PairScores], NDArray[Any]]] = {
    ACCURACY: lambda pairs: are_above_zero(pairs.margins),
    MARGIN: lambda pairs: pairs.margins,
}
"""Metric -> its value for each pair; booleans are reported as their share, numbers as their mean."""
OF_REWARDS: dict[str, Callable[[Floats], NDArray[Any]]] = {
    REWARD_ACCURACY: are_above_zero,
    REWARD_MARGIN: lambda margins: margins,
}
"""Metric -> its value for each pair, from the margins of the implicit rewards."""
OF_ANSWERS: dict[str, Callable[[Sequence[Answer]], NDArray[Any]]] = {
    LENGTH: lambda answers: np.array([float(len(answer.ids)) for answer in answers]),
    FINISHED: lambda answers: np.array([answer.finished for answer in answers]),
    REPETITION: lambda answers: np.array([float(answer.repetition) for answer in answers]),
}
"""Metric -> its value for each of the answers that a model generated; of booleans the share, of numbers the mean."""
SHARES = (REPETITION,)
"""Metrics whose numbers are shares themselves, in [0, 1]: their mean is estimated as a share is."""
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


def _one_per_answer(key: str, of_answers: Callable[[Answer], float]) -> Callable[[Sequence[Answer]], NDArray[Any]]:
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
        measured: Name of a contestant -> its results; `base` and `tuned` are compared. Nothing counts as measured
            against a base that failed.
        material: The data that they were measured on.
        beta: DPO's beta; None without implicit rewards.
        bootstrap: Computes the intervals of means.
    """

    def __init__(
        self, measured: Mapping[str, Measured], material: Material, *, beta: float | None, bootstrap: Bootstrap
    ) -> None:
        base, self.tuned = measured[BASE], measured[TUNED]
        self.base = base if base.failure is None else Measured(None, None, None, None, None, [], [])
        self.models = {BASE: self.base, **{name: each for name, each in measured.items() if name != BASE}}
        self.material, self.sources = material, material.sources
        self.groupings = (material.slices, material.tags)
        self.beta = beta
        self.bootstrap = bootstrap

    def held_out(self) -> HeldOut:
        """Metrics of each contestant on the held-out data, and the gain of the tuned model over the base."""
        found = HeldOut(self._num_held_out(), {name: self._of_model(model) for name, model in self.models.items()})
        found.gain = self._loss_gain()
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return found
        prompts = self.material.held_out.pair_prompts
        longer = base.chosen.lengths - base.rejected.lengths
        rules = {LONGER_WINS: longer > 0, SHORTER_WINS: longer < 0}
        base_hits, tuned_hits = (are_above_zero(each.margins) for each in (base, tuned))
        change = change_of_share(base_hits, tuned_hits, prompts)
        found.gain[ACCURACY], found.p_value = change.estimate, change.p_value
        found.discordant, found.effective_n = change.discordant, change.effective_n
        found.baselines = {name: share(hits, prompts) for name, hits in rules.items()}
        found.over_baselines = {
            name: change_of_share(hits, tuned_hits, prompts).estimate for name, hits in rules.items()
        }
        pairs = {name: model.held_out_pairs for name, model in self.models.items()}
        found.ties = {name: _count_ties(scores.margins) for name, scores in pairs.items() if scores is not None}
        return found

    def slices(self) -> list[dict[str, Any]]:
        """Held-out metrics of each part of a mixture and of each tag, in the order of the first example of each."""
        if self.base.held_out_pairs is None and self.base.held_out_rows is None:
            return []
        found = []
        for names in self.groupings:
            for name in dict.fromkeys(names):
                rows = np.flatnonzero(are_equal(names, name))
                found.append({"name": name, "n": len(rows), **self._of_slice(rows)})
        return found

    def _of_slice(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Metrics of some held-out examples: of preference pairs, or the loss of demonstrations."""
        base_rows, tuned_rows = self.base.held_out_rows, self.tuned.held_out_rows
        if base_rows is not None and tuned_rows is not None:
            prompts = _select(self.material.held_out.row_prompts, rows)
            lengths, base, tuned = base_rows.lengths[rows], base_rows.logps[rows], tuned_rows.logps[rows]
            of_base, of_tuned, gain = (
                self.bootstrap.ratio(x, lengths, prompts) for x in (-base, -tuned, base - tuned)
            )
            return {LOSS: of_tuned, "base": {LOSS: of_base}, "gain": {LOSS: gain}}
        base_pairs, tuned_pairs = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base_pairs is None or tuned_pairs is None:
            return {}
        prompts = _select(self.material.held_out.pair_prompts, rows)
        margins = {BASE: base_pairs.margins[rows], TUNED: tuned_pairs.margins[rows]}
        hits = {name: are_above_zero(each) for name, each in margins.items()}
        found = {
            name: {ACCURACY: share(hits[name], prompts), MARGIN: self.bootstrap.mean(each, prompts)}
            for name, each in margins.items()
        }
        gain = change_of_share(hits[BASE], hits[TUNED], prompts).estimate
        return {**found[TUNED], "base": found[BASE], "gain": {ACCURACY: gain}}

    def overfitting(self) -> dict[str, Gap]:
        """Train and held-out metrics of the tuned model, and their gap: above 0, training did better.

        It is train minus held-out for what is better if higher, and held-out minus train for a loss.
        """
        block: dict[str, Gap] = {}
        held_out, train = self.tuned.held_out_pairs, self.tuned.train_pairs
        if held_out is not None and train is not None:
            block[ACCURACY] = self._gap(train.margins, held_out.margins)
            base_held_out, base_train = self.base.held_out_pairs, self.base.train_pairs
            if self.beta is not None and base_held_out is not None and base_train is not None:
                rewards = _rewards(base_train, train, self.beta), _rewards(base_held_out, held_out, self.beta)
                block[REWARD_ACCURACY] = self._gap(*rewards)
        if self.tuned.held_out_rows is not None and self.tuned.train_rows is not None:
            train_loss = self._loss(self.tuned.train_rows, self.material.train.row_prompts)
            held_out_loss = self._loss(self.tuned.held_out_rows, self.material.held_out.row_prompts)
            gap = replace(difference(held_out_loss, train_loss), n=held_out_loss.n)
            block[LOSS] = {"train": train_loss, "held_out": held_out_loss, "gap": gap}
        return block

    def drift(self) -> dict[str, Estimate | Estimates]:
        """How far the tuned model moved from its base, on its own answers and on text outside the task."""
        block: dict[str, Estimate | Estimates] = {}
        by_base, by_tuned = (model.answers_of.get(TUNED) for model in (self.base, self.tuned))
        if by_base is not None and by_tuned is not None:
            log_ratios = by_tuned.logps - by_base.logps
            prompts = self.material.answer_prompts
            block[KL] = self.bootstrap.ratio(log_ratios, by_tuned.lengths, prompts)
            per_response = self.bootstrap.mean(log_ratios, prompts)
            block[KL_PER_RESPONSE] = AnswersEstimate(**vars(per_response), **_count_cut(self.tuned.samples))
            for key, value_of in OF_ANSWERS.items():
                block[key] = {
                    name: self._estimate(value_of(model.samples), prompts, is_share=key in SHARES)
                    for name, model in self.models.items()
                    if model.samples
                }
        neutral = {name: model.neutral for name, model in self.models.items() if model.neutral is not None}
        if BASE in neutral and TUNED in neutral:
            base, tuned = neutral[BASE], neutral[TUNED]
            ratio = _exp(self.bootstrap.ratio(base.logps - tuned.logps, base.lengths))
            of_each = {name: _exp(self._loss(rows, None)) for name, rows in neutral.items()}
            block[PERPLEXITY] = of_each | {"ratio": ratio}
        return block

    def likelihood(self) -> Estimates | None:
        """Change of the held-out completions' log-prob per token, tuned minus base."""
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return None
        prompts = self.material.held_out.pair_prompts
        chosen = tuned.chosen.avg_logps - base.chosen.avg_logps
        return {
            CHOSEN: self.bootstrap.mean(chosen, prompts),
            REJECTED: self.bootstrap.mean(tuned.rejected.avg_logps - base.rejected.avg_logps, prompts),
            CHOSEN_FELL: share(are_above_zero(-chosen), prompts),
        }

    def per_pair(self) -> list[dict[str, object]]:
        """One row per held-out pair, for charts and for a look at single failures."""
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return []
        rewards = _rewards(base, tuned, self.beta) if self.beta is not None else [None] * len(self.sources)
        prompts = self.material.held_out.pair_prompts
        assert prompts is not None, "pairs have prompts"
        columns = zip(self.sources, prompts.numbers.tolist(), base.margins, tuned.margins, rewards, strict=True)
        return [
            {
                "source": source,
                "prompt": prompt,
                "base_margin": float(base_margin),
                "tuned_margin": float(tuned_margin),
                "reward_margin": None if reward is None else float(reward),
            }
            for source, prompt, base_margin, tuned_margin, reward in columns
        ]

    def _num_held_out(self) -> int:
        if self.tuned.held_out_pairs is not None:
            return len(self.tuned.held_out_pairs.margins)
        return len(self.tuned.held_out_rows.logps) if self.tuned.held_out_rows is not None else 0

    def _of_model(self, model: Measured) -> Estimates:
        found: Estimates = {}
        pairs, base, prompts = model.held_out_pairs, self.base.held_out_pairs, self.material.held_out.pair_prompts
        if pairs is not None:
            found |= {key: self._estimate(value_of(pairs), prompts) for key, value_of in OF_PAIRS.items()}
        if model.held_out_rows is not None:
            loss = self._loss(model.held_out_rows, self.material.held_out.row_prompts)
            found |= {LOSS: loss, PERPLEXITY: _exp(loss)}
        if self.beta is not None and pairs is not None and base is not None and model is not self.base:
            margins = _rewards(base, pairs, self.beta)
            found |= {key: self._estimate(value_of(margins), prompts) for key, value_of in OF_REWARDS.items()}
        return found

    def _estimate(self, values: NDArray[Any], prompts: Prompts | None, *, is_share: bool = False) -> Estimate:
        """Estimates the share of booleans, or the mean of numbers, over held-out pairs or answers."""
        return share(values, prompts) if is_share or values.dtype == bool else self.bootstrap.mean(values, prompts)

    def _loss(self, rows: Scores, prompts: Prompts | None) -> Estimate:
        return self.bootstrap.ratio(-rows.logps, rows.lengths, prompts)

    def _loss_gain(self) -> Estimates:
        """Paired change of the loss per token, tuned minus base: negative is better."""
        base, tuned = self.base.held_out_rows, self.tuned.held_out_rows
        if base is None or tuned is None:
            return {}
        prompts = self.material.held_out.row_prompts
        return {LOSS: self.bootstrap.ratio(base.logps - tuned.logps, base.lengths, prompts)}

    def _gap(self, train: Floats, held_out: Floats) -> Gap:
        """Shares of margins above 0 and their difference; training and held-out prompts are independent of each other.

        If all training pairs were measured, how well the model does on them is no estimate, and the gap is as sure as
        the held-out share. The interval beside the training share says what other prompts like these would give.
        """
        a = share(are_above_zero(train), self.material.train.pair_prompts)
        b = share(are_above_zero(held_out), self.material.held_out.pair_prompts)
        known = replace(a, low=a.value, high=a.value) if self.material.is_train_whole else a
        return {"train": a, "held_out": b, "gap": difference(known, b)}


def _select(prompts: Prompts | None, rows: NDArray[np.int64]) -> Prompts | None:
    return None if prompts is None else prompts.select(rows)


def _count_ties(margins: Floats) -> int | None:
    return int((margins == 0).sum()) if np.isfinite(margins).all() else None


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
    return replace(estimate, value=value, low=low, high=high)
