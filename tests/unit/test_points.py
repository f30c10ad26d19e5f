"""The points of a sweep: Hydra's grammar, names, all problems at once, and the same configuration as one run alone."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from prefopt.config.load import complete, load_config
from prefopt.config.overrides import assign, parse
from prefopt.config.plain import as_dict
from prefopt.process.errors import UserError
from prefopt.process.ranks import Launch
from prefopt.sweeps.points import MAX_LISTED, MAX_NAME, Axes, Composer, Plan, plan_points, read_axes

ALONE = Launch(1, False)
BETAS = ["algorithm.beta=0.1", "algorithm.beta=0.3"]


def plan(*overrides: str, parameters=None, points=(), config_dir=None) -> Plan:
    return plan_points(read_axes(overrides, parameters or {}, points, config_dir), config_dir, ALONE)


def refusal(*overrides: str, **rest) -> str:
    with pytest.raises(UserError) as error:
        plan(*overrides, **rest)
    return str(error.value)


def values(line: str, config_dir: str | None = None) -> list[str]:
    """What a swept override lists."""
    axes = read_axes([line], {}, [], config_dir)
    assert axes.base == []
    ((listed,),) = [axes.parameters.values()]
    return [each.partition("=")[2] for each in listed]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("algorithm.beta=0.1,0.3", ["0.1", "0.3"]),
        ("algorithm.beta=choice(0.1,0.3)", ["0.1", "0.3"]),
        ("algorithm.beta=choice(0.1)", ["0.1"]),
        ("optim.learning_rate=1e-6,3e-5", ["1e-06", "3e-05"]),
        ("run.seed=range(0,4)", ["0", "1", "2", "3"]),
        ("run.seed=range(1,8,step=3)", ["1", "4", "7"]),
        ("run.seed=sort(3,1,2)", ["1", "2", "3"]),
        ("algorithm.ld_alpha=null,0.5", ["null", "0.5"]),
        ("algorithm.loss_type=[sigmoid,sft],hinge", ["[sigmoid,sft]", "hinge"]),
        ("data.train='a,b.jsonl','c d.jsonl'", ["'a,b.jsonl'", "'c d.jsonl'"]),
        ("deepspeed=glob(zero?)", ["zero1", "zero2", "zero3"]),
        ("deepspeed=glob(*,exclude=*offload)", ["none", "zero1", "zero2", "zero3"]),
        ("+experiment=glob(dpo*)", ["dpo_brand_voice"]),
    ],
)
def test_every_way_to_list_values_is_understood(line, expected):
    assert values(line) == expected


def test_a_glob_finds_the_options_of_the_users_folder_beside_the_shipped_ones(tmp_path):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "small_lora.yaml").write_text("method: lora\nr: 2\n")
    assert values("peft=glob(*lora)", str(tmp_path)) == ["lora", "qlora", "small_lora"]
    planned = plan("peft=glob(*_lora)", config_dir=str(tmp_path))
    assert [config.peft.r for config in planned.configs] == [2]


def test_a_glob_without_a_match_is_refused():
    assert "no option of deepspeed matches" in refusal("deepspeed=glob(nothing*)")


@pytest.mark.parametrize(
    "value", ["interval(0.1,1)", "tag(log,interval(0.1,1))", "int(interval(1,9))", "shuffle(range(0,5))"]
)
def test_what_lists_no_values_in_a_fixed_order_is_refused_with_its_line(value):
    assert refusal(f"algorithm.beta={value}").startswith(f"algorithm.beta={value}: ")


def test_parameters_are_values_in_hydras_grammar_or_a_list_of_single_ones():
    parameters = {
        "algorithm.beta": "0.1,0.3",
        "run.seed": "range(0,2)",
        "algorithm.loss_type": [["sigmoid", "sft"], "hinge"],
        "algorithm.ld_alpha": [None, 0.5],
        "run.overwrite": [True],
        "optim.warmup_ratio": 0.2,
    }
    assert read_axes([], parameters, []).parameters == {
        "algorithm.beta": BETAS,
        "run.seed": ["run.seed=0", "run.seed=1"],
        "algorithm.loss_type": ["algorithm.loss_type=[sigmoid,sft]", "algorithm.loss_type=hinge"],
        "algorithm.ld_alpha": ["algorithm.ld_alpha=null", "algorithm.ld_alpha=0.5"],
        "run.overwrite": ["run.overwrite=true"],
        "optim.warmup_ratio": ["optim.warmup_ratio=0.2"],
    }


def test_an_item_of_a_list_that_is_several_values_is_refused():
    message = refusal(parameters={"data.train": ["a.jsonl,b.jsonl", "c.jsonl"]})
    assert "data.train=a.jsonl,b.jsonl: an item of a list is one value" in message


def test_the_command_line_wins_over_the_parameters_of_a_file():
    parameters = {"algorithm.beta": "0.1,0.3", "run.seed": "0,1"}
    axes = read_axes(["algorithm.beta=0.7", "run.seed=5,6,7", "trainer.num_epochs=2"], parameters, [])
    assert axes.parameters == {
        "algorithm.beta": ["algorithm.beta=0.7"],
        "run.seed": ["run.seed=5", "run.seed=6", "run.seed=7"],
    }
    assert axes.base == ["trainer.num_epochs=2"]


def test_listed_points_are_each_combined_with_every_value_of_the_parameters():
    axes = read_axes(
        ["run.seed=0,1"], {}, [["algorithm.beta=0.1", "optim.learning_rate=1e-5"], ["algorithm.loss_type=ipo"]]
    )
    assert axes.product() == [
        ["algorithm.beta=0.1", "optim.learning_rate=1e-5", "run.seed=0"],
        ["algorithm.beta=0.1", "optim.learning_rate=1e-5", "run.seed=1"],
        ["algorithm.loss_type=ipo", "run.seed=0"],
        ["algorithm.loss_type=ipo", "run.seed=1"],
    ]


def test_the_last_parameter_changes_fastest():
    chosen = Axes([], {"a": ["a=1", "a=2"], "b": ["b=1", "b=2"]}).product()
    assert chosen == [["a=1", "b=1"], ["a=1", "b=2"], ["a=2", "b=1"], ["a=2", "b=2"]]


@pytest.mark.parametrize("point", ["algorithm.beta=0.1", [0.1], {"algorithm.beta": 0.1}, None])
def test_a_listed_point_that_is_no_list_of_overrides_is_refused_by_its_number(point):
    assert refusal(points=[["run.seed=1"], point]).startswith("sweep.points[1]: must be a list of overrides, found ")


def test_a_listed_point_takes_one_value_per_setting():
    assert "sweep.points[0]: one point takes one value, found run.seed=1,2" in refusal(points=[["run.seed=1,2"]])


def test_names_say_what_is_swept_and_are_the_same_every_time():
    lines = ["algorithm.beta=0.05,0.1", "optim.learning_rate=1e-5,3e-5", "algorithm.loss_type=sigmoid"]
    names = [point.name for point in plan(*lines).points]
    assert names == [
        "beta-0.05_learning_rate-1e-05",
        "beta-0.05_learning_rate-3e-05",
        "beta-0.1_learning_rate-1e-05",
        "beta-0.1_learning_rate-3e-05",
    ]
    assert names == [point.name for point in plan(*lines).points]


def test_names_are_plain_folder_names_whatever_the_values_hold():
    lines = ["data.train='/a b/c.jsonl','..','x;y$(z)',\"it's\",[a.jsonl,b.jsonl]", "data.held_out=null"]
    names = [point.name for point in plan(*lines).points]
    assert names == ["train--a-b-c.jsonl", "train", "train--x-y-z", "train--it-s", "train--a.jsonl-b.jsonl"]
    assert all(re.fullmatch(r"[\w.-]+", name) and name.strip(".") for name in names)


def test_points_whose_names_would_be_the_same_are_told_apart_by_a_hash():
    names = [point.name for point in plan("data.train='a b','a-b','a_b'").points]
    assert all(re.fullmatch(r"train--a-b-[0-9a-f]{8}", name) for name in names[:2])
    assert names[0] != names[1]
    assert names[2] == "train--a_b"


def test_a_long_name_is_cut_and_still_its_own():
    common = "x" * MAX_NAME
    names = [point.name for point in plan(f"data.train={common}1,{common}2").points]
    assert all(len(name) == MAX_NAME for name in names)
    assert len(set(names)) == 2
    assert names[0][:-8] == names[1][:-8]


def test_all_invalid_and_all_duplicate_points_are_listed_at_once():
    message = refusal("algorithm.beta=0.1,-1,0.10,high", "run.seed=0,1")
    assert message.splitlines()[0] == "this sweep cannot run; nothing was submitted."
    lines = message.splitlines()[1:]
    assert lines == [
        "  point 2 (algorithm.beta=-1, run.seed=0): algorithm.beta: must be > 0, found -1.0.",
        "  point 3 (algorithm.beta=-1, run.seed=1): algorithm.beta: must be > 0, found -1.0.",
        "  point 4 (algorithm.beta=0.1, run.seed=0): the same run as point 0 (algorithm.beta=0.1, run.seed=0)",
        "  point 5 (algorithm.beta=0.1, run.seed=1): the same run as point 1 (algorithm.beta=0.1, run.seed=1)",
        *lines[4:],
    ]
    assert [line.partition(":")[0].strip() for line in lines[4:]] == [
        "point 6 (algorithm.beta=high, run.seed=0)",
        "point 7 (algorithm.beta=high, run.seed=1)",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run.seed=range(0,10,0)", "start and end of a range must be finite, and its steps not 0"),
        ("algorithm.beta=range(0.1,1,0.0)", "start and end of a range must be finite, and its steps not 0"),
        ("run.seed=range(0,10,-1)", "holds no value; a range leaves out its end"),
        ("run.seed=range(0,100000000)", "has more values than the 10,000 points"),
        ("algorithm.beta=range(0,inf)", "start and end of a range must be finite"),
        ("algorithm.beta=range(nan,1)", "start and end of a range must be finite"),
    ],
)
def test_a_range_that_cannot_be_listed_is_refused_at_once(line, expected):
    assert f"{line}: {expected}" in refusal(line)


def test_a_product_of_too_many_values_is_refused_before_it_is_made():
    message = refusal("run.seed=range(0,5000)", "trainer.log_every=range(1,5001)")
    assert "5,000 (run.seed) x 5,000 (trainer.log_every) = 25,000,000 points, and may have 10,000" in message


def test_a_message_of_very_many_problems_is_cut_and_says_so():
    lines = refusal(f"run.seed=range(-{MAX_LISTED + 7},1)").splitlines()
    assert len(lines) == 1 + MAX_LISTED + 1
    assert lines[-1].strip() == "and 7 more"


def test_a_point_that_differs_only_in_what_changes_no_result_is_a_duplicate():
    assert "the same run as point 0" in refusal("run.root=here,there")


def test_the_digest_follows_what_is_computed_and_not_how_it_is_written():
    digest = plan("algorithm.beta=0.1,0.3").digest
    assert plan("algorithm.beta=choice(0.10,3e-1)", "logger=none").digest == digest
    assert plan("algorithm.beta=0.1,0.4").digest != digest
    assert plan("algorithm.beta=0.3,0.1").digest != digest, "tasks are known by their place"


def test_the_points_of_a_placed_plan_lie_in_its_folder_under_their_names(tmp_path):
    folder = tmp_path / "it's a sweep, ünder = 50%"
    for point in plan("algorithm.beta=0.1,0.3", "run.name=ignored").placed(folder):
        config = load_config(point.overrides, launch=ALONE)
        assert (config.run.root, config.run.name) == (str(folder), point.name)
        assert config.logger.group == folder.name


def exact(key: str, line: str) -> str:
    """The text that a setting gets from an override, parsed by Hydra and resolved by OmegaConf."""
    (override,) = parse([line])
    assert override.key_or_group == key
    assert not override.is_sweep_override()
    (value,) = OmegaConf.create([override.value()])
    assert isinstance(value, str)
    return value


@given(st.text(max_size=30) | st.text(alphabet="\\'\"${}[](),:= \tabc0.", max_size=12))
@example("null")
@example("TRUE")
@example("1e3")
@example("007")
@example("nan")
@example("it\\'s")
@example("ends in \\")
@example("/home/jürgen/runs")
@example("${run.seed}")
@example("\\\\${x}\\")
@settings(deadline=None)
def test_assign_gives_a_setting_exactly_this_text_whatever_it_is(text):
    assert exact("run.root", assign("run.root", text)) == text


def test_assign_leaves_plain_paths_readable():
    assert assign("run.root", "/shared/runs/dpo-1.5_b") == "run.root=/shared/runs/dpo-1.5_b"


GOOD = [
    "algorithm.beta=0.3", "+algorithm.beta=0.3", "++algorithm.beta=0.3", "algorithm.beta=1", "algorithm.beta='0.3'",
    "algorithm.loss_type=[sigmoid,sft]", "algorithm.loss_type=hinge", "algorithm.ld_alpha=null",
    "optim.learning_rate=1e-6", "optim.learning_rate=null", "optim.learning_rate=.5", "optim.adam_epsilon=1E-7",
    "trainer.precision=bf16", "trainer.num_epochs=2", "trainer.max_steps=1_000", "trainer.max_steps=null",
    "trainer.extra.tf32=true", "+trainer.extra.neftune_noise_alpha=1", "trainer.extra={tf32:true,debug:[a,b]}",
    "trainer.extra.lr_scheduler_kwargs={x:{y:1}}", "trainer.extra.lr_scheduler_kwargs.b=c",
    "trainer.gradient_checkpointing=true", "trainer.batch_order=length_grouped",
    "data.train=[a.jsonl,'b c.jsonl']", "data.train='a,b=c.jsonl'", "data.held_out=null", "data.held_out=x.csv",
    "run.seed=7", "run.name=7", "run.name='007'", "run.name=true", "run.name=null", "run.name=x-${run.seed}",
    "run.root=/x/${run.seed}", "run.root=${oc.env:HOME}", "run.time_limit=2h", "run.overwrite=yes",
    "logger.tags=[a,b]", "logger.tags=[]", "logger=none", "engine=trl", "reference=live", "model=qwen3_0_6b",
    "model.path=/a/b", "model.lora_targets=[]", "peft=lora", "algorithm=sft", "algorithm.name=sft",
    "algorithm={beta:0.4}", "run={seed:4}",
    "trainer={num_epochs:3}", "evaluation.neutral_texts=null", "evaluation.num_samples=0",
    "+experiment=dpo_brand_voice", "experiment=sft_brand_voice", "algorithm.f_divergence_type=js_divergence",
]  # fmt: skip
BAD = [
    "algorithm.bta=1", "+algorithm.bta=1", "++algorithm.bta=1", "algorithm.beta=high", "algorithm.beta=null",
    "algorithm.beta=0", "algorithm.beta=", "algorithm.beta=[1]", "algorithm.beta={a:1}", "algorithm.beta=0.1,0.2",
    "algorithm.beta.x=1", "algorithm.loss_type=ipoo", "deepspeed=3", "trainer=null", "+experiment=1",
    "algorithm=dop", "algorithm.loss_on=all", "data=files",
    "~algorithm.beta", "~x", "hydra.run.dir=x", "nonsense=1", "trainer=5", "run=5", "trainer.precision=fp8",
    "trainer.precision=BF16", "trainer.max_steps=1.5", "trainer.extra=5", "trainer.extra=null", "trainer.extra=[1]",
    "trainer.extra.adam_epsilon=1", "+trainer.extra.new=1", "trainer.extra.fp16=true",
    "run.overwrite=maybe", "run.name=a/b", "run.name=${nope}", "run.name=${oc.env:NO_SUCH_VARIABLE}", "run.seed=-1",
    "run.name.x=1", "optim.learning_rate=abc", "logger.tags=3", "logger.tags={a:1}", "peft.r=4", "model=hf",
    "model.path=???", "model@x=hf", "+experiment=nope", "experiment=nope", "data.train.x=1",
    "deepspeed=zero2", "peft.target_modules=[[1]]", "+experiment=dpo_brand_voice,sft_brand_voice",
]  # fmt: skip
TOGETHER = [
    ["peft=lora", "peft.r=8", "peft.target_modules=[q_proj,v_proj]"],
    ["algorithm.loss_on=all", "algorithm=sft"],
    ["algorithm=sft", "algorithm.beta=0.2"],
    ["algorithm=dpo", "algorithm=sft"],
    ["algorithm.loss_type=[sigmoid,sft]", "algorithm.loss_weights=[1,0.5]"],
    ["trainer.extra={tf32:true}", "trainer.extra.eval_delay=2"],
    ["trainer.extra.lr_scheduler_kwargs={x:1}", "trainer.extra.lr_scheduler_kwargs={y:1}"],
    ["trainer.extra.lr_scheduler_kwargs=1", "trainer.extra.lr_scheduler_kwargs.b=2"],
    ["run.name=a", "run.seed=1", "run.name=b"],
    ["trainer.num_epochs=2", "trainer={num_epochs:3}", "run={seed:1}", "run.seed=2"],
    ["~x", "algorithm.bta=1"],
    ["algorithm.bta=1", "model=nope"],
    ["algorithm.beta=high", "trainer.precision=fp8"],
    ["model=qwen3_0_6b", "model.lora_targets=[]", "peft=lora"],
    ["trainer.keep_best=loss", "trainer.eval_every=5"],
    ["+experiment=dpo_brand_voice", "trainer={num_epochs:2}", "optim.learning_rate=null"],
]
shared_composer = Composer(None)


def outcome(compose) -> dict | str:
    """The configuration as plain values, or the message of the error."""
    try:
        return as_dict(compose())
    except UserError as error:
        return str(error)


def assert_as_alone(overrides: list[str], launch: Launch = ALONE) -> dict | str:
    alone = outcome(lambda: load_config(overrides, launch=launch))
    assert outcome(lambda: complete(shared_composer.compose(overrides), launch)) == alone
    return alone


@pytest.mark.parametrize("override", GOOD)
def test_a_point_has_the_configuration_of_the_same_run_alone(override):
    assert isinstance(assert_as_alone([override]), dict)


@pytest.mark.parametrize("override", BAD)
def test_a_bad_point_is_refused_in_the_words_of_the_same_run_alone(override):
    assert isinstance(assert_as_alone([override]), str)


def test_a_point_is_checked_for_the_launch_that_it_will_have():
    assert isinstance(assert_as_alone(["deepspeed=zero2"]), str)
    assert isinstance(assert_as_alone(["deepspeed=zero2"], Launch(2, True)), dict | str)


@pytest.mark.parametrize("overrides", TOGETHER, ids="  ".join)
def test_overrides_of_a_point_act_on_each_other_as_in_the_same_run_alone(overrides):
    assert_as_alone(overrides)


@example(["+experiment=dpo_brand_voice"], "+experiment=dpo_brand_voice,sft_brand_voice", 0)
@given(st.lists(st.sampled_from(GOOD), max_size=4), st.sampled_from(["", *BAD]), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_any_overrides_together_give_a_point_what_they_give_the_same_run_alone(overrides, bad, place):
    assert_as_alone([*overrides[:place], *([bad] if bad else []), *overrides[place:]])


def test_a_point_does_not_change_those_composed_before_or_after_it():
    composer = Composer(None)
    before = as_dict(complete(composer.compose(["algorithm.beta=0.2"]), ALONE))
    complete(composer.compose(["algorithm.beta=0.9", "logger.tags=[x]", "trainer.extra.tf32=true"]), ALONE)
    assert as_dict(complete(composer.compose(["algorithm.beta=0.2"]), ALONE)) == before
