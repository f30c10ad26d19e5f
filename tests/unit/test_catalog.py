"""What can be chosen is listed with what each file says of itself; an own file never loses to a shipped one unsaid."""

import pytest

from prefopt.config.catalog import EXPERIMENT, read_defaults, read_options
from prefopt.config.cluster import SUBMIT
from prefopt.config.load import TRAIN, load_config
from prefopt.config.provider import PROVIDER
from prefopt.list import find_group
from prefopt.list import main as list_options
from prefopt.process.paths import shipped


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine" / "experiment" / "team").mkdir(parents=True)
    (tmp_path / "mine" / "cluster").mkdir()
    first = "# @package _global_\n# Our tone of voice.\n# More of it.\nalgorithm: {beta: 0.2}\n"
    (tmp_path / "mine" / "experiment" / "team" / "tone.yaml").write_text(first)
    (tmp_path / "mine" / "cluster" / "ours.yaml").write_text("kind: slurm\n")
    return tmp_path / "mine"


def test_every_shipped_option_says_what_it_is_in_its_first_line():
    for group, options in read_options().items():
        for option in options:
            assert option.description.endswith((".", "<id or folder>", "<file>")), f"{group}/{option.name}"


def test_every_group_is_listed_with_the_option_that_is_the_default():
    found = read_options()
    groups = {name for tree in (TRAIN, SUBMIT) for name in tree.group_names()} - {"run", "submit"}
    assert set(found) == groups | {EXPERIMENT, PROVIDER}
    defaults = {group: option.name for group, options in found.items() for option in options if option.is_default}
    assert defaults == {
        group: name for tree in ("train", "submit") for group, name in read_defaults(tree).items() if name
    }


def test_own_options_stand_beside_the_shipped_ones_by_the_name_that_chooses_them(mine, capsys):
    list_options(["experiments", "--config-dir", str(mine)])
    said = capsys.readouterr().out
    assert f"team/tone        Our tone of voice.  ({mine / 'experiment' / 'team' / 'tone.yaml'})" in said
    assert "dpo_brand_voice  Teach the shipped model" in said
    assert load_config(["+experiment=team/tone"], str(mine)).algorithm.beta == 0.2
    list_options(["clusters", "--config-dir", str(mine)])
    assert "begin the file with a comment" in capsys.readouterr().out


def test_all_groups_are_shown_at_once_as_they_are_typed(capsys):
    list_options([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "+experiment="
    assert any(line.startswith("model= ") and "llama3_1_8b" in line for line in lines)


def test_a_group_is_found_in_the_singular_and_the_plural_and_a_typo_gets_the_nearest(fails):
    groups = list(read_options())
    assert [find_group(asked, groups) for asked in ("model", "models", "sweeps", "peft")] == [
        "model", "model", "sweep", "peft",
    ]  # fmt: skip
    assert "Did you mean cluster? Groups: " in fails(list_options, ["clustr"])


def test_a_setting_that_several_options_of_a_group_have_is_shown_for_each_with_the_option(capsys):
    list_options(["settings", "loss_type"])
    lines = capsys.readouterr().out.splitlines()
    dpo, sft = (line for line in lines if line.startswith("algorithm.loss_type="))
    assert (dpo.split("  (")[0], sft.split("  (")[0]) == ("algorithm.loss_type=sigmoid", "algorithm.loss_type=nll")
    assert (dpo.split("  ")[-1], sft.split("  ")[-1]) == ("(algorithm=dpo)", "(algorithm=sft)")
    list_options(["settings", "max_steps"])
    assert "trainer.max_steps=null  (whole number)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lerning", "optim.learning_rate"),
        ("max-stepz", "trainer.max_steps"),
        ("lr", "optim.learning_rate"),
        ("lora_r", "peft.r"),
    ],
)
def test_a_word_that_no_setting_holds_is_answered_with_the_setting_that_was_meant(fails, word, meant):
    assert f"Did you mean {meant}? " in fails(list_options, ["settings", word])
    assert "Did you mean" not in fails(list_options, ["settings", "qqqq"])


def test_an_own_option_that_a_shipped_one_would_hide_is_refused(mine):
    from prefopt.process.errors import UserError

    name = next((shipped("conf") / "model").glob("*.yaml")).name
    (mine / "model").mkdir()
    (mine / "model" / name).write_text("path: mine\n")
    with pytest.raises(UserError, match=f"model/{name} has the name of a shipped option"):
        load_config([], str(mine))
