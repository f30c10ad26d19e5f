"""Digests of what reads and of what answers: with them two runs' win rates are known to mean the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.evaluation.judges.judge import Judge
from prefopt.evaluation.metrics import BASE
from prefopt.evaluation.rivals import Rival
from prefopt.models.fingerprint import describe_model, fingerprint_reading

if TYPE_CHECKING:
    from prefopt.evaluation.material import Material

FOUND_WHILE_READING = ("accuracy", "length_accuracy", "seed", "verdict_mass", "refused")
"""Facts of a judge that follow from what it read, or from the seed of its trial, beside its counts (`num_*`)."""


def digest_judge(judge: Judge) -> str:
    """Returns the SHA-256 (hex) of what decides a judge's verdicts: its kind, settings, model, and what it learned."""
    return _digest(_lasting(judge.describe()))


def _lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts of a judge, and those of a panel's members, that are there before it reads."""
    return {
        key: {name: _lasting(each) for name, each in value.items()} if key == "of" else value
        for key, value in facts.items()
        if key not in FOUND_WHILE_READING and not key.startswith("num_")
    }


def digest_untuned(config: TrainConfig, material: "Material") -> dict[str, str]:
    """Returns by name the SHA-256 (hex) of what decides the answers of each contestant without tuning, but the seed.

    It is of the model's files, those of its tokenizer and of where answers end included, or of its server and name; of
    all that it is asked, and of an answer's most tokens.
    """
    found = {BASE: _digest_answers(config, _digest_files(config.model), material.prompts)}
    return found | {rival.name: _digest_rival(config, rival) for rival in material.rivals if rival.is_untuned}


def _digest_rival(config: TrainConfig, rival: Rival) -> str:
    if rival.config.endpoint is not None:
        return _digest_answers(config, [rival.config.endpoint, rival.config.model], rival.messages)
    return _digest_answers(config, _digest_files(rival.model or config.model), rival.prompts)


def _digest_files(model: ModelConfig) -> list[str]:
    return [describe_model(model)["fingerprint"], fingerprint_reading(model)]


def _digest_answers(config: TrainConfig, model: object, asked: Sequence[Any]) -> str:
    return _digest([model, [list(each) for each in asked], config.evaluation.max_new_tokens])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
