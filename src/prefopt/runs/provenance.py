"""Provenance of a run: command, code, packages, data, model, hardware."""

import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prefopt.config.schema import TrainConfig
from prefopt.process.ranks import world_size
from prefopt.runs.code_state import CodeState

PACKAGES = (
    "prefopt",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "deepspeed",
    "hydra-core",
    "wandb",
)

PREPARE = "prefopt.prepare"
"""The command that computes what runs share, and trains nothing."""
SAMPLE = "prefopt.sample"
"""The command that writes pairs of a model's own answers, and trains nothing."""
MEASURED = ("held_out", "pairs")
"""Keys of a report's `provenance.data.sha256` whose digests identify the rows on which a model was measured."""


def collect(
    config: TrainConfig, data: dict[str, object], model: dict[str, object], begun: dict[str, str]
) -> dict[str, object]:
    """Returns the content of provenance.json.

    Args:
        config: Settings of the run.
        data: Digests and counts of the loaded examples.
        model: Description of the base model by `prefopt.models.fingerprint.describe_model`.
        begun: The `command` that started this process, or the `program` that called `prefopt.train`.
    """
    return {
        **begun,
        **_describe(CodeState.read()),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "hardware": _hardware(),
        "world_size": world_size(),
        "seed": config.run.seed,
        "data": data,
        "model": model,
    }


def _describe(code: CodeState) -> dict[str, str | None]:
    return {"git_commit": code.commit, "git_remote": code.remote, "git_diff_sha256": code.diff_sha256}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hardware() -> str:
    import torch  # imported here, so that `--help` need not load it

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def command_line(module: str, argv: list[str]) -> str:
    """Returns the command that started this process, as typed in a shell."""
    return shlex.join([Path(sys.executable).name, "-m", module, *argv])


def module_of(provenance: Mapping[str, object]) -> str:
    """Returns the module of the command that wrote a provenance.json, such as `prefopt.prepare`; empty if unknown."""
    command = provenance.get("command")
    return command.partition(" -m ")[2].split(" ")[0] if isinstance(command, str) else ""


def program_line() -> str:
    """The Python program that runs in this process, without its arguments: they may hold a key."""
    return shlex.join([Path(sys.executable).name, sys.argv[0] or "(interactive)"])
