"""docs/formats.md: its table is that of `conf/provider`, and each example row is read as the format beside it."""

import json
import re

import pytest

from prefopt.config.catalog import read_options
from prefopt.config.choices import DataFormat
from prefopt.config.provider import PROVIDER, read_provider
from prefopt.config.provider_docs import put_into
from prefopt.data.formats import FORMATS, convert, detect_format
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \|.*?\| `(\{.*?\})`(?= and|[,;:]| \|)", re.MULTILINE)


def test_the_table_is_current() -> None:
    assert put_into(PAGE) == PAGE, "run `make docs`"


@pytest.mark.parametrize(("name", "text"), ROW.findall(PAGE), ids=lambda value: value[:12])
def test_each_example_is_a_row_of_the_format_beside_it(name: str, text: str) -> None:
    row = json.loads(text)
    assert detect_format(row, "preference") is DataFormat[name]
    assert convert(row, DataFormat[name], "preference") is not None


def test_every_format_of_pairs_has_an_example() -> None:
    named = {name for name, _ in ROW.findall(PAGE)}
    assert named == {name.name for name, form in FORMATS.items() if "preference" in form.read}


@pytest.mark.parametrize("name", [option.name for option in read_options()[PROVIDER]])
def test_every_fact_has_a_source_and_a_month_and_every_kind_of_rows_can_be_written(name: str) -> None:
    provider = read_provider(name)
    for fact in (*provider.limits, *provider.rules, *provider.notes):
        assert fact.source
        assert re.fullmatch(r"20\d\d-[01]\d", fact.date)
    assert set(provider.rows) <= set(FORMATS[provider.layout].write)
