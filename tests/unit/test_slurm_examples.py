"""The scripts in slurm/examples are what would be submitted today."""

import importlib.util
import re
import tomllib

import pytest

from prefopt.config.load import load_config
from prefopt.process.ranks import Launch
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "slurm" / "examples"


def load_renderer():
    spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDERER = load_renderer()
SCRIPTS = RENDERER.scripts()


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_what_would_be_submitted(name):
    path = FOLDER / name
    is_current = path.exists() and path.read_text(encoding="utf-8") == SCRIPTS[name]
    assert is_current, f"{path.relative_to(REPOSITORY)} is out of step. Write it again: {RENDERER.COMMAND}"


def test_there_is_an_example_of_every_profile_and_of_a_sweep_and_none_besides():
    profiles = {f"{path.stem}.sh" for path in (REPOSITORY / "conf" / "cluster").glob("*.yaml")} - {"local.sh"}
    expected = profiles | {"sweep_reference.sh", "sweep_points.sh"}
    assert set(SCRIPTS) == {path.name for path in FOLDER.glob("*.sh")} == expected


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "sweep_points.sh"])
def test_the_overrides_of_an_example_are_a_run(name):
    lines = re.search(r"^overrides=\(\n(.*?)^\)", SCRIPTS[name], re.MULTILINE | re.DOTALL)
    assert lines is not None
    config = load_config(lines[1].split(), launch=Launch(16, True))
    assert f"run={config.run.root}/{config.run.name}\n" in SCRIPTS[name]


def test_the_wheel_holds_the_template_that_scripts_are_made_of():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["slurm"] == "prefopt/slurm"
    assert "slurm" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]


def test_the_command_in_the_message_is_the_one_in_the_renderers_own_words():
    assert RENDERER.COMMAND in RENDERER.__doc__
    assert (REPOSITORY / RENDERER.COMMAND.split()[1]).is_file()
