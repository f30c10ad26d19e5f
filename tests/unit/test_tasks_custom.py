"""A check of the user's own: its values, and errors that name it."""

import importlib
import math
import re
from pathlib import Path

import pytest

from prefopt.config.tasks import CustomTaskConfig
from prefopt.evaluation.tasks.custom import CustomTask
from prefopt.evaluation.tasks.task import Answered, Checked
from prefopt.process.errors import UserError

MODULE = """
import numpy as np

def is_short(prompt, answer, chosen):
    return len(answer) < 5

def longer(prompt, answer, chosen):
    return None if chosen is None else len(answer) - len(chosen)

def of_numpy(prompt, answer, chosen):
    return np.float32(0.5) if answer else np.bool_(True)

def broken(prompt, answer, chosen):
    return 1 / len(answer)

def worded(prompt, answer, chosen):
    return {"": "yes", "n": float("nan"), "h": 10 ** 400, "c": 1j}[answer]

def of_two(prompt, answer):
    return True

def inside(prompt, answer, chosen):
    return of_two(prompt, answer, chosen)

LIMIT = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_checks_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def check(function: str, *answers: str, chosen: str | None = "abc", better: bool = True) -> Checked:
    config = CustomTaskConfig(name="mine", function=f"own_checks_of_a_test:{function}", higher_is_better=better)
    return CustomTask.load(config).check([Answered("the prompt\ud800", answer, chosen) for answer in answers])


def test_truths_stay_truths_and_numbers_numbers(folder: Path) -> None:
    truths = check("is_short", "ab", "abcdef")
    assert truths.values["mine"].dtype == bool
    assert truths.values["mine"].tolist() == [True, False]
    numbers = check("longer", "ab", "abcdef", better=False)
    assert numbers.values["mine"].tolist() == [-1.0, 3.0]
    assert numbers.higher_is_better == {"mine": False}
    assert check("of_numpy", "", "x").values["mine"].tolist() == [1.0, 0.5]


def test_an_answer_without_a_value_is_counted(folder: Path) -> None:
    found = check("longer", "ab", chosen=None)
    assert math.isnan(found.values["mine"][0])
    assert found.details["num_without_value"] == 1


def test_an_error_of_the_function_names_it_with_answer_and_line(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        check("broken", "a", "")
    told = str(raised.value)
    assert "evaluation.tasks: mine: function=own_checks_of_a_test:broken" in told
    assert "answer 1" in told
    assert "ZeroDivisionError: division by zero (line 14 of" in told
    told.encode()


@pytest.mark.parametrize("answer", ["", "n", "h", "c"])
def test_a_value_that_is_no_number_is_refused(folder: Path, answer: str) -> None:
    with pytest.raises(UserError, match=r"own_checks_of_a_test:worded: returned .* for answer 0"):
        check("worded", answer)


@pytest.mark.parametrize("name", ["gone", "LIMIT"])
def test_a_name_that_leads_to_no_function_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"mine: function=own_checks_of_a_test:{name}"):
        check(name, "a")
    with pytest.raises(UserError, match="cannot be imported"):
        CustomTask.load(CustomTaskConfig(function="no_such_module_of_anyone:f"))


def test_a_function_of_other_arguments_is_refused_when_it_is_read_by_its_own_line(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        CustomTask.load(CustomTaskConfig(name="mine", function="own_checks_of_a_test:of_two"))
    told = str(raised.value)
    assert "takes (prompt, answer), and it is called with three values" in told
    assert re.search(r"\(line 19 of \S+own_checks_of_a_test.py\)", told)


def test_a_function_that_does_not_tell_what_it_takes_is_tried(folder: Path) -> None:
    assert CustomTask.load(CustomTaskConfig(function="builtins:max")).name == "custom"


def test_a_call_that_fails_is_told_by_the_line_of_the_user_and_not_of_prefopt(folder: Path) -> None:
    for function, line in (("inside", 23), ("of_two", 19)):
        found = getattr(importlib.import_module("own_checks_of_a_test"), function)
        with pytest.raises(UserError) as raised:
            CustomTask("mine", found, "here").check([Answered("p", "a", None)])
        assert re.search(rf"\(line {line} of \S+own_checks_of_a_test.py\)", str(raised.value))
