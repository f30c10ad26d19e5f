"""The algorithms: one module each, named like the option `algorithm=<name>`, which defines `ALGORITHM`.

The schema in `prefopt.config.algorithms` holds an algorithm's settings and all else that does not need torch.
"""

from importlib import import_module

from prefopt.config.algorithms import AlgorithmConfig
from prefopt.training.algorithm import Algorithm


def load_algorithm(chosen: AlgorithmConfig) -> Algorithm:
    """Returns the algorithm that the settings choose; imports its TRL trainer."""
    algorithm: Algorithm = import_module(f"prefopt.algorithms.{chosen.name.value}").ALGORITHM
    assert algorithm.schema is type(chosen), "a module is named as the option whose schema it names"
    return algorithm
