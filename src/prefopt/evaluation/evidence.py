"""What a decision rests on, as digests: with them a word that was once earned is not taken for another model's."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.config.contestants import read_contestants
from prefopt.config.judges import read_judges
from prefopt.config.plain import as_dict
from prefopt.config.schema import TrainConfig
from prefopt.data.sources import digest_files
from prefopt.process.paths import resolve
from prefopt.storage.files import hash_file
from prefopt.storage.sealed import MANIFEST

NOT_EVIDENCE = ("batch_size", "num_shown_samples")
"""Settings of `evaluation` that change no number."""
NAMES = {
    "model": "the tuned model",
    "base": "the base model's settings",
    "data": "the training or held-out files",
    "settings": "the settings of the evaluation",
    "files": "a prompt, an example file, a schema or a rubric",
}


def gather(config: TrainConfig, model: Path) -> dict[str, str | None]:
    """Returns the SHA-256 (hex) of each thing that a decision rests on; None where it cannot be told.

    Args:
        config: The settings of the run and of the evaluation.
        model: Folder of the tuned model; its manifest has the digests of its files.
    """
    manifest = model / MANIFEST
    settings = as_dict(config)
    evaluation = {key: value for key, value in settings["evaluation"].items() if key not in NOT_EVIDENCE}
    data = {name: digest_files(getattr(config.data, name)) for name in ("train", "held_out")}
    return {
        "model": hash_file(manifest) if manifest.is_file() else None,
        "base": _digest(settings["model"]),
        "data": _digest(data),
        "settings": _digest(evaluation),
        "files": _digest({name: _digest_file(name) for name in _named_files(config)}),
    }


def _named_files(config: TrainConfig) -> list[str]:
    """Returns the files that contestants and judges name."""
    contestants = read_contestants(config.evaluation.contestants)
    named = [name for each in contestants for name in (each.system, each.examples)]
    named += [getattr(judge, "rubric", None) for judge in read_judges(config.evaluation.judges)]
    named += [config.evaluation.regression, config.evaluation.neutral_texts]
    return sorted({name for name in named if name is not None and "\n" not in name and resolve(name).is_file()})


def _digest_file(name: str) -> str:
    return str(hash_file(resolve(name)))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def find_stale(recorded: Mapping[str, Any], now: Mapping[str, str | None]) -> list[str]:
    """Returns in words what has changed since a decision was made, or was not recorded then; empty if nothing."""
    return [NAMES[key] for key, digest in now.items() if digest is None or recorded.get(key) != digest]
