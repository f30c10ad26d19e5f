"""Checks of the values of settings, with messages of one form."""

import math
import os
import re
from typing import Any
from urllib.parse import urlsplit

from omegaconf import BooleanNode, IntegerNode
from omegaconf.errors import ValidationError

from prefopt.config.choices import AUTO
from prefopt.process.errors import UserError, shorten

OWN_CODE = re.compile(r"[\w.]+:[\w.<>]+")
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
MAX_FOLDER_BYTES = 200
"""Most bytes in a folder's name, of the 255 that file systems allow."""


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def require_at_most(key: str, value: float | None, most: int, why: str) -> None:
    """Refuses a number so large that the machine would hang or run out of memory; None is allowed."""
    require(value is None or value <= most, f"{key}: must be at most {most:,} ({why}), found {value}.")


def require_folder_name(key: str, name: str) -> None:
    """Refuses a text that is no plain folder name, or leaves no room for the endings of files beside the folder."""
    is_plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
    require(
        is_plain, f"{key}: must be one plain folder name, found {shorten(repr(name))}. Put its folder in run.root."
    )
    size = len(os.fsencode(name))
    require(size <= MAX_FOLDER_BYTES, f"{key}: must have at most {MAX_FOLDER_BYTES} bytes, found {size}.")


def require_code(key: str, name: str) -> None:
    """Refuses what does not name code of the user's as `module:name`; the module is not imported for it."""
    require(
        OWN_CODE.fullmatch(name) is not None,
        f"{key}: must be module:name, such as my_module:MyName, found {shorten(repr(name))}.",
    )


def require_url(key: str, url: str) -> None:
    """Refuses what is no URL of an HTTP server, and a URL with a password, which logs and reports would show."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets without an end, or a port that is no number
        parts, is_url = None, False
    require(
        parts is None or "@" not in parts.netloc,
        f"{key}: must hold no name or password, which reports would show. Put the key into an environment variable.",
    )
    require(is_url, f"{key}: must be a URL such as http://127.0.0.1:8000/v1, found {shorten(repr(url))}.")


def require_variable(key: str, name: str) -> None:
    """Refuses what is no name of an environment variable; it is not quoted, since it may be the secret itself."""
    require(
        VARIABLE.fullmatch(name) is not None,
        f"{key}: must be the name of an environment variable, in capitals such as OPENAI_API_KEY, and not the key "
        "itself.",
    )


def check_usable(key: str, value: object) -> None:
    """Refuses values that no setting can use: nan, inf, whole numbers beyond 64 bits, text that no file can hold.

    Args:
        key: The setting.
        value: Its value; items of lists and dicts are checked too.
    """
    if isinstance(value, float):
        require(math.isfinite(value), f"{key}: must be a finite number, found {value}.")
    elif isinstance(value, int):
        require(
            -(2**63) <= value < 2**63,
            f"{key}: must be a whole number of at most 64 bits, found {shorten(str(value))}.",
        )
    elif isinstance(value, str):
        is_text = "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
        require(is_text, f"{key}: must be text in UTF-8 without null characters, found {shorten(repr(value))}.")
    elif isinstance(value, dict):
        for name, item in value.items():
            check_usable(f"{key}.{name}", item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_usable(f"{key}[{number}]", item)


def or_auto(name: str, value: object, kind: type[bool] | type[int]) -> Any:
    """The value of a setting that may be `auto`: `auto` itself, or the value converted to `kind` as OmegaConf does."""
    if value == AUTO:
        return AUTO
    try:
        return (BooleanNode if kind is bool else IntegerNode)().validate_and_convert(value)
    except ValidationError as error:
        allowed = "true, false" if kind is bool else "a whole number, null"
        raise UserError(f"{name}: must be {allowed} or auto, found {value!r}.") from error
