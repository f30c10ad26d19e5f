"""What trains: one module per algorithm, named as the option `algorithm=<name>`, with its `ALGORITHM`.

What is known of an algorithm without torch, its settings first, is its schema in `prefopt.config.algorithms`.
"""

from importlib import import_module

from prefopt.config.algorithms import AlgorithmConfig
from prefopt.training.algorithm import Algorithm


def load_algorithm(chosen: AlgorithmConfig) -> Algorithm:
    """The algorithm that the settings choose; imports its TRL trainer."""
    algorithm: Algorithm = import_module(f"prefopt.algorithms.{chosen.name.value}").ALGORITHM
    assert algorithm.schema is type(chosen), "a module is named as the option whose schema it names"
    return algorithm
