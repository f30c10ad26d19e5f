"""The checks that need no library, on rows whose right answer is counted by hand, and against slow oracles."""

import random
from typing import Any

import pytest

from prefopt.data.audit.near_identical import jaccard
from prefopt.data.audit.role_order import describe_disorder
from prefopt.data.defects import record_key
from prefopt.data.records import PreferencePair, SFTExample
from tests.audit_rows import found, pair, pairs, rows_of, run


def chat_pair(
    question: str, chosen: str, rejected: str, *, system: str = "", line: int = 1, tools: Any = None
) -> PreferencePair:
    prompt = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": question})
    sides = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return PreferencePair(prompt, *sides, tools, {}, f"rows.jsonl:{line}")


def test_identical_pairs_are_equal_up_to_outer_blanks_and_empty_ones_are_another_check() -> None:
    rows = pairs(("p", "same", " same\n"), ("p", "Same", "same"), ("p", "", ""), ("p", "a", "b"))
    assert rows_of(found("identical", rows)) == [0]
    assert found("identical", rows).share == 1 / 4


def test_equal_texts_with_different_tool_calls_are_not_identical() -> None:
    def call(city: str) -> list[dict[str, Any]]:
        function = {"name": "weather", "arguments": {"city": city}}
        return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]

    prompt = [{"role": "user", "content": "How is the weather?"}]
    row = PreferencePair(prompt, call("Rome"), call("Oslo"), None, {}, "rows.jsonl:1")
    assert found("identical", [row]).count == 0
    assert found("empty", [row]).count == 0
    assert found("contradictory", [row]).count == 0


def test_empty_rows_have_a_side_without_text() -> None:
    assert rows_of(found("empty", pairs(("p", "a", " "), ("p", "a", "b"), ("", "a", "b")))) == [0]
    demonstration = SFTExample(prompt="p", completion="\n", source="rows.jsonl:1")
    assert found("empty", [demonstration]).count == 1


@pytest.mark.parametrize("length", [3, 12, 60, 400])
def test_the_sketch_of_trigrams_loses_no_pair_that_counting_words_finds(length: int) -> None:
    rng = random.Random(length)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    rows = []
    for line in range(300):
        text = rng.choices(words, k=length)
        other = [word if rng.random() > 0.06 * rng.random() else rng.choice(words) for word in text]
        rows.append(pair("p", " ".join(text), " ".join(other), line=line))
    slow = [row for row, each in enumerate(rows) if jaccard(str(each.chosen), str(each.rejected)) > 0.8]
    assert rows_of(found("near_identical", rows, chunk_rows=70)) == slow
    assert len(slow) > 10


def test_near_identical_counts_words_without_case_and_punctuation_and_letters_of_unspaced_scripts() -> None:
    text = "Bring the tea to a boil, then let it rest for five whole minutes."
    rows = pairs(
        ("p", text, text.upper().replace(",", "")),
        ("p", text, "Something else entirely, and of about the same length as that one."),
        (
            "p",
            "彼は毎朝早く起きて公園を走り、それから朝食を食べます。",
            "彼は毎朝早く起きて公園を走り、それから朝食を食べるます。",
        ),
    )
    finding = found("near_identical", rows)
    assert rows_of(finding) == [0, 2]
    assert jaccard("one two", "One, two!") == 1
    assert "100%" in finding.examples[0].detail


def test_contradictory_pairs_have_swapped_sides_after_blanks_are_normalised() -> None:
    rows = pairs(
        ("p q", "good", "bad"),
        ("p  q", "bad ", "good"),
        ("other", "bad", "good"),
        ("p q", "same", "same"),
        ("p q", "good", "worse"),
    )
    finding = found("contradictory", rows)
    assert rows_of(finding) == [0, 1]
    assert [(each.source, each.detail) for each in finding.examples] == [("rows.jsonl:1", "contradicts rows.jsonl:2")]


def test_contradictions_need_the_same_system_prompt_and_tools() -> None:
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    first = chat_pair("q", "a", "b", system="Be short.")
    assert found("contradictory", [first, chat_pair("q", "b", "a", line=2)]).count == 0
    assert found("contradictory", [first, chat_pair("q", "b", "a", system="Be short.", tools=tools)]).count == 0
    assert found("contradictory", [first, chat_pair("q", "b", "a", system="Be short.")]).count == 2


def test_contradictions_are_found_across_splits_and_chunks() -> None:
    rows = [pair("p", "a", "b", line=line) for line in range(1, 6)]
    finding = found("contradictory", rows, chunk_rows=2, held_out=pairs(("p", "b", "a")))
    assert (rows_of(finding), rows_of(finding, "held_out")) == ([0, 1, 2, 3, 4], [0])


def test_duplicates_are_the_rows_beyond_the_first_of_equal_ones_within_a_split() -> None:
    rows = pairs(("p", "a", "b"), ("p", "a", "b "), ("p", "a", "b"), ("p", "a", "b"), ("p", "b", "a"))
    finding = found("duplicate", rows, chunk_rows=2, held_out=pairs(("p", "a", "b")))
    assert (rows_of(finding), rows_of(finding, "held_out")) == ([2, 3], [])
    assert finding.examples[0].detail == "repeats rows.jsonl:1"


def call(name: str) -> dict[str, Any]:
    """A message without content."""
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {}}}]}


def test_answers_that_are_calls_alone_contradict_each_other() -> None:
    prompt = [{"role": "user", "content": "How is the weather?"}]
    rows = [
        PreferencePair(prompt, [call(chosen)], [call(rejected)], None, {}, f"rows.jsonl:{line}")
        for line, (chosen, rejected) in enumerate(("fg", "gf", "fh"), start=1)
    ]
    assert rows_of(found("contradictory", rows)) == [0, 1]


def test_duplicates_are_those_that_reading_counts() -> None:
    message = {"role": "assistant", "content": "a"}
    rows = [
        chat_pair("q", "a", "b"),
        chat_pair("q", "a", "b", line=2),
        chat_pair("q", "a", "b", system="s", line=3),
        chat_pair("q", "a", "b", tools=[{"name": "t"}], line=4),
        PreferencePair("q", "a", "b", None, {}, "rows.jsonl:5"),
        PreferencePair([{"role": "user", "content": "q"}], [message, message], [message], None, {}, "rows.jsonl:6"),
        PreferencePair([{"role": "user", "content": "q"}], [{**message, "name": "n"}], [message], None, {}, "x:7"),
        PreferencePair([{"role": "user", "content": "q"}], [{**message, "name": "m"}], [message], None, {}, "x:8"),
        *(PreferencePair([{"role": "user", "content": "q"}], [call(f)], [message], None, {}, f"x:{f}") for f in "fg"),
    ]
    assert found("duplicate", rows).count == len(rows) - len({record_key(row) for row in rows}) == 1


def test_leaked_are_training_rows_with_a_held_out_prompt() -> None:
    train = pairs(("What is it?", "a", "b"), ("What  is it? ", "c", "d"), ("Else", "a", "b"))
    finding = found("leakage", train, held_out=pairs(("What is it?", "x", "y")))
    assert rows_of(finding) == [0, 1]
    assert finding.share == 2 / 3
    assert finding.examples[0].detail == "has the prompt of rows.jsonl:1"


def test_files_to_compare_with_leak_by_their_question_whatever_the_system_prompt_and_case() -> None:
    train = [chat_pair("Name the capital of Peru.", "Lima", "Cusco", system="Be kind."), chat_pair("Else?", "a", "b")]
    benchmark = [SFTExample(prompt="name the capital of peru.", completion="", source="benchmark.jsonl:1")]
    finding = found("leakage", train, **{"benchmark.jsonl": benchmark})
    assert rows_of(finding) == [0]
    assert "1 in benchmark.jsonl" in finding.summary


def test_nothing_can_leak_where_nothing_is_held_out() -> None:
    assert run("leakage", pairs(("p", "a", "b"))) is None


def test_prompts_mismatch_where_one_side_alone_repeats_the_prompt() -> None:
    prompt = "A long question?"
    rows = pairs(
        (prompt, f"{prompt} Yes.", "No."), (prompt, f"{prompt} Yes.", f"{prompt} No."), (prompt, "Yes.", "No.")
    )
    assert rows_of(found("prompt_mismatch", rows)) == [0]


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ("system user assistant", ""),
        ("developer system user assistant user assistant", ""),
        ("user call tool tool assistant", ""),
        ("user user assistant", "two turns of the user in a row"),
        ("user assistant assistant", "two turns of the assistant in a row"),
        ("user assistant system user assistant", "a system message after the first turn"),
        ("assistant user assistant", "begins with the assistant"),
        ("user tool assistant", "a tool's result without a call"),
    ],
)
def test_the_order_of_turns_is_that_of_chat_templates(turns: str, fault: str) -> None:
    assert describe_disorder(turns.split()) == fault


def test_the_roles_of_text_cannot_be_out_of_order() -> None:
    assert run("role_order", pairs(("p", "a", "b"))) is None
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    answer = [[{"role": "assistant", "content": text}] for text in "ab"]
    rows = [chat_pair("q", "a", "b"), PreferencePair(twice, *answer, None, {}, "rows.jsonl:2")]
    assert rows_of(found("role_order", rows)) == [1]


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, but I can\u2019t help with that.", True),
        ("As an AI language model, I have no body.", True),
        ("As an artificial intelligence, I have no body.", True),
        ("I'm afraid I can only speak of the weather.", True),
        ("Unfortunately I am unable to open files.", True),
        ("I'm sorry to hear that your parcel is late. It will arrive on Monday.", False),
        ("You can't divide by zero.", False),
        ("Sure. " + "x" * 150 + " I cannot say more.", False),
    ],
)
def test_refusals_are_phrases_at_the_beginning_and_no_condolence(text: str, refuses: bool) -> None:
    finding = found("refusal", pairs(("p", "Fine.", "b"), ("p", text, "b")))
    assert rows_of(finding) == ([1] if refuses else [])


def test_length_bias_counts_characters() -> None:
    lengths = [(9, 1), (8, 1), (7, 1), (1, 9), (5, 5)]
    finding = found("length_bias", pairs(*(("p", "x" * chosen, "y" * rejected) for chosen, rejected in lengths)))
    assert (finding.count, finding.share) == (3, 3 / 5)
    assert finding.values["longer_is_chosen"]["value"] == 3 / 4
    assert finding.values["longer_is_chosen"]["n"] == 4
    assert finding.gauge == 0.5, "four pairs tell nothing"
    assert finding.summary.startswith("the longer answer is the chosen one in 75.0% of 4 pairs (95 % CI ")
    assert finding.summary.endswith("); in 1 more pair both are equally long")
    same = found("length_bias", pairs(*[("p", "one", "two")] * 3))
    assert same.summary == "both answers are equally long in all pairs"
    assert sum(finding.values["log2_ratio"]["counts"]) == 5


def test_length_bias_to_short_answers_is_a_bias_too() -> None:
    finding = found("length_bias", pairs(*[("p", "short", "a long answer")] * 50))
    assert (finding.share, finding.gauge) == (0, 1)
    assert finding.values["rank_correlation"] == pytest.approx(-1)
    assert finding.summary == "the shorter answer is the chosen one in 100.0% of 50 pairs (95 % CI 92.9% to 100.0%)"


def test_length_matched_pairs_differ_by_a_tenth_at_most() -> None:
    lengths = [(110, 100), (100, 110), (109, 100), (150, 100), (100, 100)]
    finding = found("length_bias", pairs(*(("p", "x" * chosen, "y" * rejected) for chosen, rejected in lengths)))
    assert (finding.values["matched"]["n"], finding.values["matched"]["value"]) == (3, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    "name", ["identical", "near_identical", "empty", "contradictory", "duplicate", "prompt_mismatch", "refusal"]
)
def test_chunks_of_any_size_give_the_same_finding(name: str) -> None:
    rng = random.Random(1)
    texts = ["", "I cannot say.", "a fairly long answer to this", "another fairly long answer", "x y z", "A question?"]
    rows = [pair(rng.choice(["A question?", "q"]), *rng.choices(texts, k=2), line=line) for line in range(200)]
    whole, parts = found(name, rows), found(name, rows, chunk_rows=7)
    assert rows_of(whole) == rows_of(parts)
    assert (whole.summary, whole.examples) == (parts.summary, parts.examples)
