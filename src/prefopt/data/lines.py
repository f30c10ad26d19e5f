"""Lines of text files, packed or not."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from prefopt.process.errors import UserError

MAX_LINE_BYTES = 64 * 2**20
"""Longest line of a text file: a line is read into memory whole."""
GZIP = b"\x1f\x8b"
PACKED_BYTES, PACKED_SHARE = 2**26, 200
"""A gzip file that unpacks to more bytes than this, and than so many times what was read of it, is refused: rows are
packed to a tenth or so of their size, one blank after the other to a thousandth."""


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file; gzip is recognised by content, not by name.

    Raises:
        UserError: It is no UTF-8 or no complete gzip file, a line is too long, or it unpacks to far more than rows do.
    """
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP
        file.seek(0)
        lines = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if is_packed else file
        number = num_bytes = 0
        try:
            while raw := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                num_bytes += len(raw)
                if is_packed and num_bytes > max(PACKED_BYTES, PACKED_SHARE * file.tell()):
                    raise UserError(
                        f"{path}:{number}: the gzip file unpacks to more than {PACKED_SHARE} times its size, as rows "
                        "never do. Look at it; if it is meant to be like that, unpack it with: gunzip"
                    )
                if len(raw) > MAX_LINE_BYTES:
                    raise UserError(f"{path}:{number}: this line has more than {MAX_LINE_BYTES >> 20} MiB. Split it.")
                yield _decode(raw, f"{path}:{number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a complete gzip file: {error}. Write or copy it again.") from error


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        found = raw[error.start : error.start + 1].hex()
        raise UserError(
            f"{place}: not valid UTF-8: byte 0x{found} at position {error.start}. Save the file as UTF-8."
        ) from error
