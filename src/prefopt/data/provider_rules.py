"""What a provider asks of a row beyond what its layout can hold: a function for each rule of `conf/provider/`."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from prefopt.config.algorithms import Kind
from prefopt.config.provider import ProviderConfig, RuleName
from prefopt.data.formats.format import Row
from prefopt.data.messages import UNTRAINED, Message
from prefopt.data.values import RowError

ANSWERS = ("chosen", "rejected", "completion")
ASKING = ("user", "tool")
"""Roles whose turn it is before an answer."""


class Chat(NamedTuple):
    """A row as the rules look at it."""

    prompt: list[Message]
    """Messages before the answers; of a demonstration of `messages`, all but the last."""
    answers: dict[str, list[Message]]
    has_tools: bool

    @classmethod
    def of(cls, row: Row) -> "Chat | None":
        """Returns None for a row of text, about which no rule says anything."""
        has_tools = bool(row.get("tools"))
        if isinstance(row.get("prompt"), list):
            return cls(row["prompt"], {name: row[name] for name in ANSWERS if name in row}, has_tools)
        if "messages" in row:
            return cls(row["messages"][:-1], {"messages": row["messages"][-1:]}, has_tools)
        return None

    def whole(self) -> Iterator[list[Message]]:
        """Yields the conversation with each of its answers."""
        for answer in self.answers.values():
            yield [*self.prompt, *answer]

    def messages(self) -> Iterator[Message]:
        """Yields every message."""
        yield from self.prompt
        for answer in self.answers.values():
            yield from answer


def check_rules(row: Row, provider: ProviderConfig, kind: Kind) -> None:
    """Refuses a row that breaks a rule of the provider.

    Args:
        row: A row in TRL's format.
        provider: Whose rules.
        kind: Whether it is a pair or a demonstration.

    Raises:
        RowError: It says which rule, and what in the row breaks it.
    """
    chat = Chat.of(row)
    if chat is None:
        return
    for rule in provider.rules:
        if kind in rule.rows:
            fault = RULES[rule.name](chat, rule.value)
            if fault is not None:
                raise RowError(f"{provider.title} asks: {rule.name.value}. {fault}")


def _roles(chat: Chat, allowed: Sequence[str]) -> str | None:
    wrong = next((message["role"] for message in chat.messages() if message["role"] not in allowed), None)
    return None if wrong is None else f"Found the role '{wrong}'; allowed: {', '.join(allowed)}. Drop the row."


def _alternate(chat: Chat, _: Sequence[str]) -> str | None:
    for messages in chat.whole():
        sides = [message["role"] in ASKING for message in messages if message["role"] not in ("system", "developer")]
        if any(first == second for first, second in pairwise(sides)):
            return "Found two messages in a row of one side. Join them to one message, or drop the row."
    return None


def _begins_with_user(chat: Chat, _: Sequence[str]) -> str | None:
    first = next((message["role"] for message in chat.messages() if message["role"] != "system"), None)
    return None if first == "user" else f"Found a first message of role '{first}'. Remove it, or drop the row."


def _one_turn(chat: Chat, _: Sequence[str]) -> str | None:
    turns = [message["role"] for message in chat.prompt if message["role"] != "system"]
    return None if turns == ["user"] else f"Found {len(turns)} messages before the answer. Drop the row."


def _one_output(chat: Chat, _: Sequence[str]) -> str | None:
    for name, answer in chat.answers.items():
        if len(answer) != 1:
            return f"Found {len(answer)} messages in '{name}'. Drop the row."
    return None


def _no_tools(chat: Chat, _: Sequence[str]) -> str | None:
    uses = chat.has_tools or any("tool_calls" in message or message["role"] == "tool" for message in chat.messages())
    return (
        "Found tools, or calls of them. Drop the row: without them, its answers say something else." if uses else None
    )


def _no_weights(chat: Chat, _: Sequence[str]) -> str | None:
    is_marked = any(UNTRAINED in message for message in chat.messages())
    return "Found an answer that is marked as not trained. Remove the mark, or drop the row." if is_marked else None


def _no_empty_text(chat: Chat, _: Sequence[str]) -> str | None:
    empty = next((message["role"] for message in chat.messages() if not message.get("content", "").strip()), None)
    return None if empty is None else f"Found one of role '{empty}'. Remove it, or drop the row."


def _no_text(chat: Chat, texts: Sequence[str]) -> str | None:
    for message in chat.messages():
        for text in texts:
            if text in message.get("content", ""):
                return f"Found {text!r} in a message of role '{message['role']}'. Change it, or drop the row."
    return None


RULES: dict[RuleName, Callable[[Chat, Sequence[str]], str | None]] = {
    RuleName.roles: _roles,
    RuleName.alternate: _alternate,
    RuleName.begins_with_user: _begins_with_user,
    RuleName.one_turn: _one_turn,
    RuleName.one_output: _one_output,
    RuleName.no_tools: _no_tools,
    RuleName.no_weights: _no_weights,
    RuleName.no_empty_text: _no_empty_text,
    RuleName.no_text: _no_text,
}
"""Each returns what is found and what to do, as sentences; None for a row that keeps the rule."""
