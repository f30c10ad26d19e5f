"""Labels in answers, against scikit-learn's scores, counts by hand and a simulation."""

import json
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from prefopt.config.tasks import LabelTaskConfig
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.statistics import Bootstrap
from prefopt.evaluation.tasks import label, label_baseline
from prefopt.evaluation.tasks.label import NONE, LabelTask, macro_f1_terms
from prefopt.evaluation.tasks.task import Answered, Checked, TaskContext
from prefopt.process.errors import UserError

metrics = pytest.importorskip("sklearn.metrics")

TRAINED = [
    LabelledPair(f"{greeting} my card was {word} again", label, "billing")
    for word, label in (("lost", "card"), ("charged twice", "billing"), ("raining", "other"))
    for greeting in ("hello", "hi", "good day", "so")
]


def build(trained: Sequence[LabelledPair] = TRAINED, **settings: object) -> LabelTask:
    return LabelTask.learn(LabelTaskConfig(**settings), TaskContext(trained, seed=0))


def check(task: LabelTask, *pairs: tuple[str, str | None], prompt: str = "hi my card was lost") -> Checked:
    return task.check([Answered(prompt, answer, chosen) for answer, chosen in pairs])


def test_labels_are_those_of_the_training_data_or_of_the_settings() -> None:
    assert build().labels == ("billing", "card", "other")
    assert build(labels=["card", "x"]).labels == ("card", "x")
    assert build(out_of_scope="none of these").labels == ("billing", "card", "other", "none of these")


def test_accuracy_and_what_is_no_label_are_by_hand() -> None:
    found = check(
        build(), ("card", "card"), (" card\n", "card"), ("Card.", "card"), ("I think it is card", "card"),
        ("other", "card"), ("card", "no label of all"), ("", "other"),
    )  # fmt: skip
    accuracy = found.values["accuracy"]
    assert accuracy[:5].tolist() == [1, 1, 0, 0, 0]
    assert math.isnan(accuracy[5])
    assert accuracy[6] == 0
    assert found.values["is_label"].tolist() == [True, True, False, False, True, True, False]
    assert found.details["num_without_label"] == 1
    assert found.details["num_nearly"] == 1
    assert found.details["commonest_without_label"] == {"Card.": 1, "I think it is card": 1, "": 1}
    confusion = found.details["confusion"]
    assert confusion["labels"] == ["billing", "card", "other", "(no label)"]
    assert confusion["counts"] == [[0, 0, 0, 0], [0, 2, 1, 2], [0, 0, 0, 1]]
    assert found.details["confused"][0] == {"chosen": "card", "answer": "(no label)", "n": 2}
    assert found.details["per_class"]["card"] == {
        "precision": 1.0,
        "recall": 2 / 5,
        "f1": pytest.approx(4 / 7),
        "n": 5,
    }
    assert found.details["per_class"]["billing"] == {"precision": None, "recall": None, "f1": None, "n": 0}


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truths = rng.choice(["billing", "card", "other"], 200, p=[0.6, 0.3, 0.1])
    answers = np.where(rng.random(200) < 0.6, truths, rng.choice(["billing", "card", "other", "dunno"], 200))
    found = check(build(), *zip(answers.tolist(), truths.tolist(), strict=True))
    labels = ["billing", "card", "other"]
    expected = metrics.f1_score(truths, answers, labels=labels, average="macro")
    assert found.details["macro_f1"] == pytest.approx(expected)
    assert found.values["macro_f1"].mean() == pytest.approx(expected)
    assert found.values["accuracy"].mean() == metrics.accuracy_score(truths, answers)
    for key, score in (("precision", metrics.precision_score), ("recall", metrics.recall_score)):
        got = [found.details["per_class"][label][key] for label in labels]
        assert got == pytest.approx(score(truths, answers, labels=labels, average=None).tolist())
    table = metrics.confusion_matrix(truths, answers, labels=[*labels, "dunno"])
    assert found.details["confusion"]["counts"] == table[:3].tolist()


def test_the_terms_of_the_macro_f1_are_its_derivatives() -> None:
    rng = np.random.default_rng(1)
    truths, given = rng.integers(0, 4, 60), rng.integers(-1, 4, 60)
    terms = macro_f1_terms(truths, given, 4)
    step, n = 1e-6, 60

    def weighted(weights: np.ndarray) -> float:
        scores = [
            2 * weights[(truths == k) & (given == k)].sum() / (weights[truths == k].sum() + weights[given == k].sum())
            for k in range(4)
        ]
        return float(np.mean(scores))

    for row in range(0, n, 7):
        weights = np.full(n, (1 - step) / n)
        weights[row] += step
        slope = (weighted(weights) - weighted(np.full(n, 1 / n))) / step
        assert terms[row] - terms.mean() == pytest.approx(slope, abs=1e-4)


def test_the_interval_of_the_macro_f1_holds_the_truth() -> None:
    rng = np.random.default_rng(2)
    sizes, right = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.9, 0.7, 0.8, 0.6])
    guess = np.array([0.4, 0.3, 0.2, 0.1])

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        truths = rng.choice(4, num, p=sizes)
        return truths, np.where(rng.random(num) < right[truths], truths, rng.choice(4, num, p=guess))

    truth = macro_f1_terms(*draw(1_000_000), 4).mean()
    held = 0
    for round_ in range(300):
        terms = macro_f1_terms(*draw(300), 4)
        found = Bootstrap(500, seed=round_).mean(terms)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 300 <= 0.99


def test_out_of_scope_recall_is_of_the_prompts_that_belong_nowhere() -> None:
    task = build(labels=["card", "other", "none"], out_of_scope="none")
    found = check(task, ("none", "none"), ("card", "none"), ("card", "card"), ("none", "other"))
    recall = found.values["out_of_scope_recall"]
    assert recall[:2].tolist() == [1, 0]
    assert np.isnan(recall[2:]).all()


def test_a_pattern_says_where_the_label_stands() -> None:
    trained = [LabelledPair(pair.prompt, f"Label: {pair.chosen}.", "") for pair in TRAINED]
    task = build(trained, pattern=r"[Ll]abel: (\w+)")
    found = check(task, ("So, label: card", "Label: card."), ("card", "Label: card."), ("Label: x", "Label: card."))
    assert task.labels == ("billing", "card", "other")
    assert found.values["accuracy"].tolist() == [1, 0, 0]
    assert found.values["is_label"].tolist() == [True, False, False]


def test_a_pattern_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "SEARCH_LIMIT_S", 1)
    task = build(labels=["card"], pattern="^((?:a+)+)$")
    with pytest.raises(UserError, match=r"it takes more than 1 s to find it.*repetition in a repetition"):
        check(task, ("a" * 40 + "!", "card"))


def test_the_baseline_is_compared_on_the_same_prompts() -> None:
    task = build()
    answers = [
        Answered("hi my card was lost once", "other", "card"),
        Answered("it is raining so much", "other", "other"),
        Answered("charged twice, twice", "card", "billing"),
    ]
    found = task.check(answers).details["baseline"]
    assert found["accuracy"]["value"] == 1.0
    assert found["macro_f1"] == 1.0
    assert found["gain"]["value"] == pytest.approx(-2 / 3)
    assert "12 pairs" in found["model"]


def test_without_scikit_learn_the_baseline_is_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(label_baseline, "find_spec", lambda name: None)
    found = check(build(), ("card", "card"))
    assert "scikit-learn is not installed" in found.details["baseline"]["left_out"]
    assert "scikit-learn is not installed" in caplog.text
    assert found.values["accuracy"].tolist() == [1]


@pytest.mark.parametrize("trained", [[], [LabelledPair("?! 1", "a", ""), LabelledPair("", "b", "")]])
def test_prompts_without_words_or_no_pairs_leave_the_baseline_out(trained: list[LabelledPair]) -> None:
    assert build(trained, labels=["a", "b"]).baseline is None


def test_free_text_is_no_label() -> None:
    trained = [LabelledPair(f"p{number}", f"a long answer {number}", "") for number in range(50)]
    with pytest.raises(UserError, match=r"no labels: 50 different ones in 50 pairs.*labels: \["):
        build(trained)
    with pytest.raises(UserError, match="no training pair has a label"):
        build([])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "label"}, "no group"),
        ({"labels": ["a", "a"]}, "twice"),
        ({"labels": [" "]}, "not empty"),
        ({"labels": [1]}, "texts"),
        ({"labels": ["a"], "out_of_scope": "b"}, "one of"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        LabelTaskConfig(**settings)


def test_hostile_answers_neither_crash_nor_take_long() -> None:
    start = time.perf_counter()
    hostile = ["", "\0", "\ud800", "card" * 2_000_000, " " * 5_000_000, "card\0"]
    for settings in ({}, {"labels": ["card"], "pattern": r"(\w+)"}):
        found = check(build(**settings), *((text, "card") for text in hostile), prompt="\ud800 hi")
        assert len(found.values["accuracy"]) == len(hostile)
        json.dumps(dict(found.details), allow_nan=False, ensure_ascii=False).encode()
    assert check(build()).values["accuracy"].shape == (0,)
    assert NONE == -1
    assert time.perf_counter() - start < 10
