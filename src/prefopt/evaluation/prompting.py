"""What a contestant is told before each prompt: a system prompt and examples, as messages or as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.contestants import SETTING, ContestantConfig
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import FIRST
from prefopt.data.encoding import SpecialTokens, TokenizeNotes, drop_double_bos, encode
from prefopt.data.files import iter_rows
from prefopt.data.messages import Content, Message, trained_turns
from prefopt.data.records import Record, SFTExample
from prefopt.data.rendering import Chat, render_chats, require_chat_template
from prefopt.data.strict_json import RepeatingRow
from prefopt.data.turns import Turns
from prefopt.data.values import RowError
from prefopt.evaluation.asked import to_text
from prefopt.process.errors import UserError, explained
from prefopt.process.paths import describe_missing, find_text_file, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prefix:
    """What stands before each prompt.

    Attributes:
        system: A system prompt; empty for none.
        examples: Prompts with their answers, as text.
    """

    system: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, config: ContestantConfig) -> "Prefix":
        """Reads what a contestant is told.

        Raises:
            UserError: A file is missing, empty, or has fewer examples than are to be shown.
        """
        where = f"{SETTING}: {config.name}:"
        system = "" if config.system is None else _read_text(config.system, f"{where} system")
        return cls(system, () if config.examples is None else _read_examples(config, where))

    def before(self, prompt: Content) -> Content:
        """Returns the prompt with everything before it; its own system message follows after this one's text."""
        if isinstance(prompt, str):
            shown = [f"{question}\n{answer}" for question, answer in self.examples]
            return "\n\n".join([*([self.system] if self.system else []), *shown, prompt])
        own = [message for message in prompt[:1] if message["role"] in FIRST]
        system = "\n\n".join(
            [*([self.system] if self.system else []), *(str(each.get("content") or "") for each in own)]
        )
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        turns = [
            {"role": role, "content": text}
            for question, answer in self.examples
            for role, text in (("user", question), ("assistant", answer))
        ]
        return [*first, *turns, *prompt[len(own) :]]


def _read_text(given: str, setting: str) -> str:
    """Returns a text, or what the file (.txt, .md) that it names holds."""
    path = find_text_file(given)
    if path is None:
        text = given
    elif not path.is_file():
        raise UserError(f"{setting}: {describe_missing(path, 'file')} A prompt itself does not end in .txt or .md.")
    else:
        with explained(path):
            text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise UserError(f"{setting}: holds no text. Leave it out, or give the prompt or a file with it.")
    return text.strip()


def _read_examples(config: ContestantConfig, where: str) -> tuple[tuple[str, str], ...]:
    assert config.examples is not None
    path = resolve(config.examples)
    if not path.is_file():
        raise UserError(f"{where} examples: {describe_missing(path, 'file')}")
    found: list[tuple[str, str]] = []
    for row, source in iter_rows(path):
        if len(found) == config.num_examples:
            break
        found.append(_read_example(row, source, path))
    if len(found) < config.num_examples:
        raise UserError(f"{where} {path} has {len(found)} rows. Set num_examples={len(found)}, or give more.")
    return tuple(found)


def _read_example(row: Any, source: str, path: Path) -> tuple[str, str]:
    wanted = "Each example is an object with prompt and completion (or chosen), as text or as messages."
    if isinstance(row, RepeatingRow):
        try:
            row.require_whole(("prompt", "completion", "chosen"))
        except RowError as error:
            raise UserError(f"{source}: {error} {wanted}") from error
    question, answer = row.get("prompt"), row.get("completion", row.get("chosen"))
    texts = [to_text(each) for each in (question, answer)]
    if not all(texts):
        raise UserError(f"{source}: no prompt with an answer. {wanted}")
    return texts[0], texts[1]


def question_of(record: Record) -> Content | None:
    """Returns the prompt of a record, before the first answer that is trained; None for a row of text alone."""
    if isinstance(record, SFTExample) and record.messages is not None:
        return record.messages[: trained_turns(record.messages)[0]]
    return record.prompt


def encode_prompts(
    records: Sequence[Record], prefix: Prefix, tokenizer: "PreTrainedTokenizerBase", config: DataConfig
) -> list[list[int]]:
    """Returns the token ids of the prompts of records with a prefix, rendered as in training.

    Args:
        records: Of which the prompts are asked, in this order.
        prefix: Stands before each.
        tokenizer: Of the model that answers; text becomes chats as `data.as_chat` says.
        config: The settings of the data.

    Raises:
        UserError: A record has no prompt, or the chat template refuses a chat, such as one with a system message.
    """
    made = Turns.of([records], tokenizer, config).make(records)
    questions = []
    for record in made:
        question = question_of(record)
        if question is None:
            raise UserError(f"{record.source}: is a single text, without a prompt that another model could answer.")
        questions.append(prefix.before(question))
    found = encode(tokenizer, _render(made, questions, tokenizer), are_chats=_are_chats(questions))
    notes, special = TokenizeNotes(), SpecialTokens.of(tokenizer)
    for ids in found:
        drop_double_bos([ids], special, notes)
    return found


def are_texts(records: Sequence[Record], tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> bool:
    """Returns whether prompts are asked as text that goes on, and not as messages; arguments as `encode_prompts`."""
    made = Turns.of([records], tokenizer, config).make(records)
    return bool(made) and isinstance(question_of(made[0]), str)


def _are_chats(questions: Sequence[Content]) -> bool:
    """Whether prompts are messages: rows of both kinds are refused where they are read."""
    return bool(questions) and not isinstance(questions[0], str)


def _render(
    records: Sequence[Record], questions: Sequence[Content], tokenizer: "PreTrainedTokenizerBase"
) -> list[str]:
    chats = []
    for record, question in zip(records, questions, strict=True):
        if isinstance(question, str):
            continue
        require_chat_template(tokenizer, record.source)
        chats.append(Chat(question, record.tools, record.chat_template_kwargs, True, record.source))
    return render_chats(tokenizer, chats) if chats else [str(question) for question in questions]


def as_messages(record: Record, prefix: Prefix) -> list[Message]:
    """Returns a prompt with its prefix as messages, for an endpoint: text is one message of the user."""
    question = question_of(record)
    if question is None:
        raise UserError(f"{record.source}: is a single text, without a prompt that another model could answer.")
    prompt = [{"role": "user", "content": question.strip()}] if isinstance(question, str) else question
    found = prefix.before(prompt)
    assert isinstance(found, list)
    return found
