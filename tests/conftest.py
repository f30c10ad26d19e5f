"""Small models, small data and a quiet, offline environment for every test."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.zygote import Zygote

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    COLUMNS="200",
)
for launcher in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_API_KEY"):
    os.environ.pop(launcher, None)

settings.register_profile(
    "on any machine",
    deadline=None,
    derandomize="PREFOPT_TEST_RANDOM" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("on any machine")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, such as CI, ignore it

REPOSITORY = Path(__file__).parents[1]
SITE = REPOSITORY / "tests" / "site"
"""For PYTHONPATH of processes that are to meet faults."""
STUDY = REPOSITORY / "experiments" / "brand_voice"


SLOW = ("slurm", "distributed", "faults", "real_data", "fuzz", "browser")
"""Folders whose tests are marked `slow`, but for those that are marked `smoke`: `make test` leaves them out."""
LONGEST_FIRST = (*SLOW, "integration", "numerics", "config", "unit")
"""Folders of tests in the order in which they begin, so that no process is left alone with a long file at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders tests by their folders, and marks those of slow folders."""

    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(REPOSITORY / "tests").parts[0]

    place = {name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(folder(item), len(place)))
    for item in items:
        if folder(item) in SLOW and item.get_closest_marker("smoke") is None:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs share lies in a folder of the test session, not of the user."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PREFOPT_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def package_log() -> Iterator[None]:
    """An entry point that a test calls sets up logging for its process; the next test finds it as before."""
    package = logging.getLogger("prefopt")
    handlers, level, propagate = package.handlers, package.level, package.propagate
    yield
    package.handlers, package.level, package.propagate = handlers, level, propagate


@pytest.fixture(autouse=True)
def no_run_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point that a test calls names its run's folder for its process; the next test finds none."""
    monkeypatch.setattr("prefopt.process.output._folder", None)


@pytest.fixture(autouse=True)
def process_of_many_tests() -> Iterator[None]:
    """A test that needs a process which runs one command and nothing else starts one.

    In this one, `python -m prefopt.train` would take all objects that live from the collector, for every later test.
    """
    from prefopt.process import phases

    yield
    assert not phases.owns_process(), "the test made this process that of one command"


SHARED_DATA = Path(os.environ.get("PREFOPT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and the shipped tokenizer: a step takes milliseconds."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny_model"))


def build_tiny_model(folder: Path) -> Path:
    """Writes the model of `tiny_model` to a folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prefopt.process.paths import shipped

    tokenizer = AutoTokenizer.from_pretrained(shipped("assets/base_model"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path, limit: int | None = None) -> list[dict]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """22 training pairs and 7 held-out pairs of the shipped study: no batch size divides both."""
    return write_pair_files(tmp_path_factory.mktemp("pairs"))


def write_pair_files(folder: Path) -> tuple[Path, Path]:
    """Writes the files of `pair_files` to a folder."""
    return (
        write_rows(folder / "train.jsonl", read_rows(STUDY / "train.jsonl", 22)),
        write_rows(folder / "held_out.jsonl", read_rows(STUDY / "held_out.jsonl", 7)),
    )


@pytest.fixture
def overrides(tiny_model: Path, pair_files: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """A DPO run that takes a second: tiny model, few pairs, six steps, no tracker."""
    return quick_run(tiny_model, pair_files, tmp_path / "runs")


def quick_run(model: Path, pairs: tuple[Path, Path], root: Path) -> list[str]:
    """The overrides of a run that takes a second, for fixtures that outlive a test."""
    return [
        "model=hf",
        f"model.path={model}",
        "data=files",
        f"data.train={pairs[0]}",
        f"data.held_out={pairs[1]}",
        f"run.root={root}",
        "run.name=test",
        "logger=none",
        "optim.learning_rate=1e-3",
        "trainer.max_steps=6",
        "trainer.per_device_batch_size=4",
        "trainer.log_every=1",
        "trainer.save_every=2",
        "evaluation.num_samples=3",
        "evaluation.num_shown_samples=2",
        "evaluation.max_new_tokens=6",
        "evaluation.bootstrap_resamples=50",
    ]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an entry point that must end with exit code 2 and returns its one message."""

    def run(main: Callable[[list[str]], None], argv: list[str]) -> str:
        from prefopt.distributed.entry import run_entry

        with pytest.raises(SystemExit) as ended:
            run_entry(main, argv)
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert "Traceback" not in message
        return message

    return run


@pytest.fixture(scope="session")
def zygote(cache: Path) -> Iterator["Zygote"]:
    """Starts runs of several ranks quickly; see `tests.zygote`."""
    from tests.zygote import Zygote

    with Zygote() as started:
        yield started
