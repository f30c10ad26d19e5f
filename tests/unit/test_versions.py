"""The versions that tests run on are those that pyproject.toml admits."""

import os
import re
import tomllib
from importlib.metadata import version

import pytest

from tests.conftest import REPOSITORY

NEEDED_BY_THEM = {"huggingface_hub"}
"""The old transformers wants an older one than the new; we do not import it ourselves."""


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"([\w-]+)==([\d.]+)", text))


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_admitted():
    (line,) = re.findall(r"^LOWEST := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    bounds = dict(re.findall(r"([\w-]+)>=([\d.]+)", " ".join(project["dependencies"])))
    tested = {name: number for name, number in pins(line).items() if name not in NEEDED_BY_THEM}
    assert set(tested) == {"transformers", "peft"}
    assert all(number.removesuffix(".0") == bounds[name] for name, number in tested.items())


@pytest.mark.skipif("PREFOPT_TEST_VERSIONS" not in os.environ, reason="asks for no versions")
def test_the_versions_that_were_asked_for_are_installed():
    wanted = pins(os.environ["PREFOPT_TEST_VERSIONS"])
    assert {name: version(name) for name in wanted} == wanted
