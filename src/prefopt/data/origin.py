"""Origin of token ids (digests of files, tokenizer and code), so that a later difference of ids can be explained."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.data.cache import CODE, digest_tokenizer
from prefopt.data.files import HUB, find_files
from prefopt.process.errors import explained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe_origin(specs: Mapping[str, object], tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """Returns digests (SHA-256, hex) of everything on which the token ids depend: `files`, `tokenizer`, `reader`.

    Args:
        specs: Data sets by purpose (`train`, ...), each a file, list or glob as `iter_rows` takes it, or None.
        tokenizer: The policy's tokenizer.

    Raises:
        UserError: A file cannot be read.
    """
    files = {name: _digest(spec) for name, spec in specs.items() if spec is not None}
    return {"files": files, "tokenizer": digest_tokenizer(tokenizer), "reader": CODE}


def _digest(spec: object) -> str | None:
    """Returns a digest of the contents of all files of a data set, in order; None if some of them are on the hub."""
    items = [str(item) for item in (spec if isinstance(spec, (list, tuple)) else [spec])]
    if any(item.startswith(HUB) for item in items):
        return None
    digest = hashlib.sha256()
    for found in (path for item in items for path in find_files(item)):
        for path in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if path.is_file():
                digest.update(_digest_file(path))
    return digest.hexdigest()


def _digest_file(path: Path) -> bytes:
    with explained(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
