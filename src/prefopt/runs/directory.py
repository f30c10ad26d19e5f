"""The folder of one run: its files, its state, and whether a command may start or continue it."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from prefopt.config.choices import AUTO
from prefopt.config.load import differences, fingerprint, has_grown, to_yaml
from prefopt.config.mixture import paths_of
from prefopt.config.schema import TrainConfig
from prefopt.distributed.group import on_main
from prefopt.process.errors import FULL, EndedError, UserError, explained
from prefopt.process.output import ERRORS, OUTPUT
from prefopt.process.paths import expand
from prefopt.runs.changes import find_changed_data, find_changed_input, find_changed_versions, with_earlier
from prefopt.runs.files import PROVENANCE, STATUS, WORK, read_json, read_report, read_run_file, read_steps
from prefopt.runs.lock import RunLock
from prefopt.runs.provenance import PREPARE, module_of
from prefopt.runs.settings import read_config
from prefopt.storage.files import PARTIAL, overwrite_in_place, write_json, write_text
from prefopt.storage.reading import read_text

logger = logging.getLogger(__name__)


class RunTakenOverError(EndedError):
    """Another process took over the run, because this one showed no sign of life for too long."""

    def __init__(self, run: Path) -> None:
        super().__init__(f"{run}: taken over by another process, so this one must not write")


class State(Enum):
    """The values of `state` in status.json."""

    running = "running"
    done = "done"
    preempted = "preempted"
    failed = "failed"
    diverged = "diverged"
    pruned = "pruned"


@dataclass(frozen=True)
class RunDirectory:
    """Paths and state of the folder `<run.root>/<run.name>`. Nothing is written before `start`.

    Attributes:
        path: The folder.
        lock: Lock that keeps other processes out while this one uses the folder; None if it is only read.
    """

    path: Path
    lock: RunLock | None = field(default=None, compare=False)

    @classmethod
    def of(cls, config: TrainConfig) -> "RunDirectory":
        assert config.run.name is not None
        return cls(expand(config.run.root) / config.run.name)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def diff(self) -> Path:
        """The uncommitted changes of the code; absent if everything was committed."""
        return self.path / "diff.patch"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rows(self) -> Path:
        """The rows that each optimizer step saw; written with `trainer.log_rows`."""
        return self.path / "rows.jsonl"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id"

    @property
    def work(self) -> Path:
        """Engine and kernels of the training, what the reference store saved, and seconds by phase."""
        return self.path / "work.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final model or adapter; present only when complete."""
        return self.path / "model"

    @property
    def pairs(self) -> Path:
        """In place of a model, what a stage that samples has made; present only when complete."""
        return self.path / "pairs.jsonl"

    @property
    def slurm(self) -> Path:
        """Files of the jobs that run it: script, logs, attempts. `run.overwrite` keeps them."""
        return self.path / "slurm"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def read_status(self) -> dict[str, Any]:
        """Returns status.json, or an empty dict if there is none.

        Raises:
            UserError: The file is damaged; `read_provenance` and `read_work` raise the same.
        """
        return read_run_file(self.status, STATUS)

    @contextmanager
    def claimed(self, config: TrainConfig) -> Iterator["RunDirectory"]:
        """Checks the folder for this configuration and locks it during the block. All ranks call it."""
        on_main(lambda: self.check(config))
        with self.locked() as run:
            yield run

    @contextmanager
    def locked(self) -> Iterator["RunDirectory"]:
        """Keeps other processes from training, replacing or measuring the run during the block. All ranks call it.

        Raises:
            UserError: A live process holds the lock, or its file cannot be written.
        """
        lock = RunLock(self.path)
        on_main(lock.acquire)
        try:
            yield replace(self, lock=lock)
        finally:
            lock.release()

    def find_intruder(self) -> str | None:
        """Describes the process that took this folder over from this one; None if none did."""
        return self.lock.lost_to if self.lock is not None else None

    def is_done(self, config: TrainConfig) -> bool:
        """Returns whether nothing is left to do. A run whose length was raised afterwards is not done."""
        is_done = self.read_status().get("state") == State.done.value and self.model.is_dir()
        return is_done and not has_grown(read_config(self.config), config)

    def describe_done(self, config: TrainConfig) -> str:
        """Says that the run is done and where its report is; if its data have changed since, in a second line."""
        done = f"{self.path}: this run is done. Report: {self.report / 'report.html'}"
        changed = self.find_changed_data(config)
        return done if changed is None else f"{done}\n{changed}, so this report is of the earlier data."

    def find_changed_data(self, config: TrainConfig) -> str | None:
        """Says which of its data files have changed since the run; None if none has, or if it cannot be told."""
        return find_changed_data(config, self.read_digests())

    def read_digests(self) -> dict[str, object]:
        """Returns the digests of its data files by purpose; empty if they are not known, as of earlier versions."""
        data = (read_json(self.provenance)[0] or {}).get("data")
        files = data.get("files") if isinstance(data, dict) else None
        return files if isinstance(files, dict) else {}

    def made_by(self) -> str:
        """Returns the module of the command that worked here last, if training has not begun; empty if not known."""
        if os.path.isfile(self.metrics) or os.path.isdir(self.model):  # also of a folder that may not be entered
            return ""
        return module_of(read_json(self.provenance)[0] or {})

    def is_prepared(self) -> bool:
        """Returns whether `prefopt prepare` alone has worked here. A damaged provenance.json counts as another's."""
        return self.made_by() == PREPARE

    def is_trained(self) -> bool:
        """Returns whether training has begun here. If in doubt it has: its files are not to be written over."""
        return not self.is_prepared() and any(
            os.path.exists(path) for path in (self.provenance, self.metrics, self.model)
        )

    def why_pruned(self) -> str | None:
        """Returns why a search ended this run early; None if it did not."""
        status = self.read_status()
        return str(status["message"]) if status.get("state") == State.pruned.value else None

    def read_provenance(self) -> dict[str, Any]:
        """Returns provenance.json, or an empty dict if there is none."""
        return read_run_file(self.provenance, PROVENANCE)

    def read_step_size(self) -> dict[str, int] | None:
        """Returns the fields of the first attempt's `StepSize`; None before the first attempt."""
        size: dict[str, int] | None = self.read_provenance().get("step_size")
        return size

    def read_fit(self) -> dict[str, Any] | None:
        """Returns the fields of the `Fit` that the first attempt found; None if nothing was tried."""
        fit: dict[str, Any] | None = self.read_provenance().get("fit")
        return fit

    def read_wandb_id(self) -> str | None:
        """Returns the run's id in Weights & Biases; None without one."""
        return read_text(self.wandb_id).strip() if self.wandb_id.exists() else None

    def check_place(self) -> None:
        """Refuses a folder that belongs to another program, or that cannot be written. Writes nothing."""
        ancestor = self.path
        while not ancestor.exists() and ancestor != ancestor.parent:
            ancestor = ancestor.parent
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
            raise UserError(f"{self.path}: cannot be written ({ancestor} is not a writable folder). Set run.root.")
        if not self.path.exists():
            if self.path.is_symlink():
                raise UserError(f"{self.path}: is a link to {self.path.readlink()}, which is not there. Remove it.")
            return
        if not self.config.exists():
            found = (path for path in self.path.rglob("*") if path.is_file() and self.slurm not in path.parents)
            own = (self.status, self.path / OUTPUT, self.path / ERRORS)  # the files of a run that failed at its start
            if any(path.suffix != PARTIAL and path not in own for path in found):
                raise UserError(f"{self.path}: exists and is no run of prefopt. Set run.name or run.root.")

    def check(self, config: TrainConfig) -> None:
        """Refuses a folder that belongs to another run or program, or that cannot be written. Writes nothing."""
        self.check_place()
        if not self.config.exists():
            return
        if config.run.overwrite:
            self._keep_inputs(config)
            return
        earlier = self._read_earlier_config(config)
        if config.data.as_chat == AUTO and earlier.data.as_chat is False:
            config.data.as_chat = False  # it was the default when the run began
            logger.info("resume: goes on with data.as_chat=false, with which the run began")
        changed = differences(earlier, config)
        if changed:
            raise UserError(
                f"{self.path}: holds a run with other settings ({'; '.join(changed)}). "
                "Set run.name for a new run, or run.overwrite=true to replace this one."
            )

    def _read_earlier_config(self, config: TrainConfig) -> TrainConfig:
        """Returns the configuration of the run here; a model revision and the commit that it meant count as equal."""
        earlier = read_config(self.config)
        if config.model.revision is not None and config.model.path == earlier.model.path:
            known: dict[str, Any] = self.read_provenance().get("model", {})
            if (known.get("revision"), known.get("commit")) == (earlier.model.revision, config.model.revision):
                earlier.model.revision = config.model.revision
        return earlier

    def _keep_inputs(self, config: TrainConfig) -> None:
        """Refuses to overwrite a run whose files the new run reads."""
        data = config.data
        inputs = [config.model.path, data.train, data.held_out, data.test, config.evaluation.pairs]
        flat = [path for item in inputs for path in paths_of(item)]
        for path in [*flat, config.model.chat_template, config.evaluation.neutral_texts]:
            if path is not None and expand(str(path)).resolve().is_relative_to(self.path.resolve()):
                raise UserError(f"run.overwrite=true would delete {path}, which this run reads. Set another run.name.")

    def start(self, config: TrainConfig, provenance: dict[str, Any]) -> None:
        """Creates the folder, or begins another attempt in it. Rank 0 only.

        Raises:
            UserError: The earlier attempt had other data or another model.
        """
        if config.run.overwrite and not self.is_overwriting(config):
            self._delete()
        before = self.read_provenance()
        changed = find_changed_input(before, provenance)
        if changed is not None:
            raise UserError(
                f"{self.path}: {changed}, set run.name for a new run, or run.overwrite=true to replace this one."
            )
        versions = find_changed_versions(before, provenance)
        if versions:
            logger.warning(
                "resume: goes on with other versions (%s), so numbers may differ a little", "; ".join(versions)
            )
        self.read_records()  # raises for a damaged line now, and not after training
        with explained(self.path, "written", "Free space, or set run.root."):
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_half_written()
            attempts = int(self.read_status().get("attempts", 0)) + 1
            self.set_state(State.running, attempts=attempts)  # first, so a kill from here on leaves it unfinished
            if self.config.exists() and has_grown(read_config(self.config), config):
                shutil.rmtree(self.model, ignore_errors=True)
                logger.info("run: its length was raised; training goes on from the last checkpoint")
            write_text(self.config, to_yaml(config))
            write_json(self.provenance, with_earlier(before, provenance))

    def is_overwriting(self, config: TrainConfig) -> bool:
        """Returns whether this same command with `run.overwrite` began the unfinished run here, so that it goes on."""
        if not config.run.overwrite or not self.config.exists():
            return False
        try:
            earlier, state = read_config(self.config), self.read_status().get("state")
        except UserError as error:
            logger.warning("run: replaced although it cannot be read. %s", error)
            return False
        is_unfinished = state not in (State.done.value, State.pruned.value)
        return is_unfinished and earlier.run.overwrite and fingerprint(earlier) == fingerprint(config)

    def _delete(self) -> None:
        """Removes the run. It is renamed first, so a kill leaves no half-deleted run under its name."""
        if self.path.exists():
            folder = self.path.resolve()  # for a link, its target
            doomed = folder.with_name(f".{folder.name}.removed")
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            folder.mkdir()
            if (doomed / self.slurm.name).exists():
                (doomed / self.slurm.name).rename(self.slurm)
            shutil.rmtree(doomed)

    def _remove_half_written(self) -> None:
        """Removes files that an attempt was writing when it was killed."""
        for folder in (self.path, self.report):
            for path in folder.glob(f"*{PARTIAL}"):
                if path.is_file():
                    path.unlink()

    def cut_records_after(self, step: int, *, evaluation_due: bool = False) -> None:
        """Drops the records of metrics.jsonl and rows.jsonl that will be written again.

        Args:
            step: Step from which training resumes.
            evaluation_due: Whether the held-out evaluation after that step will be repeated.
        """
        for path in (self.metrics, self.rows):
            if path.exists():
                kept = [
                    json.dumps(record)
                    for record in read_steps(path)
                    if record["step"] < step or (record["step"] == step and not (evaluation_due and "split" in record))
                ]
                write_text(path, "".join(f"{line}\n" for line in kept))

    def read_records(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl; empty if there is no such file.

        Raises:
            UserError: A line is damaged.
        """
        return list(read_steps(self.metrics)) if self.metrics.exists() else []

    def count_lost_records(self, records: list[dict[str, Any]]) -> int:
        """Counts the lines that metrics.jsonl has lost since the last save; 0 for versions that did not count."""
        status = self.read_status()
        expected, step = status.get("records"), status.get("step", 0)
        return 0 if expected is None else max(0, expected - sum(record["step"] <= step for record in records))

    def discard_if_empty(self) -> None:
        """Removes the empty folders that transformers made for a run that could not begin."""
        for path in (self.checkpoints, self.path):
            with suppress(OSError):
                path.rmdir()

    def read_work(self) -> dict[str, Any]:
        """Returns work.json, or an empty dict if there is none."""
        return read_run_file(self.work, WORK)

    def read_report(self) -> dict[str, Any]:
        """Returns report.json, or an empty dict if there is none that can be read."""
        return read_report(self.report / "report.json")[0] or {}

    def add_work(self, **parts: object) -> None:
        """Sets parts of work.json. Rank 0 only."""
        write_json(self.work, {**self.read_work(), **parts})

    def set_state(self, state: State, **fields: Any) -> None:
        """Updates status.json: `state`, and any of step, attempts, message. Rank 0 only."""
        status = {"state": state.value, "step": 0, "attempts": 1, "message": ""}
        status |= {**self.read_status(), "state": state.value, **fields}
        try:
            write_json(self.status, status)
        except OSError as error:
            if error.errno not in FULL or not self.status.exists():
                raise
            overwrite_in_place(self.status, json.dumps(status))
