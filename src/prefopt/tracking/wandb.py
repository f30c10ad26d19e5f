"""Mirrors a run to Weights & Biases (W&B): offline without an API key, without a prompt; its failures end no run.

What is sent, and what is not, is in docs/wandb.md.
"""

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from prefopt.config.choices import LogArtifacts, LoggerName, WandbMode
from prefopt.config.plain import as_dict
from prefopt.config.schema import TrainConfig
from prefopt.distributed.preemption import EXIT_CODE, Preempted
from prefopt.process import phases
from prefopt.process.terminal import quote
from prefopt.runs.directory import RunDirectory, RunTakenOverError
from prefopt.runs.provenance import MEASURED
from prefopt.storage.files import write_text
from prefopt.tracking.answers import build_table, summarise_wins
from prefopt.tracking.artifacts import build_data, build_model
from prefopt.tracking.credentials import has_api_key
from prefopt.tracking.lineage import Parent, find_parent
from prefopt.tracking.service import kill_services

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 15
"""Seconds that W&B may go on uploading when a run ends; torchrun kills a rank 30 s after another one has ended."""
SERVICE_TIMEOUT_S = 5
"""Seconds beyond that for W&B's service to answer, and again to end: it can hang in a request (0.31)."""
UPLOAD_TIMEOUT_S = 3600
"""Seconds that `logger.log_artifacts=upload` may take at the end of a run."""
STAGING = "WANDB_DATA_DIR"
"""Environment variable: the folder for the files of artifacts until upload; by default in the user's home."""
INCOMPLETE = "incomplete"
"""File in the folder of an online session which says that not all of it has reached the server."""
SHOWN_OF_SLURM = {
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_PARTITION",
    "SLURM_NTASKS",
    "SLURM_RESTART_COUNT",
}
"""Slurm's variables that W&B's client may record; it would record all, even the credentials in SLURM_JWT."""


@phases.of("wandb")
def start_wandb(config: TrainConfig, run: RunDirectory) -> "WandbMirror | None":
    """Opens the run's W&B run, the same one on every attempt; None if W&B is off or fails. Rank 0 only."""
    if config.logger.name is LoggerName.none or is_disabled():
        return None
    if not run.wandb_id.exists():
        new = hashlib.sha256(str(run.path.resolve()).encode() + os.urandom(8)).hexdigest()[:16]
        write_text(run.wandb_id, new)
    mirror = _start(
        config,
        run,
        id=run.read_wandb_id(),
        name=config.run.name,
        job_type=config.logger.job_type or config.algorithm.name.value,
        parent=find_parent(config),
    )
    if mirror is not None:
        mirror.describe()
    return mirror


def record_evaluation(
    config: TrainConfig, run: RunDirectory, report: dict[str, Any], answers: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Records a later evaluation of a run as a W&B run of its own, of job type eval.

    Repeating the same evaluation updates the same W&B run.

    Args:
        config: Configuration of the run, with the settings of this evaluation.
        run: Folder of the run.
        report: The content of report.json.
        answers: The lines of answers.jsonl.
    """
    if config.logger.name is LoggerName.none or is_disabled():
        return
    digests = report["provenance"]["data"]["sha256"]
    rows = [digests.get(part) for part in MEASURED]  # those of a file that has changed are another evaluation
    settings = str([as_dict(config.evaluation), rows, "test" in report])
    mirror = _start(
        config,
        run,
        id=hashlib.sha256(f"{run.read_wandb_id() or run.path.resolve()} {settings}".encode()).hexdigest()[:16],
        name=f"{run.path.resolve().name}-eval",
        job_type="eval",
        parent=Parent.of_run(run),
    )
    if mirror is not None:
        mirror.finish(report, answers, with_model=False)


def _start(
    config: TrainConfig, run: RunDirectory, *, parent: Parent | None, **of_session: str | None
) -> "WandbMirror | None":
    os.environ.setdefault("WANDB_SILENT", "true")  # the setting `silent` alone does not stop all of W&B's lines
    import wandb  # slow to import, and not every run needs it

    os.environ.setdefault(STAGING, _staging_of(run))
    provenance = run.read_provenance()
    arguments: dict[str, Any] = {
        "project": config.logger.project,
        "entity": config.logger.entity,
        "group": config.logger.group,
        "tags": config.logger.tags,
        "config": {**as_dict(config), **({"parent_run": asdict(parent)} if parent else {})},
        "dir": str(run.path),
        "resume": "allow",
        "settings": wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            disable_git=True,  # else it records the repository of the run's folder, and a diff of any size
            git_commit=provenance.get("git_commit") if shows_code() else None,
            git_remote_url=provenance.get("git_remote") if shows_code() else None,
        ),
        **of_session,
    }
    mode = choose_mode(config.logger.mode)
    session = _open(mode, arguments)
    if session is None and mode == "online":
        logger.warning("W&B: this attempt is recorded offline; upload it later with prefopt sync %s", run.path)
        _end_service()  # the failed attempt still holds the run's id
        mode = "offline"
        session = _open(mode, arguments)
    if session is None:
        logger.warning("W&B: nothing is mirrored; metrics.jsonl has every record.")
        _unset_staging(run)
        return None
    where = session.url if mode == "online" else f"offline; upload it later with prefopt sync {quote(run.path)}"
    logger.info("W&B: %s", where)
    return WandbMirror(session, config, run, parent)


def _open(mode: Literal["online", "offline"], arguments: dict[str, Any]) -> "wandb.Run | None":
    """Returns a W&B session, or None after logging why there is none."""
    import wandb

    try:
        with _few_of_slurm():
            return wandb.init(mode=mode, **arguments)
    except Exception as error:  # W&B fails in many ways, and none may stop a run
        logger.warning("W&B: could not start %s: %s", mode, str(error).splitlines()[0] if str(error) else error)
        return None


def _staging_of(run: RunDirectory) -> str:
    """The staging folder, in the run's: a compute node's home may be local, and another machine may upload."""
    return str(run.path.resolve() / "wandb")


def _unset_staging(run: RunDirectory) -> None:
    if os.environ.get(STAGING) == _staging_of(run):
        del os.environ[STAGING]


@contextmanager
def _few_of_slurm() -> Iterator[None]:
    """Hides Slurm's variables except `SHOWN_OF_SLURM` from processes that are started in this block."""
    names = [name for name in os.environ if name.startswith("SLURM_") and name not in SHOWN_OF_SLURM]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def is_disabled() -> bool:
    """True if the environment switches W&B off."""
    off = os.environ.get("WANDB_MODE") == "disabled" or _is_set("WANDB_DISABLED")
    if off:
        logger.info("W&B: off, as WANDB_MODE or WANDB_DISABLED says")
    return off


def shows_code() -> bool:
    """True unless environment variables forbid sending the state of the code to W&B."""
    return not (_is_set("WANDB_DISABLE_GIT") or _is_set("WANDB_DISABLE_CODE"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def choose_mode(mode: WandbMode) -> Literal["online", "offline"]:
    """Returns online or offline. `auto` follows WANDB_MODE, then whether an API key can be found."""
    wanted = os.environ.get("WANDB_MODE", "") if mode is WandbMode.auto else mode.value
    if wanted in ("online", "offline"):
        return "online" if wanted == "online" else "offline"
    return "online" if has_api_key() else "offline"


class WandbMirror:
    """Sends records under the names that transformers' own callback uses: `train/...` and `eval/...`.

    As a context manager it ends the session of a run that ends early, so that its last records are not lost.
    """

    def __init__(
        self, session: "wandb.Run", config: TrainConfig, run: RunDirectory, parent: Parent | None = None
    ) -> None:
        self._session = session
        self._config = config
        self._run = run
        self._parent = parent
        self._has_failed = False

    def __enter__(self) -> "WandbMirror":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RunTakenOverError):  # the other process continues the W&B run
            return
        is_stopped = isinstance(error, Preempted | KeyboardInterrupt)
        if is_stopped:
            with self._guarded("the stop"):
                self._session.mark_preempting()
        self.close(EXIT_CODE if is_stopped else 1)

    def describe(self) -> None:
        """Sends the x-axis of the metrics, the parent run, the diff of the code, and the data."""
        with self._guarded("the axis of the metrics"):
            self._session.define_metric("train/global_step")
            self._session.define_metric("*", step_metric="train/global_step", step_sync=True)
        if self._parent is not None:
            self.summarise({"parent_run": self._parent.name})
        if shows_code() and self._run.diff.exists():
            with self._guarded("the diff"):
                self._session.save(str(self._run.diff), base_path=str(self._run.path), policy="now")
        if self._config.logger.log_artifacts is not LogArtifacts.none:
            with self._guarded("the data"):
                artifact = build_data(self._config, self._run.read_provenance().get("data", {}))
                # Logs the data as an input. The public use_artifact waits for the server and refuses offline runs.
                self._session._log_artifact(artifact, use_after_commit=True)

    @phases.of("wandb")
    def log(self, record: dict[str, object]) -> None:
        """Sends a line of metrics.jsonl."""
        prefix = "eval" if "split" in record else "train"
        values = {f"{prefix}/{key}": v for key, v in record.items() if key not in ("step", "split")}
        with self._guarded("a record"):
            self._session.log({**values, "train/global_step": record["step"]})

    def summarise(self, values: dict[str, object]) -> None:
        """Adds values to the run's summary, the columns of W&B's table of runs."""
        with self._guarded("the summary"):
            self._session.summary.update(values)

    @phases.of("wandb")
    def finish(
        self, report: dict[str, Any], answers: Sequence[Mapping[str, Any]] = (), *, with_model: bool = True
    ) -> None:
        """Adds the report's numbers to the summary, its answers as tables and the model, and ends the session."""
        measured = {**_values(report["held_out"], "held_out"), **_values(report.get("drift") or {}, "drift")}
        summary = {"decision": report["decision"]["word"], **measured, **_values(summarise_wins(report))}
        summary |= {"outside_training_s": phases.outside_training(report["phases"])} if report.get("phases") else {}
        found = (report.get("audit") or {}).get("checks", [])
        summary |= {f"audit/{each['check']}": each["count"] for each in found}
        self.summarise(summary)
        samples = report.get("samples") or []
        columns = (
            [name for name, text in samples[0].items() if text is None or isinstance(text, str)] if samples else []
        )
        self._log_table("samples", columns, [[sample.get(column) for column in columns] for sample in samples])
        shows_answers = self._config.evaluation.num_shown_samples > 0  # 0: no text of data or of answers leaves
        table = build_table(answers) if shows_answers else None
        if table is not None:
            self._log_table("answers", table.columns, table.rows)
        how = self._config.logger.log_artifacts
        if with_model and how is not LogArtifacts.none and self._run.model.is_dir():
            with self._guarded("the model"):
                ends = {end for name in measured for end in interval_keys(name)}
                described = {"decision": summary["decision"], **{k: v for k, v in measured.items() if k not in ends}}
                logged = self._session.log_artifact(build_model(self._config, self._run.model, described))
                if how is LogArtifacts.upload and not self._session.offline:
                    logged.wait(UPLOAD_TIMEOUT_S)
        self.close(0)

    def _log_table(self, name: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
        """Sends a table; nothing without rows."""
        import wandb

        if rows:
            with self._guarded(f"the table of {name}"):
                self._session.log({name: wandb.Table(columns=[*columns], data=[[*row] for row in rows])})

    @phases.of("wandb")
    def close(self, exit_code: int) -> None:
        """Ends the session with the exit code that W&B shows. Records that are not uploaded in time stay on disk."""
        problems: list[Exception] = []

        def end() -> None:
            try:
                self._session.finish(exit_code=exit_code)
            except Exception as error:  # see _open
                problems.append(error)

        has_ended = _ends_within(FINISH_TIMEOUT_S + SERVICE_TIMEOUT_S, end)
        if not has_ended or any(isinstance(problem, TimeoutError) for problem in problems):
            with self._guarded("the mark of an incomplete upload"):
                (Path(self._session.settings.sync_dir) / INCOMPLETE).touch()
            logger.warning("W&B: not all was uploaded in time; prefopt sync %s goes on", self._run.path)
        elif problems:
            logger.warning("W&B: the session could not be ended (%s).", problems[0])
        _end_service(exit_code)  # the service writes the last records after finish has returned
        _unset_staging(self._run)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Suppresses every error in the block; the first one of the session is logged as a warning."""
        try:
            yield
        except Exception as error:  # see _open
            level = logging.DEBUG if self._has_failed else logging.WARNING
            logger.log(level, "W&B: %s could not be recorded (%s); metrics.jsonl has every record.", what, error)
            self._has_failed = True


def _end_service(exit_code: int = 0) -> None:
    """Ends W&B's service process; kills it if it hangs."""
    import wandb

    def end() -> None:
        with suppress(Exception, SystemExit):  # teardown raises SystemExit if the service has failed
            wandb.teardown(exit_code)

    if not _ends_within(SERVICE_TIMEOUT_S, end):
        kill_services(os.getpid())


def _ends_within(seconds: float, work: Callable[[], None]) -> bool:
    """Runs `work` in a thread; True if it ends in time, otherwise it goes on in the background."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def interval_keys(key: str) -> tuple[str, str]:
    """The names of the ends of a value's interval in W&B's summary."""
    return f"{key}_low", f"{key}_high"


def _values(block: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Flattens a block of the report to its values and intervals: `held_out/tuned/preference_accuracy`, `…_low`.

    What is not finite is None, as in report.json: W&B shows it as a dash.
    """
    values: dict[str, float | None] = {}
    for key, entry in block.items():
        name = f"{prefix}/{key}" if prefix else key
        if not isinstance(entry, dict):
            continue
        if "value" not in entry:
            values |= _values(entry, name)
            continue
        values[name] = entry["value"]
        values |= dict(zip(interval_keys(name), entry.get("ci95") or (), strict=False))
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
