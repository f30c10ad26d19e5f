"""chrF of answers against a count by hand and the corpus score of the package."""

import math
import time
from collections import Counter

import pytest

from prefopt.config.tasks import TextOverlapTaskConfig
from prefopt.evaluation.tasks import text_overlap as module
from prefopt.evaluation.tasks.task import Answered, Checked
from prefopt.process.errors import UserError

sacrebleu = pytest.importorskip("sacrebleu")


def check(*pairs: tuple[str, str | None]) -> Checked:
    task = module.TextOverlapTask.build(TextOverlapTaskConfig())
    return task.check([Answered("p", answer, chosen) for answer, chosen in pairs])


def chrf_by_hand(answer: str, chosen: str) -> float:
    """chrF2 over sequences of 1 to 6 letters without blanks, of the lengths that both texts have (Popović 2015)."""
    answer, chosen = ("".join(text.split()) for text in (answer, chosen))
    precisions, recalls = [], []
    for n in range(1, 7):
        own, wanted = (
            Counter(text[place : place + n] for place in range(len(text) - n + 1)) for text in (answer, chosen)
        )
        if own and wanted:
            shared = sum((own & wanted).values())
            precisions.append(shared / own.total())
            recalls.append(shared / wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def test_chrf_of_each_answer_is_that_by_hand() -> None:
    pairs = [
        ("the cat sat on the mat", "the cat is on the mat"),
        ("guten Morgen", "good morning"),
        ("same words", "same words"),
    ]
    found = check(*pairs)
    assert found.values["chrf"].tolist() == pytest.approx([chrf_by_hand(*pair) for pair in pairs], abs=1e-9)
    assert found.values["chrf"][2] == pytest.approx(100.0)


def test_chrf_of_the_corpus_is_that_of_the_package() -> None:
    found = check(("ab cd", "ab ce"), ("a much longer answer than that", "a longer answer"), ("x", None))
    expected = sacrebleu.corpus_chrf(["ab cd", "a much longer answer than that"], [["ab ce", "a longer answer"]])
    assert found.details["corpus_chrf"] == pytest.approx(expected.score)
    assert math.isnan(found.values["chrf"][2])
    assert found.details["num_without_chosen"] == 1
    assert check(("x", None)).details["corpus_chrf"] is None


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'prefopt\[judge\]'"):
        module.TextOverlapTask.build(TextOverlapTaskConfig())


def test_hostile_answers_neither_crash_nor_take_long() -> None:
    start = time.perf_counter()
    found = check(("", "a"), ("a", ""), ("\ud800\0", "a\ud800"), ("ab" * 2_000_000, "abc"), (" \n", "a"))
    assert time.perf_counter() - start < 20
    assert found.values["chrf"][0] == 0
    assert found.details["num_cut"] == 1
