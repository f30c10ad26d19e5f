"""Distances between the styles of two models: measures by hand, and what chance does."""

import json
import time
from collections import Counter

import numpy as np
import pytest

from prefopt.evaluation import style_distance as module
from prefopt.evaluation.style_distance import FEWEST_TEXTS, FUNCTION_WORDS, style_distance

TEXT = "the tent and rope is here you can come for it at any time of day we have more than one so do not wait"
PLAIN = TEXT.split()


def write(rng: np.random.Generator, num: int, words: list[str] = PLAIN) -> list[str]:
    return [" ".join(rng.choice(words, rng.integers(25, 40))) + "." for _ in range(num)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 99)
    monkeypatch.setattr(module, "NUM_FEATURES", 256)


def test_models_that_write_alike_rarely_differ_and_are_as_far_as_halves(quick: None) -> None:
    rng = np.random.default_rng(0)
    found = [style_distance(write(rng, 30), write(rng, 30), seed) for seed in range(100)]
    # By chance at most 5 in 100, of which 11 and more happen in 1 of 100 such tests.
    assert sum(each.differs for each in found) <= 10
    for key in ("ngram_cosine", "delta", "length", "punctuation", "type_token"):
        ratios = [each.distances[key].ratio for each in found]
        assert 0.8 < np.mean(ratios) < 1.25, key


def test_a_model_that_writes_otherwise_is_far(quick: None) -> None:
    rng = np.random.default_rng(1)
    base = write(rng, 40)
    tuned = [text.replace("the", "a").replace(".", "!!!") + " hooray" for text in base]
    found = style_distance(base, tuned)
    assert found.differs
    assert found.p_value == pytest.approx(1 / 100)
    assert found.distances["punctuation"].ratio > 5
    assert found.distances["ngram_cosine"].p_value == pytest.approx(1 / 100)


def test_equal_answers_have_no_distance(quick: None) -> None:
    texts = write(np.random.default_rng(2), 20)
    found = style_distance(texts, texts)
    assert [each.value for each in found.distances.values()] == pytest.approx([0.0] * 5, abs=1e-6)
    assert found.p_value == 1.0
    assert not found.differs


def test_distances_are_those_by_hand() -> None:
    rng = np.random.default_rng(3)
    base, tuned = write(rng, 12), write(rng, 12, [*PLAIN, "the", "moreover,"])
    found = style_distance(base, tuned).distances
    lengths, others = ([len(text.split()) for text in side] for side in (base, tuned))
    assert found["length"].value == pytest.approx(abs(np.mean(lengths) - np.mean(others)) / np.std(lengths))

    def rates(text: str) -> np.ndarray:
        words = [word.strip(".,") for word in text.split()]
        return np.array([words.count(word) / len(words) for word in FUNCTION_WORDS])

    first, second = (np.array([rates(text) for text in side]) for side in (base, tuned))
    spread = first.std(axis=0)
    used = spread > 0
    delta = (np.abs(first.mean(axis=0) - second.mean(axis=0))[used] / spread[used]).mean()
    assert found["delta"].value == pytest.approx(delta)
    grams, counts = [
        Counter(text[i : i + n] for text in side for n in (3, 4, 5) for i in range(len(text) - n + 1))
        for side in (base, tuned)
    ]
    dot = sum(grams[gram] * counts[gram] for gram in grams)
    norms = [sum(count**2 for count in side.values()) ** 0.5 for side in (grams, counts)]
    assert len(grams | counts) < module.NUM_FEATURES
    assert found["ngram_cosine"].value == pytest.approx(1 - dot / (norms[0] * norms[1]), abs=1e-5)


def test_what_cannot_be_measured_is_left_out(quick: None) -> None:
    texts = [f"привет мир {number}" * 2 for number in range(20)]
    found = style_distance(texts, texts[::-1])
    assert "delta" not in found.distances
    assert "type_token" not in found.distances
    assert "ngram_cosine" in found.distances


def test_few_answers_have_no_distance_and_empty_ones_do_not_count() -> None:
    texts = ["some words of an answer"] * FEWEST_TEXTS
    assert style_distance(texts[1:], texts[1:]) is None
    assert style_distance(texts, ["", *texts[1:]]) is None
    with pytest.raises(ValueError, match="shorter"):
        style_distance(texts, texts[1:])


def test_hostile_answers_neither_crash_nor_take_long(quick: None) -> None:
    start = time.perf_counter()
    hostile = ["\0", "\ud800", "x" * 3_000_000, " .", "?" * 10_000, "e" * 10_000, "'" * 10_000, "a b " * 100_000]
    found = style_distance(hostile * 2, hostile[::-1] * 2)
    json.dumps(found.to_dict(), allow_nan=False)
    assert time.perf_counter() - start < 10
