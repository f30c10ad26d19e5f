"""A judge that is a causal language model on this machine: it reads both answers, and the likelier letter wins."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefopt.config.judges import SETTING, ModelJudgeConfig
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.evaluation.judges.judge import Matchup
from prefopt.evaluation.judges.loading import (
    Held,
    describe_weights,
    find_context,
    find_fitting,
    in_batches,
    judge_model,
    load_judge_tokenizer,
    prepare,
    render,
    report_missing,
)
from prefopt.evaluation.judges.next_token import NextToken
from prefopt.evaluation.judges.rubric import BY_LETTER, Rubric
from prefopt.evaluation.statistics import Floats
from prefopt.models.limits import Limits
from prefopt.models.load import load_model, naming, straight_to_device
from prefopt.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CUE = "\n\nBetter answer:"
"""What follows the rubric for a model without a chat template."""
FORMS = ("", " ")
"""What may stand before the letter of a verdict; the probabilities of all forms are summed."""
PROBE = Matchup("What is this?", "An answer.", "Another answer.")
LITTLE_MASS = 0.5
"""Mean probability of A and B together below which the model mostly wants to say something else."""


@dataclass(frozen=True)
class Opinion:
    """What a model says of a matchup.

    Attributes:
        gap: P(A) - P(B), given that it says one of both; NaN if it does not fit, or the model gives no number.
        mass: P(A) + P(B).
    """

    gap: float = math.nan
    mass: float = math.nan


class ModelJudge:
    """The verdict is the likelier of A and B as the next token after the rubric.

    Each matchup is read once in each order. One that does not fit into the model's context has no verdict.

    Args:
        config: Its name, and how near a tie is.
        model: Which model.
        tokenizer: The model's.
        rubric: What it is asked.
        context: Most tokens that the model reads; None: unknown.

    Raises:
        UserError: A and B are no different next tokens.
    """

    sees_order = True

    def __init__(
        self,
        config: ModelJudgeConfig,
        model: ModelConfig,
        tokenizer: "PreTrainedTokenizerBase",
        rubric: Rubric,
        context: int | None,
    ) -> None:
        self.name = config.name
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._rubric, self._context = rubric, context
        self._where = f"{SETTING}: {config.name}:"
        self._letters = self._find_letters()
        self._reader = Held(partial(_load, self._where, model))
        self._opinions: dict[Matchup, Opinion] = {}
        self._num_too_long = 0
        self._has_told_missing = False

    @classmethod
    def load(cls, config: ModelJudgeConfig, train_config: TrainConfig) -> "ModelJudge":
        """Returns the judge; its weights are loaded when it first reads.

        Args:
            config: Which model, and the rubric.
            train_config: The settings of the run, of which the attention is taken.

        Raises:
            UserError: The model is not there, the rubric is none, or A and B are no different next tokens.
        """
        rubric = Rubric.of(config.name, config.rubric, BY_LETTER)
        model = judge_model(config.model, config.revision, train_config.model.attn_implementation)
        with naming(f"{SETTING}: {config.name}:"):
            tokenizer, limits = load_judge_tokenizer(model), Limits.of(model)
        return cls(config, model, tokenizer, rubric, find_context(tokenizer, limits.context))

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup; NaN where it does not fit, or the model gives no number.

        Raises:
            UserError: The weights are damaged or incomplete.
        """
        self._form_opinions([each for each in dict.fromkeys(matchups) if each not in self._opinions])
        gaps = np.array([self._opinions[each].gap for each in matchups], float)
        verdicts = np.where(np.abs(gaps) <= self._config.tie_within, 0.0, np.sign(gaps))
        return np.where(np.isnan(gaps), np.nan, verdicts)

    def describe(self) -> Mapping[str, Any]:
        """Returns model, rubric, the mean probability of A or B, and how many matchups had a verdict or were too long.

        Without a verdict for most, or with little probability of A or B, the model does not do what it is asked.
        """
        masses = [each.mass for each in self._opinions.values() if not math.isnan(each.mass)]
        return {
            "kind": "model",
            **describe_weights(self._model),
            "context": self._context,
            "rubric_sha256": self._rubric.sha256,
            "tie_within": self._config.tie_within,
            "verdict_mass": float(np.mean(masses)) if masses else None,
            "num_read": len(masses),
            "num_too_long": self._num_too_long,
            "num_without_number": len(self._opinions) - len(masses) - self._num_too_long,
        }

    def _form_opinions(self, matchups: Sequence[Matchup]) -> None:
        rows = {each: self._encode(self._write(each)) for each in matchups}
        fits = find_fitting(self._where, rows, self._context, "matchups")
        self._num_too_long += len(rows) - len(fits)
        self._opinions |= dict.fromkeys(matchups, Opinion())
        if not fits:
            return
        opinions = self._run(self._reader.get(), [rows[each] for each in fits])
        self._opinions |= zip(fits, opinions, strict=True)
        found = [each.mass for each in opinions]
        self._has_told_missing = self._has_told_missing or report_missing(self._where, found, "matchups")
        masses = [mass for mass in found if not math.isnan(mass)]
        if masses and np.mean(masses) < LITTLE_MASS:
            logger.warning(
                "%s says A or B with a probability of %.2g only: it may not understand what it is asked",
                self._where, np.mean(masses),
            )  # fmt: skip

    @torch.inference_mode()
    def _run(self, next_token: NextToken, rows: Sequence[Sequence[int]]) -> list[Opinion]:
        masses = [math.nan] * len(rows)

        def read(batch: list[int]) -> list[float]:
            logps = next_token([rows[row] for row in batch])
            a, b = (logps[:, letter].logsumexp(-1) for letter in self._letters)
            for row, mass in zip(batch, (a.exp() + b.exp()).tolist(), strict=True):
                masses[row] = mass
            gaps: list[float] = ((a - b) / 2).tanh().tolist()  # P(A) - P(B) of the two alone
            return gaps

        gaps = in_batches(rows, read)
        return [Opinion(gap, mass) for gap, mass in zip(gaps, masses, strict=True)]

    def _write(self, matchup: Matchup) -> str:
        """Returns the text after which the model is to say a letter."""
        asked = self._rubric.fill(matchup)
        if not self._tokenizer.chat_template:
            return asked + CUE
        messages = [{"role": "user", "content": asked}]
        return render(self._where, self._tokenizer, messages, add_generation_prompt=True)

    def _encode(self, text: str) -> list[int]:
        has_template = bool(self._tokenizer.chat_template)
        ids: list[int] = self._tokenizer(text, add_special_tokens=not has_template, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return ids[:-1] if not has_template and ids and ids[-1] == end else ids

    def _find_letters(self) -> tuple[list[int], list[int]]:
        """Returns the tokens that say A, and those that say B.

        A form of a letter counts only if writing it after the text adds one token and changes none before it.
        """
        text = self._write(PROBE)
        before = self._encode(text)
        letters: tuple[list[int], list[int]] = ([], [])
        for form in FORMS:
            a, b = (self._encode(f"{text}{form}{letter}") for letter in "AB")
            if a[:-1] == b[:-1] == before and a[-1] != b[-1]:
                letters[0].append(a[-1])
                letters[1].append(b[-1])
        if not letters[0]:
            raise UserError(
                f"{self._where} model={self._model.path}: its tokenizer has no tokens by which A and B could be told "
                "apart right after the rubric. Take another model."
            )
        return letters


def _load(where: str, model: ModelConfig) -> NextToken:
    with naming(where):
        return NextToken(prepare(load_model(model, placement=straight_to_device())))
