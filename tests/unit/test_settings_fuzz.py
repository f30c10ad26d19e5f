"""Odd settings by the hundred: each is a configuration with TRL's arguments, or one sentence; never another error."""

import random
from collections.abc import Callable

import pytest

from prefopt.algorithms import load_algorithm
from prefopt.cluster.planning import plan_submission
from prefopt.config.cluster import SUBMIT
from prefopt.config.load import TRAIN, complete, load_config
from prefopt.config.schema import TrainConfig
from prefopt.config.step_size import StepSize
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.submit import split
from prefopt.sweeps.points import Composer
from prefopt.training.arguments import build_arguments

SEED = 20240607
NUM_COMPOSED = 60
"""Composed anew each, as on a command line."""
NUM_CHANGED = 500
"""Composed as the points of a sweep are, which takes a tenth of the time."""
NUM_SUBMITTED = 40
LONGEST = 2500
"""Letters of a message."""
VALUES = (
    *("0", "1", "-1", "2", "0.5", "-0.0", "1e-300", "1e308", "1e400", "nan", "inf", "-inf", "0x10", "1_0", "007"),
    *(str(2**31), str(2**63), str(-(2**63) - 1), "9" * 400, "9" * 5000, "0." + "3" * 400),
    *("true", "false", "null", "None", "yes", "auto", "", "''", '""', "x", "sigmoid", "cosine", "adamw_torch"),
    *("[]", "[1]", "[x,y]", "[null]", "[[x]]", "[true,2]", "{}", "{a:1}", "{a:{b:c}}", "{a:[1]}", "[{a:1}]", "{1:2}"),
    *(
        "a,b",
        "1,2,3",
        "range(3)",
        "range(0,3,0)",
        "choice(a,b)",
        "interval(0,1)",
        "glob(*)",
        "shuffle(1,2)",
        "int(3.7)",
    ),
    *("${run.seed}", "${nothing}", "${oc.env:NO_SUCH_VARIABLE}", "${run", "${a:b}", "$HOME", "???", "'???'"),
    *("größe", "'größe'", "日本", "'日本'", "'a b'", "a b", "a=b", "'a=b'", "a#b", "~", "'~nosuchuser/x'", "~/x"),
    *(
        "'a\tb'",
        "'a\nb'",
        "'a\0b'",
        "'\udce9'",
        "'\x1b[31m'",
        "'[/]'",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        "\\",
        "\\\\",
    ),
    *(
        "a" * 300,
        "a" * 5000,
        "/" * 50,
        ".",
        "..",
        "/",
        "../x",
        "a/b",
        "prefopt:",
        "prefopt:nothing",
        "hub:",
        "hub:a/b:c",
    ),
    "[" * 300 + "]" * 300,
    "{a:" * 200 + "1" + "}" * 200,
)
KEYS = (
    *(
        "",
        "x",
        "run",
        "data",
        "model",
        "algorithm",
        "trainer",
        "trainer.extra",
        "peft",
        "optim",
        "experiment",
        "deepspeed",
    ),
    *("run.", ".run", "run..seed", "run.seed.x", "größe", "a b", "1", "hydra.run.dir", "hydra/launcher", "a" * 400),
    *("data@x", "data@run", "/data", "run.SEED", "Run.seed", "trainer.extra.x.y", "trainer.extra.", "_target_", "$x"),
)
EXTRA = (
    *("neftune_noise_alpha", "disable_dropout", "lr_scheduler_kwargs", "optim_args", "dataloader_num_workers", "tf32"),
    *("torch_compile", "data_seed", "push_to_hub", "logging_strategy", "debug", "fsdp", "full_determinism", "no_such"),
    *(
        "gradient_checkpointing_kwargs",
        "activation_checkpointing_kwargs",
        "ddp_timeout",
        "include_num_input_tokens_seen",
    ),
    *(
        "lr_scheduler_type",
        "torch_empty_cache_steps",
        "log_level",
        "optim_target_modules",
        "eval_delay",
        "ddp_backend",
    ),
)
GROUPS = (
    *("algorithm=sft", "algorithm=dpo", "peft=lora", "peft=qlora", "deepspeed=zero3", "engine=trl", "reference=live"),
    *(
        "+experiment=dpo_brand_voice",
        "+experiment=sft_brand_voice",
        "data=files",
        "model=hf",
        "logger=none",
        "optim=adamw",
    ),
)


def draw_override(rng: random.Random, names: list[str]) -> str:
    """A setting, or what is none, with a value that it may or may not take."""
    kind = rng.random()
    if kind < 0.15:
        key = rng.choice(KEYS)
    elif kind < 0.35:
        key = f"trainer.extra.{rng.choice(EXTRA)}"
    else:
        key = rng.choice(names)
    prefix = rng.choice(("", "", "", "", "+", "++", "~"))
    return f"{prefix}{key}={rng.choice(VALUES)}" if rng.random() < 0.98 else f"{prefix}{key}"


def build(config: TrainConfig) -> None:
    """As far as a run gets before anything is loaded."""
    build_arguments(load_algorithm(config.algorithm), config, RunDirectory.of(config), StepSize.of(config, None))


def submit(overrides: list[str]) -> None:
    """As far as a submission gets before anything is written."""
    own, runs = split(overrides)
    plan_submission(SUBMIT.compose(own).build(), runs, None)


def try_all(call: Callable[[list[str]], None], lines: list[list[str]]) -> tuple[int, int]:
    """How many were taken, and how many refused; fails if one ended otherwise."""
    taken, refused, faults = 0, 0, []
    for overrides in lines:
        try:
            call(overrides)
            taken += 1
        except UserError as error:
            refused += 1
            if not 0 < len(str(error).strip()) < LONGEST:
                faults.append(f"{str(overrides)[:200]}: a message of {len(str(error))} letters")
        except Exception as error:
            faults.append(f"{str(overrides)[:200]}: {type(error).__name__}: {str(error)[:200]}")
    assert not faults, "\n".join(faults)
    return taken, refused


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """Odd paths lead into an empty folder, which stays empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir()), "something was written"


def draw_settings(rng: random.Random) -> list[str]:
    names = TRAIN.setting_names()
    drawn = [draw_override(rng, names) for _ in range(rng.choice((1, 1, 1, 2)))]
    return [*rng.sample(GROUPS, 1 if rng.random() < 0.3 else 0), *drawn]


def test_odd_settings_are_a_configuration_or_one_sentence():
    rng = random.Random(SEED)
    try_all(lambda overrides: build(load_config(overrides)), [draw_settings(rng) for _ in range(NUM_COMPOSED)])


def test_odd_points_are_a_configuration_or_one_sentence():
    rng, composer = random.Random(SEED + 1), Composer(None)
    lines = [draw_settings(rng) for _ in range(NUM_CHANGED)]
    taken, refused = try_all(lambda overrides: build(complete(composer.compose(overrides))), lines)
    assert taken > NUM_CHANGED / 30
    assert refused > NUM_CHANGED / 2


def test_odd_submissions_are_a_plan_or_one_sentence():
    rng = random.Random(SEED + 2)
    names = [*SUBMIT.setting_names(), "run.seed", "algorithm.beta", "data.train", "run.root"]
    clusters = ("cluster=slurm_cpu", "cluster=local")
    lines = [[rng.choice(clusters), "logger=none", draw_override(rng, names)] for _ in range(NUM_SUBMITTED)]
    try_all(submit, lines)
