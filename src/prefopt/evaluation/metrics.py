"""The one table of metrics: what prefopt measures, how to format and read it, what is better, where it is stored.

Reports, their glossary, `prefopt compare`, searches, `trainer.keep_best` and README's section "Reading the numbers"
are derived from this table or checked against it by a test. To add a metric of held-out pairs or of answers, add one
entry here and one function in `evaluation/summary.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from prefopt.config.algorithms import Kind
from prefopt.process.errors import UserError, shorten


@dataclass(frozen=True)
class Unit:
    """How a value is formatted. `decimals=None`: three significant digits, two below 0.1."""

    scale: float = 1.0
    decimals: int | None = None
    prefix: str = ""
    suffix: str = ""
    signed: bool = False


PERCENT = Unit(scale=100, decimals=1, suffix=" %")
POINTS = Unit(scale=100, decimals=1, suffix=" points", signed=True)
NUMBER = Unit()
CHANGE = Unit(signed=True)
RATIO = Unit(prefix="\u00d7 ")
RELATIVE = Unit(scale=100, decimals=0, suffix=" %", signed=True)


class Better(Enum):
    """Which values of a metric are better."""

    higher = "higher is better"
    lower = "lower is better"
    near_zero = "nearer to 0 is better"
    neither = "neither end is better"


OF_PAIRS: tuple[Kind, ...] = ("preference",)
OF_DEMONSTRATIONS: tuple[Kind, ...] = ("sft",)
OF_ALL = OF_PAIRS + OF_DEMONSTRATIONS
"""Kinds of training rows; which metrics a run has depends on the kind."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a run.

    Attributes:
        key: Its name in `--rank-by`, in compare.csv and in `RunRecord.metrics`.
        name: Its name in a report.
        label: A short name: the header of its column in a comparison.
        title: A description in a few words.
        unit: How its value is formatted.
        better: Which values are better.
        path: Its keys in report.json and, joined by slashes, in W&B's summary; empty if it is derived or only logged.
        logged: Its name in the held-out lines of metrics.jsonl and in W&B's history.
        rows: The kinds of training rows whose runs always have it.
        of_pairs: Whether it is measured on pairs: a run on demonstrations has it too if `evaluation.pairs` is set.
        is_relative: Whether it is measured against the base, which then has no value of its own.
        note: A remark beside its name in the tables of the report.
        hint: How to read it, in plain sentences; empty if `name` and `note` suffice.
        trap: How it can mislead; the glossary of a report and README explain the metrics that have one.
    """

    key: str
    name: str
    label: str
    title: str
    unit: Unit
    better: Better
    path: tuple[str, ...] = ()
    logged: str | None = None
    rows: tuple[Kind, ...] = OF_ALL
    of_pairs: bool = False
    is_relative: bool = False
    note: str = ""
    hint: str = ""
    trap: str | None = None

    @property
    def report_key(self) -> str:
        """Its key within a block of report.json: `perplexity` for `drift.perplexity.tuned`."""
        return self.path[1] if self.path[0] == DRIFT else self.path[-1]

    @property
    def is_in_report(self) -> bool:
        """Whether it is in report.json or derived from it; otherwise it is only logged."""
        return bool(self.path) or self.logged is None

    @property
    def change_unit(self) -> Unit:
        """How a difference of two values is formatted."""
        return POINTS if self.unit is PERCENT else replace(self.unit, signed=True, prefix="")

    @property
    def is_speed(self) -> bool:
        """Whether it is a time or a throughput, which depends on the machine as much as on the run."""
        return self.path[:1] == ("throughput",) or self.key == OUTSIDE

    def badness(self, value: float) -> float:
        """Returns a sort key of a value: the better the value, the smaller the key."""
        ends = {Better.higher: -value, Better.lower: value, Better.near_zero: abs(value), Better.neither: 0.0}
        return ends[self.better]


HELD_OUT, DRIFT, LIKELIHOOD = "held_out", "drift", "likelihood"
"""Blocks of report.json."""
BASE, TUNED = "base", "tuned"
"""Names of the two models that a report compares."""

ACCURACY, MARGIN = "preference_accuracy", "mean_margin"
REWARD_ACCURACY, REWARD_MARGIN = "reward_accuracy", "reward_margin"
LOSS, PERPLEXITY = "loss", "perplexity"
KL, KL_PER_RESPONSE = "kl_per_token", "kl_per_response"
LENGTH, FINISHED, REPETITION = "response_length", "finished", "repetition"
LENGTH_CHANGE, CHOSEN_CHANGE = "length_change", "chosen_change"
CHOSEN, REJECTED, CHOSEN_FELL = "chosen", "rejected", "chosen_fell"
LONGER_WINS, SHORTER_WINS = "longer_wins", "shorter_wins"
BASE_ACCURACY = "base_preference_accuracy"
WIN_RATE, REGRESSION = "win_rate", "regression"
TRAIN_TIME, OUTSIDE, PAIRS_PER_S = "train_time_s", "outside_training_s", "pairs_per_s"


def _tuned(key: str) -> tuple[str, ...]:
    return (HELD_OUT, TUNED, key)


METRICS = [
    Metric(
        ACCURACY, "Preference accuracy", "accuracy", "Held-out preference accuracy", PERCENT, Better.higher,
        path=_tuned(ACCURACY), logged=ACCURACY, rows=OF_PAIRS, of_pairs=True,
        note="chosen has the higher average log-prob",
        hint="Share of held-out pairs whose chosen completion has the higher average log-prob per token. Averages, not"
        " sums, so that base and tuned are measured alike and length does not decide. Compare with base, not with"
        " 50 %.",
        trap="It ranks given answers; it does not look at what the model writes, and can be high for a ruined model."
        " If 'longer wins' is close, the model may have learned length. Look at drift and samples too.",
    ),
    Metric(
        "gain", "Gain", "gain", "Accuracy, tuned - base", POINTS, Better.higher,
        path=(HELD_OUT, "gain", ACCURACY), rows=OF_PAIRS, of_pairs=True,
        hint="Paired difference of both models' preference accuracy: both saw the same pairs.",
        trap="Its interval decides, from 30 prompts on. Overlapping intervals of base and tuned do not mean 'no"
        " difference'.",
    ),
    Metric(
        WIN_RATE, "Win rate", "win rate", "Answers judged better than those of the best contestant without tuning",
        PERCENT, Better.higher, path=_tuned(WIN_RATE), rows=(), is_relative=True,
        note="answers, against the best contestant without tuning",
        hint="Share of held-out prompts to which the tuned model's answer was judged better than that of the base, or"
        " of the base with a prompt, whichever does better; a tie counts half, so 50 % is no difference.",
        trap="It is worth what its judge is worth: look at the judge's kappa, and read some answers. Judges favour"
        " length; the report adjusts for it.",
    ),
    Metric(
        MARGIN, "Mean margin", "margin", "Held-out margin, nats per token", NUMBER, Better.higher,
        path=_tuned(MARGIN), rows=OF_PAIRS, of_pairs=True,
        note="average log-prob, chosen - rejected, nats per token",
        hint="Average log-prob of chosen minus rejected, in nats per token. Above 0: the model leans to the chosen"
        " answer.",
        trap="A few easy pairs can carry the mean: look at the whole histogram. Not comparable across tokenizers.",
    ),
    Metric(
        REWARD_ACCURACY, "Reward accuracy", "reward accuracy", "Held-out reward accuracy", PERCENT, Better.higher,
        path=_tuned(REWARD_ACCURACY), logged="rewards/accuracies", rows=OF_PAIRS, is_relative=True,
        note="chosen has the higher reward",
        hint="Share of pairs whose chosen completion gained more than the rejected one by the implicit reward, which"
        " is beta times the change of the summed log-prob against the reference. The base has no value: its rewards"
        " are all 0.",
        trap="Near 100 % on training pairs is normal even when labels are wrong: only held-out counts. Sums favour"
        " long answers.",
    ),
    Metric(
        REWARD_MARGIN, "Reward margin", "reward margin", "Held-out reward margin; scales with beta", NUMBER,
        Better.higher, path=_tuned(REWARD_MARGIN), logged="rewards/margins", rows=OF_PAIRS, is_relative=True,
        note="reward, chosen - rejected",
        hint="Mean implicit reward of chosen minus rejected.",
        trap="It scales with beta, so do not compare it between runs with another beta.",
    ),
    Metric(
        LOSS, "Loss per token", "loss", "Held-out loss, nats per token", NUMBER, Better.lower,
        path=_tuned(LOSS), logged="loss", rows=OF_DEMONSTRATIONS, note="nats; lower is better",
        hint="Nats per token of the held-out demonstrations; with loss_type=nll, what training minimises.",
        trap="A falling training loss proves nothing, and losses of different tokenizers cannot be compared.",
    ),
    Metric(
        "preference_loss", "Preference loss", "loss", "Preference loss", NUMBER, Better.lower,
        logged="loss", rows=OF_PAIRS,
        hint="What training minimises, in the log alone. With a reference, of sigmoid type it starts at ln 2 = 0.693.",
        trap="Values of different loss types or betas cannot be compared.",
    ),
    Metric(
        PERPLEXITY, "Perplexity", "perplexity", "Held-out perplexity", NUMBER, Better.lower,
        path=_tuned(PERPLEXITY), rows=OF_DEMONSTRATIONS, note="of the held-out completions; lower is better",
    ),
    Metric(
        KL, "KL per token", "KL", "KL to the base, nats per token", NUMBER, Better.lower,
        path=(DRIFT, KL), is_relative=True, note="divergence from base, nats; 0 = unchanged",
        hint="How far the tuned model's own responses are from what base would have written: mean log-ratio"
        " tuned/base per token, in nats. Above 1 the model speaks its own language.",
        trap="Accuracy and win rate can look excellent while the model is ruined; KL and perplexity show it. It is"
        " sampled, so read its interval.",
    ),
    Metric(
        KL_PER_RESPONSE, "KL per response", "KL/response", "KL to the base per response, of cut ones their beginnings",
        NUMBER, Better.lower, path=(DRIFT, KL_PER_RESPONSE), is_relative=True,
        note="divergence from base, nats; 0 = unchanged",
        hint="The same, summed over a response: it grows with length, KL per token does not.",
        trap="Answers that were cut at evaluation.max_new_tokens count only as far as they go: whole ones would have"
        " more.",
    ),
    Metric(
        "neutral_perplexity", "Neutral perplexity", "neutral perplexity", "Perplexity of neutral text", NUMBER,
        Better.lower, path=(DRIFT, PERPLEXITY, TUNED), note="of text that has nothing to do with the task",
    ),
    Metric(
        "neutral_ratio", "Ratio of neutral perplexities", "neutral", "Perplexity of neutral text, tuned / base", RATIO,
        Better.lower, path=(DRIFT, PERPLEXITY, "ratio"),
        hint="How much more the model is surprised by ordinary text outside the task than its base. It should stay"
        " near 1: above 1.5 the model drifted, above 5 it is ruined.",
        trap="Perplexities themselves are only comparable between models with the same tokenizer: the ratio counts.",
    ),
    Metric(
        LENGTH, "Response length", "tokens", "Length of own answers, tokens", NUMBER, Better.neither,
        path=(DRIFT, LENGTH, TUNED), note="tokens",
        hint="Mean length of the model's own answers, in tokens.",
        trap="Preference tuning likes to lengthen answers. Where many are cut at the limit, mean length is an"
        " underestimate.",
    ),
    Metric(
        LENGTH_CHANGE, "Change of length", "length", "Length of own answers, change from base", RELATIVE,
        Better.near_zero,
    ),
    Metric(
        FINISHED, "Ended by itself", "ended", "Own answers that ended before the limit", PERCENT, Better.higher,
        path=(DRIFT, FINISHED, TUNED), note="share of responses not cut at the limit",
    ),
    Metric(
        REPETITION, "Repetition", "repetition", "Repeated 4-grams of own answers", PERCENT, Better.lower,
        path=(DRIFT, REPETITION, TUNED), note="share of 4-grams seen before in the same response",
    ),
    Metric(
        CHOSEN_CHANGE, "Chosen", "chosen", "Log-prob per token of chosen answers, tuned - base", CHANGE, Better.higher,
        path=(LIKELIHOOD, CHOSEN), rows=OF_PAIRS, of_pairs=True,
        note="change of log-prob per token, tuned - base",
        hint="How training moved the log-prob of chosen completions. Ideal: chosen up, rejected down.",
        trap="In DPO chosen usually falls too (likelihood displacement), and the margin still widens. Worry about its"
        " size and trend, not its sign.",
    ),
    Metric(
        "rejected_change", "Rejected", "rejected", "Log-prob per token of rejected answers, tuned - base", CHANGE,
        Better.lower, path=(LIKELIHOOD, REJECTED), rows=OF_PAIRS, of_pairs=True,
        note="change of log-prob per token, tuned - base",
    ),
    Metric(
        CHOSEN_FELL, "Chosen fell", "chosen fell", "Pairs whose chosen answer became less likely", PERCENT,
        Better.lower, path=(LIKELIHOOD, CHOSEN_FELL), rows=OF_PAIRS, of_pairs=True,
        note="share of pairs",
    ),
    Metric(
        "overfitting_gap", "Gap (overfitting)", "gap", "Accuracy, train - held-out", POINTS, Better.near_zero,
        path=("overfitting", ACCURACY, "gap"), rows=OF_PAIRS,
        hint="Train minus held-out accuracy. Small is good; a wide gap says that pairs were memorised.",
        trap="A wide gap does not make the held-out number wrong: it says that fewer epochs or more data would help."
        " Training accuracy reaches 100 % even on random labels.",
    ),
    Metric(
        TRAIN_TIME, "Training time", "time", "Time of training steps", NUMBER, Better.lower,
        path=("throughput", TRAIN_TIME),
    ),
    Metric(
        PAIRS_PER_S, "Pairs per second", "pairs/s", "Pairs (SFT: rows) per second", NUMBER, Better.higher,
        path=("throughput", PAIRS_PER_S),
    ),
    Metric(
        "tokens_per_s", "Tokens per second", "tokens/s", "Tokens per second", NUMBER, Better.higher,
        path=("throughput", "tokens_per_s"),
    ),
    Metric(
        OUTSIDE, "Time outside training", "outside",
        "Time outside training steps: start, evaluation, saving, report", NUMBER, Better.lower,
    ),
    Metric(
        BASE_ACCURACY, "Preference accuracy of the base", "base accuracy", "Held-out preference accuracy of the base",
        PERCENT, Better.higher, path=(HELD_OUT, BASE, ACCURACY), rows=OF_PAIRS, of_pairs=True,
    ),
    Metric(
        LONGER_WINS, "Longer wins", "longer wins", "Accuracy of a rule that prefers the longer answer", PERCENT,
        Better.neither, path=(HELD_OUT, "baselines", LONGER_WINS), rows=OF_PAIRS, of_pairs=True,
        hint="Accuracy of a rule without a model that prefers the longer answer.",
        trap="A model that does no better may have learned no more than length.",
    ),
    Metric(
        SHORTER_WINS, "Shorter wins", "shorter wins", "Accuracy of a rule that prefers the shorter answer", PERCENT,
        Better.neither, path=(HELD_OUT, "baselines", SHORTER_WINS), rows=OF_PAIRS, of_pairs=True,
    ),
    Metric(
        "rewards/chosen", "Reward of chosen", "chosen reward", "Reward of chosen answers", NUMBER, Better.higher,
        logged="rewards/chosen", rows=OF_PAIRS,
        hint="TRL's name for the implicit reward of chosen answers; held-out lines are means over pairs.",
        trap="TRL's own evaluation averages all rewards/* over batches, so that they change with the batch size.",
    ),
    Metric(
        "rewards/rejected", "Reward of rejected", "rejected reward", "Reward of rejected answers", NUMBER,
        Better.lower, logged="rewards/rejected", rows=OF_PAIRS,
    ),
    Metric(
        "logps/chosen", "Log-prob of chosen", "chosen log-prob", "Log-prob of chosen answers, summed", NUMBER,
        Better.higher, logged="logps/chosen", rows=OF_PAIRS,
    ),
    Metric(
        "logps/rejected", "Log-prob of rejected", "rejected log-prob", "Log-prob of rejected answers, summed", NUMBER,
        Better.lower, logged="logps/rejected", rows=OF_PAIRS,
    ),
    Metric(
        "mean_token_accuracy", "Token accuracy", "token accuracy", "Share of next tokens guessed right", PERCENT,
        Better.higher, logged="mean_token_accuracy", rows=OF_DEMONSTRATIONS,
    ),
]  # fmt: skip
COMPARED = [metric for metric in METRICS if metric.is_in_report and metric.better is not Better.neither]
"""The metrics by which runs are compared and ranked, in the order of compare.csv."""
BY_KEY = {metric.key: metric for metric in COMPARED}
RUN_COLUMNS = (
    "run", "where", "state", "step", "rank", "against_first", "difference", "difference_low", "difference_high",
    "difference_method", "configuration", "seed", "decision", "refusal", "measured_at_step", "message",
)  # fmt: skip
"""Columns of compare.csv that hold no metric; those of the metrics follow."""
ENTRY = ("value", "ci95", "n", "n_prompts", "num_cut", "cut_at", "p_value", "discordant", "effective_n")
"""Keys of the entries of report.json that are no metric."""
SHIPPED = frozenset(name for metric in METRICS for name in (metric.key, *metric.path)) | {*RUN_COLUMNS, *ENTRY}
"""Names that no metric of the user's own may take."""


def columns_of(key: str) -> tuple[str, str, str, str]:
    """Returns the columns of a metric in compare.csv: its value, the ends of its interval, and n."""
    return key, f"{key}_low", f"{key}_high", f"{key}_n"


def metrics_of(*path: str) -> Iterator[Metric]:
    """Returns the metrics of a block of report.json, in the order of `METRICS`."""
    return (metric for metric in METRICS if metric.path[: len(path)] == path)


def logged_metric(name: str, rows: Kind) -> Metric:
    """Returns the metric that is called `name` in held-out lines of metrics.jsonl, for a run that trains on `rows`."""
    return next(metric for metric in METRICS if metric.logged == name and rows in metric.rows)


GIVEN_AS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("key", "name", "label", "title", "note", "hint"), (str, "text")),
    "unit": (Unit, "a Unit, such as NUMBER or PERCENT"),
    "better": (Better, "a member of Better, such as Better.higher"),
}
"""Types of the fields of a user's own metric."""


def add(metric: Metric) -> None:
    """Adds a metric of the user's own to the table, in place of an earlier one of the same key.

    Raises:
        UserError: A field has another type; or its key is no plain name, or one that prefopt uses, or one of its
            columns is another metric's.
    """
    for name, (kind, wanted) in GIVEN_AS.items():
        found = getattr(metric, name)
        if not isinstance(found, kind):
            raise UserError(f"metric {metric.key!r}: {name} must be {wanted}, found {shorten(repr(found))}.")
    others = [each.key for each in METRICS if each.key != metric.key]
    taken = SHIPPED.union(*map(columns_of, others))
    if not metric.key.isidentifier() or not taken.isdisjoint(columns_of(metric.key)):
        raise UserError(
            f"metric {metric.key!r}: its key must be a name such as my_metric that prefopt does not use in "
            "report.json or compare.csv, where a metric also has columns that end in _low, _high and _n. Rename it."
        )
    for table in (METRICS, COMPARED):
        table[:] = [each for each in table if each.key != metric.key]
    BY_KEY.pop(metric.key, None)
    METRICS.append(metric)
    if metric.better is not Better.neither:
        COMPARED.append(metric)
        BY_KEY[metric.key] = metric
