"""Data and models as W&B artifacts: by reference (path, size, checksum), or with their content."""

import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.choices import LogArtifacts
from prefopt.config.mixture import paths_of
from prefopt.config.schema import TrainConfig
from prefopt.data.files import HUB, find_files

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

MAX_NAME = 128
"""Most characters that W&B allows in an artifact's name."""
MOST_METADATA = 100
"""Most metadata that W&B allows an artifact."""
HUB_URL = "https://huggingface.co/datasets/"


def build_data(config: TrainConfig, described: dict[str, object]) -> "wandb.Artifact":
    """The files of `data.train`, `data.held_out` and `evaluation.pairs` as one artifact of type dataset.

    Args:
        config: Names the files; a data set of the hub is recorded by its address.
        described: Digests and counts, for the artifact's metadata.
    """
    import wandb

    specs = {"train": config.data.train, "held_out": config.data.held_out, "pairs": config.evaluation.pairs}
    artifact = wandb.Artifact(_plain(f"data-{_label(config.data.train)}"), type="dataset", metadata=described)
    for split, spec in specs.items():
        names: set[str] = set()
        for number, source in enumerate(_sources(spec)):
            own = source.name if isinstance(source, Path) else source.rpartition("/")[2]
            name = f"{split}/{own}" if own not in names else f"{split}/{number}/{own}"
            names.add(own)
            if isinstance(source, Path):
                _add(artifact, source, name, config.logger.log_artifacts)
            else:
                artifact.add_reference(source, name=name, checksum=False)  # an address: no network access
    return artifact


def build_model(config: TrainConfig, folder: Path, described: dict[str, object]) -> "wandb.Artifact":
    """A run's final model or adapter as an artifact of type model, named after the run.

    Args:
        config: Configuration of the run.
        folder: The run's `model/`.
        described: Values of the report, for the artifact's metadata.
    """
    import wandb

    base = {"base": config.model.path, "algorithm": config.algorithm.name.value, "peft": config.peft.method.value}
    told = dict(islice({**base, **described}.items(), MOST_METADATA))
    if len(told) < len(base) + len(described):
        logger.info("W&B: the model's metadata have the first %d values of the report", MOST_METADATA)
    artifact = wandb.Artifact(_plain(f"model-{config.run.name}"), type="model", metadata=told)
    _add(artifact, folder, None, config.logger.log_artifacts)
    return artifact


def _add(artifact: "wandb.Artifact", path: Path, name: str | None, how: LogArtifacts) -> None:
    if how is LogArtifacts.reference:
        artifact.add_reference(path.resolve().as_uri(), name=name)
    elif path.is_dir():
        artifact.add_dir(str(path), name=name, skip_cache=True, policy="immutable")  # immutable: not copied
    else:
        artifact.add_file(str(path), name=name, skip_cache=True, policy="immutable")


def _sources(spec: object) -> Iterator[Path | str]:
    """Files and folders as paths, data sets of the hub as addresses."""
    for item in paths_of(spec):
        if str(item).startswith(HUB):
            yield HUB_URL + str(item).removeprefix(HUB).partition(":")[0]
        else:
            yield from find_files(str(item))


def _label(spec: Any) -> str:
    """A short name of a data set: folder and name of its first file, or its id on the hub."""
    first = str(paths_of(spec)[0])
    if first.startswith(HUB):
        return first.removeprefix(HUB).partition(":")[0]
    path = find_files(first)[0].resolve()
    return f"{path.parent.name}-{path.name.partition('.')[0]}"


def _plain(name: str) -> str:
    """Replaces the characters that W&B does not allow in a name, and cuts the name to `MAX_NAME`."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:MAX_NAME]
