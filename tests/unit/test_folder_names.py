"""Settings that become a folder's name cannot lead out of the folder that it is to be in."""

import pytest

from prefopt.config.cluster import SweepConfig
from prefopt.config.schema import RunConfig
from prefopt.process.errors import UserError

OUTSIDE = ["../x", "/tmp/x", "a/b", "a\\b", "..", ".", "", "a\0"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    ("schema", "setting"), [(RunConfig, "run.name"), (SweepConfig, "sweep.name"), (SweepConfig, "sweep.label")]
)
def test_a_name_with_a_path_in_it_is_refused(schema, setting, name):
    with pytest.raises(UserError, match=rf"{setting}: must be one plain folder name"):
        schema(**{setting.split(".")[1]: name})


def test_plain_names_and_none_are_taken():
    assert SweepConfig(name="six runs", label="β").name == "six runs"
    assert RunConfig(name="a.b-c").name == "a.b-c"
    assert SweepConfig().name is None
