"""One live process per run: a lock file beside the run's folder, with a sign of life.

The lock of `<run.root>/<run.name>` is `<run.root>/.<run.name>.lock`, beside the folder and not in it:
`run.overwrite=true` deletes the folder, a run that cannot begin removes it if it is empty, and a folder that holds
only a lock would look like one that is no run of prefopt. This way nothing else has to know of the lock.

Who may take a lock away is decided by locks again. To replace or remove a lock, a process must hold the claim on its
content, `.<run.name>.lock.<hash of the content>`, and look at the lock once more while it holds it. Contents never
come back, so a process that was slow cannot take away the lock of one that was faster. A claim whose process died is
taken over by the same rules.
"""

import errno
import hashlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from glob import escape
from pathlib import Path
from types import TracebackType

from prefopt.errors import UserError
from prefopt.files import PARTIAL, write_bytes

logger = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 30.0
"""How often a holder touches its lock."""
SILENT_AFTER_S = 300.0
"""After this long without a sign of life, a holder that cannot be looked at is gone: ten signs were missed."""
ATTEMPTS = 10
"""How often a lock may change hands under a process that wants it, before that process gives up."""
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def find_holder(run: Path) -> str | None:
    """Who uses a run's folder now, in words; None if nobody does. A lock that was left behind does not count."""
    path = RunLock(run).path
    found = _read(path)
    if found is None or found.is_gone(_Holder.of_this_process(), found.silent_s(path.parent)):
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
        silent_s: Seconds since its last sign of life.
    """

    life: Life
    who: str
    job: str | None
    silent_s: float


def look_at(run: Path) -> Sighting | None:
    """The lock of a run, None if there is none that this user may read.

    Writes nothing, so the seconds are by this machine's clock alone.
    """
    try:
        found = _read(RunLock(run).path)
    except OSError:
        return None
    if found is None:
        return None
    own, silent_s = _Holder.of_this_process(), max(0.0, time.time() - found.modified)
    life = Life.dead if found.is_gone(own, silent_s) else Life.alive if found.can_be_looked_at(own) else Life.unknown
    return Sighting(life, found.who, None if found.holder is None else found.holder.job, silent_s)


class RunLock:
    """The right of this process to use a run's folder; a context manager. For rank 0 of a launch.

    Attributes:
        path: The lock file.
        lost_to: Who took this lock over while it was held, in words; None as it should be. It happens if this process
            shows no sign of life for `SILENT_AFTER_S`, as when its machine sleeps: the run must stop then.
    """

    def __init__(self, run: Path) -> None:
        real = run.resolve()  # two names of one folder have one lock, and the path outlives a change of directory
        self.path = real.with_name(f".{real.name}.lock")
        self.lost_to: str | None = None
        self._run = run
        self._own: _Holder | None = None
        self._made: list[Path] = []
        self._released = threading.Event()
        self._signs: threading.Thread | None = None

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the lock, or the one that a process left which is gone. Makes run.root, not the run's folder.

        Raises:
            UserError: A live process holds it, or the file cannot be written.
        """
        assert self._own is None, "held already"
        own = _Holder.of_this_process()
        try:
            left_by = self._take_in_folder(own)
        except OSError as error:
            self._remove_made_folders()
            raise UserError(f"{self.path.parent}: cannot be written ({error.strerror}). Set run.root.") from error
        if left_by is not None:
            logger.warning("lock: %s was left by %s that is gone; taken over", self.path, left_by)
        self._remove_half_made(own)
        self._own, self.lost_to, self._released = own, None, threading.Event()
        self._signs = threading.Thread(target=self._show_signs_of_life, args=(own,), name="run lock", daemon=True)
        self._signs.start()

    def release(self) -> None:
        """Removes the lock if it is still this process's, and the folders made for it if nothing else came in."""
        own, self._own = self._own, None
        if own is None or own.pid != os.getpid():  # a forked child has the object, not the lock
            return
        assert self._signs is not None
        self._released.set()
        self._signs.join()
        try:
            with suppress(FileNotFoundError), self._claim(self.path, own.content, own):
                found = _read(self.path)
                if found is not None and found.content == own.content:
                    self.path.unlink()
        except (OSError, UserError) as error:  # the run has ended: nothing may cover up how
            logger.warning("lock: %s was not removed (%s)", self.path, error)
        self._remove_made_folders()

    def _take_in_folder(self, own: "_Holder") -> str | None:
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # another run's release removed the folder in between
                self._make_folder()
                return self._take(self.path, own)
        raise UserError(f"{self.path.parent}: is removed again and again. Set run.root.")

    def _take(self, path: Path, own: "_Holder") -> str | None:
        """Makes the lock or claim at `path` this process's; returns in words who left it behind, None if nobody did.

        Raises:
            UserError: A live process holds it.
        """
        for _ in range(ATTEMPTS):
            if _create(path, own.content):
                return None
            found = _read(path)
            if found is None:
                continue
            self._refuse_if_live(path, found, own)
            with self._claim(path, found.content, own):
                again = _read(path)
                if again is None or again.content != found.content:
                    continue
                self._refuse_if_live(path, again, own)
                write_bytes(path, own.content)
                return again.who
        raise UserError(f"{self._run}: several processes want this run at once. Set run.name for another run.")

    @contextmanager
    def _claim(self, path: Path, content: bytes, own: "_Holder") -> Iterator[None]:
        """The sole right to replace or remove the lock that has this content."""
        claim = path.with_name(f"{path.name}.{hashlib.sha256(content).hexdigest()[:12]}")
        self._take(claim, own)
        try:
            yield
        finally:
            claim.unlink(missing_ok=True)

    def _refuse_if_live(self, path: Path, found: "_Found", own: "_Holder") -> None:
        silent_s = found.silent_s(path.parent)
        if found.is_gone(own, silent_s):
            return
        patience = f" If it is gone, wait {SILENT_AFTER_S - silent_s:.0f} s or remove {path}."
        since = "" if found.holder is None else f"since {found.holder.since}, "
        raise UserError(
            f"{self._run}: in use by {found.who} ({since}last sign of life {silent_s:.0f} s ago). "
            f"Wait for it to end, stop it, or set run.name for another run."
            + ("" if found.can_be_looked_at(own) else patience)
        )

    def _show_signs_of_life(self, own: "_Holder") -> None:
        last = time.time()  # not monotonic: that clock stands still while the machine sleeps
        while self.lost_to is None and not self._released.wait(SIGN_OF_LIFE_S):
            try:
                self.lost_to = self._show_life(own, was_silent=time.time() - last > SILENT_AFTER_S)
                last = time.time()
            except OSError as error:  # a shared file system may be away for a while
                logger.debug("lock: no sign of life in %s: %s", self.path, error)
        if self.lost_to is not None:
            logger.error("lock: %s was taken over by %s; this run must stop", self.path, self.lost_to)

    def _show_life(self, own: "_Holder", *, was_silent: bool) -> str | None:
        """Touches the lock if it is this process's; otherwise returns whose it is."""
        found = _read(self.path, touch_if=own.content)
        if found is None and was_silent:
            return "a process that has ended since"
        if found is None:
            _create(self.path, own.content)  # removed by hand; the run is in use all the same
            return None
        return None if found.content == own.content else found.who

    def _remove_half_made(self, own: "_Holder") -> None:
        """Removes locks that a process was about to put in place when it was killed; nobody else has their names."""
        for path in self.path.parent.glob(f"{escape(self.path.name)}.*{PARTIAL}"):
            with suppress(OSError):
                found = _read(path)
                if found is not None and found.is_gone(own, found.silent_s(path.parent)):
                    path.unlink()

    def _make_folder(self) -> None:
        folder = self.path.parent
        self._made = [path for path in (folder, *folder.parents) if not path.exists()] or self._made
        folder.mkdir(parents=True, exist_ok=True)

    def _remove_made_folders(self) -> None:
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()
        self._made = []


@dataclass(frozen=True)
class _Holder:
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
    def of_this_process(cls) -> "_Holder":
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
class _Found:
    """A lock file as it was read at one moment."""

    content: bytes
    modified: float

    @cached_property
    def holder(self) -> _Holder | None:
        """None for a file that was not written here, or that is half-written where there are no hard links."""
        try:
            holder = _Holder(**json.loads(self.content))
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

    def can_be_looked_at(self, own: _Holder) -> bool:
        return self.holder is not None and (self.holder.host, self.holder.system) == (own.host, own.system)

    def is_gone(self, own: _Holder, silent_s: float) -> bool:
        """True if nobody stands behind this lock any more.

        The job alone does not tell: `srun` without torchrun starts several rank 0 in one job. A later restart of the
        same job does, because the scheduler ends the earlier attempt before it begins the next.
        """
        if self.holder is not None and self.can_be_looked_at(own):
            return not self.holder.is_alive()
        if self.holder is not None and own.job is not None and self.holder.job == own.job:
            return self.holder.restart < own.restart or silent_s > SILENT_AFTER_S
        return silent_s > SILENT_AFTER_S


def _create(path: Path, content: bytes) -> bool:
    """Makes `path` with all of `content` at once, unless there is a file already; True if it is this one."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        write_bytes(aside, content)
        os.link(aside, path)
    except FileExistsError:
        found = _read(path)  # NFS, asked twice, says "exists" of the link that it has just made
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


def _read(path: Path, *, touch_if: bytes | None = None) -> _Found | None:
    """The file as it is now; None if there is none. `fstat` on the open file, because NFS caches `stat`.

    With the content `touch_if` it is touched: on the open file again, since another may have taken its place.
    """
    try:
        with path.open("rb") as file:
            found = _Found(file.read(), os.fstat(file.fileno()).st_mtime)
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
