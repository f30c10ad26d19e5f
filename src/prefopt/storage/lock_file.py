"""The lock file of a run: its content, and whether the process that wrote it is alive."""

import errno
import json
import os
import socket
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from pathlib import Path

from prefopt.storage.files import PARTIAL, write_bytes
from prefopt.storage.reading import open_file, parse_json

SILENT_AFTER_S = 300.0
"""Seconds without a sign of life after which a holder on another machine counts as dead: ten signs were missed."""
MAX_PID = 2**31
"""Process ids are below this number on every system."""
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def lock_path(run: Path) -> Path:
    """Returns the path of a run's lock; links are resolved, so that two names of one folder have one lock."""
    real = run.resolve()
    return real.with_name(f".{real.name}.lock")


def find_holder(run: Path) -> str | None:
    """Describes the process that uses a run's folder now; None if there is none. A dead process does not count."""
    path = lock_path(run)
    found = read(path)
    if found is None or found.is_gone(Holder.of_this_process(), found.silent_s(path.parent)):
        return None
    return found.who


class Life(Enum):
    """Whether the holder of a lock is alive; unknown: it is on another machine and gave a sign of life lately."""

    alive = "alive"
    dead = "dead"
    unknown = "unknown"


@dataclass(frozen=True)
class Sighting:
    """A lock as seen by a process that does not want it.

    Attributes:
        life: Whether the process that holds it is alive.
        who: Description of that process.
        job: The scheduler's id of the holder's job; None if it has none.
    """

    life: Life
    who: str
    job: str | None


def read_lock(run: Path) -> Sighting | None:
    """Returns the lock of a run; None if there is none that this user may read.

    Writes nothing, so silence is measured by this machine's clock, not by that of the file system.
    """
    try:
        found = read(lock_path(run))
    except OSError:
        return None
    if found is None:
        return None
    own, silent_s = Holder.of_this_process(), max(0.0, time.time() - found.modified)
    life = Life.dead if found.is_gone(own, silent_s) else Life.alive if found.can_be_looked_at(own) else Life.unknown
    return Sighting(life, found.who, None if found.holder is None else found.holder.job)


@dataclass(frozen=True)
class Holder:
    """Identifies the process that holds a lock."""

    host: str
    system: str
    """Boot id and pid namespace. A pid can be looked up only if both are equal: containers may share a hostname."""
    pid: int
    started: int | None
    """Start of the process in clock ticks since boot, because pids are reused."""
    job: str | None
    restart: int
    """How often the scheduler has requeued the job whose id is `job`."""
    since: str
    token: str
    """Random text, so that no two locks have the same content."""

    @classmethod
    def of_this_process(cls) -> "Holder":
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=socket.gethostname(),
            system=_system(),
            pid=os.getpid(),
            started=_state_and_start(os.getpid())[1],
            job=os.environ.get("SLURM_JOB_ID"),
            restart=int(restart) if restart.isdecimal() else 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=uuid.uuid4().hex,
        )

    @cached_property
    def content(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_alive(self) -> bool:
        """Returns whether the process, which must be of this system, is alive. In doubt it counts as alive."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # the process belongs to another user
        state, started = _state_and_start(self.pid)
        if state in ("Z", "X"):  # a zombie: dead, but its parent has not collected it yet
            return False
        return None in (started, self.started) or started == self.started


@dataclass(frozen=True)
class LockFile:
    """A lock file as read at one moment."""

    content: bytes
    modified: float

    @cached_property
    def holder(self) -> Holder | None:
        """The holder; None if prefopt did not write the file, or if it is half-written (without hard links)."""
        try:
            holder = Holder(**parse_json(self.content))
        except (ValueError, TypeError):
            return None
        plain = isinstance(holder.pid, int) and 0 < holder.pid < MAX_PID and isinstance(holder.restart, int)
        return holder if plain else None

    @property
    def who(self) -> str:
        return "an unnamed process" if self.holder is None else f"process {self.holder.pid} on host {self.holder.host}"

    def silent_s(self, folder: Path) -> float:
        """Returns seconds since the last sign of life, by the file system's clock, as the hosts' clocks may differ."""
        with tempfile.TemporaryFile(dir=folder) as probe:
            return max(0.0, os.fstat(probe.fileno()).st_mtime - self.modified)

    def can_be_looked_at(self, own: Holder) -> bool:
        return self.holder is not None and (self.holder.host, self.holder.system) == (own.host, own.system)

    def is_gone(self, own: Holder, silent_s: float) -> bool:
        """Returns whether the holder of this lock is dead.

        An equal job id alone does not show it: `srun` without torchrun starts several rank 0 in one job. A later
        restart of the same job does, because the scheduler ends the earlier attempt before it begins the next.
        """
        if self.holder is not None and self.can_be_looked_at(own):
            return not self.holder.is_alive()
        if self.holder is not None and own.job is not None and self.holder.job == own.job:
            return self.holder.restart < own.restart or silent_s > SILENT_AFTER_S
        return silent_s > SILENT_AFTER_S


def create(path: Path, content: bytes) -> bool:
    """Creates `path` with `content` atomically, unless the file exists; returns whether it has this content."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        write_bytes(aside, content)
        os.link(aside, path)
    except FileExistsError:
        found = read(path)  # NFS may repeat the request, and then reports its own link
        return found is not None and found.content == content
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _create_in_place(path, content)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, content: bytes) -> bool:
    """Like `create`, without hard links: a reader may see a part of the file, which counts as live while it is new."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def read(path: Path, *, touch_if: bytes | None = None) -> LockFile | None:
    """Reads the lock file; None if there is none. Uses `fstat` on the open file, because NFS caches `stat`.

    If its content is `touch_if`, the open file is touched; touching the path could touch a file that replaced it. A
    pipe or a device in its place counts as an empty file.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return LockFile(b"", path.stat().st_mtime)
        with open_file(path) as file:
            found = LockFile(file.read(), os.fstat(file.fileno()).st_mtime)
            if found.content == touch_if:
                os.utime(file.fileno())
            return found
    except FileNotFoundError:
        return None


def _system() -> str:
    """Returns boot id and pid namespace of this process; empty if the system has none (macOS)."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _state_and_start(pid: int) -> tuple[str | None, int | None]:
    """Returns state and start of a process, fields 3 and 22 of /proc/<pid>/stat; (None, None) if it cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None, None
    fields = stat[stat.rindex(b")") + 2 :].split()  # field 2, the name, may hold blanks and brackets
    return fields[0].decode(), int(fields[19])
