"""The folder of public data extracts, which may be absent."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Finds a file or folder of the public data by its name, and skips the test that needs it where it is absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"{path} is absent; set PREFOPT_SHARED_DATA to the folder of public data extracts")
        return path

    return find
