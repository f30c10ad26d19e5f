"""Style of answers: the classifier's quality against pairs counted one by one, words and prose by hand."""

import json
import math
import time
from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from prefopt.config.tasks import StyleTaskConfig
from prefopt.evaluation.judges.judge import LabelledPair
from prefopt.evaluation.prose import DRAWN, Prose, count_syllables
from prefopt.evaluation.statistics import Prompts
from prefopt.evaluation.tasks import style_classifier
from prefopt.evaluation.tasks.style import StyleTask, find_words
from prefopt.evaluation.tasks.style_classifier import StyleClassifier, assess, count_sequences, estimate_auc
from prefopt.evaluation.tasks.task import Answered, Checked, TaskContext
from prefopt.process.errors import UserError

NAMES = ("rope", "tent", "stove", "lamp", "boot", "sack", "map", "knife")
PAIRS = [
    LabelledPair(f"Do you have a {name} {number}?", f"We've got the {name}, come by {number}.",
                 f"The {name} is available at present, reference {number}.")
    for name in NAMES for number in range(5)
]  # fmt: skip


def learn(pairs: list[LabelledPair], **settings: object) -> StyleTask:
    return StyleTask.learn(StyleTaskConfig(**settings), TaskContext(pairs, seed=0))


def check(task: StyleTask, *answers: str) -> Checked:
    return task.check([Answered("p", answer, None) for answer in answers])


class TestClassifier:
    sklearn = pytest.importorskip("sklearn")

    def test_it_tells_the_style_of_answers_to_prompts_that_it_never_saw(self) -> None:
        task = learn(PAIRS)
        found = check(task, "We've got the kettle, come by 9.", "The kettle is available at present, reference 9.", "")
        in_style = found.values["in_style"]
        assert in_style[0] > 0.7
        assert in_style[1] < 0.3
        assert in_style[2] == 0
        assert found.details["num_empty"] == 1
        assert found.details["classifier"]["auc"]["value"] == 1.0
        assert next(iter(found.values)) == "in_style"

    def test_where_there_is_no_style_the_auc_is_that_of_chance(self) -> None:
        rng = np.random.default_rng(0)
        words = np.array(["the", "tent", "is", "here", "we", "have", "it", "now", "rope", "come", "by", "soon"])
        texts = [" ".join(rng.choice(words, 12)) for _ in range(240)]
        pairs = [LabelledPair(str(row), texts[row], texts[row + 120]) for row in range(120)]
        quality = StyleClassifier.learn(pairs, 5, 0).quality
        low, high = quality["auc"]["ci95"]
        assert low < 0.5 < high
        assert 0.2 < quality["brier"] < 0.3

    def test_features_are_the_sequences_of_three_to_five_characters(self) -> None:
        row = count_sequences(["abcdef"])
        assert row.nnz == 4 + 3 + 2  # abc bcd cde def, abcd bcde cdef, abcde bcdef
        assert row.multiply(row).sum() == pytest.approx(1.0)

    def test_auc_and_brier_are_those_of_all_pairs_one_by_one(self) -> None:
        rng = np.random.default_rng(1)
        chosen, rejected = rng.random(40).round(1), rng.random(40).round(1) * 0.8
        beats = mean(float(a > b) + 0.5 * (a == b) for a in chosen for b in rejected)
        assert estimate_auc(chosen, rejected, Prompts.all_different(40), 0).value == pytest.approx(beats)
        found = assess(np.concatenate([chosen, rejected]), np.arange(80) < 40)
        assert found["brier"] == pytest.approx(mean([*((1 - chosen) ** 2), *(rejected**2)]))
        assert sum(each["n"] for each in found["reliability"]) == 80
        top = next(each for each in found["reliability"] if each["mean"] >= 0.9)
        assert top["n"] == (chosen >= 0.9).sum() + (rejected >= 0.9).sum()
        assert top["share_chosen"] == (chosen >= 0.9).sum() / top["n"]

    def test_calibrated_log_odds_are_as_sure_as_right(self) -> None:
        rng = np.random.default_rng(3)
        truth = rng.normal(0.0, 2.0, 20_000)
        is_chosen = rng.random(20_000) < 1 / (1 + np.exp(-truth))
        slope, offset = style_classifier.calibrate(truth / 4 - 1, is_chosen)
        assert (slope, offset) == (pytest.approx(4, rel=0.05), pytest.approx(4, rel=0.05))
        apart = style_classifier.calibrate(np.array([-1.0] * 50 + [1.0] * 50), np.arange(100) >= 50)
        assert 1 / (1 + math.exp(-sum(apart))) == pytest.approx(51 / 52, abs=1e-3)
        assert style_classifier.calibrate(np.array([1.0] * 50 + [-1.0] * 50), np.arange(100) >= 50)[0] == 0.0

    def test_the_interval_of_the_auc_holds_the_truth(self) -> None:
        rng = np.random.default_rng(2)
        truth = 0.5 * (1 + math.erf(1 / 2))  # of two normal distributions one standard deviation apart
        held = 0
        for round_ in range(200):
            shift = rng.normal(size=80) * 0.5  # what the answers of one prompt share
            chosen, rejected = (shift + rng.normal(size=80) * math.sqrt(0.75) + mu for mu in (1.0, 0.0))
            found = estimate_auc(chosen, rejected, Prompts.all_different(80), round_)
            held += found.low <= truth <= found.high
        assert 0.91 <= held / 200 <= 0.99

    def test_answers_to_equal_prompts_are_never_on_both_sides_of_a_trial(self) -> None:
        pairs = [LabelledPair("same", f"chosen {number}", f"rejected {number}") for number in range(30)]
        found = StyleClassifier.learn(pairs, 5, 0)
        assert isinstance(found, str)
        assert "same prompt" in found

    def test_hostile_answers_neither_crash_nor_take_long(self) -> None:
        start = time.perf_counter()
        pairs = [*PAIRS, LabelledPair("\ud800", "\ud800\0 We", "x" * 3_000_000)]
        hostile = ["", "\0", "\ud800", "x" * 5_000_000, "a b " * 500_000, "'" * 100_000, "." * 100_000]
        hostile += ["e" * 100_000, "." * 19_999 + "x", ("." * 999 + "x") * 20, "\n" * 20_000, "\n \t" * 7_000 + "x"]
        found = check(learn(pairs, banned=["\u2019", "a  b", "x"]), *hostile)
        assert all(len(values) == len(hostile) for values in found.values.values())
        assert np.isfinite(found.values["in_style"]).all()
        json.dumps(dict(found.details), allow_nan=False, ensure_ascii=False).encode()
        assert time.perf_counter() - start < 20


def test_without_a_classifier_banned_words_are_the_main_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(style_classifier, "find_spec", lambda name: None)
    found = check(learn(PAIRS, banned=["tent"]), "A tent.", "Attention")
    assert next(iter(found.values)) == "banned"
    assert found.values["banned"].tolist() == [True, False]
    assert found.higher_is_better == {"banned": False}
    assert "scikit-learn is not installed" in found.details["classifier"]["left_out"]
    assert "scikit-learn is not installed" in caplog.text


def test_where_nothing_says_which_answer_is_better_the_task_is_refused() -> None:
    with pytest.raises(UserError, match=r"it needs 20 training pairs with two answers, and there are 0.*banned"):
        learn([LabelledPair("p", "a demonstration", "")] * 50)


def test_banned_words_are_whole_words_in_any_case() -> None:
    texts = ["We CAN\u2019T help", "cant", "kindly note", "Please  do\nthe needful", "unkind", "can't"]
    found = find_words(["can't", "kind", "do the needful"], texts)
    assert found[:, 0].tolist() == [True, False, False, False, False, True]
    assert not found[:, 1].any()
    assert found[:, 2].tolist() == [False, False, False, True, False, False]
    counted = learn([], banned=["can't", "kind"]).check([Answered("p", text, None) for text in texts])
    assert counted.details["banned"] == {"can't": 2, "kind": 0}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_syllables_are_those_of_a_dictionary(number: int) -> None:
    words = {
        1: "make the mile walked makes queue be see whole style rule one die loved smiled pleased I",
        2: "table wanted boxes people agree little changes churches added refund apples cycle rested handled",
        3: "customers important suggested",
        4: "delivery information available",
        5: "readability communicated",
    }
    assert {word: count_syllables(word.lower()) for word in words[number].split()} == dict.fromkeys(
        words[number].split(), number
    )


def test_prose_is_counted_as_by_hand() -> None:
    prose = Prose.of("Hello there, my friend. It costs 27.40! (Really?) Yes\u2026 ok\n\nNew one")
    assert len(prose.words) == 12
    assert prose.num_sentences == 6
    assert prose.num_marks == 8
    assert (prose.sentence_length, prose.punctuation) == (2.0, 8 / 12)
    # 8 words in 2 sentences; 9 syllables, since `table` has two.
    easy = Prose.of("The cat sat down. A table was here.")
    assert easy.reading_ease == pytest.approx(206.835 - 1.015 * 4 - 84.6 * 9 / 8)
    assert Prose.of("Incomprehensibility " * 80).reading_ease == 0.0
    assert math.isnan(Prose.of("... \u00a0").reading_ease)


def test_variety_is_the_expected_share_of_different_words_in_a_draw() -> None:
    words = ["a"] * 4 + ["b"] * 2 + [f"w{number}" for number in range(16)]
    assert len(words) == DRAWN + 2
    by_hand = mean(
        len({word for place, word in enumerate(words) if place not in left}) / DRAWN
        for left in combinations(range(len(words)), 2)
    )
    assert Prose.of(" ".join(words)).type_token == pytest.approx(by_hand)
    assert math.isnan(Prose.of("too few words").type_token)
    short, long = (np.random.default_rng(0).integers(0, 50, num) for num in (60, 2000))
    assert Prose.of(" ".join(f"w{each}" for each in long)).type_token == pytest.approx(
        Prose.of(" ".join(f"w{each}" for each in short)).type_token, abs=0.05
    )
