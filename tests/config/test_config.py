"""Composition, suggestions and checks, without torch."""

import ast
import inspect
import itertools
import subprocess
import sys

import pytest

import prefopt.config.cluster
import prefopt.config.schema
import prefopt.config.trainer
from prefopt.config import remeasure
from prefopt.config.choices import PeftMethod
from prefopt.config.load import TRAIN, complete, differences, fingerprint, from_dict, has_grown, load_config, to_yaml
from prefopt.config.plain import as_dict
from prefopt.config.schema import DPOAlgorithmConfig, SFTAlgorithmConfig
from prefopt.process.errors import UserError
from prefopt.process.paths import shipped
from prefopt.runs.settings import read_config
from prefopt.sweeps.points import Composer

EXPERIMENTS = sorted(path.stem for path in (shipped("conf") / "experiment").glob("*.yaml"))
MODELS = sorted(path.stem for path in (shipped("conf") / "model").glob("*.yaml") if path.stem != "hf")


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(list(overrides))
    return str(error.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_starts_with_its_command(name):
    config = load_config([f"+experiment={name}"])
    assert config.run.name.startswith(f"{name}-")
    text = (shipped("conf") / "experiment" / f"{name}.yaml").read_text()
    assert f"# Run: python -m prefopt.train +experiment={name}" in text


@pytest.mark.parametrize("name", MODELS)
def test_every_model_composes(name):
    config = load_config([f"model={name}", "peft=lora", "trainer.precision=bf16"])
    assert config.model.path
    assert config.model.attn_implementation in ("eager", "sdpa", "flash_attention_2")


def test_options_of_a_group_are_reachable():
    assert isinstance(load_config(["algorithm=sft"]).algorithm, SFTAlgorithmConfig)
    assert isinstance(load_config(["algorithm=dpo"]).algorithm, DPOAlgorithmConfig)
    assert load_config(["peft=dora", "peft.r=4"]).peft.method is PeftMethod.dora


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_unknown_setting_names_the_nearest_with_any_prefix(prefix):
    assert "Did you mean algorithm.beta?" in refusal(f"{prefix}algorithm.bta=1")


def test_an_unknown_group_option_names_the_nearest():
    assert "Did you mean dpo?" in refusal("algorithm=dop")
    assert "Did you mean dpo_brand_voice?" in refusal("+experiment=dpo_brand_voise")
    assert "Did you mean dpo_brand_voice or sft_brand_voice?" in refusal("+experiment=brand_voice"), "both are as near"


def test_a_known_setting_may_carry_a_plus():
    assert load_config(["+algorithm.beta=0.3"]).algorithm.beta == 0.3


def test_unknown_keys_in_a_users_yaml_name_the_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nalgorithm:\n  bta: 1\n")
    expected = rf"^{tmp_path}/experiment/mine.yaml: algorithm.bta: .*Did you mean algorithm.beta"
    with pytest.raises(UserError, match=expected):
        load_config(["+experiment=mine"], str(tmp_path))


def test_a_users_folder_adds_experiments(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nalgorithm:\n  beta: 0.7\n")
    assert load_config(["+experiment=mine"], str(tmp_path)).algorithm.beta == 0.7


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algorithm.beta=high", "algorithm.beta: Value 'high'"),
        ("algorithm.beta=null", "algorithm.beta"),
        ("algorithm.beta=0", "algorithm.beta: must be > 0, found 0"),
        ("trainer.precision=fp8", "expected one of [fp32, bf16]"),
        ("algorithm.loss_type=ipoo", "unknown loss 'ipoo'"),
        ("algorithm.loss_type=exo_pair", "needs algorithm.label_smoothing > 0"),
        ("algorithm.loss_weights=[1,2]", "2 weights for 1 losses"),
        ("algorithm.beta=0.1,0.2", "one run takes one value"),
        ("~algorithm.beta", "cannot be removed"),
        ("hydra.run.dir=x", "no effect"),
        ("run.name=a/b", "one plain folder name"),
        ("trainer.log_every=0", "must be >= 1"),
        ("model=hf", "model.path: required"),
        ("deepspeed=zero2", "needs a distributed launch"),
        ("peft=qlora", "trainer.precision=bf16"),
        ("model=mistral_7b", "Set model.dtype=fp32"),
        ("model.dtype=auto", "Set model.dtype=fp32"),
        ("algorithm.loss_type=[]", "needs at least one loss"),
        ("algorithm.label_smoothing=0.1", "algorithm.label_smoothing=0.1 has no effect"),
        ("algorithm.ref_model_sync_steps=8", "has no effect"),
        ("deepspeed.offload_optimizer=cpu", "deepspeed.offload_optimizer=cpu has no effect"),
        ("peft.r=4", "peft.r=4 has no effect"),
        ("data.held_out_fraction=0.2", "has no effect"),
        ("optim.weight_decay=-1", "must be >= 0"),
        ("optim.warmup_ratio=1", "must be in [0, 1)"),
        ("optim.adam_beta1=5", "optim.adam_beta1: must be in [0, 1), found 5"),
        ("optim.adam_beta2=1", "optim.adam_beta2: must be in [0, 1), found 1"),
        ("optim.adam_epsilon=-1", "optim.adam_epsilon: must be > 0, found -1"),
        ("run.seed=4294967296", "run.seed: must be >= 0 and below 2^32, found 4294967296"),
        ("run.name='..'", "one plain folder name"),
        (f"run.name={300 * 'a'}", "run.name: must have at most 200 bytes, found 300"),
        ("trainer.num_epochs=1e9", "trainer.num_epochs: must be > 0 and at most 1,000,000"),
        ("peft.alpha=0", "peft.alpha: must be >= 1, found 0"),
        ("algorithm.ref_model_sync_steps=0", "algorithm.ref_model_sync_steps: must be >= 1, found 0"),
        ("algorithm.ref_model_mixup_alpha=1.5", "algorithm.ref_model_mixup_alpha: must be in [0, 1], found 1.5"),
        ("algorithm.discopop_tau=0", "algorithm.discopop_tau: must be > 0, found 0"),
        ("peft.r=16385", "peft.r: must be at most 16,384"),
        ("run.timeout_s=99999999999", "run.timeout_s: must be at most 2,592,000 (30 days)"),
        ("evaluation.bootstrap_resamples=100001", "evaluation.bootstrap_resamples: must be at most 100,000"),
        ("evaluation.max_new_tokens=1000001", "evaluation.max_new_tokens: must be at most 1,000,000"),
        ("trainer.per_device_batch_size=1000001", "trainer.per_device_batch_size: must be at most 1,000,000"),
        ("trainer.gradient_accumulation_steps=9999999999", "steps: must be at most 1,000,000"),
        ("trainer.batch_size=1000001", "trainer.batch_size: must be at most 1,000,000"),
        ("peft.target_modules=[]", "peft.target_modules: must name modules, found []"),
        ("peft.target_modules=['']", "peft.target_modules: must name modules"),
    ],
)
def test_a_bad_value_says_what_is_allowed(override, expected):
    assert expected in refusal(override)


def test_a_setting_of_the_other_algorithm_is_named_as_such():
    assert "a setting of algorithm=dpo" in refusal("algorithm=sft", "algorithm.beta=0.2")


def test_f_divergences_are_refused_for_losses_without_one():
    message = refusal("algorithm.loss_type=apo_zero", "algorithm.f_divergence_type=js_divergence")
    assert "has no form for apo_zero" in message


def test_deepspeed_is_refused_where_the_environment_would_switch_it_off(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "ACCELERATE_USE_CPU" in refusal("deepspeed=zero2")


def test_learning_rate_follows_algorithm_and_adapters_when_unset():
    def rate(*overrides: str) -> float:
        return load_config(list(overrides)).optim.learning_rate

    assert rate("algorithm=dpo") == 1e-6
    assert rate("algorithm=dpo", "peft=lora") == 1e-5, "and not 9.999999999999999e-06, which people would read"
    assert rate("algorithm=sft") == 2e-5
    assert rate("algorithm=sft", "optim.learning_rate=0.5") == 0.5


def test_extra_fields_need_no_plus():
    assert load_config(["trainer.extra.neftune_noise_alpha=1"]).trainer.extra == {"neftune_noise_alpha": 1}


def test_a_configuration_survives_its_file(tmp_path):
    config = load_config(["+experiment=sft_brand_voice", "data.held_out=[a.jsonl,b.jsonl]"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert as_dict(read_config(tmp_path / "config.yaml")) == as_dict(config)


def test_a_damaged_configuration_file_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"config\.yaml: not a configuration"):
        from_dict({"algorithm": {"name": "ppo"}}, "config.yaml")


def test_the_fingerprint_ignores_what_does_not_change_the_result():
    base = fingerprint(load_config([]))
    same = ["run.root=x", "run.name=y", "run.overwrite=true", "logger=none", "evaluation.batch_size=3"]
    assert fingerprint(load_config(same)) == base
    assert fingerprint(load_config(["algorithm.beta=0.2"])) != base
    assert fingerprint(load_config(["run.seed=1"])) != base


def test_numbers_that_agree_to_twelve_digits_are_one_setting():
    """`10 * 1e-6`, the default of adapters in an earlier version, is 9.999999999999999e-06."""
    by_default = load_config(["peft=lora"])
    earlier = load_config(["peft=lora", f"optim.learning_rate={10 * 1e-6}"])
    other = load_config(["peft=lora", "optim.learning_rate=1.00000000001e-05"])
    assert earlier.optim.learning_rate != by_default.optim.learning_rate
    assert differences(earlier, by_default) == []
    assert fingerprint(earlier) == fingerprint(by_default) != fingerprint(other)
    assert differences(by_default, other) == ["optim.learning_rate: 1e-05 -> 1.00000000001e-05"]
    weights = [
        load_config(["algorithm.loss_type=[sigmoid,sft]", f"algorithm.loss_weights=[{w},1]"]) for w in (0.3, 0.1 + 0.2)
    ]
    assert differences(*weights) == []


def test_two_ways_to_write_one_place_are_no_difference_but_two_places_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = (
        load_config(["model=hf", f"model.path={m}", "data=files", f"data.train={t}"])
        for m, t in ((tmp_path / "m", "t.jsonl"), (f"{tmp_path}/m/", f"[{tmp_path}/d/../t.jsonl]"))
    )
    assert differences(old, new) == []
    new.model.path = str(tmp_path / "n")
    assert differences(old, new) == [f"model.path: {tmp_path}/m -> {tmp_path}/n"]


def test_differences_name_key_and_both_values():
    old, new = load_config([]), load_config(["algorithm.beta=0.2", "run.root=elsewhere"])
    assert differences(old, new) == ["algorithm.beta: 0.1 -> 0.2"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.log_every=3", "trainer.save_every=9"],
        ["trainer.eval_every=2"],
        ["trainer.keep_checkpoints=5", "trainer.log_rows=true"],
        ["run.time_limit=2h", "run.timeout_s=60", "run.overwrite=true"],
    ],
)
def test_what_is_written_may_change_from_one_attempt_to_the_next(overrides):
    old, new = load_config([]), load_config(overrides)
    assert differences(old, new) == differences(new, old) == []
    assert not has_grown(old, new)


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        (["trainer.max_steps=6"], ["trainer.max_steps=9"], []),
        (["trainer.num_epochs=1"], ["trainer.num_epochs=1.5"], []),
        (["trainer.max_steps=6"], ["trainer.max_steps=5"], ["trainer.max_steps: 6 -> 5"]),
        ([], ["trainer.max_steps=5"], ["trainer.max_steps: None -> 5"]),
        (["trainer.max_steps=5"], [], ["trainer.max_steps: 5 -> None"]),
        (["trainer.num_epochs=2"], ["trainer.num_epochs=1"], ["trainer.num_epochs: 2.0 -> 1.0"]),
        ([], ["trainer.batch_size=8"], ["trainer.batch_size: None -> 8"]),
    ],
)
def test_a_run_may_become_longer_and_nothing_else(old, new, refused):
    before, after = load_config(old), load_config(new)
    assert differences(before, after) == refused
    if not refused:
        assert has_grown(before, after)
    assert not has_grown(before, before)


def test_how_often_something_is_written_is_not_a_run_of_another_name_but_its_length_is():
    assert fingerprint(load_config(["trainer.log_rows=true", "run.time_limit=2h"])) == fingerprint(load_config([]))
    assert fingerprint(load_config(["trainer.max_steps=9"])) != fingerprint(load_config([]))


@pytest.mark.parametrize("module", [prefopt.config.schema, prefopt.config.trainer, prefopt.config.cluster])
def test_every_setting_is_documented(module):
    """A field without a docstring below it is a setting that nobody can look up."""
    tree = ast.parse(inspect.getsource(module))
    roots = ("TrainConfig", "SubmitConfig")
    groups = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in roots]
    assert groups
    for group in groups:
        for field, below in itertools.pairwise(group.body):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(below, ast.Expr), f"{group.name}.{ast.unparse(field.target)}"
    assert {"algorithm.beta", "algorithm.loss_on", "trainer.max_steps"} <= set(TRAIN.setting_names())


STUDY = "prefopt:experiments/brand_voice"


@pytest.mark.parametrize(
    ("overrides", "held_out", "pairs"),
    [
        ([], f"{STUDY}/held_out.jsonl", None),
        (["data.train=mine.jsonl"], None, None),
        (["data.train=[mine.jsonl,yours.jsonl]"], None, None),
        (["data.train=mine.jsonl", "data.held_out=h.jsonl"], "h.jsonl", None),
        (["data.train=mine.jsonl", f"data.held_out={STUDY}/held_out.jsonl"], f"{STUDY}/held_out.jsonl", None),
        (["data={train: mine.jsonl, held_out: h.jsonl}"], "h.jsonl", None),
        (["+experiment=dpo_brand_voice", "data.train=mine.jsonl"], None, None),
        (["+experiment=sft_brand_voice"], f"{STUDY}/sft_held_out.jsonl", f"{STUDY}/held_out.jsonl"),
        (["+experiment=sft_brand_voice", "data.train=mine.jsonl"], None, None),
        (["+experiment=sft_brand_voice", "data=files", "data.train=mine.jsonl"], None, None),
        (["+experiment=sft_brand_voice", "data.train=m.jsonl", "evaluation.pairs=p.jsonl"], None, "p.jsonl"),
        (["+experiment=sft_brand_voice", "data=brand_voice"], f"{STUDY}/held_out.jsonl", None),
        ([f"data.train={shipped('experiments/brand_voice/train.jsonl')}"], f"{STUDY}/held_out.jsonl", None),
        ([f"data.train=[{STUDY}/train.jsonl]"], f"{STUDY}/held_out.jsonl", None),
        ([f"data.train={STUDY}/sft_train.jsonl"], None, None),
        ([f"data.train={STUDY}/../brand_voice/train.jsonl"], f"{STUDY}/held_out.jsonl", None),
    ],
)
def test_the_held_out_set_of_a_study_goes_with_its_training_set(overrides, held_out, pairs):
    config = load_config(overrides)
    assert (config.data.held_out, config.evaluation.pairs) == (held_out, pairs)
    composed = TRAIN.compose([]).changed([("data.train", "mine.jsonl")])
    assert complete(composed).data.held_out is None, "as the points of a sweep are composed"


def test_an_experiment_of_ones_own_may_build_on_a_study_and_name_its_files(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, more in (("a", ""), ("b", "  held_out: mine_too.jsonl\n")):
        text = f"# @package _global_\ndata:\n  train: mine.jsonl\n{more}"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    assert load_config(["+experiment=a"], str(tmp_path)).data.held_out is None
    assert load_config(["+experiment=b"], str(tmp_path)).data.held_out == "mine_too.jsonl"


@pytest.mark.parametrize(
    ("overrides", "held_out"),
    [
        (["data=ours"], "held_out.jsonl"),
        (["data=ours", "data.train=./train.jsonl"], "held_out.jsonl"),
        (["data=ours", "data.train=other.jsonl"], None),
        (["data=ours", "data={train: other.jsonl}"], None),
        (["data=ours", "data.train=other.jsonl", "data.held_out=held_out.jsonl"], "held_out.jsonl"),
        (["data=ours", "data.held_out=h.jsonl"], "h.jsonl"),
        (["+experiment=ours"], "held_out.jsonl"),
        (["+experiment=ours", "data.train=other.jsonl"], None),
    ],
)
def test_the_held_out_set_of_an_own_preset_goes_with_its_training_set_too(tmp_path, overrides, held_out):
    for group in ("data", "experiment"):
        (tmp_path / group).mkdir()
    (tmp_path / "data" / "ours.yaml").write_text("train: train.jsonl\nheld_out: held_out.jsonl\n")
    (tmp_path / "experiment" / "ours.yaml").write_text("# @package _global_\ndefaults:\n  - override /data: ours\n")
    assert load_config(overrides, str(tmp_path)).data.held_out == held_out
    assert complete(Composer(str(tmp_path)).compose(overrides)).data.held_out == held_out


def test_test_data_go_with_the_training_data_of_their_preset_and_change_nothing_that_a_run_computes(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ours.yaml").write_text("train: train.jsonl\ntest: test.jsonl\n")
    config = load_config(["data=ours"], str(tmp_path))
    assert config.data.test == "test.jsonl"
    assert load_config(["data=ours", "data.train=other.jsonl"], str(tmp_path)).data.test is None
    without = load_config(["data=ours", "data.test=null"], str(tmp_path))
    assert (fingerprint(config), differences(without, config)) == (fingerprint(without), [])
    assert config.run.name == without.run.name


@pytest.mark.parametrize(
    "also", ["data.train=./test.jsonl", "data.held_out=[more.jsonl,test.jsonl]", "data.held_out={path: test.jsonl}"]
)
def test_test_data_that_another_setting_names_too_are_refused(also):
    setting = also.partition("=")[0]
    with pytest.raises(UserError, match=f"data.test: .*test.jsonl is named by {setting} too"):
        load_config(["data=files", "data.train=train.jsonl", "data.test=test.jsonl", also])
    pairs = ["algorithm=sft", "data=files", "data.train=train.jsonl", "evaluation.pairs=test.jsonl"]
    with pytest.raises(UserError, match=r"is named by evaluation.pairs too"):
        load_config([*pairs, "data.test=test.jsonl"])


@pytest.mark.parametrize(
    ("overrides", "held_out", "pairs"),
    [
        (["experiment=built"], None, None),
        (["experiment=rebuilt"], None, None),
        (["experiment=both"], f"{STUDY}/sft_held_out.jsonl", "pairs.jsonl"),
        (["experiment=both", "data.train=other.jsonl"], None, None),
        (["experiment=pairs", "data=files", "data.train=mine.jsonl"], None, "pairs.jsonl"),
        (["experiment=pairs", "data=half", "data.train=mine.jsonl"], "half.jsonl", "pairs.jsonl"),
        (["data=files", "data.train=mine.jsonl", "evaluation=pairs", "algorithm=sft"], None, "pairs.jsonl"),
    ],
)
def test_a_held_out_file_goes_with_the_training_file_beside_which_it_was_named(tmp_path, overrides, held_out, pairs):
    files = {
        "experiment/built": "defaults: [sft_brand_voice]\ndata: {train: mine.jsonl}",
        "experiment/rebuilt": "defaults: [built]\noptim: {learning_rate: 1.0e-5}",
        "experiment/both": "defaults: [sft_brand_voice]\n"
        f"data: {{train: mine.jsonl, held_out: '{STUDY}/sft_held_out.jsonl'}}\nevaluation: {{pairs: pairs.jsonl}}",
        "experiment/pairs": "defaults: [override /algorithm: sft]\nevaluation: {pairs: pairs.jsonl}",
        "data/half": "train: ???\nheld_out: half.jsonl",
        "evaluation/pairs": "pairs: pairs.jsonl",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n" if name.startswith("experiment") else f"{text}\n")
    config = load_config(overrides, str(tmp_path))
    assert (config.data.held_out, config.evaluation.pairs) == (held_out, pairs)


def test_a_held_out_set_that_is_left_out_is_said(caplog):
    load_config(["data.held_out_fraction=0.2", "data.train=mine.jsonl"])
    (message,) = caplog.messages
    assert message.startswith(
        f"data.held_out: {STUDY}/held_out.jsonl is not used, because it goes with other training"
    )
    assert "A share of 0.2 of its prompts is held out. Set data.held_out to use a file." in message
    caplog.clear()
    for overrides in ([], ["data.train=m", "data.held_out=h"], ["data=files", "data.train=m"], ["data.held_out=null"]):
        load_config(overrides)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("overrides", "tag"),
    [
        ([], "area"),
        (["data=brand_voice_sft", "algorithm=sft"], "area"),
        (["data.held_out=null"], "area"),
        ([f"data.train=[{STUDY}/train.jsonl]"], "area"),
        (["data.train=mine.jsonl"], None),
        (["data.train=mine.jsonl", "data.held_out=mine_too.jsonl"], None),
        (["data.held_out=mine.jsonl"], None),
        (["data.test=mine.jsonl"], None),
        (["data=files", "data.train=mine.jsonl"], None),
        (["data.train=mine.jsonl", "data.tag=area"], "area"),
    ],
)
def test_tags_of_a_preset_are_those_of_its_own_files(overrides, tag, caplog):
    assert load_config(overrides).data.tag == tag
    assert "data.tag" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({}, "area"),
        ({"data.held_out": f"{STUDY}/held_out.jsonl"}, "area"),
        ({"data.held_out": "mine.jsonl"}, None),
        ({"split": "test", "data.test": "mine.jsonl"}, None),
        ({"data.held_out": "mine.jsonl", "data.tag": "area"}, "area"),
    ],
)
def test_tags_of_a_run_are_not_asked_of_other_data_that_it_is_measured_on(changes, tag, caplog):
    assert remeasure.override(load_config([]), changes).data.tag == tag
    assert ("add data.tag=area" in caplog.text) == (tag is None)


DEEPSPEED = sorted(path.stem for path in (shipped("conf") / "deepspeed").glob("*.yaml"))


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts the first of two processes; with DeepSpeed, installed or not."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("prefopt.config.checks.find_spec", lambda name: object())


@pytest.mark.usefixtures("launched")
def test_several_processes_need_no_setting():
    assert load_config([]).deepspeed.stage is None


def test_a_number_of_processes_without_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE is 2, but LOCAL_RANK is not set: start with torchrun" in refusal()


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("name", DEEPSPEED)
def test_every_option_of_deepspeed_composes(name):
    stage = load_config([f"deepspeed={name}"]).deepspeed.stage
    assert stage == (None if name == "none" else int(name[len("zero")]))


@pytest.mark.parametrize("name", [name for name in DEEPSPEED if name != "none"])
def test_deepspeed_needs_a_launch(name):
    assert "needs a distributed launch" in refusal(f"deepspeed={name}")


@pytest.mark.usefixtures("launched")
def test_a_missing_deepspeed_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr("prefopt.config.checks.find_spec", lambda name: None)
    message = refusal("deepspeed=zero2")
    assert "deepspeed.stage=2: DeepSpeed is not installed" in message
    assert "pip install" in message
    load_config([])


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["deepspeed=zero3", "peft=qlora", "trainer.precision=bf16"], "Set deepspeed=zero2, or peft=lora"),
        (["deepspeed=zero3_offload", "optim.name=adafactor"], "not optim.name=adafactor. Set optim.name=adamw_torch"),
        (["deepspeed.stage=4"], "deepspeed.stage: must be 1, 2, 3 or null, found 4"),
        (["deepspeed=zero2", "deepspeed.offload_parameters=cpu"], "needs deepspeed.stage=3"),
    ],
)
def test_what_a_stage_cannot_do_is_refused_with_what_can(overrides, expected):
    assert expected in refusal(*overrides)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("overrides", [["deepspeed=zero2", "peft=qlora", "trainer.precision=bf16"]])
def test_what_such_a_refusal_proposes_is_accepted(overrides):
    load_config(overrides)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.gradient_accumulation_steps=2"], "leave out trainer.gradient_accumulation_steps=2"),
        (["trainer.tokens_per_device=500"], "a number of pairs or a budget of tokens"),
        (["trainer.batch_size=7"], "trainer.batch_size=7 does not divide into 2 ranks"),
        (["trainer.batch_size=0"], "trainer.batch_size: must be >= 1 or null, found 0"),
    ],
)
def test_a_size_of_steps_that_cannot_be_kept_is_refused(overrides, expected):
    assert load_config(["trainer.batch_size=8"]).trainer.batch_size == 8
    assert expected in refusal("trainer.batch_size=8", *overrides)


def test_the_best_checkpoint_needs_metrics_on_the_way():
    assert "set trainer.eval_every" in refusal("trainer.keep_best=loss")
    assert load_config(["trainer.keep_best=loss", "trainer.eval_every=5"]).trainer.keep_best == "loss"


def test_the_best_checkpoint_needs_a_metric_of_the_algorithm():
    message = refusal("trainer.eval_every=5", "trainer.keep_best=accurracy")
    assert "trainer.keep_best=accurracy: no held-out metric of algorithm=dpo. Allowed: loss, pref" in message
    assert "algorithm=sft" in refusal("algorithm=sft", "trainer.eval_every=5", "trainer.keep_best=rewards/margins")


@pytest.mark.parametrize("text", ["45s", "90m", "2h", "1d", "12:30:00", "1-12:30:00"])
def test_a_time_limit_may_be_written_as_a_scheduler_writes_it(tmp_path, text):
    config = load_config([f"run.time_limit={text}"])
    assert config.run.time_limit == text
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml").run.time_limit == text


@pytest.mark.parametrize("text", ["90", "1.5", "30:00", "0h", "soon", "-1h"])
def test_a_time_limit_of_unknown_unit_is_refused(text):
    message = refusal(f"run.time_limit={text}")
    assert "run.time_limit: must be a time > 0 such as 45s, 90m" in message
    assert text in message


def test_a_time_limit_that_yaml_takes_for_a_number_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nrun:\n  time_limit: 12:30:00\n")
    with pytest.raises(UserError, match="in YAML, quote what has colons"):
        load_config(["+experiment=mine"], str(tmp_path))


def test_ranks_wait_for_each_other_for_a_positive_time():
    assert "run.timeout_s: must be > 0, found 0" in refusal("run.timeout_s=0")


def test_dropout_of_adapters_is_refused_where_trl_turns_it_off():
    message = refusal("peft=lora", "peft.dropout=0.1")
    assert "trainer.extra.disable_dropout=false" in message
    load_config(["peft=lora", "peft.dropout=0.1", "trainer.extra.disable_dropout=false"])
    load_config(["peft=lora", "peft.dropout=0.1", "algorithm=sft"])


def test_config_errors_do_not_import_torch():
    script = (
        "import sys; from prefopt.train import main; from prefopt.process.errors import UserError\n"
        "try: main(['algorithm.bta=1'])\n"
        "except UserError: pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_cfg_job_prints_the_complete_configuration(capsys):
    from prefopt.train import main

    main(["+experiment=dpo_brand_voice", "--cfg", "job", "--resolve"])
    printed = capsys.readouterr().out
    assert "beta: " in printed
    assert "name: dpo_brand_voice-" in printed
    assert "${" not in printed


def test_the_fast_paths_are_the_default():
    config = load_config([])
    assert (config.engine.name.name, config.reference.mode.name) == ("auto", "store")


@pytest.mark.parametrize("mode", ["store", "none"])
def test_a_reference_that_moves_has_to_be_live(mode):
    message = refusal("algorithm.sync_ref_model=true", f"reference={mode}")
    assert "reference=live" in message
    assert load_config(["algorithm.sync_ref_model=true", "reference=live"]).algorithm.sync_ref_model


@pytest.mark.parametrize("setting", ["engine=trl", "reference=live", "reference.path=x"])
def test_demonstrations_have_no_pairs_to_share(setting):
    assert "has no effect" in refusal("algorithm=sft", "data=brand_voice_sft", setting)


def test_a_folder_for_the_store_needs_a_store():
    assert "has no effect" in refusal("reference=live", "reference.path=x")


def test_where_the_store_lies_is_not_part_of_a_runs_identity():
    assert fingerprint(load_config(["reference.path=a"])) == fingerprint(load_config(["reference.path=b"]))
    assert fingerprint(load_config(["reference=live"])) != fingerprint(load_config([]))
