"""The limits of the decision: from which number on a report calls a model ruined, drifted, or merely better.

They come from experiments whose outcome was known, and from practice; each is a setting, since what a use can bear is
for its owner to say.
"""

from dataclasses import dataclass

from prefopt.config.ranges import require


@dataclass(kw_only=True)
class LimitsConfig:
    """From which numbers on the report warns, or says that a model is ruined."""

    drifted_perplexity_ratio: float = 1.5
    """Perplexity of neutral text, tuned / base, from which a model counts as drifted: half as much again. The shipped
    study is at 1.15."""
    ruined_perplexity_ratio: float = 5.0
    """The same, from which it counts as ruined. In the controlled-reward experiment (`tests/real_data`), good models
    are at 1.4 to 2.4; one trained for ten epochs is at 65, and still wins 96 % of comparisons."""
    drifted_kl_per_token: float = 1.0
    """Nats per token of its own answers to the base, from which a model counts as drifted: on average a token is e
    times as likely to it as to the base."""
    ruined_kl_per_token: float = 2.0
    """The same, from which it counts as ruined."""
    displaced_per_token: float = 0.5
    """Nats per token by which chosen answers may become less likely (likelihood displacement, Razin et al. 2024)."""
    length_ratio: float = 1.5
    """Mean length of answers, tuned / base, that is a severe warning; so is its inverse. Judges favour long answers
    (AlpacaEval's length control, Dubois et al. 2024)."""
    unfinished_rise: float = 0.2
    """Rise of the share of answers that do not end by themselves."""
    repetition_rise: float = 0.2
    """Rise of the share of repeated 4-grams from which the model is not to be shipped."""
    overfitting_gap: float = 0.1
    """Gap of accuracy between training and held-out pairs that is called overfitting, once its interval is above."""
    overfitting_loss_gap: float = 0.1
    """The same for the loss of demonstrations, in nats per token: about 10 % of the perplexity."""
    overlap: float = 0.02
    """Share of held-out prompts that are training prompts, or nearly, above which they must be replaced before the
    model ships: so few can move an accuracy by 2 points at most."""
    style_ratio: float = 5.0
    """Distance of the styles of tuned and base in answers to unrelated questions, as a multiple of that of two halves
    of the base's own answers, from which the report warns: data that teach a style beyond their task."""
    judge_kappa: float = 0.2
    """Cohen's kappa between a judge and the labels of held-out pairs that the judge must be above for sure to decide:
    up to 0.2, agreement is called slight (Landis and Koch 1977)."""
    still_per_token: float = 0.001
    """Nats per token: a model whose chosen and rejected answers both moved by less has hardly moved."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value > 0, f"evaluation.limits.{name}: must be > 0, found {value}.")
        for drifted, ruined in (
            ("drifted_perplexity_ratio", "ruined_perplexity_ratio"),
            ("drifted_kl_per_token", "ruined_kl_per_token"),
        ):
            low, high = getattr(self, drifted), getattr(self, ruined)
            require(low <= high, f"evaluation.limits.{drifted}={low}: must be at most {ruined}, which is {high}.")
        require(self.overlap <= 1, f"evaluation.limits.overlap: must be a share, at most 1, found {self.overlap}.")
        require(self.length_ratio > 1, f"evaluation.limits.length_ratio: must be > 1, found {self.length_ratio}.")
