"""What a user sees of a mistake on several ranks does not depend on which of them is faster."""

import pytest

from tests.conftest import write_rows
from tests.faults.hooks import Injection

pytest.importorskip("deepspeed")

REFUSED = 2
LATE_S = 1.0


@pytest.fixture
def start_late(zygote, tmp_path):
    """Runs two ranks of which one comes late to a place; returns their exit codes and what they say."""

    def run(argv, place, rank):
        late = Injection(place, "slow", rank=rank, value=LATE_S)
        ranks = zygote.start(
            argv, ranks=2, log=tmp_path / "log", hooks="tests.faults.hooks", **late.environment(tmp_path)
        )
        return ranks.wait(), ranks.output()

    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_that_all_ranks_find_before_they_are_connected_is_told_once(overrides, start_late, rank):
    codes, said = start_late([*overrides, "algorithm.bta=1"], "prefopt.train:load_config", rank)
    assert said.count("error: ") == 1, said
    assert "algorithm.bta: no such setting" in said
    assert codes[1 - rank] == REFUSED, "the late one may be ended before it finds anything"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_terminated_on_its_way_out_ends_as_it_would_have(overrides, tmp_path, start_late, rank):
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": 1}])
    codes, said = start_late([*overrides, f"data.train={bad}"], "prefopt.distributed.entry:_exit", rank)
    assert codes == [REFUSED, REFUSED], said
    assert said.count("error: ") == 1, said
