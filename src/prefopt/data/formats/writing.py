"""What the writers of single formats share: they take chats, and refuse what their rows have no place for."""

import json
from collections.abc import Collection, Iterable
from typing import Any

from prefopt.data.formats.format import Row
from prefopt.data.implicit_prompts import is_transcript
from prefopt.data.messages import UNTRAINED, Message, trained_turns
from prefopt.data.values import RowError

CHAT = (
    "this row is plain text, and the rows to write are chats. Set data.as_chat=true: the prompt becomes the user's "
    "message, an answer the assistant's."
)
TRANSCRIPT = (
    "this row is a transcript in plain text, and the rows to write are chats. Give its turns as messages, each with "
    "role and content: no setting does that, since a turn's text may hold such marks itself."
)
WHOLE_TEXT = (
    "this row is one text, in which nothing says what was asked and what was answered. Give the rows as 'messages', "
    "or as 'prompt' and 'completion'."
)


def get_pair(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Returns prompt, chosen and rejected of a pair.

    Raises:
        RowError: They are text, or an answer is marked as not trained.
    """
    if isinstance(row["prompt"], str):
        raise RowError(TRANSCRIPT if is_transcript(row["prompt"]) else CHAT)
    for name in ("chosen", "rejected"):
        for index, message in enumerate(row[name]):
            if UNTRAINED in message:
                raise RowError(f"'{name}[{index}]' is marked as not trained, which the rows of pairs cannot say.")
    return row["prompt"], row["chosen"], row["rejected"]


def get_conversation(row: Row) -> list[Message]:
    """Returns a demonstration as one conversation, in which each assistant message without training is marked.

    Raises:
        RowError: It is text, or an answer is trained that stands before the first question.
    """
    if "text" in row:
        raise RowError(WHOLE_TEXT)
    if isinstance(row.get("prompt"), str):
        raise RowError(TRANSCRIPT if is_transcript(row["prompt"]) else CHAT)
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    trained = trained_turns(messages, len(row["prompt"]) if "messages" not in row else None)
    marked = [
        {**message, UNTRAINED: False} if message["role"] == "assistant" and at not in trained else message
        for at, message in enumerate(messages)
    ]
    if trained_turns(marked) != trained:
        raise RowError(
            "the completion begins before a user has asked anything, and in one list of messages such an answer is a "
            "greeting that is not trained. Drop the row."
        )
    return marked


def refuse_columns(row: Row, *names: str) -> None:
    """Refuses a row with a value in one of these columns, for which there is no place."""
    for name in names:
        if row.get(name):
            raise RowError(f"there is no place for '{name}' in the rows to write. Remove it from the row.")


def refuse_marks(messages: Iterable[Message]) -> None:
    """Refuses assistant messages that are not trained, where every one is."""
    for index, message in enumerate(messages):
        if UNTRAINED in message:
            raise RowError(
                f"message {index} is the assistant's and not trained (it is marked so, or greets before the first "
                "question), and the rows to write cannot say that. Remove the mark, or the message."
            )


def refuse_keys(message: Message, allowed: Collection[str], field: str) -> None:
    """Refuses a message with a key for which there is no place."""
    for key in message:
        if key not in allowed:
            raise RowError(f"there is no place for '{key}' of '{field}' in the rows to write. Remove it.")


def split_system(messages: list[Message]) -> tuple[str | None, list[Message]]:
    """Returns the text of the system message at the beginning, None if there is none, and the other messages.

    Raises:
        RowError: It is empty, or another one stands further behind.
    """
    system, rest = None, messages
    if messages and messages[0]["role"] == "system":
        refuse_keys(messages[0], ("role", "content"), "messages[0]")
        system, rest = messages[0]["content"], messages[1:]
        if not system:
            raise RowError("the system message is empty, which the rows to write cannot say. Remove it.")
    for message in rest:
        if message["role"] in ("system", "developer"):
            raise RowError(
                f"a message of role '{message['role']}' has no place in the rows to write: they have one system "
                "prompt, before the first question. Join it to that, or drop the row."
            )
    return system, rest


def get_text(message: Message, field: str) -> str:
    """Returns the content of a message that must have nothing else."""
    refuse_keys(message, ("role", "content"), field)
    return str(message["content"])


def get_answer(messages: list[Message], name: str) -> Message:
    """Returns the only message of an answer.

    Raises:
        RowError: There are several.
    """
    if len(messages) > 1:
        raise RowError(f"'{name}' has {len(messages)} messages, and an answer is one in the rows to write.")
    return messages[0]


def functions_of(message: Message) -> list[dict[str, Any]]:
    """Returns the calls of a message as `{name, arguments, ...}`, without what is around each."""
    return [call.get("function", call) for call in message["tool_calls"]]


def as_json(value: object) -> str:
    """Returns a value as JSON text.

    Raises:
        RowError: It holds a number that JSON has not, such as NaN.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RowError("the row holds NaN or an infinite number, which JSON has not.") from error
