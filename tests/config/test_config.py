"""Composition, suggestions and checks, without torch."""

import ast
import inspect
import itertools
import subprocess
import sys

import pytest

from prefopt import schema
from prefopt.choices import PeftMethod
from prefopt.config import (
    as_dict,
    differences,
    fingerprint,
    from_dict,
    load_config,
    read_config,
    setting_names,
    to_yaml,
)
from prefopt.errors import UserError
from prefopt.paths import shipped
from prefopt.schema import DPOAlgorithmConfig, SFTAlgorithmConfig

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


def test_a_known_setting_may_carry_a_plus():
    assert load_config(["+algorithm.beta=0.3"]).algorithm.beta == 0.3


def test_unknown_keys_in_a_users_yaml_name_the_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nalgorithm:\n  bta: 1\n")
    with pytest.raises(UserError, match=r"conf/experiment/mine.yaml: algorithm.bta: .*Did you mean algorithm.beta"):
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
        ("peft.r=4", "peft.r=4 has no effect"),
        ("data.held_out_fraction=0.2", "has no effect"),
        ("optim.weight_decay=-1", "must be >= 0"),
        ("optim.warmup_ratio=1", "must be in [0, 1)"),
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
    assert rate("algorithm=dpo", "peft=lora") == pytest.approx(1e-5)
    assert rate("algorithm=sft") == 2e-5
    assert rate("algorithm=sft", "optim.learning_rate=0.5") == 0.5


def test_extra_fields_need_no_plus():
    assert load_config(["trainer.extra.adam_epsilon=1"]).trainer.extra == {"adam_epsilon": 1}


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


def test_differences_name_key_and_both_values():
    old, new = load_config([]), load_config(["algorithm.beta=0.2", "run.root=elsewhere"])
    assert differences(old, new) == ["algorithm.beta: 0.1 -> 0.2"]


def test_every_setting_is_documented():
    """A field without a docstring below it is a setting that nobody can look up."""
    tree = ast.parse(inspect.getsource(schema))
    groups = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "TrainConfig"]
    for group in groups:
        for field, below in itertools.pairwise(group.body):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(below, ast.Expr), f"{group.name}.{ast.unparse(field.target)}"
    assert {"algorithm.beta", "algorithm.loss_on", "trainer.max_steps"} <= set(setting_names())


def test_more_than_one_process_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refusal()


def test_dropout_of_adapters_is_refused_where_trl_turns_it_off():
    message = refusal("peft=lora", "peft.dropout=0.1")
    assert "trainer.extra.disable_dropout=false" in message
    load_config(["peft=lora", "peft.dropout=0.1", "trainer.extra.disable_dropout=false"])
    load_config(["peft=lora", "peft.dropout=0.1", "algorithm=sft"])


def test_config_errors_do_not_import_torch():
    script = (
        "import sys; from prefopt.train import main; from prefopt.errors import UserError\n"
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
