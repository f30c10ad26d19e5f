"""The final model is the one of the last checkpoint, and a damaged copy of it never becomes `model/`."""

import pytest

from prefopt.errors import UserError
from prefopt.files import copy_file
from prefopt.train import main as train
from prefopt.trainers import training


def test_a_copy_that_is_not_what_was_sealed_ends_the_run_and_the_next_one_mends_it(overrides, tmp_path, monkeypatch):
    def copy_badly(source, target):
        copy_file(source, target)
        if target.name == "model.safetensors":
            content = bytearray(target.read_bytes())
            content[-1] ^= 1
            target.write_bytes(content)

    monkeypatch.setattr(training, "copy_file", copy_badly)
    run = tmp_path / "runs" / "test"
    with pytest.raises(UserError, match=r"cannot be written .*model\.safetensors is damaged.* run the same command"):
        train(overrides)
    assert not (run / "model").exists()
    monkeypatch.undo()
    train(overrides)
    newest = run / "checkpoints" / "step-6" / "model.safetensors"
    assert (run / "model" / "model.safetensors").read_bytes() == newest.read_bytes()
