"""Checks tools and tool calls, and converts them to the form that chat templates read: lists of objects."""

from typing import Any

from prefopt.data.strict_json import JSONError, parse, parse_structure
from prefopt.data.values import RowError, check_nested, describe


def check_tools(value: object) -> list[Any] | None:
    """Returns the tools of a row, given as a list or as JSON text; None if there are none."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_structure(value)
        except JSONError as error:
            raise RowError(f"'tools' is not valid JSON: {error}.") from error
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list):
        raise RowError(f"'tools' must be a list of tools or its JSON text, found {describe(value)}.")
    for tool in value:
        if not isinstance(tool, dict):
            raise RowError(f"'tools' must be a list of objects, found {describe(tool)} in it.")
    check_nested(value, "tools")
    return value


def wrap_tools(value: object) -> list[Any] | None:
    """Returns tools as transformers' templates expect them: `{type: function, function: {...}}`."""
    tools = check_tools(value)
    if tools is None:
        return None
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def read_calls(message: dict[str, Any], field: str) -> None:
    """Converts the calls of a message, in place, to `tool_calls` with arguments that are objects.

    OpenAI writes arguments as JSON text, and older files of it have a single call as `function_call`.
    """
    if "function_call" in message:
        if "tool_calls" in message:
            raise RowError(f"'{field}' has 'tool_calls' and 'function_call', which is their older form. Remove one.")
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"'{field}.tool_calls' must be a list of objects, found {describe(calls)}.")
    message["tool_calls"] = [_read_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(calls)]


def _read_call(call: dict[str, object], field: str) -> dict[str, object]:
    if "function" not in call:
        return _with_arguments(call, field)
    function = call["function"]
    if not isinstance(function, dict):
        raise RowError(f"'{field}.function' must be an object {{name, arguments}}, found {describe(function)}.")
    return {**call, "function": _with_arguments(function, f"{field}.function")}


def _with_arguments(function: dict[str, object], field: str) -> dict[str, object]:
    if "arguments" not in function:
        return function
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = parse(arguments) if arguments.strip() else {}
        except JSONError as error:
            raise RowError(
                f"'{field}.arguments' is text, but not valid JSON: {error}. Write the object itself."
            ) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(
            f"'{field}.arguments' must be an object {{name: value}} or its JSON text, found "
            f"{describe(function['arguments'])}. Write which argument has which value, or {{}} for none."
        )
    return {**function, "arguments": arguments}
