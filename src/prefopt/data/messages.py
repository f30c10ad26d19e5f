"""Checks of the messages of one row, independent of files and formats."""

from collections.abc import Sequence
from typing import Any

from prefopt.data.tool_calls import read_calls
from prefopt.data.values import RowError, check_nested, check_text, describe

Message = dict[str, Any]
"""A message: `role`, `content`, and other keys that a chat template may read (`tool_calls`, `name`, ...)."""

Content = str | list[Message]
"""A prompt or completion: plain text, or messages for a chat template."""

ROLES = ("system", "developer", "user", "assistant", "tool")

MARKS = ("weight", "train", "training", "loss")
"""Keys of an assistant message that say whether it is trained: 1 or true if it is, 0 or false if not."""

UNTRAINED = "train"
"""Key, with the value False, of a checked message that a mark exempts from training. It is removed for templates."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Values of `type` of the text parts of a message's content."""

RESERVED_KWARGS = frozenset(
    {
        "messages", "conversation", "conversations", "tools", "chat_template", "add_generation_prompt",
        "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
        "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token",
    }
)  # fmt: skip
"""Forbidden keys of `chat_template_kwargs`: they would replace the template, its input, or arguments of its call."""


def check_content(value: object, field: str) -> Content:
    """Returns `value` as text or as a checked list of messages; raises a `RowError` if it is neither."""
    if isinstance(value, str):
        return check_text(value, field)
    if isinstance(value, list):
        return check_messages(value, field)
    raise RowError(f"'{field}' must be text or a list of messages {{role, content}}, found {describe(value)}.")


def check_messages(value: object, field: str) -> list[Message]:
    """Returns `value` as messages with known roles; keys with a null value are removed, as in transformers."""
    if not isinstance(value, list):
        raise RowError(f"'{field}' must be a list of messages {{role, content}}, found {describe(value)}.")
    if not value:
        raise RowError(f"'{field}' is an empty list. It needs at least one message {{role, content}}.")
    return [_check_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def _check_message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"'{field}' must be a message {{role, content}}, found {describe(value)}.")
    message = {key: item for key, item in value.items() if item is not None}
    role = message.get("role")
    if role == "function":  # OpenAI's older name
        role = message["role"] = "tool"
    if role not in ROLES:
        hint = " These are ShareGPT keys: set data.format=sharegpt." if {"from", "value"} <= message.keys() else ""
        raise RowError(f"'{field}.role' must be one of {', '.join(ROLES)}, found {describe(role)}.{hint}")
    if "tool_calls" in message or "function_call" in message:
        read_calls(message, field)
    if "content" in message:
        if isinstance(message["content"], list):
            message["content"] = join_parts(message["content"], f"{field}.content")
        check_text(message["content"], f"{field}.content")
    elif not (role == "assistant" and message.get("tool_calls")):
        raise RowError(f"'{field}.content' is missing. Only an assistant message with tool_calls may go without.")
    if len(message) > 2 or "content" not in message:
        _read_marks(message, field)
        for key, item in message.items():
            if key != "content":
                check_nested(item, f"{field}.{key}")
    return message


def join_parts(value: object, field: str) -> object:
    """Returns the joined text of content that is a list of parts; other content is returned unchanged."""
    if not isinstance(value, list):
        return value
    texts = []
    for index, part in enumerate(value):
        is_text = isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and not part.get("thought")
        text = part.get("text", part.get("value")) if is_text else None  # LLaMA-Factory says `value`
        if not isinstance(text, str):
            raise RowError(
                f"'{field}[{index}]' must be a part {{type: text, text}}, found {describe(part)}. prefopt trains text "
                "models: remove other parts, or these rows."
            )
        texts.append(text)
    return "".join(texts)


def _read_marks(message: Message, field: str) -> None:
    """Removes the marks of a message, and adds `UNTRAINED` if they say that its turn is not trained."""
    logged = {"loss"} if message.get("loss", 0) not in (0, 1) else set()  # a measured loss, not a mark
    marks = {key: message.pop(key) for key in MARKS if key in message and key not in logged}
    for key, value in marks.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise RowError(
                f"'{field}.{key}' must be 0 or 1, or false or true, found {describe(value)}: a turn is trained or not."
            )
        if value and message["role"] != "assistant":
            raise RowError(
                f"'{field}.{key}' asks to train a message of role '{message['role']}', but only the assistant's are "
                f"trained. Remove '{key}' from all messages of other roles. Once none has it, algorithm.loss_on=all "
                "trains every token of SFT rows."
            )
    if message["role"] == "assistant" and not all(marks.values()):
        message[UNTRAINED] = False


def is_trained(message: Message) -> bool:
    """Returns whether a message is of the assistant and not marked as untrained."""
    return message["role"] == "assistant" and UNTRAINED not in message


def trained_turns(messages: Sequence[Message], num_prompt: int | None = None) -> list[int]:
    """Returns the indices of the trained messages: after the prompt, of the assistant, and not marked as untrained.

    Args:
        messages: A whole conversation.
        num_prompt: Number of messages that are the prompt. None: all up to the first message of a user or tool, so
            that an initial greeting of the assistant is not trained.
    """
    if num_prompt is None:
        num_prompt = 1 + next((at for at, message in enumerate(messages) if message["role"] in ("user", "tool")), 0)
    return [at for at, message in enumerate(messages) if at >= num_prompt and is_trained(message)]


def add_system(prompt: Content, system: object, field: str = "prompt") -> Content:
    """Returns the prompt with the column `system` of its row prepended as a system message.

    Raises:
        RowError: The prompt is text, or begins with a different system message.
    """
    text = check_text(join_parts(system, "system"), "system")
    if not text:
        return prompt
    if isinstance(prompt, str):
        raise RowError(
            f"'system' is a system prompt, but '{field}' is text, in which nothing marks it. "
            + ("Set data.as_chat=true to make a chat of both, or give" if field == "prompt" else "Give")
            + f" '{field}' and the answers as messages {{role, content}}."
        )
    first = prompt[0] if prompt and prompt[0]["role"] in ("system", "developer") else None
    if first is None:
        return [{"role": "system", "content": text}, *prompt]
    if first.get("content") != text:
        raise RowError(f"'system' differs from the system message of '{field}'. Remove one of them.")
    return prompt


def check_completion(messages: list[Message], field: str) -> None:
    """Refuses a completion that does not begin and end with an assistant message."""
    for position, message in (("begin", messages[0]), ("end", messages[-1])):
        if message["role"] != "assistant":
            raise RowError(
                f"'{field}' must {position} with an assistant message, found role '{message['role']}'. "
                "Earlier turns belong into 'prompt'."
            )


def check_prompt(messages: list[Message], field: str = "prompt") -> None:
    """Refuses a prompt that ends with an assistant message."""
    if messages[-1]["role"] == "assistant":
        raise RowError(
            f"'{field}' must not end with an assistant message. Move it to the front of both completions, or drop it."
        )


def check_template_kwargs(value: object) -> dict[str, Any]:
    """Returns the checked arguments that a row passes to the chat template; {} for None."""
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
    check_nested(value, "chat_template_kwargs")
    return value
