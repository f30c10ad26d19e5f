"""The prompt of a pair that has none: where two texts part is not where the answer begins."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.config.choices import DataFormat, OnBadRow
from prefopt.config.schema import DataConfig
from prefopt.data.implicit_prompts import agree_on_prompts, split_common_prompt
from prefopt.data.loading import read_pairs, read_splits
from prefopt.data.reading import read_records
from prefopt.data.records import PreferencePair
from prefopt.data.values import RowError
from prefopt.process.errors import UserError

MARKS = [
    "\n\nHuman: How?\n\nAssistant:",
    "USER: How? ASSISTANT:",
    "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "A talk.\n\n**User:** How?\n\n**Assistant:**",
    "<start_of_turn>user\nHow?<end_of_turn>\n<start_of_turn>model\n",
    "<s>[INST] How? [/INST]",
    "### Instruction:\nHow?\n\n### Response:",
    "A long story.\n\nTL;DR:",
    "<|im_start|>user\nFinish this.\nAI: hello\nMe: hi.<|im_end|>\n<|im_start|>assistant\n",
    "USER: What does [/INST] mean? ASSISTANT:",
    "<|start|>user<|message|>How?<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|start|>user<|message|>How?<|end|><|start|>assistant",
    "System: Be brief.\n\nUser: How?\nAssistant: So.\nUser: Why?\nAssistant:",
    "USER: How? ASSISTANT: So.</s>USER: Why? ASSISTANT:",
    "User: How?\nAssistant: So.\n\nUser: Why?\nAssistant:",
    "User: Sum up.\nCustomer: hi\nBot: hello\n\nAssistant:",
    "\n\nHuman: Sum up.\nCustomer: hi\nBot: hello\n\nAssistant: A talk.\n\nHuman: More.\n\nAssistant:",
    "Customer: It broke.\n\nUser: Sum up.\n\nAssistant:",
]


@pytest.mark.parametrize("prompt", MARKS)
def test_a_transcript_is_cut_behind_the_last_mark_of_an_assistants_turn(prompt: str) -> None:
    chosen, rejected = f"{prompt} I think the answer is yes.", f"{prompt} I think the answer may be no."
    assert split_common_prompt(chosen, rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def test_of_several_turns_the_prompt_holds_those_that_both_share() -> None:
    shared = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert split_common_prompt(f"{shared} yes", f"{shared} yet")[0] == shared


def test_a_mark_of_an_answer_inside_an_assistants_answer_is_no_end_of_the_prompt() -> None:
    asked = "Question: 2+2?\n\nUser: Well?\n\nAssistant:"
    prompt, chosen, _ = split_common_prompt(f"{asked} So.\nAnswer: 4", f"{asked} So.\nAnswer: 5")
    assert (prompt, chosen) == (asked, " So.\nAnswer: 4")


@pytest.mark.parametrize(
    ("shared", "prompt"),
    [
        ("Write a play. Sure:\nAI: hi ", "Write a play. Sure:\nAI: hi"),
        ("Think aloud. I count.\nAnswer: It is ", "Think aloud. I count.\nAnswer: It is"),
        ("Name a tag. It is [/INST] for ", "Name a tag. It is [/INST] for"),
        ("def f():\nInput: 3\nOutput: 5\n\nWrite f. ", "def f():\nInput: 3\nOutput: 5\n\nWrite f."),
        ("Sum up.\nUser: hi\nAI: hello\nUser: bye\n\nIt is ", "Sum up.\nUser: hi\nAI: hello\nUser: bye\n\nIt is"),
    ],
)
def test_a_mark_that_nobody_asks_before_or_who_asked_last_is_text_like_any_other(shared: str, prompt: str) -> None:
    assert split_common_prompt(f"{shared}one", f"{shared}two")[0] == prompt


def test_answers_with_turns_of_their_own_make_no_transcript_of_a_plain_row() -> None:
    chosen, rejected = "Write a play.\nHere is one:\nAI: hi\nBot: ho", "Write a play.\nIn short:\nAI: hi\nBot: hu"
    assert split_common_prompt(chosen, rejected)[0] == "Write a play.\n"
    _, notes = agree_on_prompts([pair(chosen, rejected)])
    assert (notes.num_word_prompts, notes.num_further_turns) == (1, 0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Which one? It is red.", "Which one? In short, blue.", "Which one?"),
        ("Which one? It is red.", "Which one? It is blue.", "Which one? It is"),
        ("Which one?\nRed.", "Which one?\nRose.", "Which one?\n"),
        ("Which one? Yes", "Which one? Yes and no", "Which one?"),
        ("Which one? Yes", "Which one?\nNo", "Which one?"),
        ("你喜欢什么颜色？我喜欢红色", "你喜欢什么颜色？我喜欢蓝色", "你喜欢什么颜色？"),  # noqa: RUF001
    ],
)
def test_text_without_marks_is_cut_where_a_word_ends(chosen: str, rejected: str, prompt: str) -> None:
    assert split_common_prompt(chosen, rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


@given(st.text("ab \n", min_size=1, max_size=8), st.text("ab \n", min_size=1, max_size=8))
def test_a_prompt_ends_with_a_word_and_nothing_of_a_text_is_lost(chosen: str, rejected: str) -> None:
    prompt, better, worse = split_common_prompt(chosen, rejected)
    assert (prompt + better, prompt + worse) == (chosen, rejected)
    assert not prompt or prompt[-1].isspace() or all(text[:1].isspace() for text in (better, worse))


def test_transcripts_of_different_questions_are_refused() -> None:
    with pytest.raises(RowError, match=r"differ at character 15, before the assistant's first turn"):
        split_common_prompt("\n\nHuman: Which red?\n\nAssistant: a", "\n\nHuman: Which one?\n\nAssistant: b")
    for one, other in (("Human: ", "User: "), (" Human: ", "User: "), ("System: Be brief.\nUser: ", "User: ")):
        with pytest.raises(RowError, match=r"differ at character 0, before the assistant's first turn"):
            split_common_prompt(f"{one}Which?\nAssistant: a", f"{other}Which?\nAssistant: b")
    asked = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(RowError, match=r"differ at character 12, before the assistant's first turn"):
        split_common_prompt(f"<|im_start|>system\nBe brief.<|im_end|>\n{asked}a", f"{asked}b")


@pytest.mark.parametrize(
    ("system", "human", "assistant"),
    [
        ("", "\n\nHuman: ", "\n\nAssistant: "),
        ("System: Be brief.", "\n\nHuman: ", "\n\nAssistant: "),
        ("A talk.", "</s>USER: ", " ASSISTANT: "),
        ("", "[INST] ", " [/INST] "),
        ("<|im_start|>system\nBe brief.<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_transcripts_that_part_in_a_later_question_are_refused(system: str, human: str, assistant: str) -> None:
    def talk(second: str) -> str:
        return f"{system}{human}Hi?{assistant}Yes?{human}{second}{assistant}Well."

    with pytest.raises(RowError, match=r"after the assistant's turn at character \d+, in what is asked and not in an"):
        split_common_prompt(talk("Which red?"), talk("Which one?"))
    prompt, chosen, rejected = split_common_prompt(talk("Which?"), talk("Which?").replace("Well.", "Why?"))
    assert (prompt, chosen.strip(), rejected.strip()) == (
        talk("Which?").removesuffix("Well.").rstrip(" "),
        "Well.",
        "Why?",
    )


def test_a_dialogue_in_an_answer_whose_persons_have_other_names_is_no_later_question() -> None:
    shared = "\n\nHuman: A play?\n\nAssistant: Here:\nUser: h"
    prompt = "\n\nHuman: A play?\n\nAssistant:"
    assert split_common_prompt(f"{shared}i\nBot: ho", f"{shared}ey\nBot: ho")[0] == prompt


@pytest.mark.parametrize(
    "play", ["Sure!\nUser: hi\nAssistant: ", "Sure!\nHuman: hi\nAssistant: ", "Sure!\nHuman: hi\n\nUser: a\n\nAI: "]
)
def test_a_dialogue_with_which_both_answers_begin_is_no_part_of_the_prompt(play: str) -> None:
    prompt = "\n\nHuman: Write a play\n\nAssistant:"
    chosen, rejected = f"{prompt} {play}Good day", f"{prompt} {play}Yo"
    assert split_common_prompt(chosen, rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def pair(chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(*split_common_prompt(chosen, rejected), tools=None, chat_template_kwargs={}, source="x")


def test_pairs_of_one_prompt_are_cut_at_one_place() -> None:
    answers = ["I think the answer is yes.", "I think it is no.", "It is blue.", "Perhaps."]
    pairs = [pair(f"Which {n}? {a}", f"Which {n}? {b}") for n in range(3) for a in answers for b in answers if a != b]
    agreed, notes = agree_on_prompts(pairs)
    assert {record.prompt for record in agreed} == {"Which 0?", "Which 1?", "Which 2?"}
    assert [record.prompt + record.chosen for record in agreed] == [record.prompt + record.chosen for record in pairs]
    assert [record.prompt + record.rejected for record in agreed] == [r.prompt + r.rejected for r in pairs]
    assert (notes.num_word_prompts, notes.num_shortened_prompts, notes.num_marked_prompts) == (36, 6, 0)


def shortened(*pairs: PreferencePair) -> list[str]:
    return [record.prompt for record in agree_on_prompts(pairs)[0]]  # type: ignore[misc]


def test_the_first_words_of_one_row_are_no_prompt_of_the_others() -> None:
    short = pair("Write a poem", "Write a song")
    longer = [pair(f"Write a poem of {n}. Red", f"Write a poem of {n}. Blue") for n in range(3)]
    assert shortened(short, *longer) == ["Write a", *(f"Write a poem of {n}." for n in range(3))]
    assert shortened(short, short, *longer) == ["Write a"] * 5  # a prompt that several rows have
    assert shortened(pair("Poem:\na", "Poem:\nb"), pair("Poem:\nof a", "Poem:\nof b")) == ["Poem:\n"] * 2


def test_a_greeting_before_many_questions_is_no_prompt_of_them_and_the_notes_say_so(tmp_path: Path) -> None:
    rows = [{"chosen": "Hi! Yes", "rejected": "Hi! No"}]
    rows += [{"chosen": f"Hi! Number {n}? Yes", "rejected": f"Hi! Number {n}? No"} for n in range(5)]
    result = read_records(write(tmp_path / "a.jsonl", rows), format=DataFormat.auto, kind="preference")
    assert [record.prompt for record in result.records] == ["Hi!", *(f"Hi! Number {n}?" for n in range(5))]
    assert (result.notes.num_shortened_prompts, result.notes.num_crowded_prompts) == (0, 5)
    held_out = write(tmp_path / "b.jsonl", [{"chosen": "Hi! Late? Yes", "rejected": "Hi! Late? No"}])
    config = DataConfig(train=str(tmp_path / "a.jsonl"), held_out=held_out)
    lines = [line for line in read_splits(config, kind="preference", seed=0).notes.lines() if "begin with a" in line]
    assert len(lines) == 1
    assert lines[0].startswith('train: 6 of these prompts begin with a shorter one, most of them with text ("Hi!")')
    del rows[5]
    four = read_records(write(tmp_path / "a.jsonl", rows), format=DataFormat.auto, kind="preference")
    assert {record.prompt for record in four.records} == {"Hi!"}


def test_behind_a_greeting_a_prompt_is_cut_where_its_own_question_ends() -> None:
    questions = [f"Hi! Number {n}?" for n in range(5)]
    first = pair(f"{questions[0]} It is red", f"{questions[0]} It is blue")
    rows = [pair("Hi! Yes", "Hi! No"), *(pair(f"{question} Yes", f"{question} No") for question in questions), first]
    assert shortened(*rows) == ["Hi!", *questions, questions[0]]


def test_a_prompt_is_not_cut_inside_a_word_of_its_own() -> None:
    agreed, _ = agree_on_prompts([pair("Which a", "Which b"), pair("Whichever a", "Whichever b")])
    assert [record.prompt for record in agreed] == ["Which", "Whichever"]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def transcripts() -> list[dict[str, str]]:
    """Ten prompts with five pairs each, in any order."""
    rng = random.Random(0)
    answers = [
        "I think the answer is yes.",
        "I think it is no.",
        "I thought of it: maybe.",
        "It is blue.",
        "In short.",
    ]
    rows = [
        {name: f"\n\nHuman: Which {n}?\n\nAssistant: {a}" for name, a in zip(("chosen", "rejected"), two, strict=True)}
        for n in range(10)
        for two in (rng.sample(answers, 2) for _ in range(5))
    ]
    return rng.sample(rows, len(rows))


def test_no_prompt_of_transcripts_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    config = DataConfig(train=write(tmp_path / "a.jsonl", transcripts()), held_out_fraction=0.2)
    splits = read_splits(config, kind="preference", seed=0)
    train, held_out = ({record.prompt for record in side} for side in (splits.train, splits.held_out or []))
    assert (len(train), len(held_out), train & held_out) == (8, 2, set())
    assert all(prompt.endswith("?\n\nAssistant:") for prompt in train | held_out)


def test_a_prompt_without_marks_is_found_again_in_the_held_out_file(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"chosen": "Which 0? It is red.", "rejected": "Which 0? It is blue."}])
    held_out = write(tmp_path / "b.jsonl", [{"chosen": "Which 0? Yes.", "rejected": "Which 0? No."}])
    with pytest.raises(
        UserError, match=r"has the prompts of all 1 training rows \(first .*a.jsonl:1 in .*b.jsonl:1\)"
    ):
        read_splits(DataConfig(train=train, held_out=held_out), kind="preference", seed=0)


POEM = [
    {"chosen": "Write a poem. Sea blue", "rejected": "Write a poem. Sea red"},
    {"chosen": "b x", "rejected": "b y"},
]
SAME = {
    "without a prompt": {"chosen": "Write a poem. Dogs bark", "rejected": "Write a poem. Cats purr"},
    "with its prompt": {"prompt": "Write a poem. ", "chosen": "Dogs bark", "rejected": "Cats purr"},
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
@pytest.mark.parametrize("as_chat", [False, True])
def test_a_prompt_that_was_cut_too_late_is_found_again_wherever_it_is_measured(
    tmp_path: Path, row: dict[str, str], as_chat: bool
) -> None:
    train, other = write(tmp_path / "a.jsonl", POEM), write(tmp_path / "b.jsonl", [row])
    config = DataConfig(train=train, held_out=other, as_chat=as_chat)
    with pytest.raises(UserError, match=r"a.jsonl:1: this training row has the same prompt as .*b.jsonl:1"):
        read_splits(config, kind="preference", seed=0)
    config = DataConfig(train=train, held_out_fraction=0, as_chat=as_chat)
    with pytest.raises(UserError, match=r"data.held_out: 1 training prompts are among them, first .*a.jsonl:1 in .*b"):
        read_splits(config, kind="preference", seed=0, measured=other)
    swapped = DataConfig(train=other, held_out_fraction=0, as_chat=as_chat)
    with pytest.raises(UserError, match=r"data.held_out: 1 training prompts are among them, first .*b.jsonl:1 in .*a"):
        read_splits(swapped, kind="preference", seed=0, measured=train)


@pytest.mark.parametrize("as_chat", [False, True])
def test_pairs_that_an_sft_run_is_measured_on_do_not_hold_its_prompts(tmp_path: Path, as_chat: bool) -> None:
    demonstrations = [{"prompt": "Write a poem", "completion": "Sea."}, {"prompt": "Other", "completion": "c"}]
    train = DataConfig(train=write(tmp_path / "a.jsonl", demonstrations), held_out_fraction=0, as_chat=as_chat)
    trained = read_splits(train, kind="sft", seed=0).train
    pairs = [{"chosen": "Write a poem\nSea blue", "rejected": "Write a poem\nSea red"}]
    config = DataConfig(train=write(tmp_path / "b.jsonl", pairs), as_chat=as_chat)
    with pytest.raises(UserError, match=r"evaluation.pairs: 1 training prompts are among them, first .*a.jsonl:1 in"):
        read_pairs(config, trained)
    assert len(read_pairs(config, trained[1:]).train) == 1


def test_a_measured_file_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [*POEM, {"chosen": "Sing. La. Do", "rejected": "Sing. La. Re"}])
    measured = write(tmp_path / "b.jsonl", [{"chosen": "Sing. La. Do it. No", "rejected": "Sing. La. Do it. So"}])
    config = DataConfig(train=train, held_out_fraction=0)
    before = read_splits(config, kind="preference", seed=0)
    with pytest.raises(UserError, match="1 training prompts are among them"):
        read_splits(config, kind="preference", seed=0, measured=measured)
    apart = write(tmp_path / "c.jsonl", [{"chosen": "Draw. A", "rejected": "Draw. B"}])
    after = read_splits(config, kind="preference", seed=0, measured=apart)
    assert (after.train, after.notes.read["train"]) == (before.train, before.notes.read["train"])


def test_a_given_prompt_cuts_others_where_it_ends_and_is_never_cut(tmp_path: Path) -> None:
    pairs = [pair("Write a poem of red", "Write a poem of blue"), pair("Which. A", "Which. B")]
    agreed, notes = agree_on_prompts(pairs, ["Write a", "Write a poem", "Which. Not this"])
    assert [(record.prompt, record.chosen) for record in agreed] == [("Write a poem", " of red"), ("Which.", " A")]
    assert notes.num_shortened_prompts == 1
    assert agree_on_prompts([pair("Hi! 1? Yes", "Hi! 1? No")] * 5, ["Hi!"])[1].num_crowded_prompts == 5


def test_the_notes_say_how_prompts_were_found(tmp_path: Path) -> None:
    rows = [
        {"chosen": "User: Q\n\nAssistant: a\n\nUser: b\n\nAssistant: c", "rejected": "User: Q\n\nAssistant: d"},
        {"chosen": "Which one? It is red.", "rejected": "Which one? In short, blue."},
        {"chosen": "Which one? It is red.", "rejected": "Which one? It is blue."},
    ]
    result = read_records(write(tmp_path / "a.jsonl", rows), format=DataFormat.auto, kind="preference")
    notes = result.notes
    assert [record.prompt for record in result.records] == ["User: Q\n\nAssistant:", "Which one?", "Which one?"]
    assert (notes.num_marked_prompts, notes.num_word_prompts, notes.num_shortened_prompts) == (1, 2, 1)
    assert notes.num_further_turns == 1
    config = DataConfig(train=str(tmp_path / "a.jsonl"), held_out_fraction=0)
    lines = read_splits(config, kind="preference", seed=0).notes.lines()
    assert "train: 1 row has no 'prompt'; it is what both answers begin with, up to the assistant's last mark" in lines
    assert "train: 1 of these prompts ends where the shorter one of another row does" in lines


def test_a_row_with_an_empty_answer_and_no_prompt_is_left_to_the_check_of_empty_rows() -> None:
    agreed, notes = agree_on_prompts([pair("", ""), pair("Which a", "Which b")])
    assert [record.prompt for record in agreed] == ["", "Which"]
    assert notes.num_word_prompts == 1


def test_prompts_of_both_files_agree_before_their_rows_become_chats(tmp_path: Path) -> None:
    train = [{"chosen": f"Which {n}? It is red.", "rejected": f"Which {n}? It is blue."} for n in range(2)]
    paths = [
        write(tmp_path / "a.jsonl", train),
        write(tmp_path / "b.jsonl", [{"chosen": "Which 0? A", "rejected": "Which 0? B"}]),
    ]
    config = DataConfig(train=paths[0], held_out=paths[1], as_chat=True, on_overlap=OnBadRow.skip)
    splits = read_splits(config, kind="preference", seed=0)
    assert (splits.notes.num_overlap_skipped, splits.notes.read["train"].num_as_chat) == (1, 2)
    assert splits.train[0].prompt == [{"role": "user", "content": "Which 1? It is"}]
    assert splits.held_out is not None
    assert splits.held_out[0].prompt == [{"role": "user", "content": "Which 0?"}]
