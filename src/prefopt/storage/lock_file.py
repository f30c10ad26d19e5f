"""The lock file of a run: what it holds, and whether anybody stands behind it."""

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

SILENT_AFTER_S = 300.0
"""After this long without a sign of life, a holder that cannot be looked at is gone: ten signs were missed."""
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def lock_path(run: Path) -> Path:
    """Where the lock of a run lies: two names of one folder have one lock."""
    real = run.resolve()
    return real.with_name(f".{real.name}.lock")


def find_holder(run: Path) -> str | None:
    """Who uses a run's folder now, in words; None if nobody does. A lock that was left behind does not count."""
    path = lock_path(run)
    found = read(path)
    if found is None or found.is_gone(Holder.of_this_process(), found.silent_s(path.parent)):
        return None
    return found.who


class Life(Enum):
    """Whether somebody stands behind a lock; unknown: a process of another machine that showed life lately."""

    alive = "alive"
    dead = "dead"
    unknown = "unknown"


@dataclass(frozen=True)
class Sighting:
    """A lock as a bystander sees it.

    Attributes:
        life: Of the process that took it.
        who: That process, in words.
        job: The scheduler's id of the job it belongs to; None outside of one.
    """

    life: Life
    who: str
    job: str | None


def read_lock(run: Path) -> Sighting | None:
    """The lock of a run, None if there is none that this user may read.

    Writes nothing, so the seconds are by this machine's clock alone.
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
    """A process, so that no other is mistaken for it."""

    host: str
    system: str
    """Boot and pid namespace. Only where they are the same can a pid be looked up: containers may share a hostname."""
    pid: int
    started: int | None
    """Start of the process in clock ticks since boot: a pid is used again."""
    job: str | None
    restart: int
    """The scheduler's job, and how often it was requeued."""
    since: str
    token: str
    """No two locks have the same content."""

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
        """For a process of this system. A doubt counts as life."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        state, started = _state_and_start(self.pid)
        if state in ("Z", "X"):  # dead, but its parent has not looked yet
            return False
        return None in (started, self.started) or started == self.started


@dataclass(frozen=True)
class LockFile:
    """A lock file as it was read at one moment."""

    content: bytes
    modified: float

    @cached_property
    def holder(self) -> Holder | None:
        """None for a file that was not written here, or that is half-written where there are no hard links."""
        try:
            holder = Holder(**json.loads(self.content))
        except (ValueError, TypeError):
            return None
        plain = isinstance(holder.pid, int) and holder.pid > 0 and isinstance(holder.restart, int)
        return holder if plain else None

    @property
    def who(self) -> str:
        return "an unnamed process" if self.holder is None else f"process {self.holder.pid} on host {self.holder.host}"

    def silent_s(self, folder: Path) -> float:
        """Seconds since the last sign of life, by the clock of the file system: the hosts' clocks may differ."""
        with tempfile.TemporaryFile(dir=folder) as probe:
            return max(0.0, os.fstat(probe.fileno()).st_mtime - self.modified)

    def can_be_looked_at(self, own: Holder) -> bool:
        return self.holder is not None and (self.holder.host, self.holder.system) == (own.host, own.system)

    def is_gone(self, own: Holder, silent_s: float) -> bool:
        """True if nobody stands behind this lock any more.

        The job alone does not tell: `srun` without torchrun starts several rank 0 in one job. A later restart of the
        same job does, because the scheduler ends the earlier attempt before it begins the next.
        """
        if self.holder is not None and self.can_be_looked_at(own):
            return not self.holder.is_alive()
        if self.holder is not None and own.job is not None and self.holder.job == own.job:
            return self.holder.restart < own.restart or silent_s > SILENT_AFTER_S
        return silent_s > SILENT_AFTER_S


def create(path: Path, content: bytes) -> bool:
    """Makes `path` with all of `content` at once, unless there is a file already; True if it is this one."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        write_bytes(aside, content)
        os.link(aside, path)
    except FileExistsError:
        found = read(path)  # NFS, asked twice, says "exists" of the link that it has just made
        return found is not None and found.content == content
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _create_in_place(path, content)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, content: bytes) -> bool:
    """For file systems without hard links: a reader may see a part, which counts as live while it is young."""
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
    """The file as it is now; None if there is none. `fstat` on the open file, because NFS caches `stat`.

    With the content `touch_if` it is touched: on the open file again, since another may have taken its place.
    """
    try:
        with path.open("rb") as file:
            found = LockFile(file.read(), os.fstat(file.fileno()).st_mtime)
            if found.content == touch_if:
                os.utime(file.fileno())
            return found
    except FileNotFoundError:
        return None


def _system() -> str:
    """Names the boot and the pid namespace of this process; empty where the system does not tell (macOS)."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _state_and_start(pid: int) -> tuple[str | None, int | None]:
    """State and start time of a process, fields 3 and 22 of /proc/<pid>/stat; (None, None) where it cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None, None
    fields = stat[stat.rindex(b")") + 2 :].split()  # field 2, the name, may hold blanks and brackets
    return fields[0].decode(), int(fields[19])
