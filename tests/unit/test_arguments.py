"""From settings to TRL's arguments."""

import pytest
from transformers.training_args import OptimizerNames

from prefopt.trainers.arguments import choose_implementation


@pytest.mark.parametrize(
    ("name", "on_cuda", "expected"),
    [
        ("adamw_torch", True, "adamw_torch_fused"),
        ("adamw_torch", False, "adamw_torch"),
        ("adamw_bnb_8bit", True, "adamw_bnb_8bit"),
        ("sgd", True, "sgd"),
    ],
)
def test_adamw_is_fused_on_a_gpu_and_other_optimizers_are_what_they_were(name, on_cuda, expected):
    assert choose_implementation(name, on_cuda=on_cuda) == expected
    assert OptimizerNames(expected)
