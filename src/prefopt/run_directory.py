"""One run's folder: what it holds, what state it is in, and whether a command may start or continue it."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from prefopt.config import differences, read_config, to_yaml
from prefopt.errors import UserError
from prefopt.files import write_json, write_text
from prefopt.schema import TrainConfig


class State(Enum):
    """The values of `state` in status.json."""

    running = "running"
    done = "done"
    preempted = "preempted"
    failed = "failed"
    diverged = "diverged"


@dataclass(frozen=True)
class RunDirectory:
    """Paths and state of `<run.root>/<run.name>`; nothing is written before `start`."""

    path: Path

    @classmethod
    def of(cls, config: TrainConfig) -> "RunDirectory":
        assert config.run.name is not None
        return cls(Path(config.run.root).expanduser() / config.run.name)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def work(self) -> Path:
        """Which engine trained, and what the reference store saved."""
        return self.path / "work.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final model or adapter; present only when complete."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def read_status(self) -> dict[str, Any]:
        """status.json, or an empty dict where there is none."""
        if not self.status.exists():
            return {}
        status: dict[str, Any] = json.loads(self.status.read_text(encoding="utf-8"))
        return status

    def is_done(self) -> bool:
        return self.read_status().get("state") == State.done.value

    def check(self, config: TrainConfig) -> None:
        """Refuses a folder that belongs to something else, or that cannot be written. Writes nothing."""
        ancestor = self.path
        while not ancestor.exists() and ancestor != ancestor.parent:
            ancestor = ancestor.parent
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: cannot be written ({ancestor} is not a writable folder). Set run.root.")
        if not self.path.exists():
            return
        if not self.config.exists():
            if any(path.is_file() for path in self.path.rglob("*")):
                raise UserError(f"{self.path}: exists and is no run of prefopt. Set run.name or run.root.")
            return
        if config.run.overwrite:
            self._keep_inputs(config)
            return
        changed = differences(read_config(self.config), config)
        if changed:
            raise UserError(
                f"{self.path}: holds a run with other settings ({'; '.join(changed)}). "
                "Set run.name for a new run, or run.overwrite=true to replace this one."
            )

    def _keep_inputs(self, config: TrainConfig) -> None:
        """Refuses to overwrite a run that the new one reads from."""
        inputs = [config.model.path, config.data.train, config.data.held_out, config.evaluation.pairs]
        flat = [path for item in inputs for path in (item if isinstance(item, list) else [item]) if path is not None]
        for path in [*flat, config.model.chat_template, config.evaluation.neutral_texts]:
            if path is not None and Path(path).expanduser().resolve().is_relative_to(self.path.resolve()):
                raise UserError(f"run.overwrite=true would delete {path}, which this run reads. Set another run.name.")

    def start(self, config: TrainConfig, provenance: dict[str, Any]) -> None:
        """Creates the folder, or opens another attempt in it. Rank 0 only.

        Raises:
            UserError: The earlier attempt was on other data.
        """
        if config.run.overwrite and self.path.exists():
            shutil.rmtree(self.path)
        if self.provenance.exists():
            before = json.loads(self.provenance.read_text(encoding="utf-8"))["data"].get("sha256")
            if before != provenance["data"].get("sha256"):
                raise UserError(
                    f"{self.path}: the data has changed since this run began. "
                    "Set run.name for a new run, or run.overwrite=true to replace this one."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config.exists():
            write_text(self.config, to_yaml(config))
        write_json(self.provenance, provenance)
        attempts = int(self.read_status().get("attempts", 0)) + 1
        self.set_state(State.running, attempts=attempts)

    def discard_if_empty(self) -> None:
        """Removes the folders that transformers made for a run that then could not begin."""
        for path in (self.checkpoints, self.path):
            with suppress(OSError):
                path.rmdir()

    def read_work(self) -> dict[str, Any]:
        """work.json, or an empty dict where there is none."""
        work: dict[str, Any] = json.loads(self.work.read_text(encoding="utf-8")) if self.work.exists() else {}
        return work

    def set_state(self, state: State, **fields: Any) -> None:
        """Updates status.json: `state`, and any of step, attempts, message. Rank 0 only."""
        status = {"state": state.value, "step": 0, "attempts": 1, "message": ""}
        write_json(self.status, {**status, **self.read_status(), "state": state.value, **fields})
