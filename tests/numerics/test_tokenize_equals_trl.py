"""The oracle is TRL's own preparation: the same rows, the same ids and labels."""

import json
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from trl import DPOTrainer, SFTTrainer

from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.data.rows import build_record
from prefopt.data.tokenize import tokenize_pairs, tokenize_sft
from prefopt.process.errors import UserError

CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if think is defined %}<think>\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}<|eot|>{% endif %}"
    "{% for m in messages %}<|header|>{{ m.role }}<|/header|>\n\n{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. ",
    "What is the capital of France? The capital is Paris. ",
    "user system assistant tool please answer the question, as well as you can. ",
    "äöü é 日本語 emoji \U0001f600 end ",
] * 4


def build_bpe(template: str | None, eos: str, *, adds_bos: bool) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        additional_special_tokens=[token for token in SPECIAL if token not in ("<s>", eos)],
    )
    tokenizer.chat_template = template
    return tokenizer


def build_metaspace() -> Any:
    """A Llama-2-like tokenizer: blanks are tokens of their own, and one is put before the text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *SPECIAL, *byte_tokens], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[2:],
    )  # fmt: skip
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "</s>")
    return tokenizer


def build_bytes() -> Any:
    """A tokenizer in Python, without a Rust backend."""
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


CHATML_BPE = build_bpe(CHATML, "<|im_end|>", adds_bos=False)
LLAMA3_BPE = build_bpe(LLAMA3, "<|eot|>", adds_bos=True)
METASPACE = build_metaspace()
TOKENIZERS = {"chatml": CHATML_BPE, "llama3": LLAMA3_BPE, "metaspace": METASPACE}


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def trl_pairs(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    stub = SimpleNamespace(_tokenizer=tokenizer)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepared = DPOTrainer._prepare_dataset(stub, Dataset.from_list(rows), tokenizer, args, "train")
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in prepared]


def our_pairs(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    records: list[Any] = [build_record(row, "preference", str(index))[0] for index, row in enumerate(rows)]
    result = tokenize_pairs(
        records,
        tokenizer,
        max_length=100_000,
        on_long_prompt=OnBadRow.refuse,
        on_long_completion=OnLongCompletion.refuse,
        on_extra_eos=OnBadRow.refuse,
    )
    assert result.notes.num_kept == len(rows), result.notes
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in result.dataset]


TOOL = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}

PAIRS: dict[str, list[dict[str, Any]]] = {
    "text": [
        {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " The fox."},
        # No blank at the boundary: the last token of the prompt may merge with the completion's first.
        {"prompt": "The quick bro", "chosen": "wn fox", "rejected": "ther"},
        {"prompt": "Ends in a blank ", "chosen": "the dog", "rejected": "tool</s>"},
        {"prompt": "日本語 äöü", "chosen": "\U0001f600 é", "rejected": "\u200d\u0301 x"},
        {"prompt": "\n\n", "chosen": "  two", "rejected": "\ttab"},
    ],
    "implicit text": [
        {"chosen": "Question? Answer one", "rejected": "Question? Answer two"},
        {"chosen": "Question? Yes", "rejected": "Question? Never"},
        {"chosen": "日本語 a b", "rejected": "日本語 a c"},
    ],
    "messages": [
        {
            "prompt": [turn("system", "Be brief."), turn("user", "What is the capital?")],
            "chosen": [turn("assistant", "Paris 日本語 \U0001f600")],
            "rejected": [turn("assistant", "I do not know.\n")],
        },
        {
            "prompt": [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
            "chosen": [turn("assistant", "d")],
            "rejected": [turn("assistant", "e"), turn("user", "f"), turn("assistant", "g")],
        },
    ],
    "implicit messages": [
        {
            "chosen": [turn("user", "q"), turn("assistant", "yes")],
            "rejected": [turn("user", "q"), turn("assistant", "no")],
        },
        {
            "chosen": [turn("user", "q"), turn("assistant", "yes")],
            "rejected": [turn("user", "q"), turn("assistant", "no"), turn("user", "r"), turn("assistant", "so")],
        },
    ],
    "tools": [
        {
            "prompt": [turn("user", "What time is it?")],
            "chosen": [turn("assistant", "five")],
            "rejected": [turn("assistant", "six")],
            "tools": json.dumps([TOOL]),
        },
        {
            "prompt": [turn("user", "And now?")],
            "chosen": [turn("assistant", "seven")],
            "rejected": [turn("assistant", "eight")],
            "tools": json.dumps([TOOL, {**TOOL, "strict": True}]),
        },
    ],
    "tool calls": [
        {
            "prompt": [turn("user", "What time is it?")],
            "chosen": [{**turn("assistant", ""), "tool_calls": [CALL]}, turn("tool", "5"), turn("assistant", "five")],
            "rejected": [{**turn("assistant", ""), "tool_calls": [CALL]}, turn("tool", "6"), turn("assistant", "six")],
        },
    ],
    "template arguments": [
        {
            "prompt": [turn("user", "q")],
            "chosen": [turn("assistant", "yes")],
            "rejected": [turn("assistant", "no")],
            "chat_template_kwargs": {"think": True},
        },
    ],
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_have_the_ids_of_trl(kind: str, tokenizer: str) -> None:
    rows = PAIRS[kind]
    assert our_pairs(rows, TOKENIZERS[tokenizer]) == trl_pairs(rows, TOKENIZERS[tokenizer])


@pytest.mark.parametrize("kind", ["messages", "implicit messages"])
def test_pairs_of_a_tokenizer_without_rust_backend_have_the_ids_of_trl(kind: str) -> None:
    # In text this tokenizer ends the prompt in an EOS too, and the completion in two: refused.
    tokenizer, rows = build_bytes(), PAIRS[kind][:1]
    assert our_pairs(rows, tokenizer) == trl_pairs(rows, tokenizer)


def test_a_tokenizer_without_rust_backend_cannot_leave_a_users_turn_out_of_a_completion() -> None:
    with pytest.raises(UserError, match="cannot tell which characters a token covers"):
        our_pairs(PAIRS["messages"], build_bytes())


TEXT = st.text(st.sampled_from("abcdefg ?\n\té日\U0001f600"), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5), st.sampled_from(sorted(TOKENIZERS)))
def test_any_text_pair_has_the_ids_of_trl(texts: list[tuple[str, str, str]], name: str) -> None:
    rows = [
        {"prompt": "Q" + prompt, "chosen": chosen + "1", "rejected": rejected + "2"}
        for prompt, chosen, rejected in texts
    ]
    assert our_pairs(rows, TOKENIZERS[name]) == trl_pairs(rows, TOKENIZERS[name])


SPELLED = st.lists(st.sampled_from(["<s>", "<|im_start|>", "<|eot|>", "</s>", " ", "\n", "fox", "日"]), max_size=5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(SPELLED, TEXT), min_size=1, max_size=4), st.sampled_from(sorted(TOKENIZERS)))
def test_any_chat_pair_has_the_ids_of_trl_also_with_special_tokens_in_its_prompt(
    parts: list[tuple[list[str], str]], name: str
) -> None:
    rows = [
        {
            "prompt": [turn("user", "".join(prompt) + "?")],
            "chosen": [turn("assistant", answer + "1")],
            "rejected": [turn("assistant", answer + "2")],
        }
        for prompt, answer in parts
    ]
    assert our_pairs(rows, TOKENIZERS[name]) == trl_pairs(rows, TOKENIZERS[name])


def trl_sft(
    rows: list[dict[str, Any]], tokenizer: Any, *, completion_only_loss: bool, assistant_only_loss: bool = False
) -> list[dict[str, Any]]:
    stub = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=completion_only_loss)
    args = SimpleNamespace(
        dataset_num_proc=None, max_length=None, truncation_mode="keep_start", dataset_text_field="text",
        assistant_only_loss=assistant_only_loss, shuffle_dataset=False, eos_token=None,
    )  # fmt: skip
    prepared = SFTTrainer._prepare_dataset(stub, Dataset.from_list(rows), tokenizer, args, False, None, "train")
    return [{name: row[name] for name in ("input_ids", "labels")} for row in prepared]


def our_sft(rows: list[dict[str, Any]], tokenizer: Any, loss_on: LossOn) -> list[dict[str, Any]]:
    records: list[Any] = [build_record(row, "sft", str(index))[0] for index, row in enumerate(rows)]
    result = tokenize_sft(
        records,
        tokenizer,
        max_length=100_000,
        loss_on=loss_on,
        on_long_prompt=OnBadRow.refuse,
        on_long_completion=OnLongCompletion.refuse,
        on_extra_eos=OnBadRow.refuse,
    )
    return [{name: row[name] for name in ("input_ids", "labels")} for row in result.dataset]


def completions_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    renamed = [{**row, "completion": row["chosen"]} for row in rows]
    return [{key: value for key, value in row.items() if key not in ("chosen", "rejected")} for row in renamed]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("kind", ["text", "messages", "tools", "tool calls", "template arguments"])
@pytest.mark.parametrize("loss_on", list(LossOn))
def test_prompt_and_completion_have_the_ids_and_labels_of_trl(kind: str, tokenizer: str, loss_on: LossOn) -> None:
    rows = completions_of(PAIRS[kind])
    expected = trl_sft(rows, TOKENIZERS[tokenizer], completion_only_loss=loss_on is LossOn.completions)
    ours = our_sft(rows, TOKENIZERS[tokenizer], loss_on)
    if kind == "tool calls" and loss_on is LossOn.completions:  # TRL trains the tools' answers too
        assert [row["input_ids"] for row in ours] == [row["input_ids"] for row in expected]
        for row, theirs in zip(ours, expected, strict=True):
            assert all(label in (-100, their) for label, their in zip(row["labels"], theirs["labels"], strict=True))
            assert row["labels"].count(-100) > theirs["labels"].count(-100)
    else:
        assert ours == expected


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_text_rows_have_the_ids_and_labels_of_trl(tokenizer: str) -> None:
    rows = [{"text": "The quick brown fox."}, {"text": "日本語 \U0001f600\n"}]
    expected = trl_sft(rows, TOKENIZERS[tokenizer], completion_only_loss=False)
    assert our_sft(rows, TOKENIZERS[tokenizer], LossOn.completions) == expected


SHORT_TURNS = [turn("user", "日本語"), turn("assistant", "\U0001f600"), turn("user", " x"), turn("assistant", " y ")]
CONVERSATIONS = [*({"messages": [*row["prompt"], *row["rejected"]]} for row in PAIRS["messages"])]
CONVERSATIONS.append({"messages": SHORT_TURNS})


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_conversations_have_the_ids_of_trl(tokenizer: str) -> None:
    expected = trl_sft(CONVERSATIONS, TOKENIZERS[tokenizer], completion_only_loss=False)
    assert our_sft(CONVERSATIONS, TOKENIZERS[tokenizer], LossOn.all) == expected
    ours = our_sft(CONVERSATIONS, TOKENIZERS[tokenizer], LossOn.completions)
    assert [row["input_ids"] for row in ours] == [row["input_ids"] for row in expected]


def test_assistant_turns_are_those_that_a_marked_template_gives_trl() -> None:
    tokenizer = build_bpe(MARKED, "<|im_end|>", adds_bos=False)
    expected = trl_sft(CONVERSATIONS, tokenizer, completion_only_loss=False, assistant_only_loss=True)
    assert our_sft(CONVERSATIONS, tokenizer, LossOn.completions) == expected


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_conversation_of_one_turn_has_the_labels_of_prompt_and_completion(tokenizer: str) -> None:
    prompt, answer = [turn("user", "Question 日本語?")], [turn("assistant", "Answer \U0001f600.")]
    together = our_sft([{"messages": prompt + answer}], TOKENIZERS[tokenizer], LossOn.completions)
    apart = our_sft([{"prompt": prompt, "completion": answer}], TOKENIZERS[tokenizer], LossOn.completions)
    assert together == apart
