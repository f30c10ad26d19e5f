"""Origin of token ids (digests of files, tokenizer and code), so that a later difference of ids can be explained."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefopt.data.cache import CODE, digest_tokenizer
from prefopt.data.sources import digest_files

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
    files = {name: digest_files(spec) for name, spec in specs.items() if spec is not None}
    return {"files": files, "tokenizer": digest_tokenizer(tokenizer), "reader": CODE}
