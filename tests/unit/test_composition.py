"""What composition refuses and accepts besides a group's settings; `tests/config` holds those."""

import sys

import pytest

from prefopt.cluster.schema import SUBMIT
from prefopt.composition import quote
from prefopt.config import TRAIN, load_config
from prefopt.errors import UserError

AWKWARD = [
    "a b",
    "it's",
    'say "so"',
    "a=b,c",
    "größe",
    "back\\slash",
    "ends in \\",
    "a#b",
    "50%20",
    "[x]",
    "${run.seed}",
]


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(list(overrides))
    return str(error.value)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_config_folder_may_have_any_name(tmp_path, name):
    experiment = tmp_path / name / "experiment"
    experiment.mkdir(parents=True)
    (experiment / "mine.yaml").write_text("# @package _global_\nalgorithm:\n  beta: 0.7\n")
    assert load_config(["+experiment=mine"], str(tmp_path / name)).algorithm.beta == 0.7


@pytest.mark.parametrize("text", [text for text in AWKWARD if "$" not in text])
def test_quoted_text_is_one_value(text):
    assert load_config([f"data.train={quote(text)}"]).data.train == text


@pytest.mark.parametrize("value", ["3", "1.5", "true", "null"])
def test_an_option_that_is_no_name_is_refused(value):
    assert (
        refusal(f"deepspeed={value}") == f"deepspeed={value}: an option is a name, one of the files in conf/deepspeed."
    )


def test_what_takes_any_key_may_be_given_as_a_whole_or_key_by_key():
    assert load_config(["trainer.extra={a:1}", "trainer.extra.b=2"]).trainer.extra == {"a": 1, "b": 2}


def in_debugger(function, *arguments):
    """Calls a function while something traces it; OmegaConf's errors then have causes that they else lack."""
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        return function(*arguments)
    finally:
        sys.settrace(before)


def refused_change(key: str, value: str) -> str:
    with pytest.raises(UserError) as error:
        TRAIN.compose([]).changed([(key, value)])
    return str(error.value)


@pytest.mark.parametrize("override", ["algorithm.beta=high", "trainer.precision=fp8", "peft.r=0", "model=nope"])
def test_a_message_is_the_same_in_a_debugger(override):
    assert in_debugger(refusal, override) == refusal(override)


@pytest.mark.parametrize(("key", "value"), [("algorithm.beta", "high"), ("trainer.precision", "fp8")])
def test_a_message_of_a_later_change_is_the_same_too(key, value):
    message = refused_change(key, value)
    assert message == in_debugger(refused_change, key, value) == refusal(f"{key}={value}")


@pytest.mark.parametrize("text", ["7", "007", "12_3", "1e3", "true", "0x1", "1_000.5", "inf"])
def test_text_that_looks_like_a_number_stays_as_it_is_typed(text):
    config = load_config([f"run.name={text}", f"+model.revision= {text} "])
    assert (config.run.name, config.model.revision) == (text, text)
    assert SUBMIT.compose(["cluster=slurm_cpu", f"submit.after={text}"]).build().submit.after == text


def test_null_is_still_no_text():
    assert load_config(["model.revision=null"]).model.revision is None


def test_settings_can_be_changed_after_composing_and_others_are_refused():
    composed = TRAIN.compose([])
    changed = composed.changed([("algorithm.beta", 0.7), ("trainer.extra.new", 1)])
    assert (changed.build().algorithm.beta, composed.build().algorithm.beta) == (0.7, 0.1)
    assert changed.build().trainer.extra == {"new": 1}
    with pytest.raises(UserError, match=r"algorithm\.bta: no such setting\. Did you mean algorithm\.beta"):
        composed.changed([("algorithm.bta", 1)])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "You must specify 'cluster'"),
        (["cluster=slurm_1x9"], "Did you mean slurm_1x8?"),
        (["cluster=local", "cluster.nods=2"], "cluster.nods: no such setting. Did you mean cluster.nodes?"),
        (["cluster=local", "cluster.nodes=2"], "this machine is one node"),
        (["cluster=slurm_cpu", "cluster.nodes=1,2"], "one run takes one value"),
        (["cluster=slurm_cpu", "cluster.partition=a,b"], "Quote a value that holds a comma: cluster.partition='a,b'."),
        (["cluster=slurm_cpu", "cluster.options=[--exclude=a]"], "equals signs is quoted: group.setting='a=b'."),
        (["cluster=slurm_cpu", "cluster.time=90"], "must be [D-]HH:MM:SS"),
        (["cluster=slurm_cpu", "cluster.time='٠٢:00:00'"], "must be [D-]HH:MM:SS"),
        (["cluster=slurm_cpu", "cluster.partition='a b'"], "cluster.partition: must be one word"),
        (["cluster=slurm_cpu", "cluster.account='x;rm'"], "cluster.account: must be one word"),
        (["cluster=slurm_cpu", "cluster.options=['--comment=a b']"], "cluster.options: each must be one option"),
        (["cluster=slurm_cpu", "cluster.options=[x]"], "cluster.options: each must be one option"),
        (["cluster=slurm_cpu", "cluster.max_parallel=0"], "cluster.max_parallel: must be >= 1 or null"),
        (["cluster=local", "sweep=nope"], "sweep=nope: no such option"),
    ],
)
def test_settings_of_a_submission_are_checked_by_the_same_rules(overrides, expected):
    with pytest.raises(UserError) as error:
        SUBMIT.compose(overrides).build()
    assert expected in str(error.value)
