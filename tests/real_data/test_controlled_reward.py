"""Whole runs whose right answer is known: a rule labels a model's own stories, and the same rule judges the tuned one.

The bands hold across versions of torch; measured with torch 2.13 on one thread:

    run                        held-out reward accuracy   win rate   perplexity (base 3.36)   KL per token   verdict
    440 pairs, 2 epochs        0.825                      0.996      8.53                     0.61           drifted
    100 pairs, 10 hot epochs   0.775                      0.904      56.24                    3.14           ruined
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefopt.train import main as train
from tests.real_data.controlled_reward import CONTINUATION_TOKENS, NUM_HELD_OUT, Experiment, Judgement

MODEL = "stories260K_hf"
RUINED = "The model was ruined"


@dataclass(frozen=True)
class Outcome:
    """What a run says of its model, and what is true of it."""

    report: dict[str, Any]
    judgement: Judgement

    @property
    def accuracy(self) -> dict[str, Any]:
        return self.report["held_out"]["tuned"]["reward_accuracy"]

    @property
    def perplexity(self) -> dict[str, float]:
        return {name: entry["value"] for name, entry in self.report["drift"]["perplexity"].items()}

    @property
    def kl_per_token(self) -> float:
        return self.report["drift"]["kl_per_token"]["value"]

    @property
    def findings(self) -> str:
        return "\n".join(finding["finding"] for finding in self.report["verdict"])


@pytest.fixture(scope="session")
def experiment(shared_file) -> Experiment:
    return Experiment.build(shared_file(MODEL))


def run(experiment: Experiment, model: Path, folder: Path, *, num_train: int, settings: list[str]) -> Outcome:
    train(
        [
            "model=hf",
            f"model.path={model}",
            *experiment.write(folder, num_train),
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
    return Outcome(report, experiment.judge(folder / "run" / "model"))


@pytest.fixture(scope="session")
def clean(experiment, shared_file, tmp_path_factory) -> Outcome:
    settings = ["optim.learning_rate=5e-4", "trainer.num_epochs=2"]
    return run(experiment, shared_file(MODEL), tmp_path_factory.mktemp("clean"), num_train=440, settings=settings)


@pytest.fixture(scope="session")
def overtrained(experiment, shared_file, tmp_path_factory) -> Outcome:
    settings = ["optim.learning_rate=2e-3", "trainer.num_epochs=10"]
    folder = tmp_path_factory.mktemp("overtrained")
    return run(experiment, shared_file(MODEL), folder, num_train=100, settings=settings)


def test_the_rule_labels_as_many_pairs_as_the_published_experiment(experiment):
    assert len(experiment.pairs) == pytest.approx(560, abs=30)
    held_out = {pair["prompt"] for pair in experiment.pairs[-NUM_HELD_OUT:]}
    assert len(held_out) == NUM_HELD_OUT
    assert not held_out & {pair["prompt"] for pair in experiment.pairs[:-NUM_HELD_OUT]}


def test_dpo_learns_the_rule(clean):
    assert clean.report["run"]["steps"] == 56  # 28 batches of 16, twice
    assert clean.accuracy["n"] == NUM_HELD_OUT
    assert clean.accuracy["value"] > 0.75
    assert clean.accuracy["ci95"][0] > 0.65
    assert clean.report["held_out"]["gain"]["preference_accuracy"]["ci95"][0] > 0.05
    # What counts is what the model writes, which no number in the report was made from.
    assert clean.judgement.win_rate > 0.9
    assert clean.judgement.reward > 3 * clean.judgement.base_reward


def test_a_good_run_is_undecided_since_it_drifted_and_its_answers_were_not_judged(clean):
    decision = clean.report["decision"]
    assert decision["word"] == "undecided"
    assert any("drifted far from its base" in reason for reason in decision["reasons"])
    assert decision["reasons"][-1] == "Ranks held-out pairs better; its answers were not judged."
    assert RUINED not in clean.findings
    assert "The model drifted far from its base" in clean.findings
    assert 1.5 < clean.perplexity["ratio"] < 5
    assert 0.3 < clean.kl_per_token < 1.5


def test_an_overtrained_model_is_called_ruined_although_it_wins_on_its_task(clean, overtrained):
    assert overtrained.accuracy["ci95"][0] > 0.6
    assert overtrained.judgement.win_rate > 0.8
    assert overtrained.report["decision"]["word"] == "do_not_ship"
    assert f"{RUINED}, although it ranks" in overtrained.findings
    assert overtrained.report["verdict"][0]["finding"].startswith(RUINED)
    assert overtrained.perplexity["ratio"] > 8
    assert overtrained.perplexity["tuned"] > 3 * clean.perplexity["tuned"]
    assert overtrained.kl_per_token > 2
    assert overtrained.kl_per_token > 3 * clean.kl_per_token


def test_few_pairs_seen_often_are_called_overfitting(overtrained):
    gap = overtrained.report["overfitting"]["reward_accuracy"]
    assert gap["train"]["value"] > 0.98
    assert gap["gap"]["ci95"][0] > 0.1
    assert "Overfitting" in overtrained.findings


@pytest.mark.parametrize("name", ["clean", "overtrained"])
def test_the_report_measures_drift_as_plain_transformers_does(name, request):
    outcome = request.getfixturevalue(name)
    assert outcome.perplexity["base"] == pytest.approx(outcome.judgement.base_perplexity, rel=1e-4)
    assert outcome.perplexity["tuned"] == pytest.approx(outcome.judgement.perplexity, rel=1e-4)
    # Other samples of the same model: equal within their sampling error.
    assert outcome.kl_per_token == pytest.approx(outcome.judgement.kl_per_token, rel=0.2)
    # Likelihood displacement, as in every run of the published experiment: both sides fall, rejected further.
    likelihood = outcome.report["likelihood"]
    assert likelihood["rejected"]["value"] < likelihood["chosen"]["value"] < 0
