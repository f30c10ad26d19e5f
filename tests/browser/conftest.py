"""One browser for all tests of this folder, and what it finds on each page."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, Page, find_chromium
from tests.browser.pages import PAGES


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a running browser."""
    program = find_chromium()
    if program is None:
        end = pytest.fail if os.environ.get("PREFOPT_TEST_BROWSER") == "required" else pytest.skip
        end("no chromium here: apt-get install chromium")
    with Chromium(program, tmp_path_factory.mktemp("chromium")) as started:
        yield Page(started)


@pytest.fixture(scope="session")
def file_of(browser: Page, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the page of a name once, and returns its file."""

    @cache
    def write(name: str) -> Path:
        return PAGES[name](tmp_path_factory.mktemp(name))

    return write
