"""A judge that is a reward model: a sequence classifier with one output, which scores an answer to a prompt."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefopt.config.judges import SETTING, RewardModelJudgeConfig
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.evaluation.judges.judge import Matchup, compare_scores
from prefopt.evaluation.judges.loading import (
    Held,
    describe_weights,
    find_context,
    find_fitting,
    in_batches,
    judge_model,
    load_judge_tokenizer,
    pad_right,
    prepare,
    render,
    report_missing,
)
from prefopt.evaluation.statistics import Floats
from prefopt.models.limits import Limits
from prefopt.models.load import ADAPTER_FILE, from_pretrained, naming, straight_to_device
from prefopt.process.errors import UserError
from prefopt.process.paths import resolve

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HEAD = "ForSequenceClassification"


class RewardModelJudge:
    """The answer with the higher reward is better.

    Each answer is scored once, whatever it is compared with. One that does not fit into the model's context has no
    score: cut off, it would be another answer.

    Args:
        config: Its name, and how near a tie is.
        model: Which model.
        tokenizer: The model's.
        context: Most tokens that the model reads; None: unknown.
    """

    sees_order = False

    def __init__(
        self,
        config: RewardModelJudgeConfig,
        model: ModelConfig,
        tokenizer: "PreTrainedTokenizerBase",
        context: int | None,
    ) -> None:
        self.name = config.name
        self._config, self._model, self._tokenizer, self._context = config, model, tokenizer, context
        self._where = f"{SETTING}: {config.name}:"
        self._reader = Held(partial(_load, self._where, model))
        self._scores: dict[tuple[str, str], float] = {}
        self._num_too_long = 0
        self._has_told_missing = False

    @classmethod
    def load(cls, config: RewardModelJudgeConfig, train_config: TrainConfig) -> "RewardModelJudge":
        """Returns the judge; its weights are loaded when it first reads.

        Args:
            config: Which model.
            train_config: The settings of the run.

        Raises:
            UserError: The model is not there, or is no sequence classifier with one output.
        """
        where = f"{SETTING}: {config.name}:"
        model = judge_model(config.model, config.revision, train_config.model.attn_implementation)
        with naming(where):
            if (resolve(config.model) / ADAPTER_FILE).is_file():
                raise UserError(
                    f"model.path={config.model}: holds an adapter. Merge it into its model, save that to a folder of "
                    "its own, and name that."
                )
            _require_one_output(config.model, from_pretrained(AutoConfig, model))
            tokenizer, limits = load_judge_tokenizer(model), Limits.of(model)
        return cls(config, model, tokenizer, find_context(tokenizer, limits.context))

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup; NaN where an answer is too long, or the model gives no number.

        Raises:
            UserError: The weights are damaged or incomplete.
        """
        sides = [(each.prompt, answer) for each in matchups for answer in (each.first, each.second)]
        self._score([side for side in dict.fromkeys(sides) if side not in self._scores])
        scores = np.array([self._scores[side] for side in sides], float).reshape(-1, 2)
        return compare_scores(scores[:, 0], scores[:, 1], self._config.tie_within)

    def describe(self) -> Mapping[str, Any]:
        """Returns the model, and how many answers were scored, were too long, or got no number."""
        num_unscored = sum(map(math.isnan, self._scores.values()))
        return {
            "kind": "reward_model",
            **describe_weights(self._model),
            "context": self._context,
            "tie_within": self._config.tie_within,
            "num_scored": len(self._scores) - num_unscored,
            "num_too_long": self._num_too_long,
            "num_without_number": num_unscored - self._num_too_long,
        }

    def _score(self, sides: Sequence[tuple[str, str]]) -> None:
        encoded = {side: self._encode(*side) for side in sides}
        fits = find_fitting(
            self._where, {side: each["input_ids"] for side, each in encoded.items()}, self._context, "answers"
        )
        self._num_too_long += len(encoded) - len(fits)
        self._scores |= dict.fromkeys(sides, math.nan)
        if not fits:
            return
        scores = self._run(self._reader.get(), [encoded[side] for side in fits])
        self._scores |= zip(fits, scores, strict=True)
        self._has_told_missing = self._has_told_missing or report_missing(self._where, scores, "answers")

    @torch.inference_mode()
    def _run(self, model: "PreTrainedModel", encoded: Sequence["BatchEncoding"]) -> list[float]:
        # The model takes its reward from the last token that is no padding, by its own configuration's padding token.
        pad = model.config.get_text_config().pad_token_id
        rows = [each["input_ids"] for each in encoded]

        def read(batch: list[int]) -> list[float]:
            ids = [rows[row] for row in batch]
            given = {
                "input_ids": pad_right(ids, pad or 0),
                "attention_mask": pad_right([[1] * len(row) for row in ids], 0),
            }
            if "token_type_ids" in encoded[0]:
                given["token_type_ids"] = pad_right([encoded[row]["token_type_ids"] for row in batch], 0)
            rewards: list[float] = model(**given).logits.float()[:, 0].tolist()
            return rewards

        return in_batches(rows, read, most_rows=1 if pad is None else None)

    def _encode(self, prompt: str, answer: str) -> "BatchEncoding":
        """Returns a prompt with an answer as the model learned to read them.

        That is as its chat template writes them; without one, as two texts for a model that tells two apart, else as
        one text with a line break between them.
        """
        if self._tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            text = render(self._where, self._tokenizer, messages, add_generation_prompt=False)
            return self._tokenizer(text, add_special_tokens=False, verbose=False)
        if self._tokenizer.sep_token is not None:
            return self._tokenizer(prompt, answer, verbose=False)
        return self._tokenizer(f"{prompt}\n{answer}", verbose=False)


def _require_one_output(path: str, config: Any) -> None:
    heads = list(config.architectures or [])
    if heads and not any(head.endswith(HEAD) for head in heads):
        raise UserError(
            f"model.path={path}: is a {heads[0]}, whose head gives no reward. A reward model is a ...{HEAD} with one "
            "output. To ask a language model for its verdict, use {kind: model, model: " + json.dumps(path) + "}."
        )
    if config.num_labels != 1:
        raise UserError(
            f"model.path={path}: has {config.num_labels} outputs ({', '.join(map(str, config.id2label.values()))}), "
            "and a reward model has one. Take one that was trained to compare answers."
        )


def _load(where: str, model: ModelConfig) -> "PreTrainedModel":
    on_gpu = straight_to_device()
    with naming(where):
        loaded, found = from_pretrained(
            AutoModelForSequenceClassification,
            model,
            output_loading_info=True,
            dtype="auto" if on_gpu else torch.float32,
            **on_gpu,
        )
        if found["missing_keys"]:
            raise UserError(
                f"model.path={model.path}: its weights lack {len(found['missing_keys'])} tensors, first "
                f"{min(found['missing_keys'])}, so that its rewards would be random. Get the whole model."
            )
    return prepare(loaded)
