"""What goes wrong between this machine and a server of a model: what to say of it, and how long to try again."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from prefopt.process.errors import first_line, shorten
from prefopt.storage.reading import parse_json

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Seconds before the second try; each later wait is twice as long."""
PATIENCE_S = 300.0
"""Seconds after which a request is not tried again."""
MANY_TRIES, SOME_TRIES, FEW_TRIES = 8, 4, 3
"""Most times that a request is sent: to a busy server; to one that is not there; to one that answers nonsense."""
LATER, CONFLICT, TOO_MANY = 408, 409, 429
CUT = ("length", "content_filter")
"""Reasons to end a reply that are none of the model's own."""
SHOWN = 300


class NonsenseError(ValueError):
    """A reply that is none of a chat."""


@dataclass(frozen=True)
class Fault:
    """Why a request failed.

    Attributes:
        found: What happened, to follow the server's address.
        remedy: What to do about it; `{url}`, `{model}` and `{where}` are filled in.
        max_tries: How many times a request is sent that fails so; 1: it is not repeated.
        wait_s: Seconds that the server asks to wait.
        is_about_key: The server does not accept the key.
    """

    found: str
    remedy: str
    max_tries: int = 1
    wait_s: float = 0.0
    is_about_key: bool = False


class Patience:
    """How often and how long one request was tried."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._num_tries = 0

    def after(self, fault: Fault) -> float | None:
        """Counts a failed try, and returns the seconds to wait before the next one; None to give up."""
        self._num_tries += 1
        growing = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self._num_tries - 1))
        wait_s = max(fault.wait_s, growing * random.uniform(0.5, 1.0))  # else all that failed at once return at once
        is_late = time.monotonic() - self._begun + wait_s > PATIENCE_S
        return None if self._num_tries >= fault.max_tries or is_late else wait_s

    @property
    def tried(self) -> str:
        """How much was tried, to follow what happened; empty after a single try."""
        seconds = time.monotonic() - self._begun
        return f" ({self._num_tries} tries in {seconds:.0f} s)" if self._num_tries > 1 else ""


def parse_reply(body: str) -> tuple[str, bool]:
    """Returns the text of a chat completion, and whether the model ended it by itself.

    The text is empty if there is no answer: the content is null, or the model or the server refuses to give one.

    Raises:
        NonsenseError: It is no such thing.
    """
    try:
        value = parse_json(body)
    except ValueError as error:
        raise NonsenseError(f"its reply is no JSON ({error}): {shorten(repr(body))}") from error
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise NonsenseError(f"its reply has no choices: {shorten(repr(body))}")
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    if not isinstance(content, str | None):
        raise NonsenseError(f"its reply has no message with a text: {shorten(repr(body))}")
    refuses = isinstance(message, dict) and message.get("refusal")
    return "" if refuses else content or "", choices[0].get("finish_reason") not in CUT


def diagnose(error: Exception, hide: Callable[[str], str] = str) -> Fault | None:
    """Returns what a failed request means; None for an error that is none of the server's.

    Args:
        error: Of the request.
        hide: Takes out of a text what must not be shown, before the text is shortened.
    """
    import openai

    if isinstance(error, NonsenseError):
        return Fault(str(error), "Does an OpenAI-compatible server listen there?", FEW_TRIES)
    if isinstance(error, openai.APIStatusError):
        return _diagnose_status(error.status_code, error.response, hide)
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Fault("no reply in time", "Is the server overloaded? A lower concurrency may help.", FEW_TRIES)
    if isinstance(error, openai.APIConnectionError):
        return _diagnose_connection(error)
    return None


def _diagnose_connection(error: Exception) -> Fault | None:
    cause = error.__cause__
    if isinstance(cause, NonsenseError):
        return diagnose(cause)
    kind = type(cause).__name__
    if kind in ("RemoteProtocolError", "ReadError", "DecodingError"):
        return Fault(f"it ends its reply half way ({kind})", "See the server's log for the reason.", FEW_TRIES)
    reason = first_line(cause or error)
    return Fault(f"no connection ({reason})", "Is the server up? Try: curl {url}/models", SOME_TRIES)


def _diagnose_status(status: int, response: Any, hide: Callable[[str], str]) -> Fault:
    said = f" ({shorten(' '.join(hide(str(response.text)).split()), SHOWN)})" if response.text else ""
    wait_s = _asked_wait(response)
    until = f" and asks to wait {wait_s:.0f} s" if wait_s else ""
    if status in (401, 403):
        # What the server says is left out: some quote a part of the key.
        return Fault(
            f"it refuses the key (HTTP {status})", "Set key_env to a variable with a valid one.", 1, 0.0, True
        )
    if status == 404:
        return Fault(
            f"it knows no such model or address (HTTP 404){said}",
            "Is the model called {model} there, and does the URL end as the server says, mostly in /v1? "
            "Try: curl {url}/models",
        )
    if status == TOO_MANY:
        remedy = "Set a lower concurrency, wait, or raise the quota."
        return Fault(f"it takes no more requests (HTTP 429){said}{until}", remedy, MANY_TRIES, wait_s)
    if status in (LATER, CONFLICT) or status >= 500:
        return Fault(f"it fails (HTTP {status}){said}{until}", "See the server's log.", MANY_TRIES, wait_s)
    return Fault(
        f"it refuses the request (HTTP {status}){said}", "Change what it names; what was asked is set by {where}."
    )


def _asked_wait(response: Any) -> float:
    """Returns the seconds that a `Retry-After` asks to wait, as a number or as a date; 0 without one."""
    asked = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
