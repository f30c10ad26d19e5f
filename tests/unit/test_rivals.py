"""Contestants beside the run's own models: which model answers, and by which template."""

import shutil
from pathlib import Path

import pytest

from prefopt.config.load import load_config
from prefopt.config.schema import TrainConfig
from prefopt.data.records import SFTExample
from prefopt.evaluation.rivals import Rival, build_rivals
from prefopt.models.load import load_tokenizer
from prefopt.process.errors import UserError

CHAT = SFTExample(prompt=[{"role": "user", "content": "Who?"}], completion="", source="a.jsonl:1")


def build(overrides: list[str], contestants: str) -> list[Rival]:
    config: TrainConfig = load_config([*overrides, f"evaluation.contestants={contestants}"])
    return build_rivals(config, [CHAT], load_tokenizer(config.model), None)


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_the_models_of_a_run_are_not_another_one(overrides: list[str], tiny_model: Path, name: str) -> None:
    for model in (str(tiny_model), "tuned" if name == "base" else "base"):
        with pytest.raises(
            UserError, match=rf"{name}: names the model .* is its own.*{{name: other, model: {model}}}"
        ):
            build(overrides, f"[{{name: {name}, model: {model}}}]")
    assert build(overrides, f"[{{name: {name}, model: {name}}}]") == []
    assert [each.name for each in build(overrides, f"[base,{{name: other, model: {tiny_model}}}]")] == ["other"]


def test_a_contestant_without_a_chat_template_is_told_where_one_is_read(
    overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    template = load_tokenizer(load_config(overrides).model).chat_template
    for path in plain.glob("*chat_template*"):
        path.unlink()
    settings = plain / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"chat_template"', '"no_chat_template"'))
    contestants = f"[base,tuned,{{name: other, model: {plain}}}]"
    with pytest.raises(UserError, match=r"evaluation.contestants: other: .*chat_template.jinja") as error:
        build(overrides, contestants)
    assert "model.chat_template" not in str(error.value)
    (plain / "chat_template.jinja").write_text(template)
    (other,) = build(overrides, contestants)
    assert other.prompts
