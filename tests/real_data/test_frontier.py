"""The numbers of benchmarks/frontier.py by another road: plain transformers, one text at a time."""

import json
from math import exp
from pathlib import Path

import pytest
import torch

from benchmarks.frontier import BOS, Experiment, Point, climb, reward
from prefopt.runs.find import Kind, find_groups
from tests.real_data.controlled_reward import Stories

NUM_PROMPTS, NUM_HELD_OUT = 24, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("frontier")


@pytest.fixture(scope="module")
def experiment(shared_file, folder) -> Experiment:
    return Experiment(shared_file("stories260K_hf"), folder, NUM_PROMPTS, NUM_HELD_OUT)


@pytest.fixture(scope="module")
def climbed(experiment, folder) -> Point:
    """After one round."""
    (point,) = climb(experiment, folder, beta=0.1, rounds=1, num_samples=4)
    return point


def find(folder: Path, kind: Kind) -> Path:
    """The folder of the only stage of its kind."""
    places = [place for group in find_groups([folder / "runs"]) for place in group.places]
    (found,) = (place.run.path for place in places if place.kind is kind)
    return found


def sum_log_probs(stories: Stories, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        ids = torch.tensor([prompt + answer])
        predicted = stories.model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(dim=-1)
    return predicted.gather(1, torch.tensor(answer)[:, None]).sum().item()


def test_the_first_model_is_where_the_frontier_begins(experiment):
    point = experiment.measure(experiment.model, 0.0, 0, 0, 0.0)
    assert (point.kl_per_token, point.neutral_ratio, point.win_rate) == (0.0, 1.0, 0.5)
    assert point.reward == pytest.approx(sum(reward("", each.text) for each in experiment.told) / NUM_HELD_OUT)


def test_pairs_are_whole_endings_of_the_prompts_that_the_rule_orders(climbed, experiment, folder):
    rows = [json.loads(line) for line in (find(folder, Kind.sample) / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == climbed.pairs > 0
    base = Stories.load(experiment.model)
    for row in rows:
        assert row["prompt"] in experiment.prompts
        assert reward("", row["chosen"]) > reward("", row["rejected"])
        for name in ("chosen", "rejected"):
            whole = base.tokenizer(row["prompt"] + row[name])["input_ids"]
            opening = base.tokenizer(row["prompt"])["input_ids"]
            assert base.text(whole) == row["prompt"] + row[name], "what is trained is what was sampled"
            assert opening[0] == BOS
            assert len(whole) - len(opening) > 0


def test_drift_is_what_plain_transformers_measure(climbed, experiment, folder):
    base, tuned = Stories.load(experiment.model), Stories.load(find(folder, Kind.run) / "model")
    told = experiment.end_stories(experiment.load(find(folder, Kind.run) / "model"))
    pairs = [(prompt, answer.ids) for prompt, answer in zip(experiment.held_out, told, strict=True)]
    nats = sum(sum_log_probs(tuned, *pair) - sum_log_probs(base, *pair) for pair in pairs)
    num_tokens = sum(len(answer) for _, answer in pairs)
    assert climbed.kl_per_token == pytest.approx(nats / num_tokens, abs=1e-5)
    assert climbed.kl_per_ending == pytest.approx(nats / NUM_HELD_OUT, abs=1e-3)
    assert climbed.kl_per_token != 0
    losses = [-stories.log_prob_per_token(experiment.neutral, 1) for stories in (tuned, base)]
    assert climbed.neutral_ratio == pytest.approx(exp(losses[0] - losses[1]), rel=1e-4)
