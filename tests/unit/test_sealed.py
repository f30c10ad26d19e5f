"""Sealed folders: whole or not there, on the disk under their name, in the form that earlier versions read."""

import errno
import hashlib
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefopt.data.cache import open_cached
from prefopt.data.ragged import PairLogps, PairTable, Ragged
from prefopt.distributed.checkpoint import CheckpointFacts, list_files, seal
from prefopt.distributed.saving import find_newest
from prefopt.models.reference import ReferenceStore
from prefopt.runs.directory import RunDirectory
from prefopt.runs.final_model import has_sound_model, seal_model
from prefopt.storage import files, sealed
from prefopt.storage.files import append_text, write_text
from tests.unit.test_token_cache import Input

WEIGHTS = b"weights"
ENTRY = {"size": 7, "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
FACTS = CheckpointFacts(4, 1, None, 8, "c0ffee", None, [{"tokens": 7}], 1.5)
MANIFEST_OF_FACTS = """{
  "run": {
    "step": 4,
    "num_ranks": 1,
    "zero_stage": null,
    "batch_size": 8,
    "config": "c0ffee",
    "wandb_id": null,
    "windows": [
      {
        "tokens": 7
      }
    ],
    "time_s": 1.5,
    "evaluation_due": false,
    "best": null,
    "training_s": null,
    "num_records": null,
    "ended_early_of": null,
    "format": 1
  },
  "files": {
    "model.safetensors": {
      "size": 7,
      "sha256": "SHA"
    }
  }
}
""".replace("SHA", str(ENTRY["sha256"]))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_a_checkpoint_has_the_names_and_the_manifest_of_earlier_versions(tmp_path: Path) -> None:
    written = write_weights(tmp_path / "checkpoint-4")
    seal(written, FACTS, sealed.digest(written, list_files(written)))
    found = names(tmp_path)
    assert found == ["step-4", "step-4/COMPLETE", "step-4/manifest.json", "step-4/model.safetensors"]
    assert (tmp_path / "step-4" / "manifest.json").read_text() == MANIFEST_OF_FACTS
    digest = hashlib.sha256(MANIFEST_OF_FACTS.encode()).hexdigest()
    assert (tmp_path / "step-4" / "COMPLETE").read_text() == f"{digest}\n"


def test_a_checkpoint_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    step = write_weights(tmp_path / "step-4")
    (step / "manifest.json").write_text(MANIFEST_OF_FACTS)
    (step / "COMPLETE").write_text(hashlib.sha256(MANIFEST_OF_FACTS.encode()).hexdigest() + "\n")
    assert find_newest(tmp_path) == step


def test_a_final_model_has_the_manifest_of_earlier_versions(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    aside = write_weights(tmp_path / "model.partial")
    seal_model(aside, run.model, sealed.digest(aside, list_files(aside)))
    expected = {"format": 1, "files": {"model.safetensors": ENTRY}}
    assert (run.model / "manifest.json").read_text() == json.dumps(expected, indent=2) + "\n"
    assert names(tmp_path) == ["model", "model/manifest.json", "model/model.safetensors"]
    assert has_sound_model(run)


FILES_OF_A_CACHE = ("about.json", "held_out.arrow", "held_out.jsonl")


def test_a_token_cache_has_the_names_and_the_manifest_of_earlier_versions(tmp_path: Path) -> None:
    given = Input.pairs()
    folder = given.fetch(tmp_path).folder
    assert folder == tmp_path / given.key()[:32]
    assert names(tmp_path) == [
        folder.name,
        *(f"{folder.name}/{name}" for name in (*FILES_OF_A_CACHE, "manifest.json", "train.arrow")),
    ]
    marks = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name in (*FILES_OF_A_CACHE, "train.arrow")
        if (content := (folder / name).read_bytes())
    }
    assert (folder / "manifest.json").read_text() == json.dumps(marks, indent=2) + "\n"
    about = json.loads((folder / "about.json").read_text())
    assert list(about) == ["key", "kind", "splits", "notes"]
    assert (about["key"], about["kind"], about["splits"]) == (given.key(), "preference", ["train", "held_out"])
    assert len(open_cached(folder).train) == len(given.train)


def test_a_reference_store_has_the_names_of_earlier_versions(tmp_path: Path) -> None:
    key = {"format": 1, "weights": "abc"}
    table = PairTable(*(Ragged.of([np.array([1, 2])], np.int32) for _ in range(3)))

    def compute(table, rows):
        yield rows, PairLogps(*(Ragged.of([np.array([-1.0, -2.0])], np.float32) for _ in range(2)))

    ReferenceStore.open(tmp_path, key).complete(table, compute)
    folder = tmp_path / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    (shard,) = folder.glob("*.safetensors")
    assert names(folder) == sorted(["key.json", shard.name])
    assert shard.stem == hashlib.sha256(shard.read_bytes()).hexdigest()
    assert json.loads((folder / "key.json").read_text()) == key


def watch_the_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes what is brought to the disk and renamed, in their order."""
    seen: list[str] = []
    fsync, rename, replaced = os.fsync, Path.rename, Path.replace

    def watched_fsync(descriptor: int) -> None:
        seen.append(f"disk {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.')[0]}")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", lambda path, to: (seen.append(f"rename {path.name}"), rename(path, to))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append("replace"), replaced(path, to))[1])
    return seen


def test_a_folder_gets_its_name_when_its_files_names_are_on_the_disk_and_then_its_own(tmp_path, monkeypatch):
    partial = write_weights(tmp_path / "runs" / "new" / "inner").parent
    seen = watch_the_disk(monkeypatch)
    sealed.publish(partial, tmp_path / "runs" / "final", ["inner/model.safetensors"])
    assert sorted(seen[:2]) == ["disk inner", "disk new"]
    assert seen[2:] == ["rename new", "disk runs"]


def test_a_file_that_is_replaced_is_on_the_disk_and_so_is_its_name(tmp_path, monkeypatch):
    seen = watch_the_disk(monkeypatch)
    write_text(tmp_path / "status.json", "{}")
    assert seen == ["disk status", "replace", f"disk {tmp_path.name}"]


def test_a_file_system_that_cannot_bring_names_to_the_disk_is_written_to_all_the_same(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", refuse_folders)
    write_text(tmp_path / "status.json", "{}")
    assert (tmp_path / "status.json").read_text() == "{}"
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: os.close(-1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.bring_to_disk(tmp_path)


def test_a_folder_that_is_there_makes_room_only_where_that_is_wanted(tmp_path):
    first, second = (write_weights(tmp_path / name) for name in ("one", "two"))
    (second / "mine").touch()
    with pytest.raises(OSError, match="not empty"):
        sealed.publish(first, second, [])
    sealed.publish(first, second, [], doomed=tmp_path / "doomed")
    assert names(tmp_path) == ["two", "two/model.safetensors"]


def test_what_cannot_be_set_aside_is_warned_of(tmp_path, caplog):
    sealed.set_aside(tmp_path / "gone", tmp_path / "aside", logging.getLogger("prefopt"))
    assert "gone cannot be set aside (No such file or directory)" in caplog.text


def test_of_what_killed_processes_were_writing_only_the_old_is_removed(tmp_path):
    old = write_weights(tmp_path / "folder.partial")
    (tmp_path / "file.partial").touch()
    (tmp_path / "new.partial").touch()
    (tmp_path / "kept").touch()
    long_ago = time.time() - 2 * sealed.STALE_S
    for path in (old / "model.safetensors", old, tmp_path / "file.partial", tmp_path / "kept"):
        os.utime(path, (long_ago, long_ago))
    sealed.remove_stale(tmp_path)
    assert names(tmp_path) == ["kept", "new.partial"]


@pytest.mark.parametrize("whole", [b"", b'{"a": 1}\n'])
@pytest.mark.parametrize("rest", [b"", b'{"b', b"x" * 10_000])
def test_lines_are_added_behind_the_last_whole_line_however_long_the_rest_is(tmp_path, whole, rest):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(whole + rest)
    append_text(path, '{"c": 3}\n')
    assert path.read_bytes() == whole + b'{"c": 3}\n'


def test_the_step_of_a_checkpoint_that_is_written_again_is_replaced(tmp_path):
    for batch_size in (8, 16):
        written = write_weights(tmp_path / "checkpoint-4")
        seal(written, replace(FACTS, batch_size=batch_size), sealed.digest(written, list_files(written)))
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]
    assert json.loads((tmp_path / "step-4" / "manifest.json").read_text())["run"]["batch_size"] == 16
