"""Contestants are measured one after another on the same material, one model in memory at a time."""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefopt.config.contestants import ContestantConfig
from prefopt.evaluation import measure
from prefopt.evaluation.asked import Asked
from prefopt.evaluation.contestants import Contestant, of_run
from prefopt.evaluation.material import Material, Split
from prefopt.evaluation.measure import Measured, measure_contestants
from prefopt.evaluation.rivals import Rival
from prefopt.evaluation.sampling import Answer, NoNumbersError
from prefopt.evaluation.scoring import Scores
from prefopt.process.errors import UserError

MATERIAL = Material(Split(), Split(), [], [[1, 2]], [Asked("a:1", "prompt", None)], [])


class Model:
    """A model that knows its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Adapter(Model):
    """A model that can be its base."""

    @contextmanager
    def disable_adapter(self) -> Any:
        whole, self.name = self.name, "base"
        yield
        self.name = whole


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened; models in folders whose name begins with `adapter` are adapters."""
    happened: list[str] = []
    alive: weakref.WeakSet[Model] = weakref.WeakSet()

    def load(self: Contestant, config: Any) -> Model:
        gc.collect()
        assert not alive, f"{self.name} is loaded beside {[model.name for model in alive]}"
        model = (Adapter if str(self.folder).startswith("adapter") else Model)(self.name)
        alive.add(model)
        happened.append(f"load {self.name}")
        return model

    def measured(scorer: Any, *_: Any) -> Measured:
        happened.append(f"measure {scorer.model.name}")
        return Measured(None, None, None, None, None, [Answer([3], finished=True)], [])

    def scored(scorer: Any, own: list[Any]) -> Scores:
        happened.append(f"score by {scorer.model.name}")
        return Scores(np.zeros(len(own)), np.ones(len(own)))

    monkeypatch.setattr(Contestant, "load", load)
    monkeypatch.setattr(measure, "Scorer", SimpleNamespace(of=lambda model, *_: SimpleNamespace(model=model)))
    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(measure, "score_own", scored)
    return happened


def measure_all(*contestants: Contestant) -> dict[str, Measured]:
    measured, answers, _ = measure_contestants(contestants, None, SimpleNamespace(pad_token_id=0), MATERIAL)
    assert {*answers} == {*measured}
    return measured


def test_one_model_is_in_memory_at_a_time_and_the_base_scores_what_the_others_wrote(log: list[str]) -> None:
    found = measure_all(Contestant("first", Path("full")), *of_run(Path("model")))
    assert log == [
        "load first", "measure first", "score by first",
        "load tuned", "measure tuned", "score by tuned",
        "load base", "measure base", "score by base", "score by base",
    ]  # fmt: skip
    assert {name: list(each.answers_of) for name, each in found.items()} == {
        "first": ["first"],
        "tuned": ["tuned"],
        "base": ["first", "tuned"],
    }


def test_the_base_of_an_adapter_is_the_same_model_without_it(log: list[str]) -> None:
    measure_all(*of_run(Path("adapter")))
    assert log == ["load tuned", "measure tuned", "score by tuned", "measure base", "score by base"]


def test_a_rival_that_mostly_says_nothing_does_not_answer(
    log: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"fine": ["a"] * 19 + [""], "silent": ["a"] * 18 + ["", " "]}

    def answer(rival: Rival, config: Any) -> list[Answer]:
        return [Answer([], finished=True, text=text) for text in said[rival.name]]

    monkeypatch.setattr(measure, "answer_elsewhere", answer)
    rivals = [Rival(ContestantConfig(name=name, model="m", endpoint="http://h/v1"), None) for name in said]
    material = replace(MATERIAL, rivals=rivals)
    _, answers, failures = measure_contestants(of_run(Path("model")), None, SimpleNamespace(pad_token_id=0), material)
    assert [*answers] == ["base", "tuned", "fine"]
    assert [*failures] == ["silent"]
    assert "fine gave no answer to 1 of 20 prompts" in caplog.text
    assert "silent: gave no answer to 2 of 20 prompts" in caplog.text


class Rivalling:
    """A rival with a model of its own."""

    def __init__(self, name: str) -> None:
        self.name, self.runs_on = name, None


def test_one_that_has_no_answers_is_left_out_and_told_and_the_others_stay(
    log: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = measure.measure

    def measured(scorer: Any, *given: Any) -> Measured:
        found: Measured = plain(scorer, *given)
        broken = replace(found, samples=[], failure=NoNumbersError())
        return broken if scorer.model.name == "tuned" else found

    def answer(rival: Any, config: Any) -> list[Answer]:
        if rival.name == "down":
            raise UserError("connection refused")
        return [Answer([4], finished=True, text="yes")]

    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(measure, "answer_elsewhere", answer)
    rivals: Any = [Rivalling("down"), Rivalling("up")]
    found, answers, failures = measure_contestants(
        of_run(Path("model")), None, SimpleNamespace(pad_token_id=0), replace(MATERIAL, rivals=rivals)
    )
    assert {*answers} == {"base", "up"}
    assert {name: type(error) for name, error in failures.items()} == {"tuned": NoNumbersError, "down": UserError}
    assert str(failures["down"]) == "connection refused"
    assert found["base"].answers_of == {}
    assert "tuned does not answer, and is left out. The model gives no numbers: its logits are" in caplog.text
