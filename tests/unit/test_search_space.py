"""What a search draws from, read from Hydra's grammar."""

import pytest

from prefopt.config.overrides import parse
from prefopt.process.errors import UserError
from prefopt.sweeps.search_plan import list_corners
from prefopt.sweeps.space import Parameter, read_space

BETA = "algorithm.beta"


def read(text, key=BETA):
    (parameter,) = read_space([], {key: text}).parameters
    return parameter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.1,0.5)", {"low": 0.1, "high": 0.5}),
        ("tag(log, interval(1e-6, 1e-4))", {"low": 1e-6, "high": 1e-4, "log": True}),
        ("int(interval(1,8))", {"low": 1, "high": 8}),
        ("tag(log, int(interval(1,64)))", {"low": 1, "high": 64, "log": True}),
        ("range(1,10,4)", {"low": 1, "high": 9, "step": 4}),
        ("range(10,1,-4)", {"low": 2, "high": 10, "step": 4}),
        ("range(0.1,0.5,0.1)", {"low": 0.1, "high": 0.4, "step": 0.1}),
        ("tag(log, range(1,9))", {"low": 1, "high": 8, "step": 1, "log": True}),
        ("range(3,4)", {"choices": ["3"]}),
        ("choice(0.1,0.3)", {"choices": ["0.1", "0.3"]}),
        ("0.1,0.3", {"choices": ["0.1", "0.3"]}),
        ([0.1, 0.3], {"choices": ["0.1", "0.3"]}),
        ([["sigmoid", "sft"], "ipo"], {"choices": ["[sigmoid,sft]", "ipo"]}),
        ([True, None], {"choices": ["true", "null"]}),
    ],
)
def test_every_form_of_the_grammar_has_its_meaning(text, expected):
    parameter = read(text)
    assert parameter == Parameter(BETA, **expected)
    numbers = [parameter.low, parameter.high, *([parameter.step] if parameter.step else [])]
    assert len({type(number) for number in numbers}) == 1, "whole numbers must stay whole"


def test_int_and_float_are_told_apart():
    assert isinstance(read("int(interval(1,8))").low, int)
    assert isinstance(read("interval(1,8)").low, float)
    assert isinstance(read("range(1,9,2)").step, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interval(0.5,0.1)", "must be below"),
        ("interval(1,inf)", "finite"),
        (f"range(0,{400 * '9'})", "finite"),
        ("interval(1,1)", "must be below"),
        ("tag(log, interval(0,1))", "ends > 0"),
        ("tag(lin, interval(0,1))", "unknown tag lin"),
        ("tag(log, choice(1,2))", "log is for numbers"),
        ("tag(log, range(1,9,2))", "equal distances"),
        ("tag(log, range(0.1,0.5,0.1))", "equal distances"),
        ("range(4,4)", "holds no value"),
        ("range(1,9,0)", "holds no value"),
        ("choice(1,2,1)", "listed twice"),
        ([], "has no values"),
        (["1,2"], "one value"),
        ("0.1", "nothing is searched"),
        ("shuffle(choice(", "Write overrides"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        read(text)


def test_a_choice_in_any_order_is_the_same_choice():
    assert read("shuffle(choice(2,1))").choices == ["2", "1"]


def test_a_single_value_is_shared_and_the_command_line_wins():
    parameters = {BETA: "interval(0.1,0.5)", "optim.learning_rate": "1e-4", "run.seed": "range(0,3)"}
    space = read_space(["+experiment=x"], parameters)
    assert space.base == ["optim.learning_rate=1e-4", "+experiment=x"]
    assert [parameter.key for parameter in space.parameters] == [BETA, "run.seed"]

    space = read_space([f"{BETA}=0.2", "optim.learning_rate=interval(1,2)"], parameters)
    assert space.base == [f"{BETA}=0.2"]
    assert [parameter.key for parameter in space.parameters] == ["run.seed", "optim.learning_rate"]


def test_ends_are_overrides_that_mean_the_same_number():
    assert read("tag(log, interval(1e-6, 1e-4))").ends() == [f"{BETA}=1e-06", f"{BETA}=0.0001"]
    assert [override.value() for override in parse(read("choice(a,'b c',0.1)").ends())] == ["a", "b c", 0.1]


def test_corners_hold_every_choice_both_ends_and_all_last_ends():
    space = read_space([], {"a.x": "interval(1,2)", "a.y": "choice(p,q,r)"})
    assert list_corners(space) == [
        ["a.x=1.0", "a.y=p"],
        ["a.x=2.0", "a.y=p"],
        ["a.x=1.0", "a.y=q"],
        ["a.x=1.0", "a.y=r"],
        ["a.x=2.0", "a.y=r"],
    ]
