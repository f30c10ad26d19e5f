"""The code that ran: commit, remote, and the uncommitted changes of tracked files."""

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit

from prefopt.storage.files import write_bytes

MAX_DIFF_BYTES = 1_000_000
"""Most bytes of a diff that are kept; its hash is that of the whole diff."""
TIMEOUT_S = 20


@dataclass(frozen=True)
class CodeState:
    """The git repository of the working directory; fields are None or empty if there is none.

    Attributes:
        commit: Hash of HEAD.
        remote: Address of `origin`, without credentials.
        diff: Output of `git diff HEAD`, whole lines up to `MAX_DIFF_BYTES`. Untracked files are not in it.
        diff_size: Size of the whole diff in bytes.
        diff_sha256: Hash (hex) of the whole diff; None if everything is committed.
    """

    commit: str | None = None
    remote: str | None = None
    diff: bytes = b""
    diff_size: int = 0
    diff_sha256: str | None = None

    @classmethod
    def read(cls) -> "CodeState":
        """Reads the state of the working directory's repository now."""
        with tempfile.TemporaryFile() as output:  # a diff may be larger than memory
            commit = _read_word(output, "rev-parse", "HEAD")
            if commit is None:
                return cls()
            remote = _read_word(output, "config", "--get", "remote.origin.url")
            size = _run_git(output, "diff", "--no-color", "--no-ext-diff", "HEAD")
            if not size:
                return cls(commit, without_credentials(remote))
            diff = output.read(MAX_DIFF_BYTES)
            output.seek(0)
            digest = hashlib.file_digest(output, "sha256").hexdigest()
        if size > MAX_DIFF_BYTES:
            diff = diff[: diff.rfind(b"\n") + 1]
        return cls(commit, without_credentials(remote), diff, size, digest)

    def write_diff(self, path: Path) -> None:
        """Writes the diff to `path`; its first line says if it was cut. Removes the file if there is no diff."""
        if self.diff_sha256 is None:
            path.unlink(missing_ok=True)
            return
        is_cut = len(self.diff) < self.diff_size
        head = f"# cut: the first {len(self.diff)} of {self.diff_size} bytes\n" if is_cut else ""
        write_bytes(path, head.encode() + self.diff)


def without_credentials(url: str | None) -> str | None:
    """Drops user, password or token from a URL; other forms of an address (git@host:path) stay as they are."""
    if url is None or "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _read_word(output: IO[bytes], *arguments: str) -> str | None:
    if not _run_git(output, *arguments):
        return None
    return output.read().decode(errors="replace").strip() or None


def _run_git(output: IO[bytes], *arguments: str) -> int | None:
    """Writes git's output to `output`, rewound to its start, and returns its size in bytes; None if git failed."""
    output.seek(0)
    output.truncate()
    try:
        done = subprocess.run(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    size = output.seek(0, 2)
    output.seek(0)
    return size if done.returncode == 0 else None
