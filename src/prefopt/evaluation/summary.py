"""From two models' measurements to the numbers of the report."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.measure import Comparison, Material, Measured
from prefopt.evaluation.sampling import Answer
from prefopt.evaluation.scoring import PairScores, Scores
from prefopt.evaluation.statistics import Bootstrap, Estimate, Floats, share, sign_test

Block = dict[str, Any]
Clusters = NDArray[np.int64] | None


class Summary:
    """Computes the report's blocks; each holds `{value, ci95, n}` entries, or is None where nothing was measured."""

    def __init__(
        self, comparison: Comparison, material: Material, *, beta: float | None, bootstrap: Bootstrap
    ) -> None:
        self.base, self.tuned = comparison.base, comparison.tuned
        self.comparison = comparison
        self.clusters, self.sources = material.clusters, material.sources
        self.beta = beta
        self.bootstrap = bootstrap

    def held_out(self) -> Block:
        block: Block = {"n": self._num_held_out(), "base": {}, "tuned": {}}
        for name, model in (("base", self.base), ("tuned", self.tuned)):
            if model.held_out_pairs is not None:
                block[name] |= self._preferences(model.held_out_pairs, self.clusters)
            if model.held_out_rows is not None:
                block[name] |= self._loss(model.held_out_rows)
        block["gain"] = self._loss_gain()
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return block
        if self.beta is not None:
            block["tuned"] |= self._rewards(base, tuned, self.clusters)
        hits_base, hits_tuned = base.margins > 0, tuned.margins > 0
        gain = hits_tuned.astype(float) - hits_base.astype(float)
        wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
        longer = base.chosen.lengths - base.rejected.lengths
        block["gain"] |= {
            "preference_accuracy": self._mean(gain, self.clusters),
            "p_value": sign_test(wins, losses) if wins + losses else 1.0,
        }
        block["baselines"] = {
            "longer_wins": share(longer > 0, self.clusters).to_dict(),
            "shorter_wins": share(longer < 0, self.clusters).to_dict(),
        }
        block["ties"] = {"base": int((base.margins == 0).sum()), "tuned": int((tuned.margins == 0).sum())}
        return block

    def overfitting(self) -> Block:
        """Train and held-out numbers of the tuned model, and their gap (train minus held-out)."""
        block: Block = {}
        held_out, train = self.tuned.held_out_pairs, self.tuned.train_pairs
        if held_out is not None and train is not None:
            block["preference_accuracy"] = self._gap(train.margins > 0, held_out.margins > 0)
            base_held_out, base_train = self.base.held_out_pairs, self.base.train_pairs
            if self.beta is not None and base_held_out is not None and base_train is not None:
                rewards = _rewards(base_train, train, self.beta), _rewards(base_held_out, held_out, self.beta)
                block["reward_accuracy"] = self._gap(rewards[0] > 0, rewards[1] > 0)
        if self.tuned.held_out_rows is not None and self.tuned.train_rows is not None:
            losses = [self._loss(rows)["loss"] for rows in (self.tuned.train_rows, self.tuned.held_out_rows)]
            block["loss"] = {"train": losses[0], "held_out": losses[1], "gap": losses[1]["value"] - losses[0]["value"]}
        return block

    def drift(self) -> Block:
        """How far the tuned model moved from its base, on its own answers and on text outside the task."""
        block: Block = {}
        by_base, by_tuned = self.comparison.samples_by_base, self.comparison.samples_by_tuned
        if by_base is not None and by_tuned is not None:
            log_ratios = by_tuned.logps - by_base.logps
            block["kl_per_token"] = self.bootstrap.ratio(log_ratios, by_tuned.lengths).to_dict()
            block["kl_per_response"] = {**self._mean(log_ratios), **_count_cut(self.tuned.samples)}
            block["response_length"] = self._of_answers(lambda answer: len(answer.ids))
            block["finished"] = self._of_answers(lambda answer: answer.finished)
            block["repetition"] = self._of_answers(lambda answer: answer.repetition)
        if self.base.neutral is not None and self.tuned.neutral is not None:
            base, tuned = self.base.neutral, self.tuned.neutral
            change = self.bootstrap.ratio(base.logps - tuned.logps, base.lengths)
            block["perplexity"] = {
                "base": _exp(self.bootstrap.ratio(-base.logps, base.lengths)),
                "tuned": _exp(self.bootstrap.ratio(-tuned.logps, tuned.lengths)),
                "ratio": _exp(change),
            }
        return block

    def likelihood(self) -> Block | None:
        """Change of the held-out completions' log-prob per token, tuned minus base."""
        base, tuned = self.base.held_out_pairs, self.tuned.held_out_pairs
        if base is None or tuned is None:
            return None
        chosen = tuned.chosen.avg_logps - base.chosen.avg_logps
        return {
            "chosen": self._mean(chosen, self.clusters),
            "rejected": self._mean(tuned.rejected.avg_logps - base.rejected.avg_logps, self.clusters),
            "chosen_fell": share(chosen < 0, self.clusters).to_dict(),
        }

    def per_pair(self) -> list[dict[str, Any]]:
        """One row per held-out pair, for plots and for looking at single failures."""
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

    def _preferences(self, pairs: PairScores, clusters: Clusters) -> Block:
        return {
            "preference_accuracy": share(pairs.margins > 0, clusters).to_dict(),
            "mean_margin": self._mean(pairs.margins, clusters),
        }

    def _rewards(self, base: PairScores, tuned: PairScores, clusters: Clusters) -> Block:
        assert self.beta is not None, "rewards are DPO's"
        margins = _rewards(base, tuned, self.beta)
        return {
            "reward_accuracy": share(margins > 0, clusters).to_dict(),
            "reward_margin": self._mean(margins, clusters),
        }

    def _loss(self, rows: Scores) -> Block:
        loss = self.bootstrap.ratio(-rows.logps, rows.lengths)
        return {"loss": loss.to_dict(), "perplexity": _exp(loss)}

    def _loss_gain(self) -> Block:
        """Paired change of the loss per token, tuned minus base: negative is better."""
        base, tuned = self.base.held_out_rows, self.tuned.held_out_rows
        if base is None or tuned is None:
            return {}
        return {"loss": self.bootstrap.ratio(base.logps - tuned.logps, base.lengths).to_dict()}

    def _gap(self, train: NDArray[np.bool_], held_out: NDArray[np.bool_]) -> Block:
        """Shares and their difference, with Newcombe's interval of a difference of two independent shares."""
        a, b = share(train), share(held_out, self.clusters)
        gap = a.value - b.value
        low = gap - np.hypot(a.value - a.low, b.high - b.value)
        high = gap + np.hypot(a.high - a.value, b.value - b.low)
        gap_entry = Estimate(gap, float(low), float(high), b.n).to_dict()
        return {"train": a.to_dict(), "held_out": b.to_dict(), "gap": gap_entry}

    def _mean(self, values: Floats, clusters: Clusters = None) -> Block:
        return self.bootstrap.mean(values, clusters).to_dict()

    def _of_answers(self, measure: Any) -> Block:
        return {
            name: self._answer_mean(model, measure) for name, model in (("base", self.base), ("tuned", self.tuned))
        }

    def _answer_mean(self, model: Measured, measure: Any) -> Block:
        def values(answers: list[Answer]) -> Floats:
            return np.array([float(measure(answer)) for answer in answers])

        return self._mean(values(model.samples))


def _count_cut(answers: list[Answer]) -> Block:
    """How many answers were cut at the limit of tokens, and where: sums over them are of their beginnings alone."""
    cut = [len(answer.ids) for answer in answers if not answer.finished]
    return {"num_cut": len(cut), "cut_at": max(cut, default=None)}


def _rewards(base: PairScores, tuned: PairScores, beta: float) -> Floats:
    """Margins of the implicit rewards beta * (log p_tuned - log p_base), summed over tokens as TRL defines them."""
    chosen = tuned.chosen.logps - base.chosen.logps
    rejected = tuned.rejected.logps - base.rejected.logps
    return np.asarray(beta * (chosen - rejected))


def _exp(estimate: Estimate) -> Block:
    value, low, high = (float(x) for x in np.exp([estimate.value, estimate.low, estimate.high]))
    return Estimate(value, low, high, estimate.n).to_dict()
