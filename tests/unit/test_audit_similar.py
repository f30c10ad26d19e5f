"""Near-duplicates and near-leaks, against comparing each row with each."""

# ruff: noqa: RUF001 (text in many scripts is what these tests are about)
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.audit import minhash
from prefopt.data.audit.words import MIXER, distinct, hash_runs, hash_words, split_words
from prefopt.data.records import SFTExample
from tests.audit_rows import chat, found, pair, pairs, rows_of, run

WORDS = [f"w{number}" for number in range(400)]


def sentence(draw: random.Random, length: int) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def edited(text: str, draw: random.Random, num_edits: int) -> str:
    words = text.split()
    for place in draw.sample(range(len(words)), num_edits):
        words[place] = f"new{draw.randrange(10**6)}"
    return " ".join(words)


def test_chinese_is_split_into_characters_and_english_into_words():
    assert split_words(" two\nwords ") == ["two", "words"]
    assert split_words("我们今天去公园里散步，天气非常好。") == list("我们今天去公园里散步，天气非常好。")
    assert split_words("") == []


def test_the_number_of_a_run_depends_on_its_words_and_their_order_alone():
    texts = [["a", "b", "c", "d"], ["c", "a", "b", "c"], ["b", "a"], [], ["c", "d"]]
    runs, owners = hash_runs(*hash_words(texts), 2)
    expected = [(row, tuple(words[i : i + 2])) for row, words in enumerate(texts) for i in range(len(words) - 1)]
    assert owners.tolist() == [row for row, _ in expected]
    names = {}
    assert all(names.setdefault(run, words) == words for run, (_, words) in zip(runs.tolist(), expected, strict=True))
    assert len(names) == len({words for _, words in expected})
    assert MIXER % 2 == 1, "else numbers would collide"


def test_distinct_numbers_are_those_of_numpy():
    draw = np.random.default_rng(0)
    for size in (0, 1, 2, 500):
        numbers = draw.integers(0, 100, size)
        assert distinct(numbers).tolist() == np.unique(numbers).tolist()


def test_jaccard_is_the_share_of_common_words():
    assert minhash.jaccard("a b c d", "b a e") == 2 / 5
    assert minhash.jaccard("", "") == 1
    assert minhash.jaccard("a", "") == 0


def test_almost_every_pair_of_similar_texts_is_a_candidate():
    """The chance to miss one at a Jaccard index of 0.8 is 5 %, and 2e-4 at 0.9."""
    draw = random.Random(0)
    texts, expected = [], 0
    for _ in range(300):
        text = sentence(draw, 60)
        texts += [text, edited(text, draw, draw.randrange(1, 6))]
    keys = minhash.band_keys(texts)
    candidates = {tuple(each) for each in minhash.pairs_within(keys).tolist()}
    similar = [i for i in range(0, 600, 2) if minhash.jaccard(texts[i], texts[i + 1]) >= 0.8]
    expected = sum((i, i + 1) in candidates for i in similar)
    assert len(similar) > 250
    assert expected / len(similar) > 0.97
    between = {tuple(each) for each in minhash.pairs_between(keys[::2], keys[1::2]).tolist()}
    assert sum((i // 2, i // 2) in between for i in similar) / len(similar) > 0.97


def test_sketches_of_forked_processes_are_those_of_the_parent():
    """A process that was forked after its parent had made sketches once waited for ever."""
    texts = [sentence(random.Random(row), 30) for row in range(20)]
    here = minhash.band_keys(texts)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        there = pool.submit(minhash.band_keys, texts).result(timeout=120)
    assert (here == there).all()


def test_near_duplicates_are_those_that_comparing_each_with_each_finds():
    draw = random.Random(1)
    rows = [(sentence(draw, 10), sentence(draw, 20), sentence(draw, 20)) for _ in range(60)]
    rows += [(edited(a, draw, 1), edited(b, draw, 1), edited(c, draw, 1)) for a, b, c in rows[:12]]
    rows += [(edited(a, draw, 4), edited(b, draw, 8), edited(c, draw, 8)) for a, b, c in rows[20:40]]
    draw.shuffle(rows)
    texts = ["\n".join(row) for row in rows]
    slow = {j for i, j in combinations(range(len(texts)), 2) if minhash.jaccard(texts[i], texts[j]) >= 0.8}
    finding = found("near_duplicate", pairs(*rows))
    assert rows_of(finding) == sorted(slow)
    assert len(slow) == 12
    assert finding.values["groups"] == 12
    for chunk_rows in (1, 7, 50):
        assert rows_of(found("near_duplicate", pairs(*rows), chunk_rows=chunk_rows)) == sorted(slow)


def test_a_group_counts_the_rows_beyond_its_first_and_names_it():
    draw = random.Random(2)
    row = (sentence(draw, 30), sentence(draw, 30), sentence(draw, 30))
    rows = [row, *(tuple(edited(text, draw, 1) for text in row) for _ in range(3)), (sentence(draw, 90), "x", "y")]
    finding = found("near_duplicate", pairs(*rows))
    assert rows_of(finding) == [1, 2, 3]
    assert finding.values["groups"] == 1
    assert finding.share == 3 / 5
    assert all("rows.jsonl:" in example.detail and "%" in example.detail for example in finding.examples)


def test_equal_rows_are_left_to_the_check_of_duplicates():
    draw = random.Random(3)
    row = (sentence(draw, 30), sentence(draw, 30), sentence(draw, 30))
    near = (row[0], row[1], edited(row[2], draw, 1))
    assert rows_of(found("near_duplicate", pairs(row, row, row))) == []
    assert rows_of(found("near_duplicate", pairs(row, row, near, row))) == [2]


def test_swapped_pairs_and_several_pairs_of_one_long_prompt_are_no_near_duplicates():
    draw = random.Random(4)
    prompt, answers = sentence(draw, 300), [sentence(draw, 15) for _ in range(4)]
    rows = [(prompt, answers[0], answers[1]), (prompt, answers[1], answers[0]), (prompt, answers[2], answers[3])]
    assert minhash.jaccard("\n".join(rows[0]), "\n".join(rows[2])) >= 0.8
    assert rows_of(found("near_duplicate", pairs(*rows))) == []


def test_rows_of_few_words_are_not_compared():
    assert rows_of(found("near_duplicate", pairs(("a b c", "d", "e"), ("a b c ", "d", "e")))) == []


def test_chinese_rows_are_compared_by_their_characters():
    row = (
        "请介绍一下北京的历史和文化特点。",
        "北京是中国的首都，有三千多年的建城史，文化底蕴深厚，名胜古迹众多。",
        "不知道。",
    )
    near = (row[0], row[1].replace("众多", "很多"), row[2])
    assert rows_of(found("near_duplicate", pairs(row, near))) == [1]


def test_more_pairs_than_are_compared_are_judged_by_their_sketches_and_counted(monkeypatch):
    draw = random.Random(5)
    rows = [(sentence(draw, 30), sentence(draw, 30), sentence(draw, 30)) for _ in range(10)]
    rows += [tuple(edited(text, draw, 1) for text in row) for row in rows]
    compared = found("near_duplicate", pairs(*rows))
    monkeypatch.setattr(minhash, "MAX_COMPARED", 0)
    trusted = found("near_duplicate", pairs(*rows))
    assert rows_of(trusted) == rows_of(compared) == list(range(10, 20))
    assert (compared.values["uncompared"], trusted.values["uncompared"]) == (0, 10)
    assert "10 pairs of rows were judged by their sketches" in trusted.summary
    train, held_out = ([*map(pair, (row[0] for row in half))] for half in (rows[:10], rows[10:]))
    leaks = found("near_leakage", train, held_out=held_out)
    assert len(rows_of(leaks, "held_out")) == leaks.values["uncompared"] == 10
    assert "10 were judged by their sketches" in leaks.summary


def test_a_held_out_prompt_with_a_word_changed_has_leaked():
    draw = random.Random(6)
    prompts = [sentence(draw, 12) for _ in range(30)]
    train = [pair(prompt, line=line) for line, prompt in enumerate(prompts, start=1)]
    held_out = [pair(edited(prompts[3], draw, 1)), pair(sentence(draw, 12)), pair(prompts[5].upper())]
    finding = found("near_leakage", train, held_out=held_out)
    assert rows_of(finding, "held_out") == [0, 2]
    assert finding.share == 2 / 3
    assert "rows.jsonl:4" in finding.examples[0].detail
    assert rows_of(found("near_leakage", train, held_out=held_out, chunk_rows=1), "held_out") == [0, 2]


def test_equal_prompts_are_left_to_the_check_of_leakage_but_not_under_another_system_prompt():
    question = sentence(random.Random(7), 20)
    assert rows_of(found("near_leakage", [pair(question)], held_out=[pair(f" {question}\n")]), "held_out") == []
    train = [chat("Be brief.", question, "Yes.")]
    finding = found("near_leakage", train, held_out=[chat("Be polite.", question, "Yes."), *train])
    assert rows_of(finding, "held_out") == [0]


def covered_slowly(text: str, train: list[str]) -> float:
    runs = [{tuple(words[i : i + 8]) for i in range(len(words) - 7)} for words in map(str.split, train)]
    words = text.split()
    own = [tuple(words[i : i + 8]) for i in range(len(words) - 7)]
    return sum(run in set().union(*runs) for run in own) / len(own)


def test_a_prompt_that_several_training_prompts_cover_has_leaked_from_more_than_half_on():
    draw = random.Random(8)
    parts = [sentence(draw, 40) for _ in range(8)]
    train = [f"{sentence(draw, 30)} {part} {sentence(draw, 30)}" for part in parts]
    held_out = [" ".join([*draw.sample(parts, num), sentence(draw, 40)]) for num in range(8)]
    shares = [covered_slowly(text, train) for text in held_out]
    assert 0 < sum(share > 0.5 for share in shares) < 8
    finding = found("near_leakage", [*map(pair, train)], held_out=[*map(pair, held_out)])
    assert rows_of(finding, "held_out") == [row for row, share in enumerate(shares) if share > 0.5]


def test_rows_of_named_files_are_compared_and_rows_of_text_by_their_text():
    text = sentence(random.Random(9), 30)
    train = [SFTExample(text=text, source="rows.jsonl:1")]
    finding = found("near_leakage", train, **{"bench.jsonl": [replace(train[0], text=f"{text} more")]})
    assert rows_of(finding, "bench.jsonl") == [0]
    assert finding.values["by_split"] == {"bench.jsonl": 1}


def test_there_is_no_finding_without_rows_to_compare_with():
    assert run("near_leakage", [pair()]) is None
    assert run("near_leakage", [pair()], held_out=[pair("Bye")]) is not None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_any_text_can_be_compared(texts):
    rows = [pair(text, text * 2, text * 3, line) for line, text in enumerate([*texts, "\ud800" * 30, ""])]
    found("near_duplicate", rows)
    found("near_leakage", rows, held_out=rows[:2])


def test_rows_that_differ_in_the_case_of_letters_are_near_duplicates() -> None:
    texts = (
        "How do I bake bread at home without any yeast?",
        "Use soda and buttermilk instead.",
        "You cannot do that.",
    )
    other = (texts[0].upper(), *texts[1:])
    repeated = found("near_duplicate", pairs(texts, other))
    assert rows_of(repeated) == [1]
    assert repeated.summary.startswith("1 row repeats another in nearly the same words (1 group, of 2 rows)")
