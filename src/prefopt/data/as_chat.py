"""Converts records of plain text into chats, for models with a chat template."""

from dataclasses import replace
from typing import Any

from prefopt.data.implicit_prompts import is_transcript
from prefopt.data.messages import Content, Message
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.values import describe
from prefopt.process.errors import UserError


def to_chat(record: Record) -> Record:
    """Returns a record of plain text as a chat: the prompt is a user's message, a completion the assistant's.

    Raises:
        UserError: A demonstration is a single `text`, so that its prompt is unknown; or the prompt is a transcript,
            whose turns would become one message.
    """

    def say(role: str, text: Content) -> list[Message]:
        assert isinstance(text, str), "records of messages are chats already"
        return [{"role": role, "content": text.strip()}]

    if isinstance(record.prompt, list) or (isinstance(record, SFTExample) and record.messages is not None):
        return record
    if record.prompt is None:
        raise UserError(
            f"{record.source}: data.as_chat=true needs rows with 'prompt', and this one is a whole 'text'. Give the "
            "rows as 'prompt' and 'completion', or as 'messages', or leave data.as_chat out."
        )
    if is_transcript(record.prompt):
        raise UserError(
            f"{record.source}: data.as_chat=true makes the prompt one message of the user, and this one is a "
            f"transcript up to the assistant's turn: {describe(record.prompt.strip())}. Give its turns as messages, "
            "each with role and content, or leave data.as_chat out."
        )
    names = ("chosen", "rejected") if isinstance(record, PreferencePair) else ("completion",)
    answers: dict[str, Any] = {name: say("assistant", getattr(record, name)) for name in names}
    return replace(record, prompt=say("user", record.prompt), **answers)
