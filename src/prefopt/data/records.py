"""Records, the checked form of rows of training data, and how they are built from rows."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefopt.config.algorithms import Kind
from prefopt.config.choices import DataFormat
from prefopt.data.cells import parse_cells
from prefopt.data.columns import rename, suggest
from prefopt.data.files import iter_rows
from prefopt.data.formats import convert, detect_format, other_kind, unread_columns
from prefopt.data.implicit_prompts import ImplicitNotes, agree_on_prompts, split_common_prompt
from prefopt.data.labels import LABELS, Labels
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
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.tool_calls import check_tools
from prefopt.data.values import RowError, check_text, describe, show_name, show_names
from prefopt.process.errors import UserError

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 4_000_000
"""Longest row: about a million tokens. A tokenizer takes some 100 bytes of memory for each character."""

LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"
"""Pattern of a letter in scripts that separate words; it leaves out Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with a better and a worse completion: all three are text, or all three are lists of messages."""

    prompt: Content
    chosen: Content
    rejected: Content
    tools: list[Any] | None
    chat_template_kwargs: dict[str, Any]
    source: str
    """Place of the row: `path:line`, or `path:row N` for files without lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTExample:
    """One demonstration: either `text`, or `prompt` and `completion`, or `messages`; the others are None."""

    text: str | None = None
    prompt: Content | None = None
    completion: Content | None = None
    messages: list[Message] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    source: str


Record = PreferencePair | SFTExample
RECORDS: dict[Kind, type[Record]] = {"preference": PreferencePair, "sft": SFTExample}


def num_characters(record: Record) -> int:
    """Returns how many characters a record has, its tools included."""
    if isinstance(record, PreferencePair):
        contents: tuple[Content | None, ...] = (record.prompt, record.chosen, record.rejected)
    else:
        contents = (record.text, record.prompt, record.completion, record.messages)
    length = len(json.dumps(record.tools, default=str)) if record.tools else 0
    for content in contents:
        if isinstance(content, str):
            length += len(content)
        elif content is not None:
            for message in content:
                is_plain = len(message) == 2 and "content" in message
                length += len(message["content"] if is_plain else json.dumps(message, default=str))
    return length


def message_fields(record: Record) -> dict[str, list[Message]]:
    """Returns the fields of a record that hold messages, by name; {} for a record of text."""
    is_pair = isinstance(record, PreferencePair)
    names = ("prompt", "chosen", "rejected") if is_pair else ("prompt", "completion", "messages")
    return {name: value for name in names if isinstance(value := getattr(record, name), list)}


@dataclass(kw_only=True)
class ReadNotes(ImplicitNotes):
    """Counts of what happened while rows were read."""

    num_rows: int = 0
    """Rows in the files."""
    num_parsed: int = 0
    """Rows with messages that were given as text in a cell, and parsed."""
    num_repeated_keys: int = 0
    """Rows with a repeated key in a column that is not read."""
    num_ties_skipped: int = 0
    """Rows of two answers of which none is preferred."""
    num_identical_skipped: int = 0
    num_empty_skipped: int = 0
    num_as_chat: int = 0
    """Rows of plain text that were converted to chats."""
    num_given_system: int = 0
    """Conversations that got the system prompt of the settings."""
    num_own_system: int = 0
    """Conversations that have one of their own, where the settings have one too."""
    num_duplicates: int = 0
    """Rows equal to an earlier row in prompt, completions and tools; they are kept."""
    ignored_columns: dict[str, int] = field(default_factory=dict)
    """For each column that is not read: the number of rows in which it has a value."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of some files, in order, and the counts of reading them."""

    records: list[Record]
    notes: ReadNotes
    ties: list[int]
    """Places of the rows that are no record, since neither answer is preferred: from 0, in the order of the files."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of a row, and whether they hold text or messages. All rows of a data set have the same shape."""

    fields: tuple[str, ...]
    content: Literal["text", "messages"]

    def __str__(self) -> str:
        return f"{' + '.join(self.fields)} as {self.content}"


IMPLICIT_TEXT = Shape(("chosen", "rejected"), "text")
LABELLED = (("prompt", "completion"), ("messages",))
"""Fields of the rows that may have a KTO label."""
CHECKED: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "image", "images"),
    "sft": ("prompt", "image", "images", "rejected", *LABELS),
}
"""Columns that may not be part of a record, but whose values decide whether the row is accepted."""


def read_records(
    spec: object,
    *,
    format: DataFormat,
    kind: Kind,
    columns: Mapping[str, str] | None = None,
    labels: Labels | None = None,
) -> ReadResult:
    """Reads and checks every row of `spec`.

    Pairs with identical or empty completions are kept here; `prefopt.data.defects` drops them.

    Args:
        spec: A file, a list of files, a glob, a `datasets` folder, or `hub:<id>[:<split>]`.
        format: The format of the rows; `auto` detects it. All rows must have the same format.
        kind: Whether rows are preference pairs or demonstrations.
        columns: prefopt's name of a column -> the file's, where they differ.
        labels: The labels of other files of the same data set, to which those of `spec` are added; None if none.

    Raises:
        UserError: A row is invalid; it names file, line, field, the value found and the values allowed.
    """
    records: list[Record] = []
    ties: list[int] = []
    notes = ReadNotes()
    labels = Labels() if labels is None else labels
    first: tuple[str, DataFormat, Shape] | None = None
    unseen = dict(columns or {})
    for row, source in iter_rows(spec):
        unseen = {name: other for name, other in unseen.items() if name not in row and other not in row}
        try:
            found = _read_row(row, source, format, kind, columns or {}, notes)
        except RowError as error:
            read_as = "" if first is None or format is not DataFormat.auto else f" (The rows before: {first[2]}.)"
            raise UserError(f"{source}: {error}{read_as}") from error
        if found is None:
            ties.append(len(records) + len(ties))
            continue
        record, row_format, shape = found
        first = first or (source, row_format, shape)
        if (row_format, shape) != first[1:]:
            raise UserError(
                f"{source}: this row is {row_format.name} with {shape}, but {first[0]} is {first[1].name} with "
                f"{first[2]}. All rows of a data set must have one format: convert or drop the others."
            )
        if shape.fields in LABELLED:
            labels.add(row, source)
        records.append(record)
    labels.require_wanted()
    for name, other in unseen.items():
        logger.warning("data.columns: %s: no row has a column '%s' to be read as '%s'", spec, show_name(other), name)
    if first is not None and first[2] == IMPLICIT_TEXT:
        records, implicit = agree_on_prompts(records)
        notes = replace(notes, **vars(implicit))
    notes.num_ties_skipped = len(ties)
    notes.num_rows = len(records) + len(ties)
    notes.ignored_columns = {show_name(name): count for name, count in sorted(notes.ignored_columns.items())}
    return ReadResult(records, notes, ties)


def _read_row(
    row: dict[str, object], source: str, format: DataFormat, kind: Kind, columns: Mapping[str, str], notes: ReadNotes
) -> tuple[Record, DataFormat, Shape] | None:
    """Returns a row's record, format and shape, and counts its unread columns in `notes`; None for a tie."""
    named = rename(row, columns)
    parsed = parse_cells(named)
    notes.num_parsed += parsed is not named
    row_format = detect_format(parsed, kind) if format is DataFormat.auto else format
    converted = convert(parsed, row_format, kind)
    if converted is None:
        return None
    record, shape = build_record(converted, kind, source)
    unread = unread_columns(parsed, row_format, kind, shape.fields)
    if isinstance(row, RepeatingRow):
        read_as = {source: name for name, source in columns.items()}
        row.require_whole(key for key in row if (name := read_as.get(key, key)) not in unread or name in CHECKED[kind])
        notes.num_repeated_keys += 1
    for column in unread:
        notes.ignored_columns[column] = notes.ignored_columns.get(column, 0) + 1
    return record, row_format, shape


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
