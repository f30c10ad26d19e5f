"""docs/settings.md holds every setting, in the schemas' own words, and is current."""

import pytest

from prefopt.config.cluster import SUBMIT
from prefopt.config.load import TRAIN
from prefopt.config.setting_docs import read_sections, to_markdown
from prefopt.list import main as list_options
from tests.conftest import REPOSITORY


def read(tree):
    return [setting for section in read_sections(tree) for setting in section.settings]


def test_the_page_is_current():
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == to_markdown(), "run `make docs`"


@pytest.mark.parametrize("tree", [TRAIN, SUBMIT], ids=["train", "submit"])
def test_every_setting_is_there_with_its_type_and_what_it_does(tree):
    settings = read(tree)
    assert {setting.name for setting in settings} == set(tree.setting_names())
    for setting in settings:
        assert setting.kind, f"{setting.name}: its type says nothing; give it an entry in KINDS"
        assert setting.meaning.endswith("."), f"{setting.name}: needs a sentence below its field"


def test_types_defaults_and_meanings_are_those_of_the_schema():
    found = {setting.name: setting for setting in read(TRAIN)}
    assert (found["algorithm.beta"].kind, found["algorithm.beta"].default) == ("number", "`0.1`")
    assert found["model.path"].default == "required"
    assert (found["model.dtype"].kind, found["model.dtype"].default) == ("`auto` / `fp32` / `bf16`", "`fp32`")
    assert (found["peft.target_modules"].kind, found["peft.target_modules"].default) == ("list of texts", "`null`")
    assert (found["run.overwrite"].kind, found["run.overwrite"].default) == ("`true` / `false`", "`false`")
    assert found["trainer.extra"].kind == "table"
    losses = [s.kind for section in read_sections(TRAIN) for s in section.settings if s.name == "algorithm.loss_type"]
    assert sorted(kind.split(" / ")[0] for kind in losses) == ["`nll`", "`sigmoid`"]
    assert found["data.held_out"].meaning.startswith("Same as `train`, ")


def test_the_table_survives_bars_and_brackets():
    row = next(line for line in to_markdown().splitlines() if line.startswith("| `data.train`"))
    assert "`hub:<id>[:<split>]`" in row
    for line in to_markdown().splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 5, line


def test_settings_are_found_by_a_word(capsys, fails):
    list_options(["settings", "learning_rate"])
    assert "optim.learning_rate=null  (number)" in capsys.readouterr().out
    assert "All: prefopt list settings" in fails(list_options, ["settings", "nosuchword"])
    assert "only settings are searched" in fails(list_options, ["models", "llama"])
