"""Sessions that W&B's client has recorded in a run's folder, and the upload of one session at a time.

`wandb sync` does the upload. This module works around four faults of it (0.31): it exits with 0 and marks a session as
uploaded when its records or files were refused; it never marks a session whose end was lost in a kill, so that every
call would send it again; at such a session it skips those that came after it; and it tries to reach a server forever.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from prefopt.storage.files import write_text
from prefopt.storage.reading import read_text
from prefopt.tracking.service import kill_services
from prefopt.tracking.wandb import INCOMPLETE

FOLDER = re.compile(r"(offline-)?run-(\d{8}_\d{6})-(.+)")
HEADER_BYTES = 7
"""A log of this size holds no record."""
OF_ONE_RUN = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SILENT", "WANDB_QUIET")
"""Environment variables that are meant for training and would change what `wandb sync` does."""
REFUSED = ("filestream:", "runfiles:", "file transfer:", "sender: failed", "runupserter: failed")
"""Errors in the client's log after which something is missing on the server."""
CUT = "runsync: incomplete transaction log"
NO_RUN = "didn't find run info"


class Outcome(Enum):
    """The outcome of an upload."""

    uploaded = "uploaded"
    cut = "uploaded up to where a kill cut it off"
    empty = "empty"
    failed = "failed"


@dataclass(frozen=True)
class Upload:
    """The result of uploading one session, with its address or the reason of a failure."""

    outcome: Outcome
    url: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Session:
    """A folder of W&B's client: one attempt at a run.

    Attributes:
        folder: The folder.
        started: Start time as W&B writes it: sessions of a run are uploaded in this order.
        is_online: True if it was meant to be uploaded during the run.
    """

    folder: Path
    started: str
    is_online: bool

    @property
    def log(self) -> Path | None:
        """The .wandb file; None if there is none."""
        return next((path for path in sorted(self.folder.glob("*.wandb")) if path.is_file()), None)

    @property
    def marker(self) -> Path:
        """The file that exists once the session is on the server: W&B's own mark, which `wandb sync` reads too."""
        assert self.log is not None
        return self.log.with_name(f"{self.log.name}.synced")

    def is_pending(self) -> bool:
        """True if a part of the session is not uploaded yet."""
        if self.log is None or self.log.stat().st_size <= HEADER_BYTES:
            return False
        return (self.folder / INCOMPLETE).exists() if self.is_online else not self.marker.exists()

    def is_marked(self) -> bool:
        """True if it has been uploaded, whole or as much of it as a kill had left."""
        return self.log is not None and self.marker.exists()

    def find_url(self) -> str:
        """The address of the session if prefopt has uploaded it; otherwise empty."""
        return read_text(self.marker).strip() if self.is_marked() else ""

    def upload(self, timeout_s: float) -> Upload:
        """Sends the session to the server, and marks it unless that failed."""
        assert self.log is not None
        with tempfile.TemporaryDirectory(prefix="prefopt-sync-") as scratch:
            environment = {key: value for key, value in os.environ.items() if key not in OF_ONE_RUN}
            environment["WANDB_DIR"] = scratch
            command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", str(self.log)]
            code, output = _run(command, environment, timeout_s)
            logs = sorted(Path(scratch).glob("wandb/logs/debug-sync.*.log"))
            if logs:
                self._keep(logs[-1])
            errors = _read_errors(logs[-1]) if logs else []
        upload = _conclude(code, output, errors, is_marked=self.marker.exists(), timeout_s=timeout_s)
        if upload.outcome is Outcome.failed:
            self.marker.unlink(missing_ok=True)
        else:
            write_text(self.marker, f"{upload.url}\n" if upload.url else "")
            (self.folder / INCOMPLETE).unlink(missing_ok=True)
        return upload

    def _keep(self, log: Path) -> None:
        """Copies the client's log of the upload into the session's folder, beside its log of the run."""
        kept = self.folder / "logs" / "debug-sync.log"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(log, kept)


def find_sessions(run: Path) -> list[Session]:
    """The sessions of a run's folder, oldest first."""
    found = []
    for folder in (run / "wandb").glob("*run-*"):
        name = FOLDER.fullmatch(folder.name)
        if name is not None and folder.is_dir():
            found.append(Session(folder, name[2], is_online=name[1] is None))
    return sorted(found, key=lambda session: (session.started, session.folder.name))


def _run(command: Sequence[str], environment: dict[str, str], timeout_s: float) -> tuple[int | None, str]:
    """Exit code and output of a command of W&B's client; the code is None if it did not end in time."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except BaseException as error:
            kill_services(process.pid)
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, ""
            raise
        return process.returncode, output


def _conclude(code: int | None, output: str, errors: Sequence[str], *, is_marked: bool, timeout_s: float) -> Upload:
    """What has become of a session, from the client's exit code, output, log and mark."""
    found = re.findall(r"View run .*?(?:at )?(https?://\S+)", output)
    url = found[-1] if found else ""
    refused = [message for message in errors if message.startswith(REFUSED)]
    if code is None:
        return Upload(Outcome.failed, url, f"no end after {timeout_s:.0f} s; --timeout-s allows more")
    if refused:
        return Upload(Outcome.failed, url, refused[0])
    if any(message.startswith(CUT) for message in errors):
        return Upload(Outcome.cut if url else Outcome.empty, url)
    if any(message.startswith(NO_RUN) and message.endswith("EOF") for message in errors):
        return Upload(Outcome.empty)
    if code == 0 and is_marked:
        return Upload(Outcome.uploaded, url)
    said = [line for line in output.splitlines() if "ERROR" in line or line.startswith("Error")]
    reason = said[-1] if said else f"wandb sync ended with code {code} and without a word"
    return Upload(Outcome.failed, url, re.sub(r"^wandb: ERROR |^Error: ", "", reason))


def _read_errors(log: Path) -> list[str]:
    """The messages of level ERROR in the client's log; a failure that a retry overcame has a lower level."""
    messages = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if str(entry.get("level", "")).startswith("ERROR"):
            messages.append(str(entry.get("msg", "")))
    return messages
