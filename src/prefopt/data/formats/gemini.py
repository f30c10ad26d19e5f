"""Gemini's rows on Vertex: `contents` of parts; a pair's answers are `completions` with score 1 (preferred) and 0."""

from prefopt.data.formats.format import Format, Row, get, look_up
from prefopt.data.formats.writing import (
    get_answer,
    get_conversation,
    get_pair,
    get_text,
    refuse_columns,
    refuse_marks,
    split_system,
)
from prefopt.data.messages import Message, join_parts
from prefopt.data.values import RowError, check_text, describe

ROLES = {"user": "user", "model": "assistant"}
SYSTEM = ("systemInstruction", "system_instruction")
ANSWERS = {1: "chosen", 0: "rejected"}
"""Score of a completion -> what it is."""


def detect(row: Row, kind: str) -> bool:
    return isinstance(row.get("contents"), list)


def read_example(row: Row) -> Row:
    """Returns the conversation as `messages`."""
    return {"messages": _conversation(row)}


def read_pair(row: Row) -> Row:
    """Returns the conversation as prompt, and the two completions."""
    completions = get(row, "completions")
    if not isinstance(completions, list) or len(completions) != len(ANSWERS):
        raise RowError(f"'completions' must be a list of two {{score, completion}}, found {describe(completions)}.")
    answers: Row = {}
    for index, entry in enumerate(completions):
        field = f"completions[{index}]"
        score = entry.get("score") if isinstance(entry, dict) else None
        name = look_up(score, ANSWERS)
        if name is None:
            raise RowError(f"'{field}.score' must be 1 (preferred) or 0, found {describe(score)}.")
        answers[name] = [_message(entry.get("completion"), f"{field}.completion")]
    if len(answers) < len(ANSWERS):
        raise RowError("'completions' must have one with score 1 (preferred) and one with score 0.")
    return {"prompt": _conversation(row), **answers}


def _conversation(row: Row) -> list[Message]:
    named = next((row[name] for name in SYSTEM if row.get(name) is not None), None)
    system = [] if named is None else [{"role": "system", "content": _text(named, SYSTEM[0])}]
    contents = get(row, "contents")
    return system + [_message(content, f"contents[{index}]") for index, content in enumerate(contents)]


def _message(content: object, field: str) -> Message:
    said = content.get("role", "user") if isinstance(content, dict) else None
    role = look_up(said, ROLES)
    if role is None:
        raise RowError(f"'{field}.role' must be one of {', '.join(ROLES)}, found {describe(said)}.")
    return {"role": role, "content": _text(content, field)}


def _text(content: object, field: str) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        raise RowError(f"'{field}' must be {{parts: [{{text}}]}}, found {describe(content)}.")
    return check_text(join_parts(parts, f"{field}.parts"), f"{field}.parts")


def write_pair(row: Row) -> list[Row]:
    """Returns the row with the two completions, of which the one with score 1 is preferred."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    prompt, *answers = get_pair(row)
    completions = [
        {"score": score, "completion": _content(get_answer(answer, name), name)}
        for (score, name), answer in zip(ANSWERS.items(), answers, strict=True)
    ]
    return [{**_contents(prompt, "system_instruction"), "completions": completions}]


def write_example(row: Row) -> list[Row]:
    """Returns the row with `contents` that end with the answer."""
    refuse_columns(row, "tools", "chat_template_kwargs")
    messages = get_conversation(row)
    refuse_marks(messages)
    return [_contents(messages, "systemInstruction")]


def _contents(messages: list[Message], name: str) -> Row:
    system, rest = split_system(messages)
    head: Row = {} if system is None else {name: {"parts": [{"text": system}]}}
    return {**head, "contents": [_content(message, f"message {index}") for index, message in enumerate(rest)]}


def _content(message: Message, field: str) -> Row:
    names = {role: name for name, role in ROLES.items()}
    if message["role"] not in names:
        raise RowError(f"{field} is of role '{message['role']}', and Gemini's rows have user and model alone.")
    return {"role": names[message["role"]], "parts": [{"text": get_text(message, field)}]}


FORMAT = Format(
    detect=detect,
    read={"preference": read_pair, "sft": read_example},
    columns={"preference": (*SYSTEM, "contents", "completions"), "sft": (*SYSTEM, "contents")},
    write={"preference": write_pair, "sft": write_example},
)
