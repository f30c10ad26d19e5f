"""An algorithm is a schema, a module and an option, all of one name, and nothing else knows of it."""

import re
from pathlib import Path

import pytest

import prefopt
from prefopt.algorithms import load_algorithm
from prefopt.config.algorithms import ALGORITHMS, AlgorithmName, rows_of
from prefopt.config.load import load_config
from prefopt.process.paths import shipped

SOURCE = Path(prefopt.__file__).parent
BRANCH = re.compile(
    r"AlgorithmName\.|isinstance\([^)]*(DPO|SFT)AlgorithmConfig|kind ==|is_dpo|is_sft|== \"(sft|dpo)\""
)


def test_every_algorithm_has_a_name_a_schema_a_module_and_an_option():
    options = {path.stem for path in shipped("conf/algorithm").glob("*.yaml")}
    modules = {path.stem for path in (SOURCE / "algorithms").glob("*.py")} - {"__init__"}
    assert options == modules == set(ALGORITHMS) == {name.value for name in AlgorithmName}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_option_loads_the_module_of_its_name(name):
    config = load_config([f"algorithm={name}"])
    algorithm = load_algorithm(config.algorithm)
    assert algorithm.schema is ALGORITHMS[name]
    assert set(algorithm.trl_fields(config)) <= set(algorithm.trl_config.__dataclass_fields__)


def test_modules_that_branch_on_the_algorithm_are_few():
    """What differs between algorithms is a property of the schema, or in the algorithm's own module."""
    branching = {path for path in SOURCE.rglob("*.py") if BRANCH.search(path.read_text(encoding="utf-8"))}
    assert {str(path.relative_to(SOURCE)) for path in branching} <= {
        "config/algorithms.py",
        "algorithms/dpo.py",
        "algorithms/sft.py",
    }


def test_rows_of_an_algorithm_that_is_not_known_are_not_known():
    assert [rows_of(name) for name in ("dpo", "sft", "ppo", None)] == ["preference", "sft", None, None]
    assert [rows_of(name) for name in (["dpo"], {"name": "dpo"}, 3)] == [None] * 3
