"""The files that a run reads, and whether they have changed; without a tokenizer, so that it is told at once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from prefopt.config.mixture import paths_of
from prefopt.config.schema import TrainConfig
from prefopt.data.files import HUB, find_files
from prefopt.process.errors import UserError, explained


def sources_of(config: TrainConfig) -> dict[str, object]:
    """Returns the data sets that a run reads, each under its name in provenance.json."""
    data, evaluation = config.data, config.evaluation
    return {
        "train": data.train,
        "held_out": data.held_out,
        "pairs": evaluation.pairs,
        "neutral_texts": evaluation.neutral_texts,
    }


def find_changed_files(specs: Mapping[str, object], before: Mapping[str, object]) -> dict[str, str]:
    """Says of each data set whose files differ from those of before what has become of them.

    Args:
        specs: Data sets by purpose, as `sources_of` returns them.
        before: Their digests then, by purpose. A data set without a digest there is not compared.
    """
    found = {}
    for name, spec in specs.items():
        if spec is None or not isinstance(before.get(name), str):
            continue
        try:
            now = digest_files(spec)
        except UserError:
            found[name] = "is gone, or cannot be read"
            continue
        if now != before[name]:
            found[name] = "has changed since"
    return found


def digest_files(spec: object) -> str | None:
    """Returns a digest of the contents of all files of a data set, in order; None if some of them are on the hub."""
    paths = list_files(spec)
    if paths is None:
        return None
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(_digest_file(path))
    return digest.hexdigest()


def list_files(spec: object) -> list[Path] | None:
    """Returns all files of a data set, in order, and what else lies in its folders; None if some are on the hub."""
    items = [str(path) for path in paths_of(spec)]
    if any(item.startswith(HUB) for item in items):
        return None
    found = (path for item in items for path in find_files(item))
    return [path for each in found for path in (sorted(each.rglob("*")) if each.is_dir() else [each])]


def _digest_file(path: Path) -> bytes:
    with explained(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
