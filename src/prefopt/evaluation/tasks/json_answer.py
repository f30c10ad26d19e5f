"""Answers read as JSON, strictly: what a program at the other end would refuse is refused, and the reason is kept."""

import json
from dataclasses import dataclass
from math import isinf
from typing import Any, Literal, NoReturn

from prefopt.evaluation.tasks.fences import find_blocks

MAX_CHARACTERS = 100_000
"""Longest answer that is read; every step takes a time that grows with the length."""
MAX_STARTS = 20
"""Brackets in an answer of prose, from each of which JSON is looked for."""
Failure = Literal["empty", "too_long", "fenced", "text_around", "cut", "repeated_key", "invalid"]
LITERALS = ("true", "false", "null", "-")
MIN_ESCAPE = len("\\u0000")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer as JSON.

    Attributes:
        value: The value; None stands for `null` or for a failure.
        failure: Why it is no JSON: `fenced`, it stands in a code fence; `text_around`, there is JSON with other text
            before or behind it; `cut`, it is the beginning of JSON; `repeated_key`, an object has a key twice;
            `invalid`, anything else, such as NaN. None if it is JSON.
    """

    value: Any
    failure: Failure | None = None


class _RepeatedKeyError(ValueError):
    """An object has a key twice."""


def parse_answer(text: str) -> Parsed:
    """Reads an answer as JSON (RFC 8259), blanks around it apart."""
    if len(text) > MAX_CHARACTERS:
        return Parsed(None, "too_long")
    if not text.strip():
        return Parsed(None, "empty")
    try:
        return Parsed(_DECODER.decode(text))
    except _RepeatedKeyError:
        return Parsed(None, "repeated_key")
    except json.JSONDecodeError as error:
        return Parsed(None, _classify(text, error))
    except (ValueError, RecursionError):  # NaN, a number beyond floats or of thousands of digits, too many levels
        return Parsed(None, "invalid")


def _classify(text: str, error: json.JSONDecodeError) -> Failure:
    if text.lstrip().startswith("```") or any(block.content.lstrip()[:1] in "{[" for block in find_blocks(text)):
        return "fenced"
    if error.msg == "Extra data":
        return "text_around"
    if text.lstrip()[0] in '{["':
        return "cut" if _is_cut(error) else "invalid"
    return "text_around" if _holds_json(text) else "invalid"


def _is_cut(error: json.JSONDecodeError) -> bool:
    """Whether nothing is wrong with the text before its end."""
    rest = error.doc[error.pos :].rstrip()
    is_in_escape = "escape" in error.msg and len(rest) < MIN_ESCAPE
    return (
        not rest
        or error.msg.startswith("Unterminated string")
        or is_in_escape
        or any(literal.startswith(rest) for literal in LITERALS)
    )


def _holds_json(text: str) -> bool:
    starts = [place for place, letter in enumerate(text) if letter in "{["][:MAX_STARTS]
    for start in starts:
        try:
            _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RepeatedKeyError
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError(f"{text} is beyond the numbers of programs")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_parse_float)
