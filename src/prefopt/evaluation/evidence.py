"""What a decision rests on, as digests: with them a word that was once earned is not taken for another model's."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt.config.contestants import read_contestants
from prefopt.config.judges import ModelJudgeConfig, RewardModelJudgeConfig, read_judges
from prefopt.config.mixture import parts_of
from prefopt.config.plain import as_dict
from prefopt.config.schema import ModelConfig, TrainConfig
from prefopt.config.tasks import read_tasks
from prefopt.data.sources import digest_files
from prefopt.evaluation.rivals import find_model
from prefopt.models.fingerprint import digest_reading, fingerprint_reading, fingerprint_weights
from prefopt.process.errors import UserError, first_line
from prefopt.process.named_code import find_file
from prefopt.process.paths import find_text_file, resolve
from prefopt.storage.files import hash_file, write_json
from prefopt.storage.reading import parse_json, read_file
from prefopt.storage.sealed import MANIFEST, digest, find_damage, read_digests

logger = logging.getLogger(__name__)

NOT_EVIDENCE = ("batch_size", "num_shown_samples")
"""Settings of `evaluation` that change no number."""
PLACES = ("train", "held_out", "test")
"""Settings of `data` that name places: what lies there counts, not where."""
NAMES = {
    "model": "the tuned model",
    "base": "the base model or its settings",
    "models": "the model of a contestant or a judge",
    "data": "the training or held-out files",
    "settings": "the settings of the evaluation or its data, the seed or the precision",
    "files": "a chat template, a prompt, an example file, a schema, a rubric, or code of a judge or a task",
}
RECORDS = ("report.json", "pairs.jsonl", "answers.jsonl")
"""Files of a report that hold what was measured and decided."""


def gather(config: TrainConfig, model: Path) -> dict[str, str | None]:
    """Returns the SHA-256 (hex) of each thing that a decision rests on; None where it cannot be told, which is logged.

    Nothing is raised: a report that was measured must not be lost for a file that is gone by then.

    Args:
        config: The settings of the run and of the evaluation.
        model: Folder of the tuned model; its manifest has the digests of its files.
    """
    return {
        "model": _try("model", lambda: _digest_tuned(model)),
        "base": _try("base", lambda: _digest([as_dict(config.model), *_fingerprints(config.model)])),
        "models": _try("models", lambda: _digest([_fingerprints(each) for each in _named_models(config)])),
        "data": _try("data", lambda: _digest(_digest_data(config))),
        "settings": _try("settings", lambda: _digest(_settings(config))),
        "files": _try("files", lambda: _digest([hash_file(path) for path in _named_files(config)])),
    }


def digest_model(model: ModelConfig) -> str | None:
    """Returns the SHA-256 (hex) of all files that decide a model's answers; None if it cannot be told."""
    return _try("model", lambda: _digest(_fingerprints(model)))


def _try(key: str, find: Callable[[], str | None]) -> str | None:
    try:
        return find()
    except Exception as error:  # files of users fail in many ways, and the measurement is worth more than its digests
        logger.warning(
            "evaluation: %s cannot be told from others, so --recorded will not hold (%s)",
            NAMES[key], first_line(error),
        )  # fmt: skip
        return None


def _digest_tuned(model: Path) -> str | None:
    """Returns the digest of a run's model, with files that were put beside those of its manifest."""
    manifest = model / MANIFEST
    return _digest([hash_file(manifest), digest_reading(model)]) if manifest.is_file() else None


def _fingerprints(model: ModelConfig) -> list[str]:
    """Returns the digests of a model's weights, and of the files by which it reads and writes text."""
    return [fingerprint_weights(model), fingerprint_reading(model)]


def _digest_data(config: TrainConfig) -> dict[str, Any]:
    """Returns the digest of each data set's files; the name of one that has some on the hub."""
    specs = {name: getattr(config.data, name) for name in ("train", "held_out")}
    if config.evaluation.pairs is not None:
        specs["pairs"] = config.evaluation.pairs
    return {name: digest_files(spec) or as_dict(spec) for name, spec in specs.items()}


def _settings(config: TrainConfig) -> list[Any]:
    """Returns the settings that change what is asked, answered, measured or decided."""
    data = {key: value for key, value in as_dict(config.data).items() if key not in PLACES}
    parts = [
        [[part.weight, part.max_rows] for part in parts_of(getattr(config.data, name), f"data.{name}")]
        for name in ("train", "held_out")
    ]
    evaluation = {key: value for key, value in as_dict(config.evaluation).items() if key not in NOT_EVIDENCE}
    return [evaluation, data, parts, config.run.seed, as_dict(config.trainer.precision)]


def _named_models(config: TrainConfig) -> list[ModelConfig]:
    """Returns the models of their own that contestants and judges on this machine have."""
    found = [
        find_model(each, config.model)[0]
        for each in read_contestants(config.evaluation.contestants)
        if each.endpoint is None
    ]
    of_judges = [
        ModelConfig(path=judge.model, revision=judge.revision)
        for judge in read_judges(config.evaluation.judges)
        if isinstance(judge, ModelJudgeConfig | RewardModelJudgeConfig)
    ]
    return [model for model in found if model is not None] + of_judges


def _named_files(config: TrainConfig) -> list[Path]:
    """Returns the files that contestants, judges, tasks and settings name, and those of code of the user's."""
    evaluation = config.evaluation
    judges, tasks = read_judges(evaluation.judges), read_tasks(evaluation.tasks)
    contestants = read_contestants(evaluation.contestants)
    texts = [*(each.system for each in contestants), *(getattr(each, "rubric", None) for each in judges)]
    texts.append(config.data.system)
    named = [*(each.examples for each in contestants), *(getattr(each, "schema", None) for each in tasks)]
    named += [evaluation.regression, evaluation.neutral_texts, config.model.chat_template]
    paths = {resolve(name) for name in named if name is not None}
    paths |= {path for text in texts if text is not None and (path := find_text_file(text)) is not None}
    functions = [getattr(each, "function", None) for each in (*judges, *tasks)]
    code = {find_file(name) for name in functions if name is not None}
    return sorted({path for path in paths if path.is_file()} | {path for path in code if path is not None})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def find_stale(recorded: Mapping[str, Any], now: Mapping[str, str | None]) -> list[str]:
    """Returns in words what has changed since a decision was made, or was not recorded then; empty if nothing."""
    return [NAMES[key] for key, digest in now.items() if digest is None or recorded.get(key) != digest]


def seal_report(folder: Path) -> None:
    """Writes the digests of what a report's folder holds of measurements and decision beside it."""
    names = [name for name in RECORDS if (folder / name).is_file()]
    write_json(folder / MANIFEST, {"files": digest(folder, names)})


def find_edit(folder: Path) -> str | None:
    """Says which record of a report is not what was written there, such as `report.json has another checksum`.

    None if all are. That of an earlier version, which has no digests, counts as edited: nothing tells.
    """
    try:
        return find_damage(folder, read_digests(parse_json(read_file(folder / MANIFEST))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return f"{MANIFEST} is missing or damaged"
