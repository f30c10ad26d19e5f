"""Whole runs whose right answer is known: a rule labels a model's own stories, and the same rule judges the tuned one.

The bands are wide enough for other versions of torch and tight enough to fail where training or the report goes wrong.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefopt.train import main as train
from tests.real_data.controlled_reward import CONTINUATION_TOKENS, NUM_HELD_OUT, Experiment

MODEL = "stories260K_hf"
DRIFT_FACTOR = 5


@dataclass(frozen=True)
class Outcome:
    """What a run said of itself, and what the rule says of its model."""

    report: dict[str, Any]
    win_rate: float
    reward: float
    base_reward: float

    def held_out(self, name: str) -> dict[str, Any]:
        return self.report["held_out"]["tuned"][name]

    @property
    def perplexity(self) -> float:
        return self.report["drift"]["perplexity"]["tuned"]["value"]

    @property
    def kl_per_token(self) -> float:
        return self.report["drift"]["kl_per_token"]["value"]

    @property
    def findings(self) -> list[str]:
        return [finding["finding"] for finding in self.report["verdict"]]


@pytest.fixture(scope="session")
def experiment(shared_file) -> Experiment:
    return Experiment.build(shared_file(MODEL))


def run(experiment: Experiment, model: Path, folder: Path, num_train: int, *settings: str) -> Outcome:
    train(
        [
            "model=hf",
            f"model.path={model}",
            *experiment.write(folder / "data", num_train),
            f"run.root={folder}",
            "run.name=run",
            "logger=none",
            "data.max_length=256",
            "algorithm.beta=0.1",
            "optim.scheduler=linear",
            "trainer.per_device_batch_size=16",
            f"evaluation.num_samples={NUM_HELD_OUT}",
            "evaluation.num_shown_samples=1",
            f"evaluation.max_new_tokens={CONTINUATION_TOKENS}",
            *settings,
        ]
    )
    report = json.loads((folder / "run" / "report" / "report.json").read_text())
    return Outcome(report, *experiment.win_rate(folder / "run" / "model"))


@pytest.fixture(scope="session")
def clean(experiment, shared_file, tmp_path_factory) -> Outcome:
    settings = ("optim.learning_rate=5e-4", "trainer.num_epochs=2")
    return run(experiment, shared_file(MODEL), tmp_path_factory.mktemp("clean"), 440, *settings)


@pytest.fixture(scope="session")
def overtrained(experiment, shared_file, tmp_path_factory) -> Outcome:
    settings = ("optim.learning_rate=2e-3", "trainer.num_epochs=10")
    return run(experiment, shared_file(MODEL), tmp_path_factory.mktemp("overtrained"), 100, *settings)


def test_x(clean, overtrained):
    for o in (clean, overtrained):
        print(o.win_rate, o.reward, o.base_reward)
        r = dict(o.report)
        r.pop("samples")
        r.pop("provenance")
        print(json.dumps(r, indent=1))
