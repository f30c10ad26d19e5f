"""One live process per run: a lock file beside the run's folder, with a sign of life.

The lock of `<run.root>/<run.name>` is `<run.root>/.<run.name>.lock`, beside the folder and not in it:
`run.overwrite=true` deletes the folder, a run that cannot begin removes it if it is empty, and a folder that holds
only a lock would look like one that is no run of prefopt. This way nothing else has to know of the lock.

Who may take a lock away is decided by locks again. To replace or remove a lock, a process must hold the claim on its
content, `.<run.name>.lock.<hash of the content>`, and look at the lock once more while it holds it. Contents never
come back, so a process that was slow cannot take away the lock of one that was faster. A claim whose process died is
taken over by the same rules.

`filelock.SoftFileLease` (4.2) is no substitute: it takes the lock of another host only after a new process has watched
it for the whole time of silence, however old it is, and its record has no room for the job whose restart settles it.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from types import TracebackType

from prefopt.process.errors import UserError
from prefopt.storage.files import PARTIAL, write_bytes
from prefopt.storage.lock_file import SILENT_AFTER_S, Holder, LockFile, create, lock_path, read

logger = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 30.0
"""How often a holder touches its lock."""
ATTEMPTS = 10
"""How often a lock may change hands under a process that wants it, before that process gives up."""


class RunLock:
    """The right of this process to use a run's folder; a context manager. For rank 0 of a launch.

    Attributes:
        path: The lock file.
        lost_to: Who took this lock over while it was held, in words; None as it should be. It happens if this process
            shows no sign of life for `SILENT_AFTER_S`, as when its machine sleeps: the run must stop then.
    """

    def __init__(self, run: Path) -> None:
        self.path = lock_path(run)  # absolute: it outlives a change of directory
        self.lost_to: str | None = None
        self._run = run
        self._own: Holder | None = None
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
        own = Holder.of_this_process()
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
                found = read(self.path)
                if found is not None and found.content == own.content:
                    self.path.unlink()
        except (OSError, UserError) as error:  # the run has ended: nothing may cover up how
            logger.warning("lock: %s was not removed (%s)", self.path, error)
        self._remove_made_folders()

    def _take_in_folder(self, own: Holder) -> str | None:
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # another run's release removed the folder in between
                self._make_folder()
                return self._take(self.path, own)
        raise UserError(f"{self.path.parent}: is removed again and again. Set run.root.")

    def _take(self, path: Path, own: Holder) -> str | None:
        """Makes the lock or claim at `path` this process's; returns in words who left it behind, None if nobody did.

        Raises:
            UserError: A live process holds it.
        """
        for _ in range(ATTEMPTS):
            if create(path, own.content):
                return None
            found = read(path)
            if found is None:
                continue
            self._refuse_if_live(path, found, own)
            with self._claim(path, found.content, own):
                again = read(path)
                if again is None or again.content != found.content:
                    continue
                self._refuse_if_live(path, again, own)
                write_bytes(path, own.content)
                return again.who
        raise UserError(f"{self._run}: several processes want this run at once. Set run.name for another run.")

    @contextmanager
    def _claim(self, path: Path, content: bytes, own: Holder) -> Iterator[None]:
        """The sole right to replace or remove the lock that has this content."""
        claim = path.with_name(f"{path.name}.{hashlib.sha256(content).hexdigest()[:12]}")
        self._take(claim, own)
        try:
            yield
        finally:
            claim.unlink(missing_ok=True)

    def _refuse_if_live(self, path: Path, found: LockFile, own: Holder) -> None:
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

    def _show_signs_of_life(self, own: Holder) -> None:
        last = time.time()  # not monotonic: that clock stands still while the machine sleeps
        while self.lost_to is None and not self._released.wait(SIGN_OF_LIFE_S):
            try:
                self.lost_to = self._show_life(own, was_silent=time.time() - last > SILENT_AFTER_S)
                last = time.time()
            except OSError as error:  # a shared file system may be away for a while
                logger.debug("lock: no sign of life in %s: %s", self.path, error)
        if self.lost_to is not None:
            logger.error("lock: %s was taken over by %s; this run must stop", self.path, self.lost_to)

    def _show_life(self, own: Holder, *, was_silent: bool) -> str | None:
        """Touches the lock if it is this process's; otherwise returns whose it is."""
        found = read(self.path, touch_if=own.content)
        if found is None and was_silent:
            return "a process that has ended since"
        if found is None:
            create(self.path, own.content)  # removed by hand; the run is in use all the same
            return None
        return None if found.content == own.content else found.who

    def _remove_half_made(self, own: Holder) -> None:
        """Removes locks that a process was about to put in place when it was killed; nobody else has their names."""
        for path in self.path.parent.glob(f"{escape(self.path.name)}.*{PARTIAL}"):
            with suppress(OSError):
                found = read(path)
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
