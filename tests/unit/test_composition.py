"""What composition refuses and accepts besides a group's settings; `tests/config` holds those."""

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.version import getbase

from prefopt.config.aliases import ALIASES
from prefopt.config.cluster import SUBMIT
from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import parse, quote, typed
from prefopt.config.remeasure import override as change_evaluation
from prefopt.process.errors import UserError
from prefopt.sweeps.points import read_axes

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
    assert load_config(["trainer.extra={tf32:true}", "trainer.extra.eval_delay=2"]).trainer.extra == {
        "tf32": True,
        "eval_delay": 2,
    }


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("data.train=a=b.jsonl", "'data.train=\"a=b.jsonl\"'"),
        ("data.train=größe.jsonl", "'data.train=\"größe.jsonl\"'"),
        ("data.train=a#b.jsonl", "'data.train=\"a#b.jsonl\"'"),
        ("data.train=~/pairs.jsonl", "'data.train=\"~/pairs.jsonl\"'"),
        ("data.train=it's;.jsonl", "'data.train=\"it'\"'\"'s;.jsonl\"'"),
        ("+model.path=a&b", "'+model.path=\"a&b\"'"),
        ("data.train=[a=1.jsonl,b 2.jsonl]", '\'data.train=["a=1.jsonl","b 2.jsonl"]\''),
        ("data.train=[ä.jsonl, b.jsonl]", "'data.train=[\"ä.jsonl\",b.jsonl]'"),
        ("run.name=a,b", "'run.name=\"a,b\"'"),
    ],
)
def test_a_remedy_works_as_it_is_typed_in_a_shell(line, instead):
    message = refusal(line)
    assert f"type {instead}" in message
    (argument,) = shlex.split(instead)
    (override,) = parse([argument])
    wanted = line.partition("=")[2]
    value = override.value()
    assert value == wanted if isinstance(value, str) else f"[{','.join(value)}]" == wanted.replace(", ", ",")


@pytest.mark.parametrize(
    "value", ["a b", "a=b", 'say "so"', "it's", "ü", "", "007", None, True, 1e-5, ["a=b", "c"], {"a": "x y"}]
)
def test_what_is_typed_in_a_shell_arrives_as_it_was(value):
    (argument,) = shlex.split(typed("group.setting", value))
    assert parse([argument])[0].value() == value


@pytest.mark.parametrize("name", ["pairs.jsonl", "my pairs.jsonl", "p[1].jsonl"])
def test_a_file_in_the_place_of_an_override_is_told_as_it_is_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    told = re.search(r"a file is no override\. Type (.*)\.$", refusal(name))
    assert load_config(shlex.split(told[1])).data.train == name


@pytest.mark.parametrize(
    "line", ["", "=", "a", "größe=1", "a b=1", "x" * 5000, f"{'x' * 5000}=1", "a=" + 900 * "[", "a=" + 5000 * "9"]
)
def test_what_is_no_override_is_one_short_sentence(line):
    message = refusal(line)
    assert "Write overrides as group=option" in message or "no such setting" in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optim.lr", "Did you mean optim.learning_rate?"),
        ("lr", "Did you mean optim.learning_rate?"),
        ("trainer.epochs", "Did you mean trainer.num_epochs?"),
        ("batch_size", "Did you mean trainer.per_device_batch_size or trainer.batch_size?"),
        ("peft.lora_r", "Did you mean peft.r?"),
        ("max_steps", "There is trainer.max_steps; groups: run, model,"),
        ("optim.max_steps", "Did you mean trainer.max_steps?"),
        ("trainr.max_stps", "Did you mean trainer.max_steps?"),
        ("modle", "Did you mean model?"),
        ("data.sample_size", "data has: train, held_out, held_out_fraction,"),
        ("group", "There is logger.group; groups: run, model,"),
        ("nonsense.at_all", "Groups: run, model,"),
    ],
)
def test_a_setting_that_does_not_exist_is_answered_with_what_was_meant_or_with_what_there_is(key, expected):
    assert refusal(f"{key}=x").startswith(f"{key}: no such setting. {expected}")


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_experiment_is_chosen_as_every_option_is_and_with_hydras_plus_too(prefix):
    assert load_config([f"{prefix}experiment=dpo_brand_voice"]) == load_config(["+experiment=dpo_brand_voice"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=nope"], "experiment=nope: no such option. Available: dpo_brand_voice, sft_brand_voice."),
        (["experiment={a:1}"], "experiment={a:1}: an option is a name, one of the files in conf/experiment."),
        (["data@x=files"], "data@x=files: a group stands in one place. Write data=<option>."),
        (["+experiment=dpo_brand_voice", "experiment=sft_brand_voice"], "experiment: a run has one, found 2."),
    ],
)
def test_an_option_that_cannot_be_chosen_is_told_in_our_words(overrides, expected):
    assert refusal(*overrides).startswith(expected)


def test_every_alias_leads_to_a_setting_and_is_none_itself():
    for alias, meant in ALIASES.items():
        assert all(name in TRAIN.setting_names() for name in meant), alias
        assert not TRAIN.knows(alias)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key", ["algorithm.beta", "optim.max_grad_norm", "trainer.num_epochs", "trainer.extra.x", "peft.dropout"]
)
def test_no_number_may_be_infinite_or_none(key, value):
    assert refusal(f"{key}={value}").startswith(f"{key}: must be ")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_number_of_a_submission_may_be_infinite_or_none(value):
    with pytest.raises(UserError, match=r"cluster\.min_free_gib: must be a finite number"):
        SUBMIT.compose(["cluster=local", f"cluster.min_free_gib={value}"]).build()


@pytest.mark.parametrize("line", ["trainer.save_every=" + 30 * "9", "trainer.extra.a=[1,[" + 30 * "9" + "]]"])
def test_a_number_that_no_machine_holds_is_refused(line):
    assert "must be a whole number of at most 64 bits" in refusal(line)


@pytest.mark.parametrize("text", ["a\0b", "caf\udce9"])
def test_text_that_no_file_can_hold_is_refused(text):
    assert "must be text in UTF-8 without null characters" in refusal(f"data.train={quote(text)}")


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
        (["cluster=slurm_1x9"], "Did you mean slurm_1x1 or slurm_1x8?"),
        (["cluster=local", "cluster.nods=2"], "cluster.nods: no such setting. Did you mean cluster.nodes?"),
        (["cluster=local", "cluster.nodes=2"], "this machine is one node"),
        (["cluster=slurm_cpu", "cluster.nodes=1,2"], "one run takes one value"),
        (["cluster=slurm_cpu", "cluster.partition=a,b"], """type 'cluster.partition="a,b"' in a shell"""),
        (
            ["cluster=slurm_cpu", "cluster.options=[--exclude=a]"],
            """In a shell, type 'cluster.options=["--exclude=a"]'.""",
        ),
        (["cluster=slurm_cpu", "cluster.time=90"], "must be [D-]HH:MM:SS"),
        (["cluster=slurm_cpu", "cluster.time='٠٢:00:00'"], "must be [D-]HH:MM:SS"),
        (["cluster=slurm_cpu", "cluster.partition='a b'"], "cluster.partition: must be one word"),
        (["cluster=slurm_cpu", "cluster.account='x;rm'"], "cluster.account: must be one word"),
        (["cluster=slurm_cpu", "cluster.options=['--comment=a b']"], "cluster.options: each must be one option"),
        (["cluster=slurm_cpu", "cluster.options=[x]"], "cluster.options: each must be one option"),
        (["cluster=local", "cluster.ranks_per_node=100000"], "cluster.ranks_per_node: must be at most 1,024"),
        (["cluster=local", "sweep.search.num_trials=1000000000"], "sweep.search.num_trials: must be at most 10,000"),
        (["cluster=slurm_cpu", "cluster.max_parallel=0"], "cluster.max_parallel: must be >= 1 or null"),
        (["cluster=local", "sweep=nope"], "sweep=nope: no such option"),
    ],
)
def test_settings_of_a_submission_are_checked_by_the_same_rules(overrides, expected):
    with pytest.raises(UserError) as error:
        SUBMIT.compose(overrides).build()
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("evaluation.batch_size", "1e400", "evaluation.batch_size: must be a finite number"),
        ("evaluation.batch_size", "1,2", "one run takes one value"),
        ("evaluation.bootstrap_resamples", "1000000000000", "must be at most 100,000"),
        ("data.held_out", "a=b.jsonl", """In a shell, type 'data.held_out="a=b.jsonl"'."""),
        ("evaluation.bach_size", "1", "Did you mean evaluation.batch_size?"),
        ("algorithm.beta", "1", "an evaluation cannot change it"),
        ("data.on_overlap", "skip", "an evaluation cannot change it"),
    ],
)
def test_settings_of_an_evaluation_are_read_as_those_of_a_run(key, value, expected):
    config = load_config([])
    with pytest.raises(UserError) as error:
        change_evaluation(config, {key: value})
    assert expected in str(error.value)
    assert change_evaluation(config, {"data.tag": "null"}).data.tag is None  # other data may have no such column
    assert change_evaluation(config, {"evaluation.neutral_texts": "007"}).evaluation.neutral_texts == "007"
    assert change_evaluation(config, {"data.held_out": "[a.jsonl,b.jsonl]"}).data.held_out == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("judges", {"kind": "rule", "function": "mine:score"}),
        ("tasks", {"kind": "custom", "function": "mine:check"}),
        ("judges", {"kind": "endpoint", "endpoint": "http://127.0.0.1:1/v1", "model": "m", "key_env": "MY_KEY"}),
        ("contestants", {"name": "x", "endpoint": "http://127.0.0.1:1/v1", "model": "m"}),
    ],
)
def test_code_and_servers_that_only_a_runs_folder_names_are_not_used_by_an_evaluation(name, entry):
    config = load_config([])
    setattr(config.evaluation, name, [entry])
    with pytest.raises(UserError, match=f"evaluation.{name}: the run's config.yaml names") as error:
        change_evaluation(config, {})
    assert f"evaluation.{name}=[] to do without" in str(error.value)
    assert change_evaluation(config, {f"evaluation.{name}": "[]"}) is not None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trainer.extra=${run.seed}", "trainer.extra: must be a table of keys and values, found 0"),
        ("logger.tags=${run.seed}", "logger.tags: must be a list, found 0"),
        ("algorithm.loss_type=5", "algorithm.loss_type: must be a loss or a list, found 5"),
        ("algorithm.loss_type=null", "algorithm.loss_type: must be a loss or a list, found None"),
        ("optim.learning_rate=${run.root}", "optim.learning_rate: "),
        ("model=[1]", "model=[1]: an option is a name"),
        ("logger.tags=" + 30 * "[" + 30 * "]", "holds lists or dicts in one another, more than 20 deep"),
        ("optim.max_grad_norm=" + 400 * "9", "optim.max_grad_norm: must be a whole number of at most 64 bits"),
    ],
)
def test_a_value_of_another_kind_is_refused(line, expected):
    assert expected in refusal(line)


APPLICATION = """
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from prefopt import load_config

@hydra.main(version_base="1.2", config_path=".", config_name="own")
def main(config):
    before = GlobalHydra.instance(), OmegaConf.to_yaml(HydraConfig.get())
    assert load_config(["algorithm.beta=0.7"]).algorithm.beta == 0.7
    assert before == (GlobalHydra.instance(), OmegaConf.to_yaml(HydraConfig.get()))
    print(config.mine, hydra.compose("own").mine, hydra.version.getbase(), HydraConfig.get().job.name)

main()
"""


def test_settings_are_composed_inside_an_application_of_hydra(tmp_path):
    (tmp_path / "own.yaml").write_text("mine: 3\n")
    (tmp_path / "app.py").write_text(APPLICATION)
    command = [sys.executable, "app.py", "hydra.run.dir=."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["3", "3", "1.2", "app"]), done.stderr


def test_hydra_is_left_as_it_was(tmp_path):
    assert not GlobalHydra.instance().is_initialized()
    load_config([])
    assert not GlobalHydra.instance().is_initialized()
    (tmp_path / "own.yaml").write_text("mine: 3\n")
    with initialize_config_dir(str(tmp_path), job_name="theirs", version_base="1.2"):
        load_config([])
        assert "beta" in refusal("algorithm.beta=x")
        assert compose("own") == {"mine": 3}
        assert (str(getbase()), JobRuntime.instance().get("name")) == ("1.2", "theirs")


def test_several_threads_compose_at_once():
    def read(number: int) -> float:
        return load_config([f"algorithm.beta=0.{number}", "+experiment=dpo_brand_voice"]).algorithm.beta

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read, range(1, 9))) == [number / 10 for number in range(1, 9)]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("sweep.points=[[algorithm.beta=0.1],[algorithm.beta=0.2]]", [["algorithm.beta=0.1"], ["algorithm.beta=0.2"]]),
        ("sweep.points=[[a.b=1, c.d=it's], [], ['e=f']]", [["a.b=1", "c.d=it's"], [], ["e=f"]]),
        ("sweep.points=[[a=1],[a=2]", [["a=1"], "[a=2"]),
        ("cluster.options=[--a=b,[c=d]", ["--a=b", "[c=d"]),
    ],
)
def test_the_remedy_for_a_list_without_quotes_is_what_was_meant_once_a_shell_has_read_it(line, meant):
    with pytest.raises(UserError) as error:
        parse([line])
    remedy = str(error.value).partition("In a shell, type ")[2].removesuffix(".")
    typed_line = subprocess.run(["bash", "-c", f"printf %s {remedy}"], capture_output=True, text=True, check=True)
    (override,) = parse([typed_line.stdout])
    assert override.value() == meant
    if "algorithm" in line:
        points = SUBMIT.compose(["cluster=local", typed_line.stdout]).build().sweep.points
        assert read_axes([], {}, points).points == meant
