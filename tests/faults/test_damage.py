"""Damage to the files of a checkpoint costs the steps since the one before it, and never goes unnoticed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import MODES, damaged
from tests.faults.places import PLACES

END = PLACES["before a log line"].at(6)
"""At step 12; the checkpoints of steps 4 and 8 are there."""


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def change_sum(manifest: Path) -> None:
    """Leaves JSON that can be read."""
    content = json.loads(manifest.read_text())
    content["run"]["windows"][0]["tokens"] += 1
    manifest.write_text(json.dumps(content))


def damage_all(checkpoints: Path) -> None:
    truncate(checkpoints / "step-8" / "model.safetensors")
    (checkpoints / "step-4" / "COMPLETE").unlink()


def add_strangers(checkpoints: Path) -> None:
    """A copy under another step, folders of other names, and a file in a checkpoint."""
    shutil.copytree(checkpoints / "step-8", checkpoints / "step-12")
    (checkpoints / "checkpoint-11").mkdir()
    (checkpoints / "removed-step-2").mkdir()
    (checkpoints / "step-4" / "stranger").touch()


CASES: list[tuple[str, str, Callable[[Path], None]]] = [
    ("single", "a bit of the manifest", lambda folder: flip(folder / "step-8" / "manifest.json")),
    ("single", "a number in the manifest", lambda folder: change_sum(folder / "step-8" / "manifest.json")),
    ("single", "no COMPLETE", lambda folder: (folder / "step-8" / "COMPLETE").unlink()),
    ("single", "both checkpoints", damage_all),
    ("ddp", "extra folders and files", add_strangers),
    ("zero2", "no manifest", lambda folder: (folder / "step-8" / "manifest.json").unlink()),
    ("zero2", "a lost file", lambda folder: next((folder / "step-8").glob("global_step8/*rank_1*optim*")).unlink()),
    ("zero3", "a bit", lambda folder: flip(next((folder / "step-8").glob("global_step8/*rank_1*optim*")))),
]


@pytest.mark.parametrize(("mode", "name", "damage"), CASES, ids=[f"{mode}-{name}" for mode, name, _ in CASES])
def test_a_run_goes_on_from_what_is_sound(arena, mode, name, damage):
    folder = arena.new_folder()
    arena.survive(MODES[mode], damaged(name, damage, END), folder=folder)
    set_aside = {path.name for path in folder.glob("runs/*/checkpoints/damaged-*")}
    assert set_aside == {
        "both checkpoints": {"damaged-step-4", "damaged-step-8"},
        "extra folders and files": {"damaged-step-12"},
    }.get(name, {"damaged-step-8"})


def test_a_file_that_is_not_a_checkpoints_does_not_get_into_the_model(arena):
    def add_file(checkpoints: Path) -> None:
        (checkpoints / "step-12" / "stranger").touch()

    def remove_file(checkpoints: Path) -> None:
        (checkpoints / "step-12" / "stranger").unlink()

    folder = arena.new_folder()
    first = damaged("a strange file", add_file, PLACES["before the final model"].at())
    arena.survive(
        MODES["single"], first, damaged("none", remove_file, PLACES["before the final report"].at()), folder=folder
    )
