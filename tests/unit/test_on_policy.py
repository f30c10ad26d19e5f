"""Pairs of a model's own answers: the best against the worst by a judge, and nothing that would teach wrong things."""

import numpy as np
import pytest

from prefopt.config.schema import DataConfig
from prefopt.data.prompts import read_prompts
from prefopt.data.records import SFTExample
from prefopt.evaluation.on_policy import Counts, make_pairs
from prefopt.evaluation.sampling import Answer
from prefopt.process.errors import UserError
from tests.conftest import write_rows


class Longer:
    """A judge that prefers the longer answer, and of equal length none."""

    name, sees_order = "longer", False

    def read(self, matchups):
        return np.array([float(np.sign(len(each.first) - len(each.second))) for each in matchups])

    def describe(self):
        return {}


def whole(*texts: str) -> list[Answer]:
    return [Answer([1], True, text) for text in texts]


def record(prompt: object, source: str = "p.jsonl:1") -> SFTExample:
    return SFTExample(prompt=prompt, completion="", source=source)


def pairs(records, answers, judge=None) -> tuple[list[dict], Counts]:
    counts = Counts()
    return list(make_pairs(records, answers, judge or Longer(), counts)), counts


def test_the_best_answer_meets_the_worst():
    (row,), counts = pairs([record("Who?")], [whole("aa", "a", "aaa")])
    assert row == {
        "prompt": "Who?", "chosen": "aaa", "rejected": "a", "score_chosen": 2.0, "score_rejected": -2.0,
        "source": "p.jsonl:1",
    }  # fmt: skip
    assert (counts.num_prompts, counts.num_pairs, counts.num_answers) == (1, 1, 3)


def test_prompts_of_messages_get_answers_of_messages():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    (row,), _ = pairs([record(prompt)], [whole("aa", "a")])
    assert row["prompt"] == prompt
    assert row["chosen"] == [{"role": "assistant", "content": "aa"}]


def test_cut_empty_and_repeated_answers_are_left_out_and_counted():
    answers = [*whole("aa", "aa", "", "a"), Answer([1], False, "aaaaaa")]
    (row,), counts = pairs([record("Who?")], [answers])
    assert (row["chosen"], row["rejected"]) == ("aa", "a")
    assert (counts.num_cut, counts.num_equal) == (1, 1)
    none, counts = pairs([record("Who?")], [[*whole("aa"), Answer([1], False, "a")]])
    assert not none
    assert counts.num_alone == 1
    assert "0 pairs, 1 with fewer than two whole different answers" in counts.line()


def test_ties_are_dropped():
    none, counts = pairs([record("a"), record("b")], [whole("xx", "yy"), whole("x", "yy")])
    assert [row["chosen"] for row in none] == ["yy"]
    assert counts.num_tied == 1


def test_a_best_answer_that_does_not_beat_the_worst_itself_is_no_pair():
    class Circle(Longer):
        """a beats b, b beats c, c beats a, and all beat nothing else."""

        beats = frozenset([("a", "b"), ("b", "c"), ("c", "a")])

        def read(self, matchups):
            return np.array([1.0 if (m.first, m.second) in self.beats else -1.0 for m in matchups], dtype=float)

    none, counts = pairs([record("a")], [whole("a", "b", "c")], Circle())
    assert not none
    assert counts.num_tied == 1


def test_only_the_prompt_is_read_and_each_once(tmp_path):
    file = write_rows(
        tmp_path / "p.jsonl",
        [{"prompt": "a", "chosen": "x"}, {"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}],
    )
    found, num_held_out = read_prompts(DataConfig(train=str(file)), "preference")
    assert [each.prompt for each in found] == ["a", [{"role": "user", "content": "a"}]]
    assert num_held_out == 0
    write_rows(file, [{"prompt": "a"}, {"question": "b"}])
    with pytest.raises(UserError, match=r"p.jsonl:2: .*needs a field 'prompt'"):
        read_prompts(DataConfig(train=str(file)), "preference")
