"""Fingerprints of a model: a digest of all files that decide its outputs, and one of those that it reads text by."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from prefopt.config.schema import ModelConfig
from prefopt.models.load import ADAPTER_FILE
from prefopt.process import phases
from prefopt.process.errors import UserError, explained
from prefopt.process.paths import cache_folder, is_local, resolve
from prefopt.storage.files import hash_file, write_json
from prefopt.storage.reading import parse_json, read_file

logger = logging.getLogger(__name__)

INDEXES = "*.index.json"
"""Index files: their `weight_map` gives for each tensor the file that holds it, which may be in a subfolder."""
FUNCTION_FILES = (
    "config.json",
    "*.safetensors",
    "*.bin",
    "*.pt",
    INDEXES,
    "*.py",
    "custom_generate/*.py",
    ADAPTER_FILE,
)
"""Files of a model folder that decide its outputs for given token ids, besides those that an index names."""
READING_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
)
"""Files of a model folder that decide which token ids a text becomes, and which tokens end an answer."""
TRAINING_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""Prefixes of names of files that a trainer saves beside the weights; they are not part of the model."""
REMEMBER_BYTES = 64 * 2**20
"""Size from which the digest of a file is remembered; smaller files are hashed every time."""
ANNOUNCE_BYTES = 2**30
"""Size from which hashing is announced in the log, since it takes seconds."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model that decide its outputs.

    Attributes:
        folder: Folder of the files; for a model of the hub, the cached snapshot of one commit.
        digests: SHA-256 (hex) by file name.
        base: The files of an adapter's base model; None for a whole model.
    """

    folder: Path
    digests: dict[str, str]
    base: "ModelFiles | None" = None

    @property
    def commit(self) -> str | None:
        """The commit on the hub; None for a local folder."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of all file names and contents, an adapter's base included."""
        digest = hashlib.sha256()
        for name, found in self.digests.items():
            digest.update(f"{name}\0{found}\n".encode())
        if self.base is not None:
            digest.update(self.base.fingerprint().encode())
        return digest.hexdigest()

    def by_name(self) -> dict[str, str]:
        """Returns all digests by file name; names of an adapter's base begin with `base/`."""
        of_base = {} if self.base is None else self.base.by_name()
        return {**self.digests, **{f"base/{name}": found for name, found in of_base.items()}}


@phases.of("hashing")
def read_model_files(config: ModelConfig) -> ModelFiles:
    """Returns the digests of the model files of `config.path`, an adapter's base included.

    Raises:
        UserError: The model is not on this machine.
    """
    return _read_files(_folder(config.path, config.revision))


def fingerprint_weights(config: ModelConfig) -> str:
    """Returns the fingerprint of `config.path`, used as key of results that are computed with its weights.

    It reads files and not the parameters in memory, which are empty under ZeRO-3.

    Raises:
        UserError: The folder holds no weights, or the model is not on this machine.
    """
    files = read_model_files(config)
    _require_weights(files)
    return files.fingerprint()


@phases.of("hashing")
def fingerprint_reading(config: ModelConfig) -> str:
    """Returns the SHA-256 (hex) of the tokenizer, chat template and generation settings of `config.path`.

    Those of an adapter's base count too. With the fingerprint of the weights it tells which answers a model gives;
    it is apart from it, since log-probs of given token ids do not depend on these files.

    Raises:
        UserError: The model is not on this machine.
    """
    return _chain_reading(_folder(config.path, config.revision))


def _chain_reading(folder: Path) -> str:
    own, base = digest_reading(folder), _base_of(folder)
    return own if base is None else hashlib.sha256(f"{own}\n{_chain_reading(base)}".encode()).hexdigest()


def digest_reading(folder: Path) -> str:
    """Returns the same of one folder, without the base of an adapter."""
    with explained(folder):
        paths = {path for pattern in READING_FILES for path in folder.glob(pattern) if path.is_file()}
        files = [(str(path.relative_to(folder)), hash_file(path)) for path in sorted(paths)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _base_of(folder: Path) -> Path | None:
    """Returns the folder of the base of the adapter in `folder`; None if there is no adapter."""
    if not (folder / ADAPTER_FILE).is_file():
        return None
    adapter = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    return _folder(adapter["base_model_name_or_path"], adapter.get("revision"))


def _read_files(folder: Path) -> ModelFiles:
    remembered = _Remembered(folder)
    with explained(folder):
        digests = {name: remembered.digest(name) for name in sorted(_list_names(folder))}
    remembered.save()
    base = _base_of(folder)
    return ModelFiles(folder, digests, None if base is None else _read_files(base))


def _list_names(folder: Path) -> set[str]:
    """Returns the files, relative to `folder`, that transformers or PEFT would load.

    Weights in subfolders count only if an index names them; others, such as a trainer's checkpoints, are not loaded.
    """
    paths = {path for pattern in FUNCTION_FILES for path in folder.glob(pattern) if path.is_file()}
    names = {str(path.relative_to(folder)) for path in paths if not path.name.startswith(TRAINING_STATE)}
    weight_maps = ((_read(path) or {}).get("weight_map") for path in folder.glob(INDEXES))
    named = {str(name) for found in weight_maps if isinstance(found, dict) for name in found.values()}
    return names | {name for name in named if (folder / name).is_file()}


def _require_weights(files: ModelFiles) -> None:
    """Refuses a model without weight files, or with code in another repository, whose changes would go unnoticed."""
    folder = files.folder
    if not any(Path(name).suffix in (".safetensors", ".bin", ".pt") for name in files.digests):
        raise UserError(f"{folder}: no weights here (*.safetensors, *.bin), so reference=store has nothing to go by.")
    if "--" in json.dumps(_read(folder / "config.json") or {}).partition('"auto_map"')[2].partition("}")[0]:
        raise UserError(
            f"{folder}: its code lies in another repository, which a store cannot watch. Set reference=live."
        )
    if files.base is not None:
        _require_weights(files.base)


def _folder(path: str, revision: str | None) -> Path:
    if is_local(path):
        return resolve(path)
    for name in ("config.json", ADAPTER_FILE):
        found = cached_file(path, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found).parent
    raise UserError(f"model.path={path}: neither config.json nor {ADAPTER_FILE} is there.")


class _Remembered:
    """Remembered digests of the large files of a model, stored in the cache folder and not beside the model.

    A remembered digest is valid while size, times and inode of its file are unchanged.
    """

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self._folder = folder
        self._place = cache_folder() / "digests" / f"{name}.json"
        self._known: dict[str, Any] = _read(self._place) or {}
        self._is_new = False

    def digest(self, name: str) -> str:
        """Returns the SHA-256 (hex) of a file, named relative to the folder."""
        path = self._folder / name
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(name)
        if known is not None and known["mark"] == mark:
            return str(known["sha256"])
        if stat.st_size >= ANNOUNCE_BYTES:
            logger.info("reference: hashing %s (%.1f GiB), once", path, stat.st_size / 2**30)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if stat.st_size >= REMEMBER_BYTES:
            self._known[name] = {"mark": mark, "sha256": digest}
            self._is_new = True
        return digest

    def save(self) -> None:
        if not self._is_new:
            return
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._place, self._known)
        except OSError as error:
            logger.warning("weights will be hashed again next time: %s cannot be written (%s)", self._place, error)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known = parse_json(read_file(path))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """Returns path, revision, commit, file digests and fingerprint of the model, for records of a run."""
    files = read_model_files(config)
    return {
        "path": config.path,
        "revision": config.revision,
        "commit": files.commit,
        "sha256": files.by_name(),
        "fingerprint": files.fingerprint(),
    }
