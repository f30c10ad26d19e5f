"""Mistakes in a user's own config folder: one sentence with file and line."""

import pytest

from prefopt.config.cluster import SUBMIT
from prefopt.config.load import load_config
from prefopt.process.errors import UserError

FAULTS = {
    "tab": (b"defaults: [slurm_1x8, _self_]\npartition: gpu\n\taccount: nlp\n", 3, "Indent with blanks, not tabs"),
    "twice": (b"defaults: [slurm_1x8, _self_]\npartition: gpu\npartition: cpu\n", 3, "duplicate key partition"),
    "quote": (b'time: "1\npartition: gpu\n', 3, "(begun in line 1). Close the quote"),
    "bracket": (b"options: [--a\npartition: gpu\n", 2, "begun in line 1"),
    "latin1": (b"qos: x\npartition: caf\xe9\n", 2, "byte 0xe9 is no UTF-8. Save the file as UTF-8"),
    "number": (b"5\n", 1, "must hold settings as `name: value`, found '5'"),
    "defaults": (b"# x\ndefaults: slurm_1x8\n", 2, "defaults must be a list"),
    "entry": (b"defaults: [{slurm_1x8: a, x: b}]\n", 1, "not an entry of a list of defaults"),
    "nested": (b"defaults: [[slurm_1x8]]\n", 1, "not an entry of a list of defaults"),
    "object": (b"partition: !!python/object:os.system x\n", 1, "could not determine a constructor"),
    "deep": (b"options: " + 3000 * b"[" + b"\n", 1, ""),
    "cycle": (b"defaults: [cycle, _self_]\n", 1, "includes itself (cluster/cycle.yaml -> cluster/cycle.yaml)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_composed_is_named_with_its_line(name, tmp_path):
    content, line, expected = FAULTS[name]
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / f"{name}.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        SUBMIT.compose([f"cluster={name}"], str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/cluster/{name}.yaml:{line}: ")
    assert expected in str(error.value)


@pytest.mark.parametrize("entry", ["b", "/experiment/b", "/experiment: [b]", "b@_here_"])
def test_files_that_include_each_other_are_named(entry, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "a.yaml").write_text(f"# @package _global_\ndefaults:\n  - {entry}\n")
    (tmp_path / "experiment" / "b.yaml").write_text("# @package _global_\ndefaults:\n  - a\n")
    with pytest.raises(UserError, match=r"\.yaml:2: includes itself") as error:
        load_config(["+experiment=a"], str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_that_builds_on_a_shipped_one_is_taken(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [brand_voice, _self_]\nmax_length: 77\n")
    assert load_config(["data=mine"], str(tmp_path)).data.max_length == 77


def test_of_several_broken_files_the_one_that_was_chosen_is_named(tmp_path):
    (tmp_path / "cluster").mkdir()
    for name in ("first", "ours", "second"):
        (tmp_path / "cluster" / f"{name}.yaml").write_text("5\n")
    with pytest.raises(UserError, match=r"cluster/ours\.yaml:1"):
        SUBMIT.compose(["cluster=ours", "+experiment=dpo_brand_voice"], str(tmp_path))


WRONG = {
    "typo": ("optim: {learning_rat: 1}", "optim.learning_rat: no such setting"),
    "value": ("optim: {learning_rate: fast}", "optim.learning_rate: "),
    "variant": ("algorithm: {packing: true}", "algorithm.packing: "),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_wrong_setting_is_told_with_the_file_that_the_user_can_open(name, is_absolute, tmp_path, monkeypatch):
    text, expected = WRONG[name]
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    content = f"# @package _global_\ndefaults: [dpo_brand_voice, _self_]\n{text}\n"
    (tmp_path / "mine" / "experiment" / "ours.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    typed = str(tmp_path / "mine") if is_absolute else "mine"
    with pytest.raises(UserError) as error:
        load_config(["+experiment=ours"], typed)
    assert str(error.value).startswith(f"{typed}/experiment/ours.yaml: {expected}")
