"""Where a run came from: command, code, packages, data, model, hardware."""

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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

MEASURED = ("held_out", "pairs")
"""The digests of a report's `provenance.data.sha256` that say on which rows a model was measured."""


def collect(config: TrainConfig, data: dict[str, Any], model: dict[str, Any], begun: dict[str, str]) -> dict[str, Any]:
    """Everything needed to say what ran.

    Args:
        config: Of the run.
        data: The digests and counts of the loaded examples.
        model: What `prefopt.models.fingerprint.describe_model` says of the base.
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
    import torch  # the caller has loaded it by now; `--help` has not

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def command_line(module: str, argv: list[str]) -> str:
    """The command that started this process, as one would type it."""
    return shlex.join([Path(sys.executable).name, "-m", module, *argv])


def program_line() -> str:
    """The Python program that runs in this process, as it was started."""
    return shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
