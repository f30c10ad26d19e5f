"""Token ids on disk, named by all that decides them: no two ranks or runs tokenise the same rows twice.

What is stored is a folder: an Arrow file for each split, `about.json` with the notes, and `manifest.json` with sizes
and digests of these files. It is written beside its place and renamed into it, so it is there whole or not at all.
"""

import errno
import hashlib
import json
import logging
import marshal
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from prefopt.config.choices import LossOn
from prefopt.config.schema import DataConfig
from prefopt.data.encoding import TokenizeNotes
from prefopt.data.loading import Splits, TokenizedSplits, load_tokenized
from prefopt.data.notes import DataNotes
from prefopt.data.records import RECORDS, ReadNotes, Record
from prefopt.process.errors import UserError
from prefopt.storage import sealed
from prefopt.storage.files import PARTIAL, write_json, write_text
from prefopt.storage.sealed import DAMAGED, MANIFEST

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the folder and of what goes into a key."""
ABOUT = "about.json"
HASHED_ROWS = 1000
"""Records that are turned into bytes together."""

READING_SETTINGS = frozenset(
    {"train", "held_out", "held_out_fraction", "format", "as_chat", "on_identical", "on_empty", "on_overlap"}
)
"""Settings that have had their effect once there are records; every other one, also one to come, is in the key."""
TOKENIZER_SETTINGS = ("chat_template", "split_special_tokens", "add_bos_token", "add_eos_token", "padding_side")
PACKAGES = ("prefopt", "tokenizers", "transformers", "jinja2")
# Read with the modules themselves: later, the files may be newer than the code that runs.
CODE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Digest of the code between files and ids."""

_CLOCK_USES = re.compile(r"""strftime_now(?!\s+is\s)(?:\s*\(\s*(?:'([^']*)'|"([^"]*)")\s*\))?""")
"""A chat template's calls of the clock with a plain format, and its other uses but `strftime_now is defined`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """Token ids, and where they lie."""

    tokenized: TokenizedSplits
    folder: Path | None
    """Where `open_cached` finds the same. None where nothing could be stored; a warning has said why."""


def load_cached(
    splits: Splits, tokenizer: Any, config: DataConfig, *, loss_on: LossOn = LossOn.completions, root: Path
) -> TokenizedSplits:
    """What `load_tokenized` returns: from `root` if the same was tokenised before, else tokenised now and stored.

    Raises:
        UserError: What `load_tokenized` refuses; nothing is stored then. Trouble with `root` is only warned of.
    """
    return fetch_cached(splits, tokenizer, config, loss_on=loss_on, root=root).tokenized


def fetch_cached(
    splits: Splits, tokenizer: Any, config: DataConfig, *, loss_on: LossOn = LossOn.completions, root: Path
) -> Cached:
    """The same as `load_cached`, together with the folder from which other processes can open it."""
    try:
        key = _key(splits, tokenizer, config, loss_on)
    except _NoKey as error:
        logger.warning("data: token ids are not kept for the next run: %s", error)
        return Cached(tokenized=load_tokenized(splits, tokenizer, config, loss_on=loss_on), folder=None)
    folder = root.absolute() / key[:32]
    found = _find(folder, key)
    if found is not None:
        logger.info("data: tokenised before; read from %s", folder)
        splits.notes.tokenized.update(found.notes.tokenized)
    else:
        tokenized = load_tokenized(splits, tokenizer, config, loss_on=loss_on)
        try:
            _store(folder, key, tokenized)
            found = _find(folder, key)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("data: token ids cannot be kept in %s for the next run (%s)", folder.parent, reason)
        if found is None:
            return Cached(tokenized=_with_fingerprints(tokenized, key), folder=None)
    return Cached(tokenized=replace(found, notes=splits.notes), folder=folder)


def open_cached(folder: Path) -> TokenizedSplits:
    """Opens what `fetch_cached` stored, with the notes of the process that did. The ids stay on disk (memory-mapped).

    Raises:
        UserError: The folder is not there, or damaged.
    """
    try:
        return _read_patiently(folder)
    except (_Unsound, OSError) as error:
        raise UserError(
            f"{folder}: the token ids that another process stored cannot be read here ({error}). Run again; if this "
            "comes back, let PREFOPT_CACHE name a folder that all processes see and that keeps what is written."
        ) from error


def digest_tokenizer(tokenizer: Any) -> str | None:
    """SHA-256 (hex) over what decides a tokenizer's ids, but for the day; None if it cannot be written down."""
    try:
        described = {**_describe_tokenizer(tokenizer), "clock": None}
    except _NoKey:
        return None
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()


class _NoKey(Exception):
    """Why it cannot be said what decides the ids."""


class _Unsound(Exception):
    """What is wrong with a folder."""


def _key(splits: Splits, tokenizer: Any, config: DataConfig, loss_on: LossOn) -> str:
    """SHA-256 (hex) over all that decides the ids, the `source` column and the notes."""
    sides = (splits.train, splits.held_out)
    notes = splits.notes.to_dict()
    del notes["tokenized"]
    header = {
        "format": FORMAT,
        "code": CODE,
        "versions": {name: version(name) for name in PACKAGES},
        "kind": splits.kind,
        "loss_on": loss_on.value,
        "settings": {name: value for name, value in vars(config).items() if name not in READING_SETTINGS},
        "tokenizer": _describe_tokenizer(tokenizer),
        "notes": notes,  # in their order: it is that of the sentences made from them
        "num_records": [None if side is None else len(side) for side in sides],
    }
    digest = hashlib.sha256(json.dumps(header, default=str).encode())
    names = [field.name for field in fields(RECORDS[splits.kind])]
    for side in sides:
        _add_records(digest, side or (), attrgetter(*names))
    return digest.hexdigest()


def _add_records(digest: Any, records: Sequence[Record], content: Any) -> None:
    for start in range(0, len(records), HASHED_ROWS):
        rows = [content(record) for record in records[start : start + HASHED_ROWS]]
        try:
            # Version 2 has no references and knows no interned strings: equal rows are equal bytes in every process.
            packed = marshal.dumps(rows, 2)
        except ValueError:
            packed = repr(rows).encode()  # dates and decimals, which Parquet knows and JSON does not
        digest.update(packed)


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What decides a tokenizer's ids, wherever it was loaded from."""
    kind = type(tokenizer)  # the module of code from a model's folder or repository is named by a hash of that code
    numbers = {name: value for name, value in tokenizer.init_kwargs.items() if isinstance(value, (bool, int, float))}
    templates = getattr(tokenizer, "chat_template", None) or ""
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "content": _digest_backend(tokenizer) if tokenizer.is_fast else _digest_saved(tokenizer),
        "special_tokens": tokenizer.special_tokens_map,
        "settings": {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS},
        "arguments": {name: numbers[name] for name in sorted(numbers.keys() - {"is_local", "local_files_only"})},
        "clock": [_read_clock(text) for text in (templates.values() if isinstance(templates, dict) else [templates])],
    }


def _digest_backend(tokenizer: Any) -> str:
    backend = tokenizer.backend_tokenizer
    try:
        if backend.truncation is not None or backend.padding is not None:
            # They are leftovers of the last call, and reset before every other one.
            backend = type(backend).from_str(backend.to_str())
            backend.no_truncation()
            backend.no_padding()
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    except Exception as error:  # tokenizers raises nothing narrower
        raise _NoKey(f"the tokenizer cannot be written down ({error})") from error


def _digest_saved(tokenizer: Any) -> str:
    """Digest of the files that a tokenizer without a backend of its own consists of."""
    digest = hashlib.sha256()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    except (OSError, NotImplementedError, TypeError, ValueError) as error:
        raise _NoKey(f"the tokenizer cannot be written down ({error})") from error
    return digest.hexdigest()


def _read_clock(template: str) -> list[str]:
    """What the clock writes into a chat template at present; a use that cannot be foreseen is like no other."""
    formats = [single or double for single, double in _CLOCK_USES.findall(template)]
    return [datetime.now().strftime(text) if text else str(time.time_ns()) for text in formats]


def _find(folder: Path, key: str) -> TokenizedSplits | None:
    """Opens what is stored under a key; what is damaged is set aside with a warning."""
    try:
        if not folder.is_dir():
            return None
        return _read_patiently(folder, key)
    except OSError as error:
        logger.warning("data: %s cannot be read (%s); the rows are tokenised again", folder, error.strerror or error)
        return None
    except _Unsound as error:
        logger.warning("data: %s is damaged (%s); the rows are tokenised again", folder, error)
    sealed.set_aside(folder, folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:12]}{DAMAGED}"), logger)
    return None


def _read_patiently(folder: Path, key: str | None = None) -> TokenizedSplits:
    """Looks twice: a network file system may hand out a part of a file at first."""
    try:
        return _read(folder, key)
    except (_Unsound, OSError):
        return _read(folder, key)


def _read(folder: Path, key: str | None) -> TokenizedSplits:
    """Opens a folder after a check of every byte: little work beside tokenising."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        marks = {name: {"size": mark["bytes"], "sha256": mark["sha256"]} for name, mark in manifest.items()}
        damage = sealed.find_damage(folder, marks)
        if damage is not None:
            raise _Unsound(damage)
        about = json.loads((folder / ABOUT).read_bytes())
        if not {ABOUT, *map(_file_name, about["splits"])} <= manifest.keys():
            raise _Unsound(f"{MANIFEST} leaves files out")
        if key is not None and about["key"] != key:
            raise _Unsound("it holds other rows than its name says")
        datasets = {split: _open_dataset(folder, split, about["key"]) for split in about["splits"]}
        notes = _restore_notes(about["notes"])
    except FileNotFoundError as error:
        raise _Unsound(f"{Path(error.filename or folder).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Unsound(f"its {MANIFEST} or {ABOUT} makes no sense: {error}") from error
    return TokenizedSplits(kind=about["kind"], train=datasets["train"], held_out=datasets.get("held_out"), notes=notes)


def _file_name(split: str) -> str:
    return f"{split}.arrow"


def _open_dataset(folder: Path, split: str, key: str) -> Any:
    # Imported here: slow, and bad rows are answered before that.
    import pyarrow as pa
    from datasets import Dataset

    # Not `Dataset.from_file`: a dataset that knows its file lets `map` write beside it.
    with pa.memory_map(str(folder / _file_name(split))) as source:
        table = pa.ipc.open_file(source).read_all()
    return Dataset(table, fingerprint=_fingerprint(split, key))


def _fingerprint(split: str, key: str) -> str:
    return f"{key[:32]}_{split}"


def _restore_notes(content: dict[str, Any]) -> DataNotes:
    read = {split: ReadNotes(**counts) for split, counts in content["read"].items()}
    tokenized = {split: TokenizeNotes(**counts) for split, counts in content["tokenized"].items()}
    return DataNotes(**{**content, "read": read, "tokenized": tokenized})


def _datasets(tokenized: TokenizedSplits) -> dict[str, Any]:
    sides = {"train": tokenized.train, "held_out": tokenized.held_out}
    return {split: dataset for split, dataset in sides.items() if dataset is not None}


def _with_fingerprints(tokenized: TokenizedSplits, key: str) -> TokenizedSplits:
    """The same data sets, named as they are when they come from disk."""
    from datasets import Dataset

    named = {
        split: Dataset(dataset.with_format("arrow")[:], fingerprint=_fingerprint(split, key))
        for split, dataset in _datasets(tokenized).items()
    }
    return replace(tokenized, **named)


def _store(folder: Path, key: str, tokenized: TokenizedSplits) -> None:
    """Writes a folder, unless another process has meanwhile.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sealed.remove_stale(folder.parent)
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        partial.mkdir()
        _write(partial, key, tokenized)
        sealed.publish(partial, folder, [])
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, key: str, tokenized: TokenizedSplits) -> None:
    datasets = _datasets(tokenized)
    for split, dataset in datasets.items():
        _write_table(folder / _file_name(split), dataset.with_format("arrow")[:])
    about = {"key": key, "kind": tokenized.kind, "splits": list(datasets), "notes": tokenized.notes.to_dict()}
    write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")
    digests = sealed.digest(folder, sorted(path.name for path in folder.iterdir()))
    marks = {name: {"bytes": entry["size"], "sha256": entry["sha256"]} for name, entry in digests.items()}
    write_json(folder / MANIFEST, marks)


def _write_table(path: Path, table: Any) -> None:
    import pyarrow as pa

    with suppress(pa.ArrowInvalid):  # more than 2**31 ids in a column stay in several pieces
        table = table.combine_chunks()  # one piece is read from the file without a copy
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
