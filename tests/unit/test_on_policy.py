"""Pairs of a model's own answers: the best against the worst by a judge, and nothing that would teach wrong things."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.config.choices import OnBadRow
from prefopt.config.schema import DataConfig
from prefopt.data.prompts import read_prompts
from prefopt.data.records import SFTExample
from prefopt.evaluation.on_policy import Counts, continue_text, make_pairs
from prefopt.evaluation.sampling import Answer
from prefopt.process.errors import UserError
from prefopt.sample import main as sample
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


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (Counts(num_prompts=10, num_answers=30, num_cut=30, num_alone=10), "evaluation.max_new_tokens"),
        (Counts(num_prompts=10, num_answers=30, num_unread=10), "hardly any verdict"),
        (Counts(num_prompts=10, num_answers=30, num_tied=9), "finds most answers equal"),
        (Counts(num_prompts=10, num_answers=30, num_equal=20, num_alone=10), "More samples"),
    ],
)
def test_where_no_pair_is_left_the_remedy_is_that_of_what_took_them(counts, said):
    assert said in counts.remedy()


def test_prompts_of_messages_get_answers_of_messages():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    (row,), _ = pairs([record(prompt)], [whole("aa", "a")])
    assert row["prompt"] == prompt
    assert row["chosen"] == [{"role": "assistant", "content": "aa"}]


def test_cut_empty_and_repeated_answers_are_left_out_and_counted():
    answers = [*whole("aa", "aa", "", "a"), Answer([1], False, "aaaaaa")]
    (row,), counts = pairs([record("Who?")], [answers])
    assert (row["chosen"], row["rejected"]) == ("aa", "a")
    assert (counts.num_answers, counts.num_cut, counts.num_equal, counts.num_empty) == (5, 1, 1, 1)
    assert "(5 answers, 1 cut at the limit, 1 repeated, 1 empty)" in counts.line()
    none, counts = pairs([record("Who?")], [[*whole("aa"), Answer([1], False, "a")]])
    assert not none
    assert counts.num_alone == 1
    assert "0 pairs, 1 with fewer than two whole different answers" in counts.line()


def test_ties_are_dropped():
    none, counts = pairs([record("a"), record("b")], [whole("xx", "yy"), whole("x", "yy")])
    assert [row["chosen"] for row in none] == ["yy"]
    assert counts.num_tied == 1


def test_prompts_without_a_verdict_are_counted_apart_from_ties():
    class Silent(Longer):
        """Reads nothing that has a question mark."""

        def read(self, matchups):
            silent = ["?" in each.first + each.second for each in matchups]
            return np.where(silent, np.nan, super().read(matchups))

    answers = [whole("a?", "aa?"), whole("aa", "bb"), whole("a", "aa", "aaaa?"), whole("b?", "aaa", "a?")]
    found, counts = pairs([record(name) for name in "wxyz"], answers, Silent())
    assert [row["chosen"] for row in found] == ["aa"]
    assert (counts.num_unread, counts.num_tied, counts.num_pairs) == (2, 1, 1)
    assert "1 tied, 2 without a verdict" in counts.line()


def test_a_best_answer_that_does_not_beat_the_worst_itself_is_no_pair():
    class Circle(Longer):
        """a beats b, b beats c, c beats a, and all beat nothing else."""

        beats = frozenset([("a", "b"), ("b", "c"), ("c", "a")])

        def read(self, matchups):
            return np.array([1.0 if (m.first, m.second) in self.beats else -1.0 for m in matchups], dtype=float)

    none, counts = pairs([record("a")], [whole("a", "b", "c")], Circle())
    assert not none
    assert counts.num_tied == 1


def test_an_answer_that_goes_on_with_a_text_keeps_the_blank_before_it():
    words = {"[UNK]": 0, "▁once": 1, "▁upon": 2, "▁a": 3}
    backend = Tokenizer(models.WordLevel(words, "[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    prompt, ids = [1, 2], [3, 1]
    assert tokenizer.decode(ids) == "a once", "what would be joined to the word before"
    text = continue_text(prompt, ids, tokenizer)
    assert tokenizer(f"once upon{text}")["input_ids"] == [*prompt, *ids]


def test_prompts_are_asked_with_the_system_prompt_of_the_training(tmp_path):
    file = write_rows(tmp_path / "p.jsonl", [{"prompt": "Who?"}])
    (found,), _ = read_prompts(DataConfig(train=str(file), system="Be brief."), "preference")
    assert found.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]


def test_a_held_out_prompt_is_found_in_either_form(tmp_path):
    asked = write_rows(tmp_path / "p.jsonl", [{"prompt": "Who?"}, {"prompt": "What?"}])
    turns = {name: [{"role": role, "content": text}] for name, role, text in (
        ("prompt", "user", "Who? "), ("chosen", "assistant", "I."), ("rejected", "assistant", "You."),
    )}  # fmt: skip
    held_out = write_rows(tmp_path / "h.jsonl", [turns])
    config = DataConfig(train=str(asked), held_out=str(held_out), on_overlap=OnBadRow.skip)
    (left,), num_held_out = read_prompts(config, "preference")
    assert (left.prompt, num_held_out) == ("What?", 1)
    with pytest.raises(UserError, match=r"p\.jsonl:1: this training row has the same prompt"):
        read_prompts(DataConfig(train=str(asked), held_out=str(held_out)), "preference")


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


def test_overwrite_without_a_file_is_refused_and_told_what_replaces_a_folder(fails):
    told = fails(sample, ["prompts.jsonl", "--overwrite"])
    assert told.startswith("error: --overwrite: replaces the file of --output")
    assert "run.overwrite=true" in told
