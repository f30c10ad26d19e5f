"""Rows of CSV and TSV files: texts in cells, of which the header names the columns."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from prefopt.config.schema import COLUMNS
from prefopt.data.arrow import OnBad
from prefopt.data.cells import CELLS
from prefopt.data.lines import MAX_LINE_BYTES, read_lines
from prefopt.data.values import show_name
from prefopt.process.errors import UserError

DELIMITERS = (",", "\t", ";", "|")
"""Delimiters of a `.csv` file: the most frequent one in its header is used. A `.tsv` file always uses the tab."""
RARE_DELIMITERS = ("^", ":", "~", "\x1f", "\x01")
"""Delimiters that are used if a header has none of the others, and is made of plain names between them."""

SEPARATOR = re.compile(r"sep=(.)\r?\n?")
"""A first line by which Excel is told the delimiter; the header follows."""
QUOTES = (
    "In a table, a cell that begins with a quote ends at the next one. Where quotes belong to the text, double each "
    'of them and put the cell in quotes ("Hi," she said. becomes """Hi,"" she said."), or write the rows as JSON '
    "lines, which hold any text."
)


def delimited_rows(path: Path, on_bad: OnBad) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields (row, place) for each row of a CSV or TSV file; a row with more or fewer cells than the header is bad.

    Raises:
        UserError: The header is damaged or names a column twice, or quotes do not end.
    """
    csv.field_size_limit(MAX_LINE_BYTES)  # the default refuses a completion of more than 128 KiB
    lines = _split_lines(path)
    header = next(lines, "")
    told = SEPARATOR.fullmatch(header)
    header = next(lines, "") if told else header
    is_tsv = path.name.lower().removesuffix(".gz").endswith(".tsv")
    if is_tsv and not told:
        _require_tab(header, path)
    delimiter = told[1] if told else "\t" if is_tsv else _find_delimiter(header, path)
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    number, line = 0, 1
    try:
        columns = next(reader, [])
        repeated = next((column for column, count in Counter(columns).items() if count > 1), None)
        if repeated is not None:
            raise UserError(f"{path}:1: the header names '{show_name(repeated)}' twice. Rename or remove one column.")
        line = reader.line_num + 1
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not cells:
                continue
            number += 1
            if is_tsv:
                _refuse_swallowed(cells, place)
            if len(cells) != len(columns):
                on_bad(f"{path}:row {number}", f"the header has {len(columns)} columns, this row has {len(cells)}.")
                continue
            yield dict(zip(columns, cells, strict=True)), f"{path}:row {number}"
    except csv.Error as error:
        if is_tsv:
            raise UserError(
                f"{path}:{line}: invalid TSV: {str(error).replace(delimiter, 'a tab')}. {QUOTES}"
            ) from error
        raise UserError(f"{path}:row {number + 1}: invalid CSV: {error}.") from error


def _require_tab(header: str, path: Path) -> None:
    """Refuses a TSV file whose header is one column, but several by another delimiter."""
    delimiter = max((each for each in DELIMITERS if each != "\t"), key=header.count)
    names = header.strip().replace('"', "").split(delimiter)
    if "\t" not in header and len(names) > 1 and all(re.fullmatch(r"[\w .-]+", name) for name in names):
        raise UserError(
            f"{path}:1: columns of a .tsv file are separated by tabs, and the header has none, but {len(names)} names "
            f"with '{delimiter}' between them. Give the file a name that ends in .csv: its delimiter is found."
        )


def _find_delimiter(header: str, path: Path) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header)
    found = max(DELIMITERS, key=unquoted.count)
    if found in unquoted:
        return found
    for rare in RARE_DELIMITERS:
        names = header.strip().replace('"', "").split(rare)
        if len(names) > 1 and all(re.fullmatch(r"[\w .-]+", name) for name in names):
            return rare
    names = header.replace('"', "").split()
    if len(set(names) & {*COLUMNS, *CELLS}) > 1:
        raise UserError(
            f"{path}:1: the header is one column, '{show_name(header.strip())}'. Blanks cannot separate columns, for "
            "texts hold them. Separate columns by a comma, tab, semicolon, | or ^, or write the rows as JSON lines."
        )
    return found


def _refuse_swallowed(cells: list[str], place: str) -> None:
    """Refuses a TSV row with a cell that spans tabs and line ends: its quote was meant as text, not as a delimiter."""
    for cell in cells:
        if "\t" in cell and ("\n" in cell or "\r" in cell):
            raise UserError(
                f"{place}: a quote begins a cell here that goes on over tabs into the next lines. {QUOTES}"
            )


def _split_lines(path: Path) -> Iterator[str]:
    """Yields lines that end with `\\n`, `\\r\\n` or `\\r`."""
    for line in read_lines(path):
        yield from io.StringIO(line, newline="") if "\r" in line else (line,)
