"""Token ids with a tokenizer of one token per byte, so that lengths and cuts can be counted by hand."""

import json
import re
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from prefopt.config.choices import LossOn, OnBadRow, OnLongCompletion
from prefopt.config.schema import DataConfig
from prefopt.data import encoding, rendering
from prefopt.data.encoding import CHUNK_ROWS, chunks, encode
from prefopt.data.loading import read_splits
from prefopt.data.records import PreferencePair, SFTExample
from prefopt.data.token_splits import load_tokenized
from prefopt.data.tokenize import Tokenized, tokenize_pairs, tokenize_sft
from prefopt.process.errors import UserError

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_EOS = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
DOUBLE_BOS = "<s><s>" + WITHOUT_EOS
DOUBLE_EOS = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s></s>{% endif %}{% endfor %}"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = "{{ messages | length }}" + CHATML
FORCED_THOUGHT = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif")


def build_tokenizer(
    template: str | None = None, *, eos: str | None = "</s>", bos: str | None = "<s>", adds_bos: bool = True
) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=[token for token in SPECIAL if token not in (bos, eos)],
    )
    tokenizer.chat_template = template
    return tokenizer


def pair(prompt: Any, chosen: Any, rejected: Any, source: str = "a.jsonl:1") -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, None, {}, source)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat_pair(prompt: str = "q", chosen: str = "yes", rejected: str = "no") -> PreferencePair:
    return pair([turn("user", prompt)], [turn("assistant", chosen)], [turn("assistant", rejected)])


def run(records: Any, tokenizer: Any, max_length: int = 1000, **settings: Any) -> Tokenized:
    settings = {
        "on_long_prompt": OnBadRow.refuse,
        "on_long_completion": OnLongCompletion.truncate,
        "on_extra_eos": OnBadRow.refuse,
    } | settings
    if isinstance(records[0], PreferencePair):
        return tokenize_pairs(records, tokenizer, max_length=max_length, **settings)
    settings = {"loss_on": LossOn.completions} | settings
    return tokenize_sft(records, tokenizer, max_length=max_length, **settings)


def texts(result: Tokenized, tokenizer: Any, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(tokenizer.decode(row[column]) for column in columns) for row in result.dataset]


def pair_texts(result: Tokenized, tokenizer: Any) -> list[tuple[str, ...]]:
    return texts(result, tokenizer, "prompt_ids", "chosen_ids", "rejected_ids")


def loss_texts(result: Tokenized, tokenizer: Any) -> list[str]:
    kept = [[label for label in row["labels"] if label != -100] for row in result.dataset]
    return [tokenizer.decode(labels) for labels in kept]


def test_text_gets_bos_before_the_prompt_and_eos_after_each_completion_once() -> None:
    tokenizer = build_tokenizer()
    result = run([pair("ask ", "yes", "no</s>")], tokenizer)
    assert pair_texts(result, tokenizer) == [("<s>ask ", "yes</s>", "no</s>")]
    assert result.dataset[0]["source"] == "a.jsonl:1"


def test_columns_are_int32_lists() -> None:
    result = run([pair("ask", "yes", "no")], build_tokenizer())
    types = {name: str(field.type) for name, field in zip(*_schema(result), strict=True)}
    assert types == {
        "prompt_ids": "list<item: int32>",
        "chosen_ids": "list<item: int32>",
        "rejected_ids": "list<item: int32>",
        "source": "string",
    }


def _schema(result: Tokenized) -> tuple[list[str], list[Any]]:
    schema = result.dataset.data.schema
    return schema.names, list(schema)


def test_chats_are_split_after_the_generation_prompt() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    assert pair_texts(run([chat_pair()], tokenizer), tokenizer) == [
        (
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
            "yes<|im_end|>\n",
            "no<|im_end|>\n",
        )
    ]


def test_a_chat_without_eos_gets_one_and_it_is_counted() -> None:
    tokenizer = build_tokenizer(WITHOUT_EOS)
    result = run([chat_pair(), chat_pair()], tokenizer)
    assert pair_texts(result, tokenizer)[0] == ("u:q;a:", "yes;</s>", "no;</s>")
    assert result.notes.num_eos_appended == 4


def test_a_double_bos_becomes_one_and_is_counted() -> None:
    chat = build_tokenizer(DOUBLE_BOS)
    result = run([chat_pair()], chat)
    assert pair_texts(result, chat)[0][0] == "<s>u:q;a:"
    assert result.notes.num_double_bos == 1
    text = build_tokenizer()
    result = run([pair("<s>ask ", "yes", "no")], text)
    assert pair_texts(result, text) == [("<s>ask ", "yes</s>", "no</s>")]
    assert result.notes.num_double_bos == 1


def test_more_eos_than_messages_is_refused_or_skipped() -> None:
    tokenizer = build_tokenizer(DOUBLE_EOS)
    with pytest.raises(UserError, match=r"a.jsonl:1: a completion has the end-of-sequence token </s> 2 times"):
        run([chat_pair()], tokenizer)
    rows = [pair("ask", "ye</s>s", "no", "a.jsonl:1"), pair("ask", "yes", "no", "a.jsonl:2")]
    result = run(rows, build_tokenizer(), on_extra_eos=OnBadRow.skip)
    assert (result.dataset["source"][:], result.notes.num_extra_eos_skipped) == (["a.jsonl:2"], 1)


def test_a_completion_of_several_messages_may_end_each_of_them() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    steps = [turn("assistant", "call"), turn("tool", "5"), turn("assistant", "five")]
    result = run([pair([turn("user", "q")], steps, [turn("assistant", "no")])], tokenizer)
    assert result.notes.num_kept == 1


# "<s>" and four bytes: 5 tokens of prompt; "yes</s>" has 4 and "no</s>" 3.
LONG = [pair("ask ", "yes", "no", "a.jsonl:1"), pair("a", "yes", "no", "a.jsonl:2")]


def test_a_prompt_that_fills_max_length_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        run([LONG[0], LONG[0], LONG[1]], build_tokenizer(), max_length=5)
    message = str(caught.value)
    assert message.startswith("a.jsonl:1: the prompt has 5 tokens and alone fills data.max_length=5 (so in 2 rows")
    assert "data.on_long_prompt=skip" in message


def test_a_prompt_that_fills_max_length_is_skipped_and_counted() -> None:
    result = run(LONG, build_tokenizer(), max_length=5, on_long_prompt=OnBadRow.skip)
    assert (result.dataset["source"][:], result.notes.num_long_prompt_skipped) == (["a.jsonl:2"], 1)


def test_a_long_completion_is_cut_and_its_lost_eos_counted() -> None:
    tokenizer = build_tokenizer()
    result = run([LONG[0]], tokenizer, max_length=8)
    assert pair_texts(result, tokenizer) == [("<s>ask ", "yes", "no</s>")]
    assert (result.notes.num_truncated, result.notes.num_eos_lost) == (1, 1)


def test_a_completion_that_just_fits_is_not_cut() -> None:
    assert run([LONG[0]], build_tokenizer(), max_length=9).notes.num_truncated == 0


def test_a_long_completion_is_skipped_or_refused_on_demand() -> None:
    result = run(LONG, build_tokenizer(), max_length=8, on_long_completion=OnLongCompletion.skip)
    assert (result.dataset["source"][:], result.notes.num_long_completion_skipped) == (["a.jsonl:2"], 1)
    with pytest.raises(
        UserError, match=r"a.jsonl:1: prompt and completion have 9 tokens, more than data.max_length=8"
    ):
        run(LONG, build_tokenizer(), max_length=8, on_long_completion=OnLongCompletion.refuse)


def test_pairs_that_the_cut_makes_equal_are_dropped_and_counted() -> None:
    result = run([pair("ask ", "same start A", "same start B"), LONG[0]], build_tokenizer(), max_length=12)
    assert (result.notes.num_equal_skipped, result.notes.num_kept, len(result.dataset)) == (1, 1, 1)
    assert result.notes.num_truncated == 0


def test_prompt_tokens_that_the_completion_changes_are_counted() -> None:
    # Alone, the prompt ends in a generation prompt with "<think>" (7 bytes), which the conversation does not have.
    tokenizer = build_tokenizer(FORCED_THOUGHT, eos="<|im_end|>")
    result = run([chat_pair()], tokenizer)
    assert pair_texts(result, tokenizer)[0][0].endswith("assistant\n")
    assert (result.notes.num_prompt_cut, result.notes.num_prompt_tokens_cut) == (1, 7)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:1: the prompt has no token"):
        run([pair("", "yes", "no")], build_tokenizer(adds_bos=False))
    assert run([pair("", "yes", "no")], build_tokenizer()).notes.num_kept == 1


def test_long_rows_are_tokenised_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.data.encoding.MAX_CHARACTERS", 100)
    rows = [PreferencePair("q", "a" * length, "b", None, {}, str(length)) for length in (10, 20, 90, 8, 200, 1)]
    assert [[row.source for row in chunk] for chunk in chunks(rows, kind=type)] == [
        ["10", "20"],
        ["90"],
        ["8"],
        ["200"],
        ["1"],
    ]


def test_chunks_do_not_show_in_the_result() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    rows = [chat_pair(prompt=str(index)) for index in range(CHUNK_ROWS + 1)]
    together = run(rows, tokenizer).dataset
    assert len(together) == CHUNK_ROWS + 1
    assert together[CHUNK_ROWS] == run(rows[-1:], tokenizer).dataset[0]


def test_the_shared_beginning_of_a_pair_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    encoded: list[str] = []

    def recording(tokenizer: Any, texts: list[str], *, are_chats: bool) -> list[list[int]]:
        encoded.extend(texts)
        return encode(tokenizer, texts, are_chats=are_chats)

    monkeypatch.setattr(encoding, "encode", recording)
    run([chat_pair(), chat_pair(prompt="other")], tokenizer)
    assert sum("other" in text for text in encoded) == 1


def test_nothing_is_shared_where_cutting_a_chat_changes_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    expected = run([chat_pair()], tokenizer).dataset[0]
    # A cut inside "<|im_start|>" would take the special token apart.
    monkeypatch.setattr(encoding, "_special_token_pattern", lambda tokenizer: re.compile("im_start"))
    assert run([chat_pair()], tokenizer).dataset[0] == expected


def test_text_is_cut_only_before_tokens_that_nothing_overlaps() -> None:
    tokenizer = build_tokenizer()
    pattern = encoding._special_token_pattern(tokenizer)
    assert pattern is not None
    assert [bool(pattern.fullmatch(token)) for token in SPECIAL] == [True] * len(SPECIAL)
    tokenizer.add_tokens(
        [AddedToken("x<s", normalized=False), AddedToken(" </s>", normalized=False)], special_tokens=True
    )
    pattern = encoding._special_token_pattern(tokenizer)
    assert pattern is not None
    assert [bool(pattern.fullmatch(token)) for token in SPECIAL] == [False, False, True, True]


def test_rows_with_their_own_tools_or_arguments_are_rendered_with_them() -> None:
    template = "{{ tools | length if tools else 0 }}{{ mood }}" + CHATML
    tokenizer = build_tokenizer(template, eos="<|im_end|>")
    rows = [
        PreferencePair([turn("user", "q")], [turn("assistant", "a")], [turn("assistant", "b")], tools, kwargs, "x:1")
        for tools, kwargs in [(None, {}), ([{"name": "t"}], {}), (None, {"mood": "sad"}), (None, {})]
    ]
    prompts = [prompt for (prompt,) in texts(run(rows, tokenizer), tokenizer, "prompt_ids")]
    assert [prompt.split("<")[0] for prompt in prompts] == ["0", "1", "0sad", "0"]


def test_a_tokenizer_without_template_or_eos_is_refused() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:1: the rows are messages.*Set model.chat_template"):
        run([chat_pair()], build_tokenizer())
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        run([pair("a", "b", "c")], build_tokenizer(eos=None))


def test_a_row_that_the_template_refuses_is_named() -> None:
    template = "{% if messages[0].content == 'bad' %}{{ raise_exception('no bad words') }}{% endif %}" + CHATML
    tokenizer = build_tokenizer(template, eos="<|im_end|>")
    bad = pair([turn("user", "bad")], [turn("assistant", "a")], [turn("assistant", "b")], "a.jsonl:7")
    with pytest.raises(UserError, match=r"a.jsonl:7: the chat template refuses this row: no bad words"):
        run([chat_pair(), bad, chat_pair()], tokenizer)


TALK = [turn("user", "q"), turn("assistant", "one"), turn("user", "r"), turn("assistant", "two")]


def example(**fields: Any) -> SFTExample:
    return SFTExample(**fields, source="a.jsonl:1")


def test_loss_is_on_every_assistant_turn_and_what_ends_it() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    result = run([example(messages=TALK)], tokenizer)
    assert loss_texts(result, tokenizer) == ["one<|im_end|>\ntwo<|im_end|>\n"]
    row = result.dataset[0]
    assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


def test_loss_on_all_is_on_every_token() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    row = run([example(messages=TALK)], tokenizer, loss_on=LossOn.all).dataset[0]
    assert row["labels"] == row["input_ids"]


def test_a_system_message_and_a_greeting_have_no_loss() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    messages = [turn("assistant", "welcome"), *TALK[:2]]
    assert loss_texts(run([example(messages=messages)], tokenizer), tokenizer) == ["one<|im_end|>\n"]


def test_a_template_that_treats_the_last_turn_apart_still_has_its_turns_found() -> None:
    tokenizer = build_tokenizer(THINKING, eos="<|im_end|>")
    result = run([example(messages=TALK)], tokenizer)
    assert loss_texts(result, tokenizer) == ["one<|im_end|>\n<think></think>two<|im_end|>\n"]


def test_a_generation_prompt_that_the_conversation_lacks_is_left_out() -> None:
    tokenizer = build_tokenizer(FORCED_THOUGHT, eos="<|im_end|>")
    assert loss_texts(run([example(messages=TALK)], tokenizer), tokenizer) == ["one<|im_end|>\ntwo<|im_end|>\n"]


def test_a_template_that_rewrites_earlier_messages_is_refused() -> None:
    tokenizer = build_tokenizer(COUNTING, eos="<|im_end|>")
    with pytest.raises(UserError, match=r"a.jsonl:1: the chat template renders .* differently") as caught:
        run([example(messages=TALK)], tokenizer)
    assert "algorithm.loss_on=all" in str(caught.value)
    assert run([example(messages=TALK)], tokenizer, loss_on=LossOn.all).notes.num_kept == 1


def test_conversations_get_the_missing_eos_and_lose_a_double_bos() -> None:
    tokenizer = build_tokenizer(DOUBLE_BOS)
    result = run([example(messages=TALK)], tokenizer)
    assert texts(result, tokenizer, "input_ids") == [("<s>u:q;a:one;u:r;a:two;</s>",)]
    assert loss_texts(result, tokenizer) == ["one;two;</s>"]
    assert (result.notes.num_eos_appended, result.notes.num_double_bos) == (1, 1)


def test_a_conversation_with_two_eos_in_a_turn_is_refused() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    messages = [turn("user", "q"), turn("assistant", "a<|im_end|>b")]
    with pytest.raises(UserError, match="2 times"):
        run([example(messages=messages)], tokenizer)


def test_a_turn_that_is_marked_has_no_loss_and_no_end_of_sequence_is_put_behind_it() -> None:
    tokenizer = build_tokenizer(WITHOUT_EOS, adds_bos=False)
    marked = [{**message, "train": False} if message["content"] == "one" else message for message in TALK]
    result = run([example(messages=marked)], tokenizer)
    assert texts(result, tokenizer, "input_ids") == [("u:q;a:one;u:r;a:two;</s>",)]
    assert loss_texts(result, tokenizer) == ["two;</s>"]
    assert (result.notes.num_marked_turns, result.notes.num_greetings) == (1, 0)
    marked = [{**message, "train": False} if message["content"] == "two" else message for message in TALK]
    result = run([example(messages=marked)], tokenizer)
    assert texts(result, tokenizer, "input_ids") == [("u:q;a:one;u:r;a:two;",)]
    assert loss_texts(result, tokenizer) == ["one;"]


def test_a_mark_is_refused_where_every_token_is_trained_and_never_rendered() -> None:
    tokenizer = build_tokenizer("{% for m in messages %}{{ m | tojson }};{% endfor %}", eos="<|im_end|>")
    marked = [*TALK[:1], {**TALK[1], "train": False}, *TALK[2:]]
    with pytest.raises(UserError, match=r"a.jsonl:1: a turn is marked .* Set algorithm.loss_on=completions"):
        run([example(messages=marked)], tokenizer, loss_on=LossOn.all)
    rows = [pair(TALK[:1], [marked[1], *TALK[2:]], TALK[1:2])]
    assert '"one"};' in pair_texts(run(rows, tokenizer), tokenizer)[0][1]


def test_a_greeting_is_counted_also_behind_a_system_message() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    messages = [turn("system", "s"), turn("assistant", "welcome"), *TALK[:2]]
    result = run([example(messages=messages)], tokenizer)
    assert loss_texts(result, tokenizer) == ["one<|im_end|>\n"]
    assert result.notes.num_greetings == 1


STEPS = [turn("assistant", "call"), turn("tool", "5"), turn("assistant", "five"), turn("user", "r"), *TALK[3:]]


def test_turns_of_users_and_tools_inside_a_completion_have_no_loss() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    rows = [example(prompt=TALK[:1], completion=STEPS), example(prompt=TALK[:1], completion=TALK[1:2])]
    result = run([*rows, rows[0]], tokenizer)
    several = "call<|im_end|>\nfive<|im_end|>\ntwo<|im_end|>\n"
    assert loss_texts(result, tokenizer) == [several, "one<|im_end|>\n", several]
    assert result.notes.num_context_turns == 4
    assert run(rows, tokenizer, loss_on=LossOn.all).dataset[0]["labels"] == result.dataset[0]["input_ids"]


def context_texts(result: Tokenized, tokenizer: Any, side: str) -> list[list[str]]:
    def parts(row: dict[str, Any]) -> list[str]:
        bounds, ids = row[f"{side}_context"], row[f"{side}_ids"]
        return [tokenizer.decode(ids[a:b]) for a, b in zip(bounds[::2], bounds[1::2], strict=True)]

    return [parts(row) for row in result.dataset]


def test_turns_of_others_inside_a_pairs_completion_are_context() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    rows = [pair(TALK[:1], STEPS, TALK[1:2]), chat_pair(), pair(TALK[:1], TALK[1:2], TALK[1:])]
    result = run(rows, tokenizer)
    begin, end = "<|im_start|>assistant\n", "<|im_end|>\n"
    assert context_texts(result, tokenizer, "chosen") == [
        [f"<|im_start|>tool\n5{end}{begin}", f"<|im_start|>user\nr{end}{begin}"],
        [],
        [],
    ]
    assert context_texts(result, tokenizer, "rejected") == [[], [], [f"<|im_start|>user\nr{end}{begin}"]]
    assert result.notes.num_context_turns == 3
    assert "chosen_context" not in run([chat_pair()], tokenizer).dataset.column_names


def test_context_is_cut_with_its_completion_and_moves_with_a_double_bos() -> None:
    tokenizer = build_tokenizer(DOUBLE_BOS)
    row = pair(TALK[:1], TALK[1:], TALK[1:2])
    result = run([row], tokenizer)
    assert pair_texts(result, tokenizer) == [("<s>u:q;a:", "one;u:r;a:two;</s>", "one;</s>")]
    assert context_texts(result, tokenizer, "chosen") == [["u:r;a:"]]
    cut = run([row], tokenizer, max_length=7 + 6)
    assert context_texts(cut, tokenizer, "chosen") == [["u:"]]


def test_a_pair_whose_first_trained_token_does_not_fit_is_refused() -> None:
    tokenizer = build_tokenizer(WITHOUT_EOS, adds_bos=False)
    marked = pair(TALK[:1], [{**TALK[1], "train": False}, *TALK[2:]], TALK[1:2])
    assert context_texts(run([marked], tokenizer), tokenizer, "chosen") == [["one;u:r;a:"]]
    with pytest.raises(UserError, match=r"the prompt has 16 tokens and alone fills data.max_length=16"):
        run([marked], tokenizer, max_length=16)


def test_prompt_and_completion_have_loss_on_the_completion() -> None:
    tokenizer = build_tokenizer()
    result = run([example(prompt="ask ", completion="yes")], tokenizer)
    assert texts(result, tokenizer, "input_ids") == [("<s>ask yes</s>",)]
    assert loss_texts(result, tokenizer) == ["yes</s>"]


def test_text_is_trained_whole_with_eos_once() -> None:
    tokenizer = build_tokenizer()
    result = run([example(text="once"), example(text="twice</s>")], tokenizer)
    assert loss_texts(result, tokenizer) == ["<s>once</s>", "<s>twice</s>"]


def test_chats_that_were_rendered_before_are_text_whose_turns_end() -> None:
    tokenizer = build_tokenizer(eos="<|im_end|>", adds_bos=False)
    text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in TALK)
    result = run([example(text=text)], tokenizer)
    assert loss_texts(result, tokenizer) == [text + "<|im_end|>"]
    assert result.notes.num_rendered_before == 1
    with pytest.raises(UserError, match=r"give the row as 'messages'; else remove it from the text"):
        run([example(text="a<|im_end|>b")], tokenizer)


def test_text_of_a_tokenizer_whose_bos_is_its_eos_is_not_refused() -> None:
    tokenizer = build_tokenizer(eos="</s>", bos="</s>")
    assert loss_texts(run([example(text="once")], tokenizer), tokenizer) == ["</s>once</s>"]


def test_demonstrations_are_cut_at_max_length_and_prompts_without_room_refused() -> None:
    tokenizer = build_tokenizer()
    result = run([example(prompt="ask ", completion="yes")], tokenizer, max_length=7)
    assert loss_texts(result, tokenizer) == ["ye"]
    assert (result.notes.num_truncated, result.notes.num_eos_lost) == (1, 1)
    with pytest.raises(UserError, match=r"alone fills data.max_length=5"):
        run([example(prompt="ask ", completion="yes")], tokenizer, max_length=5)


def test_load_tokenized_adds_its_counts_to_the_notes(tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    row = '{{"prompt": "ask {} ", "chosen": "longer than the limit", "rejected": "no"}}\n'
    path.write_text("".join(row.format(index) for index in range(4)))
    config = DataConfig(train=str(path), held_out_fraction=0.25, max_length=12)
    loaded = load_tokenized(read_splits(config, kind="preference", seed=0), build_tokenizer(), config)
    assert (len(loaded.train), len(loaded.held_out)) == (3, 1)
    assert "train: 3 rows cut at data.max_length (data.on_long_completion=truncate)" in loaded.notes.lines()
    assert "held_out: 1 completion lost its end-of-sequence token to the cut" in loaded.notes.lines()


def test_a_split_of_which_no_row_is_left_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "ask", "chosen": "yes", "rejected": "no"}\n')
    config = DataConfig(train=str(path), held_out_fraction=0, max_length=2, on_long_prompt=OnBadRow.skip)
    with pytest.raises(UserError, match=r"data.train: no rows are left after tokenizing.*1 row skipped: the prompt"):
        load_tokenized(read_splits(config, kind="preference", seed=0), build_tokenizer(), config)


def test_keys_of_messages_that_the_template_does_not_read_are_counted_by_row() -> None:
    tokenizer = build_tokenizer("{{ messages[0].name }}" + CHATML, eos="<|im_end|>")
    named = [{**TALK[0], "name": "Ann", "mood": "glad"}, TALK[1], {**TALK[2], "mood": "sad"}, TALK[3]]
    result = run([example(messages=named), example(messages=TALK)], tokenizer)
    assert result.notes.unread_keys == {"mood": 1}
    result = run([pair(named[:1], named[1:2], named[3:])], tokenizer)
    assert result.notes.unread_keys == {"mood": 1}


def test_a_template_that_leaves_out_calls_or_all_that_is_said_is_refused() -> None:
    calls = [TALK[0], {"role": "assistant", "tool_calls": [{"name": "clock"}]}, *TALK[2:]]
    with pytest.raises(UserError, match=r"a.jsonl:1: the row has tool calls, but the chat template leaves them out"):
        run([example(messages=calls)], build_tokenizer(CHATML, eos="<|im_end|>"))
    silent = build_tokenizer(CHATML.replace("m.content", "m.content.text"), eos="<|im_end|>")
    with pytest.raises(
        UserError, match=r"a.jsonl:1: the chat template leaves out what the assistant says in message 2"
    ):
        run([example(messages=TALK)], silent)
    with pytest.raises(UserError, match=r"a.jsonl:1: the chat template leaves out what the messages say"):
        run([chat_pair(prompt="What?")], silent)


LAST_ANSWER_ONLY = CHATML.replace(
    "{{ m.content }}", "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}"
)


@pytest.mark.parametrize("loss_on", LossOn)
def test_every_answer_that_is_trained_must_be_in_the_text_and_in_its_order(loss_on: LossOn) -> None:
    tokenizer = build_tokenizer(LAST_ANSWER_ONLY, eos="<|im_end|>")
    repeated = [*TALK[:3], turn("assistant", "one")]
    for rows in ([example(messages=repeated)], [example(prompt=TALK[:1], completion=repeated[1:])]):
        with pytest.raises(
            UserError, match=r"a.jsonl:1: .* says in message 4 of 4 \(text \(\"one\"\)\).*model.chat_temp"
        ):
            run(rows, tokenizer, loss_on=loss_on)
    with pytest.raises(UserError, match=r"a.jsonl:1: .* says in message 2 of 4"):
        run([pair(TALK[:1], TALK[1:], [turn("assistant", "no")])], tokenizer)
    # What is context is shown to the model as the template shows it when the model is asked.
    assert run([pair(TALK[:3], TALK[3:], [turn("assistant", "no")])], tokenizer).notes.num_kept == 1


def test_a_template_that_takes_too_long_is_stopped_and_its_row_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "RENDER_LIMIT_S", 0.2)
    endless = "{% if mood %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    tokenizer = build_tokenizer(endless + CHATML, eos="<|im_end|>")
    rows = [example(messages=TALK), replace(example(messages=TALK), chat_template_kwargs={"mood": 1}, source="a:2")]
    with pytest.raises(UserError, match=r"a:2: the chat template refuses this row: TimeoutError: it takes more than"):
        run(rows, tokenizer)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_whatever_a_template_raises_is_a_refusal() -> None:
    tokenizer = build_tokenizer("{{ 1 / 0 }}" + CHATML, eos="<|im_end|>")
    with pytest.raises(UserError, match=r"a.jsonl:1: the chat template refuses this row: ZeroDivisionError: "):
        run([chat_pair()], tokenizer)


def load(path: Any, tokenizer: Any, *rows: dict[str, Any], kind: Any = "preference", **settings: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(path), held_out_fraction=0, **settings)
    return load_tokenized(read_splits(config, kind=kind, seed=0), tokenizer, config)


def test_plain_text_on_a_model_of_chats_is_said_and_made_chats_on_demand(tmp_path: Any) -> None:
    tokenizer, path = build_tokenizer(CHATML, eos="<|im_end|>", adds_bos=False), tmp_path / "a.jsonl"
    row = {"prompt": "ask ", "completion": " yes"}
    plain = load(path, tokenizer, row, kind="sft", as_chat=False)
    assert any("1 row is plain text" in line and "data.as_chat=true" in line for line in plain.notes.lines())
    chats = load(path, tokenizer, row, kind="sft", as_chat=True)
    expected = "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert tokenizer.decode(chats.train[0]["input_ids"]) == expected
    assert not any("plain text, though" in line for line in chats.notes.lines())
    pairs = load(path, tokenizer, {"prompt": "ask", "chosen": "yes", "rejected": "no"}, as_chat=True)
    assert pair_texts(SimpleNamespace(dataset=pairs.train), tokenizer)[0][1:] == ("yes<|im_end|>\n", "no<|im_end|>\n")
    rendered = {**row, "prompt": "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n"}
    assert not any("plain text" in line for line in load(path, tokenizer, rendered, kind="sft").notes.lines())
    with pytest.raises(UserError, match=r"a.jsonl:1: data.as_chat=true needs rows with 'prompt'"):
        load(path, tokenizer, {"text": "whole"}, kind="sft", as_chat=True)


@pytest.mark.parametrize(
    "prompt", ["\n\nHuman: Why?\n\nAssistant:", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"]
)
def test_a_transcript_does_not_become_one_message(tmp_path: Any, prompt: str) -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|im_end|>")
    rows = [{"prompt": prompt, "completion": " a"}, {"chosen": prompt + " So.", "rejected": prompt + " No."}]
    for row, kind in zip(rows, ("sft", "preference"), strict=True):
        with pytest.raises(
            UserError, match=r"a.jsonl:1: data.as_chat=true makes .* transcript .* Give its turns as mess"
        ):
            load(tmp_path / "a.jsonl", tokenizer, row, kind=kind, as_chat=True)


def test_as_chat_on_chats_is_said_to_change_nothing(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    row = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "yes")], "rejected": [turn("assistant", "no")]}
    load(tmp_path / "a.jsonl", build_tokenizer(CHATML, eos="<|im_end|>"), row, as_chat=True)
    assert "data.as_chat=true changes nothing" in caplog.text


def test_a_template_that_leaves_tools_out_is_refused():
    from prefopt.data.rendering import Chat, render_chats

    tokenizer = SimpleNamespace(apply_chat_template=lambda chats, **_: [str(messages) for messages in chats])
    chat = Chat([{"role": "user", "content": "hi"}], [{"name": "search"}], {}, False, "rows.jsonl:3")
    with pytest.raises(UserError, match=r"rows\.jsonl:3: the row has tools"):
        render_chats(tokenizer, [chat])
    assert render_chats(tokenizer, [chat._replace(tools=None)])
