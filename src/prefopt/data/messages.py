"""Checks on the values of one row: text, message lists, tools. No file or format is known here."""

import json
from typing import Any

Message = dict[str, Any]
"""`role` and `content`, and whatever else a chat template reads (`tool_calls`, `name`, ...)."""

Content = str | list[Message]
"""A prompt or completion: plain text, or messages for a chat template."""

ROLES = ("system", "developer", "user", "assistant", "tool")


class RowError(ValueError):
    """What is wrong with one row; the reader puts the row's place in front of it."""


def describe(value: Any) -> str:
    """Returns the JSON type of `value` and its beginning, for error texts."""
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    if value is None:
        return "null"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{names.get(type(value), type(value).__name__)} ({shown if len(shown) <= 60 else shown[:57] + '...'})"


def check_text(value: Any, field: str) -> str:
    """Returns `value` if it is text that a tokenizer can encode."""
    if not isinstance(value, str):
        raise RowError(f"'{field}' must be text, found {describe(value)}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"'{field}' holds half of a UTF-16 pair at character {error.start}. Write the whole character."
            ) from error
    return value


def check_content(value: Any, field: str) -> Content:
    """Returns `value` as text or as a checked list of messages."""
    if isinstance(value, str):
        return check_text(value, field)
    if isinstance(value, list):
        return check_messages(value, field)
    raise RowError(f"'{field}' must be text or a list of messages {{role, content}}, found {describe(value)}.")


def check_messages(value: Any, field: str) -> list[Message]:
    """Returns `value` as messages of known roles; keys that are null are left out, as transformers does."""
    if not isinstance(value, list):
        raise RowError(f"'{field}' must be a list of messages {{role, content}}, found {describe(value)}.")
    if not value:
        raise RowError(f"'{field}' is an empty list. It needs at least one message {{role, content}}.")
    return [_check_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def _check_message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"'{field}' must be a message {{role, content}}, found {describe(value)}.")
    message = {key: item for key, item in value.items() if item is not None}
    role = message.get("role")
    if role not in ROLES:
        hint = " These are ShareGPT keys: set data.format=sharegpt." if {"from", "value"} <= message.keys() else ""
        raise RowError(f"'{field}.role' must be one of {', '.join(ROLES)}, found {describe(role)}.{hint}")
    calls = message.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        raise RowError(f"'{field}.tool_calls' must be a list of objects, found {describe(calls)}.")
    if "content" in message:
        check_text(message["content"], f"{field}.content")
    elif not (role == "assistant" and calls):
        raise RowError(f"'{field}.content' is missing. Only an assistant message with tool_calls may go without.")
    return message


def check_completion(messages: list[Message], field: str) -> None:
    """Refuses a completion that does not begin and end with the assistant."""
    for position, message in (("begin", messages[0]), ("end", messages[-1])):
        if message["role"] != "assistant":
            raise RowError(
                f"'{field}' must {position} with an assistant message, found role '{message['role']}'. "
                "Earlier turns belong into 'prompt'."
            )


def check_prompt(messages: list[Message], field: str = "prompt") -> None:
    """Refuses a prompt that ends with the assistant's own turn."""
    if messages[-1]["role"] == "assistant":
        raise RowError(
            f"'{field}' must not end with an assistant message. Move it to the front of both completions, or drop it."
        )


def check_tools(value: Any) -> list[Any] | None:
    """Returns the tools of a row, given as a list or as JSON text; none and an empty list are None."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(f"'tools' is not valid JSON: {error}.") from error
    if value is None or value in ("", []) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list):
        raise RowError(f"'tools' must be a list of tools or its JSON text, found {describe(value)}.")
    return value


def check_template_kwargs(value: Any) -> dict[str, Any]:
    """Returns the arguments that a row passes to the chat template."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError(f"'chat_template_kwargs' must be an object, found {describe(value)}.")
    return value


def split_common_prompt(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """Returns prompt, chosen and rejected of a row whose prompt is the common beginning of both completions.

    The same rule as `trl.data_utils.extract_prompt`, for text and for messages: a space before the first difference
    goes to the completions, and the last item never belongs to the prompt. Unlike TRL's, an index of 0 stays 0 where
    TRL looks at the last character.
    """
    shorter = min(len(chosen), len(rejected))
    index = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if index is None:
        index = max(shorter - 1, 0)
    elif index > 0 and chosen[index - 1] == " ":
        index -= 1
    return chosen[:index], chosen[index:], rejected[index:]
