"""What a model's files say about the function it computes, as one digest."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from prefopt.errors import UserError
from prefopt.files import write_json
from prefopt.modeling.load import ADAPTER_FILE
from prefopt.paths import cache_folder, is_local, resolve
from prefopt.schema import ModelConfig
from prefopt.tracking import phases

logger = logging.getLogger(__name__)

FUNCTION_FILES = ("config.json", "*.safetensors", "*.bin", "*.pt", "*.py", ADAPTER_FILE)
"""Files of a model folder that decide its outputs for given token ids."""
TRAINING_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""Beginnings of names of files that a trainer leaves beside the weights."""
DIGESTS = ".prefopt_digests.json"
REMEMBER_BYTES = 64 * 2**20
"""Files from this size on are hashed once; smaller ones every time."""
ANNOUNCE_BYTES = 2**30
"""Files from this size on take seconds."""


@phases.of("hashing")
def fingerprint_weights(config: ModelConfig) -> str:
    """SHA-256 (hex) over the names and contents of the files that `config.path` names, an adapter's base included.

    Parameters in memory are never looked at: under ZeRO-3 they are empty.

    Raises:
        UserError: The folder holds no weights, or the model is not on this machine.
    """
    return _fingerprint(_folder(config.path, config.revision))


def _fingerprint(folder: Path) -> str:
    files = sorted({path for pattern in FUNCTION_FILES for path in folder.glob(pattern)})
    files = [path for path in files if not path.name.startswith(TRAINING_STATE)]
    if not any(path.suffix in (".safetensors", ".bin", ".pt") for path in files):
        raise UserError(f"{folder}: no weights here (*.safetensors, *.bin), so reference=store has nothing to go by.")
    if "--" in json.dumps(_read(folder / "config.json") or {}).partition('"auto_map"')[2].partition("}")[0]:
        raise UserError(
            f"{folder}: its code lies in another repository, which a store cannot watch. Set reference=live."
        )
    remembered = _Remembered(folder)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{remembered.digest(path)}\n".encode())
    remembered.save()
    if (folder / ADAPTER_FILE).is_file():
        adapter = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        base = adapter["base_model_name_or_path"]
        digest.update(_fingerprint(_folder(base, adapter.get("revision"))).encode())
    return digest.hexdigest()


def _folder(path: str, revision: str | None) -> Path:
    if is_local(path):
        return resolve(path)
    for name in ("config.json", ADAPTER_FILE):
        found = cached_file(path, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found).parent
    raise UserError(f"model.path={path}: neither config.json nor {ADAPTER_FILE} is there.")


class _Remembered:
    """Digests of large files, kept beside them, or in the cache folder where that cannot be written.

    A digest counts as long as size, times and inode of its file are the same.
    """

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self._places = (folder / DIGESTS, cache_folder() / "digests" / f"{name}.json")
        self._known: dict[str, Any] = next((known for known in map(_read, self._places) if known), {})
        self._is_new = False

    def digest(self, path: Path) -> str:
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(path.name)
        if known is not None and known["mark"] == mark:
            return str(known["sha256"])
        if stat.st_size >= ANNOUNCE_BYTES:
            logger.info("reference: hashing %s (%.1f GiB), once", path, stat.st_size / 2**30)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if stat.st_size >= REMEMBER_BYTES:
            self._known[path.name] = {"mark": mark, "sha256": digest}
            self._is_new = True
        return digest

    def save(self) -> None:
        if not self._is_new:
            return
        for place in self._places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, self._known)
                return
            except OSError as error:
                logger.debug("%s: digests cannot be kept here (%s)", place, error)
        logger.warning("weights will be hashed again next time: neither %s nor %s can be written", *self._places)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known
