"""The lock of a run: a file beside its folder that keeps other processes out; its holder touches it regularly.

The lock of `<run.root>/<run.name>` is `<run.root>/.<run.name>.lock`, beside the folder and not in it:
`run.overwrite=true` deletes the folder, a run that cannot begin removes it if it is empty, and a folder that holds
only a lock would not be recognised as a run of prefopt. This way no other code has to know of the lock.

To replace or remove a lock, a process must first hold a second lock: the claim on the lock's content, a file named
`.<run.name>.lock.<hash of the content>`. While it holds the claim it reads the lock again. Contents never repeat, so a
slow process cannot remove the lock of a faster one. A claim whose process died is taken over by the same rules.

`filelock.SoftFileLease` (4.2) is no substitute. It takes over the lock of another host only after a new process has
watched it for the whole time of silence, however old it is. Its record also lacks the Slurm job and its restart count,
which show at once that an earlier attempt of the same job has ended.
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
"""Seconds between two touches of the lock by its holder."""
ATTEMPTS = 10
"""Tries to take a lock that others change at the same time, before the process gives up."""


class RunLock:
    """The lock of a run's folder; a context manager. Only rank 0 of a launch takes it.

    Attributes:
        path: The lock file.
        lost_to: Describes the process that took this lock over while it was held; None if none did. It happens if
            this process shows no sign of life for `SILENT_AFTER_S`, as on a sleeping machine; the run must stop then.
    """

    def __init__(self, run: Path) -> None:
        self.path = lock_path(run)  # absolute, so a change of the working directory does not matter
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
        """Takes the lock, also one left behind by a dead process. Creates run.root, but not the run's folder.

        Raises:
            UserError: A live process holds the lock, or its file cannot be written.
        """
        assert self._own is None, "held already"
        own = Holder.of_this_process()
        try:
            left_by = self._take_in_folder(own)
        except OSError as error:
            self._remove_made_folders()
            raise UserError(
                f"{self.path.parent}: cannot be written ({error.strerror}), where the lock of a run is kept. Make it "
                "writable, or set run.root for a new run."
            ) from error
        if left_by is not None:
            logger.warning("lock: %s was left by %s that is gone; taken over", self.path, left_by)
        self._remove_half_made(own)
        self._own, self.lost_to, self._released = own, None, threading.Event()
        self._signs = threading.Thread(target=self._show_signs_of_life, args=(own,), name="run lock", daemon=True)
        self._signs.start()

    def release(self) -> None:
        """Removes the lock if this process still holds it, and the folders created for it if they are empty."""
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
        except (OSError, UserError) as error:  # only a warning: an error here would hide how the run ended
            logger.warning("lock: %s was not removed (%s)", self.path, error)
        self._remove_made_folders()

    def _take_in_folder(self, own: Holder) -> str | None:
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # the release of another run's lock removed the folder meanwhile
                self._make_folder()
                return self._take(self.path, own)
        raise UserError(f"{self.path.parent}: is removed again and again. Set run.root.")

    def _take(self, path: Path, own: Holder) -> str | None:
        """Takes the lock or claim at `path`; returns a description of the dead process that left it, if there was one.

        Raises:
            UserError: A live process holds the lock or claim.
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
        """Holds, during the block, the claim: the right to replace or remove the lock that has this content."""
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
        last = time.time()  # time.monotonic() stops while the machine sleeps
        while self.lost_to is None and not self._released.wait(SIGN_OF_LIFE_S):
            try:
                self.lost_to = self._show_life(own, was_silent=time.time() - last > SILENT_AFTER_S)
                last = time.time()
            except OSError as error:  # a shared file system may be unavailable for a while
                logger.debug("lock: no sign of life in %s: %s", self.path, error)
        if self.lost_to is not None:
            logger.error("lock: %s was taken over by %s; this run must stop", self.path, self.lost_to)

    def _show_life(self, own: Holder, *, was_silent: bool) -> str | None:
        """Touches the lock if this process holds it; otherwise returns a description of its holder."""
        found = read(self.path, touch_if=own.content)
        if found is None and was_silent:
            return "a process that has ended since"
        if found is None:
            create(self.path, own.content)  # a user removed the file, but the run is still in use
            return None
        return None if found.content == own.content else found.who

    def _remove_half_made(self, own: Holder) -> None:
        """Removes the temporary lock files of killed processes; their names are unique."""
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
