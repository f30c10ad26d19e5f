"""The places at which faults strike exist: a renamed function must be renamed there too."""

from importlib import import_module

import pytest

from benchmarks import checkpoints_rank
from tests.faults.places import PLACES


@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_found(name):
    module, _, path = PLACES[name].injection.place.partition(":")
    found = import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    assert callable(found)


def test_what_the_benchmark_of_checkpoints_times_is_found():
    assert [target for target in checkpoints_rank.TARGETS if not hasattr(target[0], target[1])] == []
