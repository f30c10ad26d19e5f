"""Checks one row in TRL's format, and builds its record."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from prefopt.config.algorithms import Kind
from prefopt.data.columns import suggest, suggest_labelled
from prefopt.data.formats import other_kind
from prefopt.data.formats.format import PAIRS
from prefopt.data.implicit_prompts import split_common_prompt
from prefopt.data.messages import (
    Content,
    Message,
    add_system,
    check_completion,
    check_content,
    check_messages,
    check_prompt,
    check_template_kwargs,
    is_trained,
    trained_turns,
)
from prefopt.data.records import MAX_CHARACTERS, PreferencePair, Record, SFTExample, num_characters
from prefopt.data.tool_calls import check_tools
from prefopt.data.values import RowError, check_text, describe, show_names

LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"
"""Pattern of a letter in scripts that separate words; it leaves out Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a row, and whether they hold text or messages. All rows of a data set have the same shape."""

    fields: tuple[str, ...]
    content: Literal["text", "messages"]

    def __str__(self) -> str:
        return f"{' + '.join(self.fields)} as {self.content}"


def build_record(row: dict[str, object], kind: Kind, source: str) -> tuple[Record, Shape]:
    """Returns the record of one row in TRL's format, and the row's shape.

    Raises:
        RowError: The row is invalid.
    """
    row = {key: value for key, value in row.items() if value is not None}
    for column in ("image", "images"):
        if row.get(column):
            raise RowError(f"'{column}' holds images; prefopt trains text models. Remove the column or these rows.")
    record, shape = BUILDERS[kind](row, source)
    _require_short(record)
    return record, shape


def _build_pair(row: dict[str, Any], source: str) -> tuple[PreferencePair, Shape]:
    _require_fields(row, ("chosen", "rejected"), "preference")
    chosen = check_content(row["chosen"], "chosen")
    rejected = check_content(row["rejected"], "rejected")
    fields: tuple[str, ...] = ("prompt", "chosen", "rejected")
    if "prompt" not in row or (isinstance(row["prompt"], str) and isinstance(chosen, list)):
        # UltraFeedback has the prompt twice: as text in a column, and as first message of chosen and rejected.
        _require_same_content({"chosen": chosen, "rejected": rejected})
        prompt, chosen, rejected = split_common_prompt(chosen, rejected)
        asked = _ask(prompt, row.get("prompt", ""))
        fields = fields if asked is not prompt else fields[1:]
        prompt = asked
        if not prompt and chosen and rejected:
            hint = "" if "prompt" in row else suggest(row, ["prompt"])
            raise RowError(
                "'chosen' and 'rejected' have no common beginning before the answers, so this row has no prompt. "
                f"Add a 'prompt' of the same type as 'chosen'.{hint}"
            )
    else:
        prompt = check_content(row["prompt"], "prompt")
        chosen, rejected = _as_answers(prompt, chosen, rejected)
        _require_same_content({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if "system" in row:
        prompt = add_system(prompt, row["system"])
    if isinstance(prompt, list):
        _check_turns(prompt, {"chosen": chosen, "rejected": rejected})
    pair = PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=check_tools(row.get("tools")),
        chat_template_kwargs=check_template_kwargs(row.get("chat_template_kwargs")),
        source=source,
    )
    return pair, _shape(fields, chosen)


def _as_answers(prompt: Content, *completions: Content) -> list[Content]:
    """Returns completions of text after a prompt of messages as the assistant's messages; others as they are."""
    if isinstance(prompt, str) or not all(isinstance(text, str) for text in completions):
        return [*completions]
    return [[{"role": "assistant", "content": text}] for text in completions]


def _ask(prompt: Content, text: str) -> Content:
    """Returns the common messages `prompt`, with the prompt column `text` appended if no user asks anything in them.

    Raises:
        RowError: A user asks something else than `text` in them.
    """
    if not text.strip() or isinstance(prompt, str) or _is_asked(text, prompt):
        return prompt
    if any(message["role"] == "user" for message in prompt):
        raise RowError(
            f"'prompt' ({describe(text)}) does not occur in what the user says in the messages with which 'chosen' "
            "and 'rejected' begin. Remove the column, or correct the row."
        )
    return [*prompt, {"role": "user", "content": check_text(text, "prompt")}]


def _is_asked(text: str, messages: list[Message]) -> bool:
    """Returns whether a user's message contains `text` as whole words, with any whitespace between them."""
    said = [message.get("content", "") for message in messages if message["role"] == "user"]
    if text in said:
        return True
    words = " ".join(text.split())
    whole = re.compile(f"(?<!{LETTER}){re.escape(words)}(?!{LETTER})")
    return any(whole.search(" ".join(content.split())) for content in said)


def _build_example(row: dict[str, object], source: str) -> tuple[SFTExample, Shape]:
    fields: dict[str, Any]
    if "completion" in row or ("prompt" in row and "messages" not in row):
        _require_fields(row, ("prompt", "completion"), "sft")
        prompt, completion = (check_content(row[name], name) for name in ("prompt", "completion"))
        (completion,) = _as_answers(prompt, completion)
        _require_same_content({"prompt": prompt, "completion": completion})
        prompt = add_system(prompt, row.get("system", ""))
        if isinstance(prompt, list):
            _check_turns(prompt, {"completion": completion})
        fields = {"prompt": prompt, "completion": completion}
    elif "messages" in row:
        fields = {"messages": _check_conversation(row)}
    elif "text" in row:
        fields = {"text": add_system(check_text(row["text"], "text"), row.get("system", ""), "text")}
    else:
        hints = (suggest(row, wanted) for wanted in (["prompt", "completion"], ["messages"], ["text"]))
        raise RowError(
            "a demonstration needs 'messages', or 'prompt' and 'completion', or 'text'; "
            f"found {_found(row)}.{other_kind(row, 'sft') or next(filter(None, hints), '')}"
        )
    example = SFTExample(
        **fields,
        tools=check_tools(row.get("tools")),
        chat_template_kwargs=check_template_kwargs(row.get("chat_template_kwargs")),
        source=source,
    )
    return example, _shape(tuple(fields), next(iter(fields.values())))


def _check_conversation(row: dict[str, object]) -> Content:
    messages = check_messages(row["messages"], "messages")
    if len(messages) < 2:
        raise RowError("'messages' has one message. It needs a turn that the assistant answers.")
    if messages[-1]["role"] != "assistant":
        raise RowError(
            f"'messages' must end with an assistant message, found role '{messages[-1]['role']}'. "
            "Drop the turns that nothing answers."
        )
    if not trained_turns(messages):
        raise RowError("every assistant turn of 'messages' is marked as not trained. Drop the row or a mark.")
    _require_same_question(row.get("prompt", ""), messages)
    return add_system(messages, row.get("system", ""), "messages")


def _require_same_question(prompt: object, messages: list[Message]) -> None:
    """Refuses a row whose `prompt` is not part of its `messages`."""
    asked = check_content(prompt, "prompt") if prompt else ""
    if isinstance(asked, list) and messages[: len(asked)] != asked:
        raise RowError("'prompt' is not the beginning of 'messages'. Remove the column, or correct it.")
    if isinstance(asked, str) and asked.strip() and not _is_asked(asked, messages):
        raise RowError(
            f"'prompt' ({describe(asked)}) does not occur in what the user says in 'messages'. Remove the column, or "
            "correct it."
        )


BUILDERS: dict[Kind, Callable[[dict[str, Any], str], tuple[Record, Shape]]] = {
    "preference": _build_pair,
    "sft": _build_example,
}


def _require_short(record: Record) -> None:
    """Refuses a row so long that tokenizing it could exhaust the memory."""
    length = num_characters(record)
    if length > MAX_CHARACTERS:
        raise RowError(
            f"the row has {length:,} characters, and at most {MAX_CHARACTERS:,} are tokenised. Split it, or drop it."
        )


def _shape(fields: tuple[str, ...], content: Content) -> Shape:
    return Shape(fields, "messages" if isinstance(content, list) else "text")


def _require_fields(row: dict[str, object], names: tuple[str, ...], kind: Kind) -> None:
    for name in names:
        if name not in row:
            absent = [each for each in names if each not in row]
            optional = [] if "prompt" in (*names, *row) else ["prompt"]
            hint = other_kind(row, kind) or suggest(row, absent, optional=optional)
            hint = hint or (suggest_labelled(row) if kind in PAIRS else "")
            raise RowError(f"field '{name}' is missing; found {_found(row)}.{hint}")


def _found(row: dict[str, object]) -> str:
    return show_names(row) or "no field with a value"


def _require_same_content(fields: dict[str, Content]) -> None:
    if len({type(value) for value in fields.values()}) > 1:
        kinds = ", ".join(f"'{name}' is {describe(value)}" for name, value in fields.items())
        raise RowError(f"{kinds}. Either all are text, or all are lists of messages.")


def _check_turns(prompt: list[Message], completions: dict[str, Content]) -> None:
    check_prompt(prompt)
    for name, completion in completions.items():
        assert isinstance(completion, list), "prompt and completions have one type"
        if completion[: len(prompt)] == prompt:
            raise RowError(f"'{name}' repeats the messages of 'prompt'. Remove them there, or remove 'prompt'.")
        check_completion(completion, name)
        if not any(map(is_trained, completion)):
            raise RowError(f"every assistant turn of '{name}' is marked as not trained. Drop the row or a mark.")
