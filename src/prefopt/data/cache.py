"""Cache of token ids on disk, so that no two ranks or runs tokenise the same rows. The key is a hash of all inputs.

An entry is a folder with an Arrow file for each split, the held-out records as JSON lines, `about.json` with the
notes, and `manifest.json` with sizes and digests of these files. It is written under a temporary name and renamed, so
it is complete or does not exist.
"""

import errno
import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.choices import LossOn
from prefopt.config.schema import DataConfig
from prefopt.data.encoding import TokenizeNotes
from prefopt.data.loading import Splits
from prefopt.data.mix import SliceNotes
from prefopt.data.notes import DataNotes
from prefopt.data.read_notes import ReadNotes
from prefopt.data.records import Record
from prefopt.data.table import Table, write_records
from prefopt.data.token_splits import TokenizedSplits, load_tokenized
from prefopt.process.errors import UserError
from prefopt.storage import sealed
from prefopt.storage.files import PARTIAL, write_json, write_text
from prefopt.storage.reading import parse_json, read_file
from prefopt.storage.sealed import DAMAGED, MANIFEST

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the folder's format and of the key."""
ABOUT = "about.json"
HELD_OUT = "held_out.jsonl"
"""File of the held-out records; there is none if JSON cannot hold them, as those with dates from Parquet files."""

READING_SETTINGS = frozenset(
    {
        "train",
        "held_out",
        "held_out_fraction",
        "test",
        "max_rows",
        "shuffle_seed",
        "format",
        "columns",
        "pairs",
        "min_margin",
        "tag",
        "system",
        "on_identical",
        "on_empty",
        "on_overlap",
        "gate",
    }
)
"""Settings that only affect the records, which are in the key; all other settings are in the key themselves."""
TOKENIZER_SETTINGS = ("chat_template", "split_special_tokens", "add_bos_token", "add_eos_token", "padding_side")
PACKAGES = ("prefopt", "tokenizers", "transformers", "jinja2")
# Read at import: later, the files may be newer than the running code.
CODE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))).hexdigest()
"""Digest of the code that turns files into token ids."""

_CLOCK_USES = re.compile(r"""strftime_now(?!\s+is\s)(?:\s*\(\s*(?:'([^']*)'|"([^"]*)")\s*\))?""")
"""Matches a chat template's uses of the clock, with the format if it is a literal; not `strftime_now is defined`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """Token ids, and their folder in the cache."""

    tokenized: TokenizedSplits
    folder: Path | None
    """Folder for `open_cached`; None if nothing could be stored, for which a warning gives the reason."""
    key: str = ""
    """Key of the folder; empty if there is none."""


def load_cached(
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
    *,
    loss_on: LossOn = LossOn.completions,
    root: Path,
) -> TokenizedSplits:
    """Returns the result of `load_tokenized` from the cache in `root`; on a miss tokenises now and stores it.

    Raises:
        UserError: `load_tokenized` refuses the data; nothing is stored then. A problem with `root` is only a warning.
    """
    return fetch_cached(splits, tokenizer, config, loss_on=loss_on, root=root).tokenized


def fetch_cached(
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
    *,
    loss_on: LossOn = LossOn.completions,
    root: Path,
) -> Cached:
    """Like `load_cached`, but also returns the folder from which other processes can open the result."""
    try:
        key = _key(splits, tokenizer, config, loss_on)
    except NoKeyError as error:
        logger.warning("data: token ids are not kept for the next run: %s", error)
        return Cached(tokenized=load_tokenized(splits, tokenizer, config, loss_on=loss_on), folder=None)
    folder = root.absolute() / key[:32]
    found = find_stored(folder, key)
    if found is not None:
        logger.info("data: tokenised before; read from %s", folder)
        splits.notes.tokenized.update(found.notes.tokenized)
    else:
        tokenized = load_tokenized(splits, tokenizer, config, loss_on=loss_on)
        try:
            _store(folder, key, tokenized, splits.held_out)
            found = find_stored(folder, key)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("data: token ids cannot be kept in %s for the next run (%s)", folder.parent, reason)
        if found is None:
            return Cached(tokenized=_with_fingerprints(tokenized, key), folder=None)
    return Cached(tokenized=replace(found, notes=splits.notes), folder=folder, key=key)


def open_cached(folder: Path) -> TokenizedSplits:
    """Opens a folder that `fetch_cached` stored, with the notes of that process. The ids are memory-mapped.

    Raises:
        UserError: The folder does not exist or is damaged.
    """
    try:
        return _read_patiently(folder)
    except (_Unsound, OSError) as error:
        raise UserError(
            f"{folder}: the token ids that another process stored cannot be read here ({error}). Run again; if this "
            "comes back, let PREFOPT_CACHE name a folder that all processes see and that keeps what is written."
        ) from error


def digest_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Returns a SHA-256 (hex) of all that decides a tokenizer's ids, without the date; None if it has none."""
    try:
        described = {**_describe_tokenizer(tokenizer), "clock": None}
    except NoKeyError:
        return None
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()


class NoKeyError(Exception):
    """No key can be computed for the token ids; the message says why."""


class _Unsound(Exception):
    """A folder of the cache is damaged; the message says how."""


def _key(splits: Splits, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, loss_on: LossOn) -> str:
    """Returns the SHA-256 (hex) of all that decides the ids, the `source` column and the notes."""
    sides = (splits.train, splits.held_out)
    notes = splits.notes.to_dict()
    del notes["tokenized"]
    header = {
        **describe_ids(tokenizer, config, loss_on),
        "kind": splits.kind,
        "notes": notes,  # in their order, which is that of the printed lines
        "num_records": [None if side is None else len(side) for side in sides],
    }
    digest = hashlib.sha256(json.dumps(header, default=str).encode())
    for side in sides:
        for packed in Table.of(side or ()).iter_packed():
            digest.update(packed)
    return digest.hexdigest()


def describe_ids(tokenizer: "PreTrainedTokenizerBase", config: DataConfig, loss_on: LossOn) -> dict[str, object]:
    """Returns all that decides the ids of given records.

    Raises:
        NoKeyError: The tokenizer cannot be described.
    """
    return {
        "format": FORMAT,
        "code": CODE,
        "versions": {name: version(name) for name in PACKAGES},
        "loss_on": loss_on.value,
        "settings": {name: value for name, value in vars(config).items() if name not in READING_SETTINGS},
        "tokenizer": _describe_tokenizer(tokenizer),
    }


def _describe_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """Returns all that decides a tokenizer's ids, independent of where it was loaded from."""
    kind = type(tokenizer)  # for code of a model's repository the module name has a hash of it
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


def _digest_backend(tokenizer: "PreTrainedTokenizerBase") -> str:
    backend = tokenizer.backend_tokenizer
    try:
        if backend.truncation is not None or backend.padding is not None:
            # Both are left over from the last call; every call sets them anew.
            backend = type(backend).from_str(backend.to_str())
            backend.no_truncation()
            backend.no_padding()
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    except Exception as error:  # the package tokenizers raises no narrower class
        raise NoKeyError(f"the tokenizer cannot be written down ({error})") from error


def _digest_saved(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns the digest of the saved files of a slow tokenizer, which has no Rust backend."""
    digest = hashlib.sha256()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    except (OSError, NotImplementedError, TypeError, ValueError) as error:
        raise NoKeyError(f"the tokenizer cannot be written down ({error})") from error
    return digest.hexdigest()


def _read_clock(template: str) -> list[str]:
    """Returns what the clock writes into a chat template now; a use without a literal format gives a unique value."""
    formats = [single or double for single, double in _CLOCK_USES.findall(template)]
    return [datetime.now().strftime(text) if text else str(time.time_ns()) for text in formats]


def find_stored(folder: Path, key: str) -> TokenizedSplits | None:
    """Opens the folder of a key; None if there is none or it is damaged, which is set aside with a warning."""
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
    """Reads a folder, and tries again once: a network file system may return a part of a file at first."""
    try:
        return _read(folder, key)
    except (_Unsound, OSError):
        return _read(folder, key)


def _read(folder: Path, key: str | None) -> TokenizedSplits:
    """Opens a folder after checking the digests of its files, which is fast compared to tokenising."""
    try:
        manifest = parse_json(read_file(folder / MANIFEST))
        marks = {name: {"size": mark["bytes"], "sha256": mark["sha256"]} for name, mark in manifest.items()}
        damage = sealed.find_damage(folder, marks)
        if damage is not None:
            raise _Unsound(damage)
        about = parse_json(read_file(folder / ABOUT))
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


def _open_dataset(folder: Path, split: str, key: str) -> "Dataset":
    # Imported here because it is slow, and bad rows are reported before.
    import pyarrow as pa
    from datasets import Dataset

    # Not `Dataset.from_file`: for a dataset that knows its file, `map` writes cache files beside it.
    with pa.memory_map(str(folder / _file_name(split))) as source:
        table = pa.ipc.open_file(source).read_all()
    return Dataset(table, fingerprint=_fingerprint(split, key))


def _fingerprint(split: str, key: str) -> str:
    return f"{key[:32]}_{split}"


def _restore_notes(content: dict[str, Any]) -> DataNotes:
    read = {split: ReadNotes(**counts) for split, counts in content["read"].items()}
    tokenized = {split: TokenizeNotes(**counts) for split, counts in content["tokenized"].items()}
    slices = {
        split: {name: SliceNotes(**counts) for name, counts in parts.items()}
        for split, parts in content["slices"].items()
    }
    return DataNotes(**{**content, "slices": slices, "read": read, "tokenized": tokenized})


def _datasets(tokenized: TokenizedSplits) -> "dict[str, Dataset]":
    sides = {"train": tokenized.train, "held_out": tokenized.held_out}
    return {split: dataset for split, dataset in sides.items() if dataset is not None}


def _with_fingerprints(tokenized: TokenizedSplits, key: str) -> TokenizedSplits:
    """Gives the data sets the same fingerprints as if they were read from the cache."""
    from datasets import Dataset

    named = {
        split: Dataset(dataset.with_format("arrow")[:], fingerprint=_fingerprint(split, key))
        for split, dataset in _datasets(tokenized).items()
    }
    return replace(tokenized, **named)


def _store(folder: Path, key: str, tokenized: TokenizedSplits, held_out: Sequence[Record] | None) -> None:
    """Writes a folder, unless another process has written it meanwhile.

    Raises:
        OSError: It cannot be written; no part of it is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sealed.remove_stale(folder.parent)
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        partial.mkdir()
        _write(partial, key, tokenized, held_out)
        sealed.publish(partial, folder, [])
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, key: str, tokenized: TokenizedSplits, held_out: Sequence[Record] | None) -> None:
    datasets = _datasets(tokenized)
    for split, dataset in datasets.items():
        _write_table(folder / _file_name(split), dataset.with_format("arrow")[:])
    if held_out is not None:
        write_records(folder / HELD_OUT, held_out)
    about = {"key": key, "kind": tokenized.kind, "splits": list(datasets), "notes": tokenized.notes.to_dict()}
    write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")
    digests = sealed.digest(folder, sorted(path.name for path in folder.iterdir()))
    marks = {name: {"bytes": entry["size"], "sha256": entry["sha256"]} for name, entry in digests.items()}
    write_json(folder / MANIFEST, marks)


def _write_table(path: Path, table: "pa.Table") -> None:
    import pyarrow as pa

    # Nothing is copied in memory: `IdTable` gives each column in one piece, which `pa.memory_map` can read in place.
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
