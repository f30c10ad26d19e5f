"""Answers that are one of some labels, such as where a message belongs; and what a far simpler model would answer."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.config.ranges import require
from prefopt.config.tasks import SETTING, LabelTaskConfig
from prefopt.evaluation.statistics import Floats, Prompts, change_of_share, share
from prefopt.evaluation.tasks.label_baseline import Baseline
from prefopt.evaluation.tasks.task import Answered, Checked, TaskContext, quotable
from prefopt.process.errors import UserError, shorten
from prefopt.process.time_limit import time_limit

MAX_CHARACTERS = 10_000
"""Beginning of an answer in which the label is looked for."""
SEARCH_LIMIT_S = 10
"""Seconds in which it is found; a user's expression may take longer than a life."""
MAX_TABLE = 100
"""Labels up to which the details hold the whole confusion table."""
MAX_TOLD = 20
FEW_LABELS = 20
"""Different chosen answers that are taken for labels however few pairs there are."""
NONE = -1
"""Number of an answer that is no label."""
Numbers = NDArray[np.int64]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelTask:
    """Compares the label in each answer with that in the chosen one.

    A label counts only as it is written: whoever reads it by program needs it so. Answers that differ by case, blanks
    or punctuation only are wrong, and `num_nearly` of the details counts them.

    Attributes:
        config: Its settings.
        labels: All labels.
        baseline: A classifier of the prompts' words that learned from the training pairs; None if there is none.
        why_no_baseline: Why not; else empty.
    """

    config: LabelTaskConfig
    labels: tuple[str, ...]
    baseline: Baseline | None
    why_no_baseline: str

    @classmethod
    def learn(cls, config: LabelTaskConfig, context: TaskContext) -> "LabelTask":
        """Takes the labels from the settings, or from the training pairs, of which the baseline learns in any case.

        Raises:
            UserError: There are no labels, or the chosen answers of training differ too much to be labels.
        """
        found, labels = _read_labels(config, context)
        learned = [(pair.prompt, label) for pair, label in zip(context.trained, found, strict=True) if label in labels]
        prompts, right = [prompt for prompt, _ in learned], [str(label) for _, label in learned]
        baseline = Baseline.learn(prompts, right, context.seed)
        if isinstance(baseline, str):
            logger.warning("evaluation: %s: answers are compared with no simple classifier: %s", config.name, baseline)
            return cls(config, labels, None, baseline)
        return cls(config, labels, baseline, "")

    @classmethod
    def check_labels(cls, config: LabelTaskConfig, context: TaskContext, chosen: Sequence[str | None]) -> None:
        """Refuses what leaves nothing to check, before anything is answered.

        Args:
            config: Its settings.
            context: The training pairs, of which the labels may be.
            chosen: The answer in the data to each prompt that will be answered; None where there is none.

        Raises:
            UserError: There are no labels, as for `learn`; or no chosen answer is one.
        """
        _, labels = _read_labels(config, context)
        told = [text for text in chosen if text is not None]
        require(
            not told or any(_read_label(config, text) in labels for text in told),
            f"{SETTING}: {config.name}: no chosen answer of the held-out prompts is a label; the first one begins "
            f"'{quotable(told[0]) if told else ''}', and labels are {quotable(', '.join(labels))}. Name them all "
            "(labels: [...]), or say where in an answer they stand (pattern: ...).",
        )

    @property
    def name(self) -> str:
        return self.config.name

    def check(self, answers: Sequence[Answered]) -> Checked:
        places = {label: number for number, label in enumerate(self.labels)}
        truths = self._number(places, (answered.chosen or "" for answered in answers))
        given = self._number(places, (answered.answer for answered in answers))
        known = truths != NONE
        values: dict[str, NDArray[np.bool_] | Floats] = {
            "accuracy": _where(known, given == truths),
            "macro_f1": np.full(len(answers), np.nan),
            "is_label": given != NONE,
        }
        values["macro_f1"][known] = macro_f1_terms(truths[known], given[known], len(self.labels))
        if self.config.out_of_scope is not None:
            is_outside = truths == places[self.config.out_of_scope]
            values["out_of_scope_recall"] = _where(is_outside, given == truths)
        table = tabulate(truths[known], given[known], len(self.labels))
        unlike = [answers[row].answer for row in np.flatnonzero(given == NONE).tolist()]
        details: dict[str, Any] = {
            "macro_f1": _mean(values["macro_f1"][known]),
            "per_class": {
                quotable(label): scores for label, scores in zip(self.labels, scores_of(table), strict=True)
            },
            "confused": self._confused(table),
            "num_without_label": int((~known).sum()),
            "num_nearly": self._count_nearly(unlike),
            "commonest_without_label": dict(Counter(map(quotable, unlike)).most_common(MAX_TOLD)),
            "baseline": self._compare(answers, truths, given),
        }
        if len(self.labels) <= MAX_TABLE:
            details["confusion"] = {"labels": [*map(quotable, self.labels), "(no label)"], "counts": table.tolist()}
        return Checked(values, dict.fromkeys(values, True), details, details["num_without_label"])

    def _number(self, places: dict[str, int], texts: Iterable[str]) -> Numbers:
        """Returns the number of the label in each text; `NONE` if there is none."""
        labels = [_read_label(self.config, text) for text in texts]
        return np.array([NONE if label is None else places.get(label, NONE) for label in labels], np.int64)

    def _count_nearly(self, answers: Sequence[str]) -> int:
        labels = {_letters(label) for label in self.labels}
        return sum(_letters(answer[:MAX_CHARACTERS]) in labels for answer in answers)

    def _confused(self, table: Numbers) -> list[dict[str, Any]]:
        """Returns what was most often answered in place of what."""
        wrong = table.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_TOLD]
        names = [*map(quotable, self.labels), "(no label)"]
        pairs = [divmod(int(place), wrong.shape[1]) for place in order]
        return [
            {"chosen": names[row], "answer": names[column], "n": int(wrong[row, column])}
            for row, column in pairs
            if wrong[row, column]
        ]

    def _compare(self, answers: Sequence[Answered], truths: Numbers, given: Numbers) -> dict[str, Any]:
        """Returns what the baseline answers to the same prompts, and how much more often the answers are right."""
        known = np.flatnonzero(truths != NONE)
        if self.baseline is None or not len(known):
            return {"left_out": self.why_no_baseline or "no chosen answer is a label"}
        places = {label: number for number, label in enumerate(self.labels)}
        asked = [answers[row].prompt for row in known.tolist()]
        predicted = self.baseline.predict(asked)
        guesses = np.array([places[label] for label in predicted], np.int64)
        prompts = Prompts.of_texts(asked)
        is_right, was_right = given[known] == truths[known], guesses == truths[known]
        gain = change_of_share(was_right, is_right, prompts)
        return {
            "model": self.baseline.description,
            "accuracy": share(was_right, prompts).to_dict(),
            "macro_f1": _mean(macro_f1_terms(truths[known], guesses, len(self.labels))),
            "gain": {**gain.estimate.to_dict(), "p_value": gain.p_value},
        }


def macro_f1_terms(truths: Numbers, given: Numbers, num_labels: int) -> Floats:
    """Returns a number for each answer; their mean is the macro F1, and their spread gives its interval.

    They are the macro F1 plus each answer's influence on it (infinitesimal jackknife, Efron 1982), so that intervals
    for means, and differences of two contestants, hold for it as for a share. The macro F1 is the mean over the labels
    that occur among the chosen answers; F1 = 2 TP / (chosen + given).

    Args:
        truths: Number of the chosen label, shape (answers,).
        given: Number of the label in the answer, or `NONE`.
        num_labels: Number of labels.
    """
    table = tabulate(truths, given, num_labels)
    chosen, total = table.sum(axis=1), table.sum(axis=1) + table[:, :num_labels].sum(axis=0)
    num = int((chosen > 0).sum())
    if not num:
        return np.full(len(truths), np.nan)
    f1 = 2 * np.diag(table) / np.maximum(total, 1)
    weights = np.where(chosen > 0, len(truths) / (num * np.maximum(total, 1)), 0.0)
    of_truth = weights[truths] * (2.0 * (truths == given) - f1[truths])
    of_given = np.where(given == NONE, 0.0, -weights[given] * f1[given])
    return np.asarray(f1[chosen > 0].mean() + of_truth + of_given)


def tabulate(truths: Numbers, given: Numbers, num_labels: int) -> Numbers:
    """Returns how often each chosen label (rows) was answered by each label (columns; the last one: no label)."""
    columns = np.where(given == NONE, num_labels, given)
    counts = np.bincount(truths * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


def scores_of(table: Numbers) -> list[dict[str, float | int | None]]:
    """Returns precision, recall and F1 of each label; None where nothing was chosen or given."""
    right, chosen, given = np.diag(table), table.sum(axis=1), table[:, : len(table)].sum(axis=0)
    return [
        {
            "precision": float(tp / own) if own else None,
            "recall": float(tp / wanted) if wanted else None,
            "f1": float(2 * tp / (own + wanted)) if own + wanted else None,
            "n": int(wanted),
        }
        for tp, wanted, own in zip(right, chosen, given, strict=True)
    ]


def _read_label(config: LabelTaskConfig, text: str) -> str | None:
    if config.pattern is None:
        return text[:MAX_CHARACTERS].strip()
    try:
        with time_limit(SEARCH_LIMIT_S):
            found = re.search(config.pattern, text[:MAX_CHARACTERS])
    except TimeoutError as error:
        raise UserError(
            f"{SETTING}: {config.name}: pattern {shorten(repr(config.pattern))}: {error} to find it in a text that "
            f"begins '{quotable(text)}'. A repetition in a repetition, such as (a+)+, tries every way to divide the "
            "letters. Write it with one, such as a+."
        ) from error
    return found[1].strip() if found is not None and found[1] is not None else None


def _read_labels(config: LabelTaskConfig, context: TaskContext) -> tuple[list[str | None], tuple[str, ...]]:
    """Returns the label of each training pair, and all labels: those of the settings, or else of the pairs."""
    found = [_read_label(config, pair.chosen) for pair in context.trained]
    return found, tuple(config.labels) or _labels_of(config, [label for label in found if label])


def _labels_of(config: LabelTaskConfig, found: Sequence[str]) -> tuple[str, ...]:
    where, labels = f"{SETTING}: {config.name}:", sorted(set(found))
    require(bool(labels), f"{where} no training pair has a label in its chosen answer. Name them: labels: [...].")
    require(
        len(labels) <= max(FEW_LABELS, len(found) // 2),
        f"{where} the chosen answers of the training data are no labels: {len(labels):,} different ones in "
        f"{len(found):,} pairs. Name the labels (labels: [...]), or say where in an answer they stand (pattern: ...).",
    )
    outside = {config.out_of_scope} - {None} - set(labels)
    return (*labels, *(str(label) for label in outside))


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _where(known: NDArray[np.bool_], truths: NDArray[np.bool_]) -> Floats:
    return np.where(known, truths.astype(float), np.nan)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
