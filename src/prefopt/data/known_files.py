"""Data sets that were read and tokenised before, known by the contents of their files: their rows are not read again.

The cache finds token ids by all rows. This index finds them by the files: below `by_files`, a folder for each set of
files and settings of reading, and in it for each tokenizer a small file with the key of the ids.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.algorithms import Kind
from prefopt.config.choices import LossOn
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import Chats
from prefopt.data.cache import CODE, HELD_OUT, Cached, NoKeyError, describe_ids, fetch_cached, find_stored
from prefopt.data.loading import Splits
from prefopt.data.records import RECORDS, Record
from prefopt.data.sources import digest_files, list_files
from prefopt.data.table import read_written
from prefopt.process.errors import UserError
from prefopt.storage.files import write_json
from prefopt.storage.reading import parse_json, read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FOLDER = "by_files"


@dataclass(frozen=True)
class Request:
    """What is read: the arguments of `read_splits`, and of tokenising what it returns."""

    config: DataConfig
    kind: Kind
    seed: int
    loss_on: LossOn
    measured: object = None


class DataSet:
    """The rows of a request, and their token ids; what was read before is not read again until rows are looked at.

    Args:
        request: What is read.
        read: Reads it.
        root: Folder of the cache of token ids.
    """

    def __init__(self, request: Request, read: Callable[[], Splits], root: Path) -> None:
        self._request = request
        self._read = read
        self._root = root
        self._has_warned = False
        self.digests = _digest_files(request)
        """Digests of the files by setting, as they were before rows were read; None if some are no files here."""
        self._key = _key(request, self.digests)
        is_known = self._key is not None and self._folder.is_dir()
        self._splits = None if is_known else self._read_now()

    @property
    def splits(self) -> Splits:
        """The rows; those that were read before are read again when they are looked at."""
        assert self._splits is not None, "it is known after `fetch`"
        return self._splits

    def read_rows(self) -> Splits:
        """Returns the rows, and reads them now if they were not read yet."""
        if self._splits is None:
            self._splits = self._read_now()
        return self._splits

    @property
    def _folder(self) -> Path:
        assert self._key is not None
        return self._root / FOLDER / self._key[:32]

    def _read_now(self) -> Splits:
        with _noticing_warnings() as warnings:
            splits = self._read()
        self._has_warned = bool(warnings)
        return splits

    def fetch(self, tokenizer: "PreTrainedTokenizerBase") -> Cached:
        """Returns the token ids, from the cache if they are there."""
        config, loss_on = self._request.config, self._request.loss_on
        entry = self._entry(tokenizer)
        if self._splits is None and entry is not None:
            found = self._find(entry)
            if found is not None:
                return found
        cached = fetch_cached(self.read_rows(), tokenizer, config, loss_on=loss_on, root=self._root)
        if entry is not None and cached.folder is not None:
            self._remember(entry, cached)
        return cached

    def _entry(self, tokenizer: "PreTrainedTokenizerBase") -> Path | None:
        """The file that has the key of the ids, if there is one."""
        if self._key is None:
            return None
        try:
            described = describe_ids(tokenizer, self._request.config, self._request.loss_on)
        except NoKeyError:
            return None
        return self._folder / f"{_digest(described)[:32]}.json"

    def _find(self, entry: Path) -> Cached | None:
        try:
            key = parse_json(read_file(entry))["key"]
            folder = self._root.absolute() / key[:32]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        found = find_stored(folder, key)
        if found is None:
            return None
        logger.info("data: the same files were read and tokenised before; read from %s", folder)
        held_out = _Unread(lambda: read_written(folder / HELD_OUT, RECORDS[found.kind]))
        self._splits = Splits(
            kind=found.kind,
            train=_Unread(lambda: self._read().train),
            held_out=None if found.held_out is None else held_out,
            notes=found.notes,
        )
        return Cached(tokenized=found, folder=folder)

    def _remember(self, entry: Path, cached: Cached) -> None:
        assert cached.folder is not None
        has_records = cached.tokenized.held_out is None or (cached.folder / HELD_OUT).exists()
        if self._has_warned or not has_records or self._has_changed():
            return  # a warning is to be told again, and a file may have changed while it was read
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_json(entry, {"key": cached.key})
        except OSError as error:
            logger.warning("data: %s cannot be written (%s); the files are read again next time", entry, error)

    def _has_changed(self) -> bool:
        return _key(self._request, _digest_files(self._request)) != self._key


class _Unread(Sequence[Record]):
    """Records that are read when the first of them is looked at."""

    def __init__(self, read: Callable[[], Sequence[Record]]) -> None:
        self._read = read

    @cached_property
    def _records(self) -> Sequence[Record]:
        return self._read()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, at: Any) -> Any:
        return self._records[at]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)


def _digest_files(request: Request) -> dict[str, str] | None:
    """Returns the digest of the files of each setting; None if some of them lie in no file of this machine."""
    config = request.config
    specs = {"train": config.train, "held_out": config.held_out, "measured": request.measured}
    try:
        found = {name: digest_files(spec) for name, spec in specs.items() if spec is not None}
    except (OSError, UserError):
        return None  # reading says what is wrong
    digests = {name: digest for name, digest in found.items() if digest is not None}
    return digests if len(digests) == len(found) else None


def _key(request: Request, digests: dict[str, str] | None) -> str | None:
    """Returns the digest of all that decides the rows; None if some of them lie in no file of this machine."""
    if digests is None:
        return None
    config = request.config
    try:
        paths = [list_files(spec) for spec in (config.train, config.held_out, request.measured) if spec is not None]
        settings = {**vars(config), "system": Chats.of(config).system, "test": None}
    except (OSError, UserError):
        return None  # reading says what is wrong
    return _digest([CODE, settings, request.kind, request.seed, request.measured, paths, digests])


def _digest(described: object) -> str:
    return hashlib.sha256(json.dumps(described, default=str, sort_keys=True).encode()).hexdigest()


@contextmanager
def _noticing_warnings() -> Iterator[list[logging.LogRecord]]:
    """Yields a list to which the warnings are added that this package logs in the block."""
    seen: list[logging.LogRecord] = []

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    package, notice = logging.getLogger("prefopt"), Notice(logging.WARNING)
    package.addHandler(notice)
    try:
        yield seen
    finally:
        package.removeHandler(notice)
