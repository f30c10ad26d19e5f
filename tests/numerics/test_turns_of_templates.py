"""Which tokens of a conversation are trained, with every chat template that TRL ships.

The oracle is TRL's training variant of a template, whose `{% generation %}` blocks say what the assistant wrote.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import trl

from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.data.records import SFTExample
from prefopt.data.tokenize import tokenize_sft
from prefopt.process.errors import UserError
from tests.unit.test_tokenize import build_tokenizer, loss_texts, turn

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
NAMES = [name for name in TEMPLATES if not name.endswith("_training")]

TALK = [
    turn("user", "Name a fruit."),
    turn("assistant", "An apple."),
    turn("user", "And a vegetable?"),
    turn("assistant", "A carrot."),
    turn("user", "Is that all?"),
    turn("assistant", "For now."),
]
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "A zone."}}},
    },
}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": TALK},
    "system": {"messages": [turn("system", "Be brief."), *TALK]},
    "tools": {
        "messages": [
            turn("user", "What time is it?"),
            {**turn("assistant", ""), "tool_calls": [CALL]},
            {**turn("tool", "17:00"), "name": "clock"},
            turn("assistant", "Five."),
            turn("user", "Thank you."),
            turn("assistant", "Welcome."),
        ],
        "tools": [TOOL],
    },
}

KNOW_NO_TOOLS = (
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "lfm2", "llama3", "phi3", "phi3_5",
    "qwen2_5_vl", "idefics3", "llava_next", "smolvlm",
)  # fmt: skip
REFUSED = {
    **{(name, "tools"): "leaves them out|cannot|can only concatenate" for name in KNOW_NO_TOOLS},
    # A thought stands in every turn after the last question, and goes when another question follows a tool's answer.
    **{(name, "tools"): "renders the messages before" for name in ("qwen3_5_nothink", "qwen3_5_think", "qwen3_6")},
    ("gemma", "system"): "System role not supported",
    **{(name, kind): "leaves out what" for name in ("idefics3", "smolvlm") for kind in ("plain", "system")},
    **{("llava_next", kind): "refuses this row" for kind in ("plain", "system")},
}
"""Templates for chats with images want content as parts; the others lack a role or tools."""

OTHER_MARKS = {
    "deepseek_r1_distill": {"<\uff5cAssistant\uff5c>"},
    "deepseekv3": {"<\uff5cAssistant\uff5c>"},
    # TRL trains the end of an earlier answer, which tells the model to go on instead of to return.
    "gptoss": {"<|start|>assistant", "<|end|>"},
    "muse_glimmer": {"<|start|>assistant"},
    "nemotron_3_5_lightning": {"<think>"},
    "nemotron_3_nano": {"<think>"},
    "nemotron_3_super": {"<think>"},
    "nemotron_3_ultra": {"<think>"},
    "qwen2_5": {"\n"},
    "qwen3_8": {"<think>\n"},
}
"""What TRL trains more than we do: what a generation prompt writes for the model, so that it never has to."""
OTHER_TEXT = ("glm4moe", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
"""Templates whose training variant renders something else."""


def load_tokenizer(name: str, *, knows_marks: bool = True) -> Any:
    """One token per byte and, where it knows them, one per mark of the template; the last mark ends a sequence."""
    marks = sorted(set(re.findall(r"<[|\uff5c/]?[A-Za-z_\u2581]+[|\uff5c]?>", TEMPLATES[name])))
    tokenizer = build_tokenizer(TEMPLATES[name], adds_bos=False)
    if knows_marks:
        tokenizer.add_tokens(marks, special_tokens=True)
    if knows_marks and (name, "plain") not in REFUSED:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "q"}, *TALK[1:2]], tokenize=False).rstrip()
        tokenizer.eos_token = next((mark for mark in marks if text.endswith(mark)), "</s>")
    return tokenizer


def tokenize(tokenizer: Any, conversation: dict[str, Any]) -> Any:
    return tokenize_sft(
        [SFTExample(**conversation, source="a.jsonl:1")],
        tokenizer,
        max_length=100_000,
        loss_on=LossOn.completions,
        on_long_prompt=OnBadRow.refuse,
        on_long_completion=OnLongCompletion.refuse,
        on_extra_eos=OnBadRow.refuse,
    )


ACCEPTED = [(name, kind) for name in NAMES for kind in CONVERSATIONS if (name, kind) not in REFUSED]


@pytest.mark.parametrize("knows_marks", [True, False], ids=["marks", "bytes"])
@pytest.mark.parametrize(("name", "kind"), ACCEPTED)
def test_all_answers_are_trained_and_nobody_elses_words(name: str, kind: str, knows_marks: bool) -> None:
    tokenizer = load_tokenizer(name, knows_marks=knows_marks)
    (text,) = loss_texts(tokenize(tokenizer, CONVERSATIONS[kind]), tokenizer)
    places = [0]
    for message in CONVERSATIONS[kind]["messages"]:
        if message["role"] == "assistant":
            said = message["content"] or "UTC"
            assert said in text[places[-1] :]
            places.append(text.index(said, places[-1]))
        else:
            assert message["content"] not in text


@pytest.mark.parametrize(("name", "kind"), [case for case in ACCEPTED if f"{case[0]}_training" in TEMPLATES])
def test_trained_tokens_are_those_of_trls_training_template(name: str, kind: str) -> None:
    tokenizer, conversation = load_tokenizer(name), CONVERSATIONS[kind]
    oracle = tokenizer.apply_chat_template(
        conversation["messages"],
        tools=conversation.get("tools"),
        chat_template=TEMPLATES[f"{name}_training"],
        return_assistant_tokens_mask=True,
    )
    row = tokenize(tokenizer, conversation).dataset[0]
    if name in OTHER_TEXT:
        assert row["input_ids"] != oracle["input_ids"]
        return
    assert row["input_ids"] == oracle["input_ids"]
    is_trained = [label != -100 for label in row["labels"]]
    if (name, kind) == ("diffusion_gemma", "tools"):
        return  # it writes no header after a tool's answer where it is asked to, and one where it is not
    tokens = zip(row["input_ids"], oracle["assistant_masks"], is_trained, strict=True)
    runs = [(kind, [ids for ids, *_ in run]) for kind, run in groupby(tokens, key=lambda token: token[1:])]
    assert not any(kind == (0, True) for kind, _ in runs), "nothing is trained that TRL does not train"
    only_trls = {tokenizer.decode(ids) for kind, ids in runs if kind == (1, False)}
    assert only_trls <= OTHER_MARKS.get(name, set())


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_a_template_cannot_render_is_refused_by_its_place(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name, kind]) as caught:
        tokenize(load_tokenizer(name), CONVERSATIONS[kind])
    assert str(caught.value).startswith("a.jsonl:1: ")


def test_templates_that_end_a_chat_otherwise_than_a_turn_train_no_question() -> None:
    for knows_marks in (True, False):
        tokenizer = load_tokenizer("phi3_5", knows_marks=knows_marks)
        tokenizer.chat_template = TEMPLATES["phi3_5"].replace("eos_token", "'<|endoftext|>'")
        assert loss_texts(tokenize(tokenizer, {"messages": TALK}), tokenizer) == [
            "An apple.<|end|>\nA carrot.<|end|>\nFor now.<|end|>\n<|endoftext|></s>"
        ]
    tokenizer = load_tokenizer("gptoss")
    begin = "<|channel|>final<|message|>"
    assert loss_texts(tokenize(tokenizer, {"messages": TALK}), tokenizer) == [
        f"{begin}An apple.{begin}A carrot.{begin}For now.<|return|>"
    ]


def test_a_thought_that_only_the_last_turn_has_is_trained_there_alone() -> None:
    tokenizer = load_tokenizer("qwen3")
    assert loss_texts(tokenize(tokenizer, {"messages": TALK}), tokenizer) == [
        "An apple.<|im_end|>\nA carrot.<|im_end|>\n<think>\n\n</think>\n\nFor now.<|im_end|>\n"
    ]
    quoting = [turn("user", "q"), turn("assistant", "<b>One</b>"), *TALK[2:4]]
    assert loss_texts(tokenize(tokenizer, {"messages": quoting}), tokenizer) == [
        "<b>One</b><|im_end|>\n<think>\n\n</think>\n\nA carrot.<|im_end|>\n"
    ]


def answering(*answers: str) -> dict[str, Any]:
    questions = [message for message in TALK if message["role"] == "user"]
    return {
        "messages": [
            said
            for question, answer in zip(questions, answers, strict=True)
            for said in (question, turn("assistant", answer))
        ]
    }


@pytest.mark.parametrize("blank", [" ", "\n", "\n\n  "], ids=["blank", "line", "lines"])
@pytest.mark.parametrize("name", [name for name in NAMES if (name, "plain") not in REFUSED])
def test_blanks_around_an_answer_change_no_other_tokens(name: str, blank: str) -> None:
    tokenizer = load_tokenizer(name)
    spaced = answering(*(f"{blank}{message['content']}{blank}" for message in TALK[1::2]))
    (text,) = loss_texts(tokenize(tokenizer, spaced), tokenizer)
    (plain,) = loss_texts(tokenize(tokenizer, {"messages": TALK}), tokenizer)
    assert "".join(text.split()) == "".join(plain.split())


@pytest.mark.parametrize("name", [name for name in NAMES if (name, "plain") not in REFUSED])
def test_an_answer_that_begins_as_a_mark_does_is_trained_whole(name: str) -> None:
    answers = ["<b>", "[x", "<|", "<"]
    for first, last in zip(answers, reversed(answers), strict=True):
        tokenizer = load_tokenizer(name)
        (text,) = loss_texts(tokenize(tokenizer, answering(first, "A carrot.", last)), tokenizer)
        (plain,) = loss_texts(tokenize(tokenizer, {"messages": TALK}), tokenizer)
        assert text == plain.replace("An apple.", first).replace("For now.", last)


THINKING = answering(*(f"<think>\n{TALK[1]['content']} is {n}\n</think>\n\n{TALK[1]['content']}" for n in "123"))
KEPT_THOUGHTS = {
    "deepseek_r1_distill": "", "deepseekv3": "", "glm4moe": "3", "lfm2_2_5": "3", "lfm2_2_5_v2": "3",
    "lfm2_2_5_vl": "3", "nemotron_3_5_lightning": "3", "nemotron_3_nano": "3", "nemotron_3_super": "3",
    "nemotron_3_ultra": "3", "qwen3": "3", "qwen3_5_nothink": "3", "qwen3_5_think": "3", "qwen3_6": "3",
}  # fmt: skip
"""Thoughts of `THINKING` that these templates render; the others take them for words like all others."""


@pytest.mark.parametrize("name", [name for name in NAMES if (name, "plain") not in REFUSED])
def test_thoughts_that_a_template_leaves_out_are_counted_and_the_answers_trained(name: str) -> None:
    tokenizer = load_tokenizer(name)
    result = tokenize(tokenizer, THINKING)
    (text,) = loss_texts(result, tokenizer)
    kept = "".join(n for n in "123" if f"is {n}" in text)
    assert kept == KEPT_THOUGHTS.get(name, "123")
    assert result.notes.num_lost_thoughts == 3 - len(kept)
    assert text.count("An apple.") == 3 + len(kept)
