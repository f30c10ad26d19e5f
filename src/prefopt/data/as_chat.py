"""Makes chats of records as the settings say: plain text becomes messages, and a system prompt is put first."""

from dataclasses import dataclass, replace
from typing import Any

from prefopt.config.choices import AUTO
from prefopt.config.schema import DataConfig
from prefopt.data.formats.format import Row
from prefopt.data.implicit_prompts import is_transcript
from prefopt.data.messages import Content, Message
from prefopt.data.records import PreferencePair, Record, SFTExample
from prefopt.data.values import RowError, describe
from prefopt.process.errors import UserError, explained
from prefopt.process.paths import describe_missing, find_text_file

FIRST = ("system", "developer")


@dataclass(frozen=True)
class Chats:
    """What is made of each record before it is tokenised.

    Attributes:
        are_made: Whether plain text becomes messages: with `data.as_chat=true`; or with auto if there is a system
            prompt, for which text has no place. What else auto makes chats of follows with the tokenizer: `Turns`.
        system: System prompt of conversations that have none (`data.system`); None: nothing is added.
    """

    are_made: bool
    system: str | None

    @classmethod
    def of(cls, config: DataConfig) -> "Chats":
        """Reads the system prompt's file, if it is one.

        Raises:
            UserError: The file cannot be read, or holds nothing.
        """
        system = None if config.system is None else _read_system(config.system)
        return cls(config.as_chat is True or (config.as_chat == AUTO and system is not None), system)

    def make(self, record: Record) -> Record:
        """Returns the record itself if nothing changes.

        Raises:
            RowError: The record cannot become a chat, or is plain text, in which a system prompt has no place.
        """
        chat = to_chat(record) if self.are_made else record
        return chat if self.system is None else _with_system(chat, self.system)


def _read_system(given: str) -> str:
    path = find_text_file(given)
    if path is None:
        text = given
    elif not path.is_file():
        raise UserError(f"data.system: {describe_missing(path, 'file')} A prompt itself does not end in .txt or .md.")
    else:
        with explained(path):
            text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise UserError("data.system: holds no text. Leave it out, or give the system prompt or a file with it.")
    return text.strip()


def _with_system(record: Record, text: str) -> Record:
    name = "messages" if isinstance(record, SFTExample) and record.messages is not None else "prompt"
    messages = getattr(record, name)
    if not isinstance(messages, list):
        raise RowError(
            "data.system goes before messages, and this row is text. Set data.as_chat=true, or give the rows as "
            "messages."
        )
    if messages and messages[0]["role"] in FIRST:
        return record
    changed: dict[str, Any] = {name: [{"role": "system", "content": text}, *messages]}
    return replace(record, **changed)


def from_system_column(row: Row) -> Row:
    """Returns a row of text with a prompt in its column `system` as messages, of which that prompt becomes the first.

    Other rows are returned as they are; so are transcripts, which are several turns.
    """
    names = [name for name in ("prompt", "chosen", "rejected", "completion") if row.get(name) is not None]
    is_pair = {"prompt", "chosen", "rejected"} <= {*names}
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or not (is_pair or {"prompt", "completion"} <= {*names}):
        return row
    if not all(isinstance(row[name], str) for name in names) or is_transcript(row["prompt"]):
        return row
    roles = {"prompt": "user"}
    said = {name: [{"role": roles.get(name, "assistant"), "content": row[name].strip()}] for name in names}
    return {**row, **said}


def is_question(record: Record) -> bool:
    """Returns whether a record is plain text of one turn: a question with its answers, and no transcript."""
    return isinstance(record.prompt, str) and bool(record.prompt.strip()) and not is_transcript(record.prompt)


def is_text(record: Record) -> bool:
    """Returns whether a record is plain text with a prompt."""
    return isinstance(record.prompt, str)


def to_chat(record: Record) -> Record:
    """Returns a record of plain text as a chat: the prompt is a user's message, a completion the assistant's.

    Raises:
        RowError: A demonstration is a single `text`, so that its prompt is unknown; or the prompt is a transcript,
            whose turns would become one message.
    """

    def say(role: str, text: Content) -> list[Message]:
        assert isinstance(text, str), "records of messages are chats already"
        return [{"role": role, "content": text.strip()}]

    if isinstance(record.prompt, list) or (isinstance(record, SFTExample) and record.messages is not None):
        return record
    if record.prompt is None:
        raise RowError(
            "data.as_chat=true needs rows with 'prompt', and this one is a whole 'text'. Give the "
            "rows as 'prompt' and 'completion', or as 'messages', or leave data.as_chat out."
        )
    if is_transcript(record.prompt):
        raise RowError(
            "data.as_chat=true makes the prompt one message of the user, and this one is a "
            f"transcript up to the assistant's turn: {describe(record.prompt.strip())}. Give its turns as messages, "
            "each with role and content; for training, data.as_chat=false keeps it as text."
        )
    names = ("chosen", "rejected") if isinstance(record, PreferencePair) else ("completion",)
    answers: dict[str, Any] = {name: say("assistant", getattr(record, name)) for name in names}
    return replace(record, prompt=say("user", record.prompt), **answers)
