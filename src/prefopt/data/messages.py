"""Checks on the values of one row: text, message lists, tools. No file or format is known here."""

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
"""`role` and `content`, and whatever else a chat template reads (`tool_calls`, `name`, ...)."""

Content = str | list[Message]
"""A prompt or completion: plain text, or messages for a chat template."""

ROLES = ("system", "developer", "user", "assistant", "tool")

MARKS = ("weight", "train", "training", "loss")
"""Keys of an assistant message that say whether it is trained: 0 or false, 1 or true."""

UNTRAINED = "train"
"""Key that a checked message has, with the value False, where one of its marks says so. Templates never see it."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a content's parts that are text."""

RESERVED_KWARGS = frozenset(
    {
        "messages", "conversation", "conversations", "tools", "chat_template", "add_generation_prompt",
        "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
        "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token",
    }
)  # fmt: skip
"""Names in a row's `chat_template_kwargs` that would replace the template, what it renders, or how it is called."""


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
        message["content"] = check_text(join_parts(message["content"], f"{field}.content"), f"{field}.content")
    elif not (role == "assistant" and calls):
        raise RowError(f"'{field}.content' is missing. Only an assistant message with tool_calls may go without.")
    _read_marks(message, field)
    return message


def join_parts(value: Any, field: str) -> Any:
    """Returns the text of content that is given as parts, one after another; other content as it is."""
    if not isinstance(value, list):
        return value
    texts = []
    for index, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS else None
        if not isinstance(text, str):
            raise RowError(
                f"'{field}[{index}]' must be a part {{type: text, text}}, found {describe(part)}. prefopt trains text "
                "models: remove other parts, or these rows."
            )
        texts.append(text)
    return "".join(texts)


def _read_marks(message: Message, field: str) -> None:
    """Replaces the marks of a message by `UNTRAINED`, where they say that its turn is not trained."""
    marks = {key: message.pop(key) for key in MARKS if key in message}
    for key, value in marks.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise RowError(
                f"'{field}.{key}' must be 0 or 1, or false or true, found {describe(value)}: a turn is trained or not."
            )
        if value and message["role"] != "assistant":
            raise RowError(
                f"'{field}.{key}' asks to train a message of role '{message['role']}', but only the assistant's are "
                f"trained. Remove '{key}' there; to train every token of SFT rows, set algorithm.loss_on=all."
            )
    if message["role"] == "assistant" and not all(marks.values()):
        message[UNTRAINED] = False


def is_trained(message: Message) -> bool:
    """Returns whether a message is one of the assistant's that no mark exempts from training."""
    return message["role"] == "assistant" and UNTRAINED not in message


def trained_turns(messages: Sequence[Message], num_prompt: int | None = None) -> list[int]:
    """Returns which messages are trained: those of the assistant that answer something and are not marked otherwise.

    Args:
        messages: A whole conversation.
        num_prompt: Messages at its beginning that are the prompt. Unset: what comes before the first answer, so that
            a greeting, which answers nothing, is not trained.
    """
    if num_prompt is None:
        num_prompt = 1 + next((at for at, message in enumerate(messages) if message["role"] in ("user", "tool")), 0)
    return [at for at, message in enumerate(messages) if at >= num_prompt and is_trained(message)]


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
    reserved = sorted(RESERVED_KWARGS & value.keys())
    if reserved:
        raise RowError(
            f"'chat_template_kwargs' may not hold '{reserved[0]}': a row passes variables to the chat template, and "
            "replaces neither it nor what it renders. Remove the key; for another template, set model.chat_template."
        )
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
