"""Task metrics on public data: a simple classifier on PolyAI's banking77, and the style of the shipped study."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.config.tasks import LabelTaskConfig, StyleTaskConfig
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.tasks.label import LabelTask
from prefopt.evaluation.tasks.style import StyleTask
from prefopt.evaluation.tasks.task import Answered, TaskContext
from tests.conftest import STUDY

metrics = pytest.importorskip("sklearn.metrics")


def test_the_baseline_of_banking77_is_what_tf_idf_gets(shared_file: Callable[[str], Path]) -> None:
    with gzip.open(shared_file("banking77_train.csv.gz"), "rt", encoding="utf-8") as file:
        trained = [LabelledPair(row["text"], row["category"], "") for row in csv.DictReader(file)]
    with shared_file("banking77_test.csv").open(encoding="utf-8") as file:
        test = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    task = LabelTask.learn(LabelTaskConfig(), TaskContext(trained, seed=0))
    assert sorted(task.labels) == sorted(json.loads(shared_file("banking77_categories.json").read_text()))
    assert task.baseline is not None
    answers = task.baseline.predict([prompt for prompt, _ in test])
    labels = [label for _, label in test]
    asked = [Answered(prompt, answer, label) for (prompt, label), answer in zip(test, answers, strict=True)]
    found = task.check(asked)
    assert 0.89 < found.values["accuracy"].mean() < 0.92
    assert found.values["accuracy"].mean() == pytest.approx(metrics.accuracy_score(labels, answers))
    assert found.values["macro_f1"].mean() == pytest.approx(metrics.f1_score(labels, answers, average="macro"))
    assert found.details["baseline"]["accuracy"]["value"] == pytest.approx(found.values["accuracy"].mean())
    assert found.details["baseline"]["gain"]["value"] == 0.0


def test_letters_tell_the_voice_of_the_study_on_prompts_that_were_not_trained() -> None:
    def read(name: str) -> list[LabelledPair]:
        rows = map(json.loads, (STUDY / name).read_text(encoding="utf-8").splitlines())
        return [LabelledPair(*(row[side][-1]["content"] for side in ("prompt", "chosen", "rejected"))) for row in rows]

    trained, held_out = read("train.jsonl"), read("held_out.jsonl")
    task = StyleTask.learn(StyleTaskConfig(), TaskContext(trained, seed=0))
    chosen, rejected = (
        task.check([Answered(pair.prompt, getattr(pair, side), pair.chosen) for pair in held_out]).values["in_style"]
        for side in ("chosen", "rejected")
    )
    assert metrics.roc_auc_score([1] * 132 + [0] * 132, [*chosen, *rejected]) > 0.99
    assert (chosen > rejected).all()
