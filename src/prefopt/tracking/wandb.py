"""The mirror in Weights & Biases: offline without a key, never a prompt, never the reason for a lost run."""

import hashlib
import logging
import netrc
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from prefopt.choices import LoggerName, WandbMode
from prefopt.config import as_dict
from prefopt.files import write_text
from prefopt.run_directory import RunDirectory
from prefopt.schema import TrainConfig

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30


def start_wandb(config: TrainConfig, run: RunDirectory) -> "WandbMirror | None":
    """Opens the run's W&B run, the same one on every attempt; None with logger=none. Rank 0 only."""
    if config.logger.name is LoggerName.none or is_disabled():
        return None
    import wandb  # slow to import, and not every run wants it

    if not run.wandb_id.exists():
        new = hashlib.sha256(str(run.path.resolve()).encode() + os.urandom(8)).hexdigest()[:16]
        write_text(run.wandb_id, new)
    mode = choose_mode(config.logger.mode)
    arguments: dict[str, Any] = {
        "project": config.logger.project,
        "entity": config.logger.entity,
        "group": config.logger.group,
        "job_type": config.algorithm.name.value,
        "name": config.run.name,
        "tags": config.logger.tags,
        "config": as_dict(config),
        "dir": str(run.path),
        "id": run.read_wandb_id(),
        "resume": "allow",
        "settings": wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off"),
    }
    session = _open(mode, arguments)
    if session is None and mode == "online":
        logger.warning("W&B: this attempt is recorded offline; upload it later with wandb sync.")
        wandb.teardown()  # the failed attempt still holds the run's id
        mode = "offline"
        session = _open(mode, arguments)
    if session is None:
        logger.warning("W&B: nothing is mirrored; metrics.jsonl has every record.")
        return None
    where = session.url if mode == "online" else f"offline, under {run.path / 'wandb'}; upload later with wandb sync"
    logger.info("W&B: %s", where)
    return WandbMirror(session)


def _open(mode: Literal["online", "offline"], arguments: dict[str, Any]) -> Any:
    """Returns a W&B session, or None after a line that says why there is none."""
    import wandb

    try:
        return wandb.init(mode=mode, **arguments)
    except Exception as error:  # the tracker's own failures are many, and none may stop a run
        logger.warning("W&B: could not start %s: %s", mode, str(error).splitlines()[0] if str(error) else error)
        return None


def is_disabled() -> bool:
    """True if the environment switches W&B off."""
    off = os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true")
    if off:
        logger.info("W&B: off, as WANDB_MODE or WANDB_DISABLED says")
    return off


def choose_mode(mode: WandbMode) -> Literal["online", "offline"]:
    """Returns online or offline. `auto` follows WANDB_MODE, then whether an API key can be found."""
    wanted = os.environ.get("WANDB_MODE", "") if mode is WandbMode.auto else mode.value
    if wanted in ("online", "offline"):
        return "online" if wanted == "online" else "offline"
    return "online" if has_api_key() else "offline"


def has_api_key() -> bool:
    """True if the environment or the user's netrc file holds a W&B key (its value is not kept)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbMirror:
    """Sends records under the names that transformers' own callback uses: `train/...` and `eval/...`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        session.define_metric("train/global_step")
        session.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, record: dict[str, Any]) -> None:
        prefix = "eval" if "split" in record else "train"
        values = {f"{prefix}/{key}": v for key, v in record.items() if key not in ("step", "split")}
        self._guarded("log", {**values, "train/global_step": record["step"]})

    def finish(self, report: dict[str, Any]) -> None:
        """Adds the report's numbers to the summary and its samples as a table, and ends the session."""
        import wandb

        try:
            summary = {"decision": report["decision"], **_values(report["held_out"], "held_out")}
            self._session.summary.update({**summary, **_values(report.get("drift") or {}, "drift")})
            columns: list[str | int] = ["prompt", "base", "tuned", "chosen"]
            rows: list[Any] = [[sample.get(column) for column in columns] for sample in report.get("samples") or []]
            if rows:
                self._session.log({"samples": wandb.Table(columns=columns, data=rows)})
            self._session.finish()
        except Exception as error:  # see _open
            logger.warning("W&B: the summary could not be recorded (%s).", error)

    def _guarded(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self._session, name)(*arguments)
        except Exception as error:  # see _open
            logger.warning("W&B: %s failed (%s); metrics.jsonl has the record.", name, error)


def _values(block: dict[str, Any], prefix: str) -> dict[str, float]:
    """Flattens a block of the report to its plain values: `held_out/tuned/preference_accuracy`."""
    values: dict[str, float] = {}
    for key, entry in block.items():
        if isinstance(entry, dict):
            values |= {f"{prefix}/{key}": entry["value"]} if "value" in entry else _values(entry, f"{prefix}/{key}")
    return values
