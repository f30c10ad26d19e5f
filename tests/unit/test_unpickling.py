"""A checkpoint can make data and nothing else, whoever loads it."""

import os
import pickle
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefopt.distributed.checkpoint import list_files, seal
from prefopt.distributed.saving import find_newest
from prefopt.distributed.unpickling import FORCE, data_only, find_code, written_as_data
from prefopt.process.errors import UserError
from prefopt.runs.final_model import copy_model
from prefopt.storage.sealed import digest
from tests.unit.test_run_files import FACTS, write_checkpoint, write_partial


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def test_what_training_saves_is_data(tmp_path):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    states = {
        "rng_state.pth": {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()},
        "zero.pt": {"scaler": LossScaler(2.0), "stage": ZeroStageEnum(2), "at": [fragment_address(3, 1)]},
        "optimizer.pt": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }
    with written_as_data():
        for name, state in states.items():
            torch.save(state, tmp_path / name)
    assert find_code(tmp_path, states) is None
    with data_only():
        loaded = {name: torch.load(tmp_path / name, weights_only=False) for name in states}
    assert loaded["zero.pt"]["scaler"].loss_scale == 2.0
    assert loaded["zero.pt"]["at"] == [fragment_address(3, 1)]
    assert (loaded["rng_state.pth"]["numpy"][1] == states["rng_state.pth"]["numpy"][1]).all()
    assert FORCE not in os.environ


def test_a_member_of_an_enum_is_written_by_its_value_in_any_python(tmp_path, monkeypatch):
    """Python 3.11.0 to 3.11.3 write `getattr(<class>, <name>)`, which no checkpoint may call."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import ZeroStageEnum

    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda self, protocol: (getattr, (type(self), self.name)))
    torch.save({"stage": ZeroStageEnum(2)}, tmp_path / "zero.pt")
    assert find_code(tmp_path, ["zero.pt"]) == "zero.pt would call builtins.getattr when it is loaded"
    with written_as_data():
        torch.save({"stage": ZeroStageEnum(2)}, tmp_path / "zero.pt")
    assert find_code(tmp_path, ["zero.pt"]) is None
    assert torch.load(tmp_path / "zero.pt", weights_only=False)["stage"] is ZeroStageEnum(2)


def test_code_in_a_pickle_is_named_and_never_run(tmp_path):
    torch.save({"lr": Touches(tmp_path / "touched")}, tmp_path / "zero.pt")
    assert find_code(tmp_path, ["zero.pt"]) == "zero.pt would call posix.mkdir when it is loaded"
    with data_only(), pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir"):
        torch.load(tmp_path / "zero.pt", weights_only=False)
    assert not (tmp_path / "touched").exists()


def test_a_pickle_that_is_no_file_of_torch_is_named(tmp_path):
    (tmp_path / "zero.pt").write_bytes(pickle.dumps(Touches(tmp_path / "touched")))
    assert find_code(tmp_path, ["zero.pt"]).startswith("zero.pt is no file of torch.save")
    assert not (tmp_path / "touched").exists()


def test_what_the_environment_says_of_loading_is_as_before_after_the_block(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with data_only():
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_a_sealed_checkpoint_with_code_is_refused_before_anything_is_loaded(tmp_path):
    write_checkpoint(tmp_path, 2)
    planted = write_partial(tmp_path, 4)
    torch.save({"lr": Touches(tmp_path / "touched")}, planted / "global_step" / "rank_0.pt")
    sealed = seal(planted, replace(FACTS, step=4), digest(planted, list_files(planted)))
    with pytest.raises(UserError, match=rf"rank_0\.pt would call posix\.mkdir .* rm -r {sealed}"):
        find_newest(tmp_path)
    assert sealed.exists()
    assert not (tmp_path / "touched").exists()


def plant(folder: Path, name: str) -> None:
    torch.save({"lr": Touches(folder / "touched")}, folder / name)


STRANGERS = {
    "optimizer.bin was added": lambda folder: plant(folder, "optimizer.bin"),
    "global_step/manifest.json was added": lambda folder: (folder / "global_step" / "manifest.json").write_text("{}"),
    "model.safetensors is a link": lambda folder: link(folder / "model.safetensors"),
    "global_step is a link": lambda folder: link(folder / "global_step"),
    "elsewhere is a link": lambda folder: (folder / "elsewhere").symlink_to(folder.parent),
}


def link(path: Path) -> None:
    """Leaves the same content, as long as nobody changes it elsewhere."""
    path.rename(path.parent.parent / f"moved-{path.name}")
    path.symlink_to(path.parent.parent / f"moved-{path.name}")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_file_that_no_manifest_lists_and_a_link_are_not_loaded(tmp_path, stranger):
    write_checkpoint(tmp_path, 2)
    newest = write_checkpoint(tmp_path, 4)
    STRANGERS[stranger](newest)
    with pytest.raises(UserError, match=re.escape(f"{newest}/{stranger}")):
        find_newest(tmp_path)
    assert newest.is_dir(), "its own files are sound"


def test_a_file_that_was_added_is_removed_by_what_the_message_says(tmp_path):
    newest = write_checkpoint(tmp_path, 4)
    plant(newest, "it's mine.pt")
    with pytest.raises(UserError, match=r"Remove it: rm .*; the same command goes on") as refused:
        find_newest(tmp_path)
    subprocess.run(re.search("(rm .*);", str(refused.value))[1], shell=True, check=True)  # as somebody would type it
    assert find_newest(tmp_path) == newest


@pytest.mark.parametrize(
    "name", [".nfs00000000038a4c2500000021", ".DS_Store", "README.md", "notes", ".prefopt_digests.json"]
)
def test_a_file_that_no_loader_reads_costs_nobody_a_checkpoint(tmp_path, name):
    newest = write_checkpoint(tmp_path, 4)
    (newest / name).write_bytes(b"{}")
    assert find_newest(tmp_path) == newest


@pytest.mark.parametrize("tag", ["/elsewhere", "../step-2/global_step", "", "..", "global_step/."])
def test_the_name_of_deepspeeds_state_is_one_of_the_checkpoint(tmp_path, tag):
    planted = write_partial(tmp_path, 4)
    (planted / "latest").write_text(tag)
    sealed = seal(planted, replace(FACTS, step=4), digest(planted, list_files(planted)))
    with pytest.raises(
        UserError, match=rf"latest names '{tag}', which is no folder of this checkpoint.* rm -r {sealed}"
    ):
        find_newest(tmp_path)


def test_a_name_of_deepspeeds_state_passes(tmp_path):
    partial = write_partial(tmp_path, 4)
    (partial / "latest").write_text("global_step\n")
    sealed = seal(partial, replace(FACTS, step=4), digest(partial, list_files(partial)))
    assert find_newest(tmp_path) == sealed


@pytest.mark.parametrize("with_code", [False, True])
def test_python_files_reach_the_final_model_only_where_the_model_has_code_of_its_own(tmp_path, with_code):
    partial = write_partial(tmp_path, 4)
    for name in ("modeling_own.py", "zero_to_fp32.py"):
        (partial / name).write_text("pass")
    sealed = seal(partial, replace(FACTS, step=4), digest(partial, list_files(partial)))
    (sealed / "planted.py").write_text("pass")
    copied = copy_model(sealed, tmp_path / "model", with_code=with_code)
    assert set(copied) == {"model.safetensors", *(["modeling_own.py"] if with_code else [])}
