"""What each metric means, how to read it, and how it misleads."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Term:
    """A metric explained. `paths`: the report must hold one of these (dotted) for the term to be shown."""

    name: str
    meaning: str
    footgun: str
    paths: tuple[str, ...]


TERMS = (
    Term(
        "Preference accuracy",
        "Share of held-out pairs whose chosen completion has the higher average log-prob per token. Averages, not"
        " sums, so that base and tuned are measured alike and length does not decide. Compare with base, not with"
        " 50 %.",
        "It ranks given answers; it does not look at what the model writes. If 'longer wins' is close, the model "
        "may have learned length. Look at drift and samples before believing it.",
        ("held_out.tuned.preference_accuracy",),
    ),
    Term(
        "Mean margin",
        "Average log-prob of chosen minus rejected, in nats per token. Above 0: the model leans to the chosen answer.",
        "A few easy pairs can carry the mean: look at the whole histogram.",
        ("held_out.tuned.mean_margin",),
    ),
    Term(
        "Reward accuracy and reward margin",
        "The implicit reward is beta times the change of a completion's summed log-prob against the reference. "
        "Accuracy: share of pairs where chosen gained more than rejected. The base has no value: its rewards are "
        "all 0.",
        "Margins scale with beta, so do not compare them between runs with another beta. Reward accuracy near 100"
        " % on training pairs is normal even when labels are wrong: only held-out counts.",
        ("held_out.tuned.reward_accuracy", "held_out.tuned.reward_margin"),
    ),
    Term(
        "Loss",
        "What training minimises. A preference loss of sigmoid type starts at ln 2 = 0.693; an SFT loss is nats "
        "per token.",
        "Values of different loss types or betas cannot be compared, and a falling training loss proves nothing.",
        ("held_out.tuned.loss",),
    ),
    Term(
        "Gap (overfitting)",
        "Train minus held-out accuracy. Small is good; a wide gap says that pairs were memorised.",
        "A wide gap does not make the held-out number wrong: it says that fewer epochs or more data would help.",
        ("overfitting.preference_accuracy", "overfitting.reward_accuracy"),
    ),
    Term(
        "KL from base",
        "How far the tuned model's own responses are from what base would have written, in nats. 0 = same model. "
        "Per response grows with length; per token does not.",
        "Accuracy and win rate can look excellent while the model is ruined; KL and perplexity show it. Per response, "
        "answers that were cut at evaluation.max_new_tokens count only as far as they go: whole ones would have more.",
        ("drift.kl_per_token", "drift.kl_per_response"),
    ),
    Term(
        "Perplexity of neutral text",
        "How surprised the model is by ordinary text outside the task. The ratio tuned / base should stay near 1.",
        "Only comparable between models with the same tokenizer.",
        ("drift.perplexity",),
    ),
    Term(
        "Length, ended by itself, repetition",
        "Response length in tokens, share of responses that end before the limit, share of repeated 4-grams.",
        "Preference tuning likes to lengthen answers. Where many are cut at the limit, mean length is an "
        "underestimate.",
        ("drift.response_length", "drift.finished", "drift.repetition"),
    ),
    Term(
        "Change of likelihood",
        "How training moved the log-prob of chosen and rejected completions. Ideal: chosen up, rejected down.",
        "In DPO chosen usually falls too (likelihood displacement). Worry about its size and trend, not its sign.",
        ("likelihood.chosen", "likelihood.rejected"),
    ),
    Term(
        "95 % interval and n",
        "The range in which the true value plausibly lies, given n measured items. At n = 100 an accuracy is "
        "known to about 10 points, at n = 1,000 to about 3. The change base to tuned is paired: both models saw "
        "the same pairs.",
        "Overlapping intervals of base and tuned do not mean 'no difference': read the interval of the change. "
        "Intervals cover the choice of held-out pairs, not the luck of one training run: repeat with other seeds "
        "for that.",
        ("held_out",),
    ),
)


def terms_for(report: dict[str, Any]) -> list[Term]:
    """The terms that this report uses."""
    return [term for term in TERMS if any(_holds(report, path.split(".")) for path in term.paths)]


def _holds(values: Any, keys: list[str]) -> bool:
    for key in keys:
        values = (values or {}).get(key)
    return values is not None
