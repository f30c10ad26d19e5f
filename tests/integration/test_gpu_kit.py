"""The scripts for a GPU machine: what they run exists and composes, and one failing step does not stop the others."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import dpo_step, random_model
from benchmarks.shapes import MODELS
from prefopt.config.load import load_config
from prefopt.process.ranks import Launch

ROOT = Path(dpo_step.__file__).parents[1]
SCRIPTS = [ROOT / "benchmarks" / "gpu" / name for name in ("prepare.sh", "run.sh")]
RUN = SCRIPTS[1]
STEPS = ["smoke", "tests", "bench", "e2e", "zero", "qlora", "kernels", "memory"]


def call(*arguments, **environment):
    command = ["bash", str(RUN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def list_commands(step):
    printed = call("--print", step, WORK="/somewhere")
    assert printed.returncode == 0, printed.stderr
    return [shlex.split(line) for line in printed.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_names_no_place_of_one_machine(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert not re.findall(r"/(?:home|work|root|mnt)/", text)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize("step", STEPS)
def test_what_a_step_runs_exists_and_composes(step):
    commands = list_commands(step)
    assert commands
    for python, *words in commands:
        assert python == "python3"
        if words[0] == "-c":
            compile(words[1], step, "exec")
            continue
        flag, module, *arguments = words
        assert flag == "-m"
        launch = Launch(num_ranks=1, is_launched=module == "torch.distributed.run")
        if launch.is_launched:
            start = arguments.index("-m") + 1
            module, arguments = arguments[start], arguments[start + 1 :]
        assert importlib.util.find_spec(module), f"{step}: no module {module}"
        if module == "prefopt.train":
            assert load_config(arguments, launch=launch).run.name
        elif module == "benchmarks.dpo_step":
            assert dpo_step.parse(arguments).device == "cuda"
        elif module == "benchmarks.random_model":
            assert arguments == ["1B", "/somewhere/1B"]
        else:
            assert (module, arguments[0]) == ("pytest", "tests/gpu")


def test_every_step_that_needs_the_1b_model_makes_it():
    for step in STEPS:
        words = [word for command in list_commands(step) for word in command]
        assert ("model.path=/somewhere/1B" in words) == ("benchmarks.random_model" in words)


def test_all_steps_together_stay_below_ten_minutes_and_each_has_a_limit():
    limits = dict(re.findall(r"\[(\w+)\]=(\d+)", RUN.read_text(encoding="utf-8")))
    assert list(limits) == STEPS
    assert sum(map(int, limits.values())) < 600
    documented = re.findall(r"^#   (\w+)  +\S", RUN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert documented[: len(STEPS)] == STEPS


def test_an_unknown_step_is_refused_with_those_that_there_are():
    refused = call("smok")
    assert refused.returncode == 2
    assert refused.stderr.strip() == f"smok: no such step. There are: {' '.join(STEPS)}"


def test_a_failing_step_does_not_stop_the_others_and_the_last_lines_say_which_passed(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    (programs / "python3").write_text(
        '#!/bin/sh\ncase "$*" in *name_machine*) echo a-card ;; *deepspeed=zero3*) echo no zero3; exit 3 ;;'
        ' *tests/gpu*) kill -9 $$ ;; *) echo "ran $*" ;; esac\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    found = call(
        "zero",
        "tests",
        "smoke",
        PATH=f"{programs}:{os.environ['PATH']}",
        WORK=str(tmp_path / "work"),
        OUT=str(tmp_path / "out"),
    )
    *_, passed, failed = found.stdout.splitlines()
    assert re.fullmatch(r"passed: smoke \(\d+ s\)", passed)
    assert re.fullmatch(r"failed: zero \(\d+ s, exit 1\) tests \(\d+ s, time limit\)", failed), found.stdout
    assert found.returncode == 2
    assert "no zero3" in (tmp_path / "out" / "zero.log").read_text()
    assert "deepspeed=zero2" in (tmp_path / "out" / "zero.log").read_text(), "the other stage ran"
    assert "a card" in (tmp_path / "out" / "machine.log").read_text()


def test_a_random_model_has_the_shape_and_the_shipped_tokenizer(tmp_path):
    random_model.main(["tiny", str(tmp_path / "model")])
    from prefopt.config.schema import ModelConfig
    from prefopt.models.load import load_model, load_tokenizer

    config = ModelConfig(path=str(tmp_path / "model"))
    model, tokenizer = load_model(config), load_tokenizer(config)
    assert model.config.num_hidden_layers == MODELS["tiny"].layers
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
