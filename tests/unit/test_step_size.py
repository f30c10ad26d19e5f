"""How a step is divided among ranks and forwards, and that a run keeps its steps on another number of ranks."""

import pytest

from prefopt.config.load import load_config
from prefopt.config.step_size import StepSize
from prefopt.process.errors import UserError


@pytest.fixture
def divide(monkeypatch):
    """`StepSize.of` on a number of ranks."""

    def call(num_ranks: int, *overrides: str, kept: StepSize | None = None) -> StepSize:
        monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
        monkeypatch.setenv("LOCAL_RANK", "0")
        return StepSize.of(load_config(list(overrides)), kept)

    return call


def per_device(size: int, accumulation: int = 1) -> list[str]:
    return [f"trainer.per_device_batch_size={size}", f"trainer.gradient_accumulation_steps={accumulation}"]


def test_a_run_begins_with_the_sizes_that_were_asked_for(divide):
    size = divide(3, *per_device(4, 2))
    assert size == StepSize(per_device=4, accumulation=2, num_ranks=3)
    assert size.total == 24
    assert str(size) == "3 ranks x 2 forwards x 4"


def test_without_a_launcher_there_is_one_rank():
    assert StepSize.of(load_config(per_device(4, 2)), None) == StepSize(4, 2, 1)


@pytest.mark.parametrize(
    ("num_ranks", "wished", "expected"),
    [
        (1, 8, StepSize(8, 6, 1)),
        (2, 8, StepSize(8, 3, 2)),
        (4, 8, StepSize(6, 2, 4)),
        (6, 8, StepSize(8, 1, 6)),
        (16, 8, StepSize(3, 1, 16)),
        (48, 8, StepSize(1, 1, 48)),
        (3, 5, StepSize(4, 4, 3)),
        (3, 100, StepSize(16, 1, 3)),
    ],
)
def test_a_given_total_is_shared_in_forwards_as_large_as_fit(divide, num_ranks, wished, expected):
    """`trainer.per_device_batch_size` is then the most that a forward may hold."""
    size = divide(num_ranks, "trainer.batch_size=48", f"trainer.per_device_batch_size={wished}")
    assert size == expected
    assert size.total == 48


@pytest.mark.parametrize(
    ("num_ranks", "expected"), [(1, StepSize(4, 4, 1)), (2, StepSize(4, 2, 2)), (8, StepSize(2, 1, 8))]
)
def test_a_run_keeps_the_examples_of_its_steps_on_another_number_of_ranks(divide, num_ranks, expected):
    size = divide(num_ranks, *per_device(4), kept=StepSize(4, 1, 4))
    assert size == expected
    assert size.total == 16


def test_a_run_that_came_back_to_its_number_of_ranks_is_divided_as_it_began(divide):
    kept = StepSize(4, 3, 2)
    assert divide(2, *per_device(4, 3), kept=kept) == kept


def test_ranks_that_cannot_share_a_step_evenly_are_refused_with_its_size(divide):
    with pytest.raises(UserError, match=r"16 examples, which 3 ranks cannot share evenly\. .*divides 16\."):
        divide(3, *per_device(4), kept=StepSize(4, 1, 4))


@pytest.mark.parametrize("loss", ["sft", "aot", "aot_unpaired", "[sigmoid,sft]"])
@pytest.mark.parametrize("how", ["kept", "batch_size"])
def test_losses_over_a_whole_forward_are_refused_on_ranks_that_make_it_smaller_or_larger(divide, loss, how):
    """Also where the sizes that are asked for give the same total: they are not those with which the run began."""
    settings = per_device(4) if how == "kept" else ["trainer.batch_size=8", "trainer.per_device_batch_size=4"]
    kept = divide(4 if how == "kept" else 8, *settings)
    with pytest.raises(UserError, match=r"looks at a forward's pairs as a whole\. Start \d ranks\."):
        divide(8 if how == "kept" else 2, *settings, f"algorithm.loss_type={loss}", kept=kept)


def test_losses_over_a_whole_forward_are_refused_on_other_ranks_since_the_last_step_is_divided_otherwise(divide):
    with pytest.raises(UserError, match=r"looks at a forward's pairs as a whole\. Start 4 ranks\."):
        divide(2, *per_device(4), "algorithm.loss_type=aot", kept=StepSize(4, 1, 4))


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1)])
@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.tokens_per_device=5000", *per_device(4)],
        ["trainer.batch_order=length_grouped", *per_device(4)],
        ["trainer.batch_order=length_grouped", "trainer.batch_size=8", "trainer.per_device_batch_size=4"],
    ],
)
def test_batches_that_depend_on_the_number_of_ranks_keep_it(divide, settings, ranks):
    before, after = ranks
    kept = divide(before, *settings)
    assert divide(before, *settings, kept=kept) == kept
    with pytest.raises(UserError, match=rf"depend on the number of ranks\. Start {before} ranks\."):
        divide(after, *settings, kept=kept)


def test_demonstrations_go_on_on_any_number_of_ranks_that_divides_a_step(divide):
    sft = ["algorithm=sft", "data=brand_voice_sft", *per_device(4)]
    assert divide(8, *sft, kept=StepSize(4, 1, 4)) == StepSize(2, 1, 8)
