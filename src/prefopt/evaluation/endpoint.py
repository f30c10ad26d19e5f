"""Conversations with a model behind an OpenAI-compatible server: many at once, repeated with patience, and kept."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.evaluation.endpoint_faults import Fault, Patience, diagnose, parse_reply
from prefopt.process.errors import UserError, describe
from prefopt.process.pace import Pace
from prefopt.storage.files import read_object, write_json

logger = logging.getLogger(__name__)

Message = Mapping[str, str]
VERSION = 1
"""Of what is kept; another one is asked for anew."""
TIMEOUT_S = 120.0
FEWEST_IN_KEY = 8
"""Characters of a key; shorter words stand in place of one."""
KEPT = " Replies that came are kept: the next evaluation asks for the others only."
NO_KEYS = ("not-needed", "not_needed", "no-key-required", "lm-studio", "placeholder", "undefined", "anything")
"""Longer words that do."""


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: Its words; empty if it gave no answer: it refused, or was cut before its first word.
        finished: It ended by itself, and not at the limit of tokens.
    """

    text: str
    finished: bool


class Endpoint:
    """A model behind a server. Answers are kept in `cache`, and what is kept is not asked again.

    The key is read from the environment, sent to this server alone, and stands in no error, log or reply, also where
    the server says it back. A word that stands for a key where a local server wants none, such as EMPTY, is no secret:
    a model may say it.

    Args:
        where: What stands before each error, such as `evaluation.judges: gpt:`.
        url: Of the API, such as http://127.0.0.1:8000/v1.
        model: The model's name there.
        cache: Folder of the replies; several processes may share it.
        key_env: Environment variable that holds the key; None: none is sent.
        max_requests: Most requests that it sends in its life, repeated ones included.
        concurrency: Requests that are under way at once.
        timeout_s: Seconds after which a request without a whole reply is given up, and sent again.

    Raises:
        UserError: The package openai is missing, or the variable is not set.
    """

    def __init__(
        self,
        where: str,
        *,
        url: str,
        model: str,
        cache: Path,
        key_env: str | None = None,
        max_requests: int = 2000,
        concurrency: int = 16,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.url, self.model = url.rstrip("/"), model
        self._where, self._cache, self._key_env = where, cache, key_env
        self._key = _read_key(where, key_env)
        self._max_requests, self._concurrency, self._timeout_s = max_requests, concurrency, timeout_s
        self._send = _connect(where, self.url, self._key, timeout_s)
        self._lock = threading.Lock()
        self._has_kept = False  # a reply that came
        self.num_sent = self.num_kept = 0
        """Requests that were sent, repeated ones included; and replies that came from the cache."""

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] | None = None,
    ) -> list[Reply]:
        """Returns the model's reply to each conversation, in their order; equal ones with equal seeds are asked once.

        Args:
            conversations: Messages with `role` and `content`.
            max_tokens: Most tokens of a reply.
            temperature: 0: the likeliest words.
            seed: Of all replies, or one for each; None: the server's own. Not every server heeds it.

        Raises:
            UserError: More requests are needed than are left, or the server cannot be reached, refuses or answers
                nonsense for good. Replies that have come are kept.
        """
        seeds = seed if isinstance(seed, Sequence) else [seed] * len(conversations)
        requests = [
            {
                "model": self.model,
                "messages": [dict(message) for message in messages],
                "max_tokens": max_tokens,
                "temperature": temperature,
                "stream": False,
                **({} if each is None else {"seed": each}),
            }
            for messages, each in zip(conversations, seeds, strict=True)
        ]
        keys = [self._key_of(request) for request in requests]
        found = {key: self._recall(key) for key in dict.fromkeys(keys)}
        wanted = {key: request for key, request in zip(keys, requests, strict=True) if found[key] is None}
        self.num_kept += len(found) - len(wanted)
        self._require_budget(len(wanted))
        if wanted:
            logger.info("%s %d requests to %s (%d kept)", self._where, len(wanted), self.url, len(found) - len(wanted))
        replies = {key: reply for key, reply in found.items() if reply is not None} | self._ask_all(wanted)
        return [replies[key] for key in keys]

    def _ask_all(self, wanted: Mapping[str, dict[str, Any]]) -> dict[str, Reply]:
        """Sends requests, some at a time. After a failure no more are sent; replies under way are awaited and kept."""
        replies: dict[str, Reply] = {}
        pace = Pace(f"{self._where} replies", len(wanted), logger)
        given_up = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency, "endpoint")
        try:
            futures = {pool.submit(self._ask, key, request, given_up): key for key, request in wanted.items()}
            for future in as_completed(futures):
                replies[futures[future]] = future.result()
                pace.advance(1)
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)
        return replies

    def _ask(self, key: str, request: dict[str, Any], given_up: threading.Event) -> Reply:
        """Returns and keeps the reply to one request, which is repeated while there is hope.

        Raises:
            UserError: There is none.
        """
        patience = Patience()
        while True:
            self._spend()
            try:
                raw = self._send(**request)
                text, finished = parse_reply(self._hide_key(raw.http_response.text))
                reply = Reply(self._hide_key(text), finished)  # again: JSON has other ways to write it
            except Exception as error:  # of the client, of its transport, or of a reply without sense
                fault = diagnose(error, self._hide_key)
                if fault is None:
                    raise
                wait_s = patience.after(fault)
                if wait_s is None or given_up.wait(wait_s):
                    raise self._refuse(fault, patience) from None  # its cause may show what was sent
            else:
                if reply.text.strip():
                    self._keep(key, reply)
                return reply

    def _refuse(self, fault: Fault, patience: Patience) -> UserError:
        found = f"{fault.found}{self._say_key() if fault.is_about_key else ''}"
        remedy = fault.remedy.format(model=self.model, url=self.url, where=self._where.rstrip(":"))
        text = f"{self._where} {self.url}: {found}{patience.tried}. {remedy}"
        if self._has_kept:
            text += KEPT
        return UserError(self._hide_key(text))

    def _hide_key(self, text: str) -> str:
        return text if self._key is None or not is_secret(self._key) else text.replace(self._key, "***")

    def _say_key(self) -> str:
        return f" in {self._key_env}" if self._key_env else "; none was sent, as key_env is unset"

    def _require_budget(self, num_needed: int) -> None:
        num_left = self._max_requests - self.num_sent
        if num_needed > num_left:
            raise UserError(
                f"{self._where} {num_needed:,} requests are needed, and {num_left:,} of max_requests="
                f"{self._max_requests} are left. None of them was sent. Set max_requests to "
                f"{self.num_sent + num_needed} or more, or compare fewer answers. That is for what is asked until "
                "here: a judge reads held-out pairs first, and then the answers of each two contestants."
            )

    def _spend(self) -> None:
        """Counts a request before it is sent."""
        with self._lock:
            if self.num_sent >= self._max_requests:
                raise UserError(
                    f"{self._where} all {self._max_requests:,} requests of max_requests are spent, as some had to be "
                    f"repeated.{KEPT}"
                )
            self.num_sent += 1

    def _key_of(self, request: Mapping[str, Any]) -> str:
        decisive = json.dumps([VERSION, self.url, request], sort_keys=True)
        return hashlib.sha256(decisive.encode()).hexdigest()

    def _path(self, key: str) -> Path:
        return self._cache / key[:2] / f"{key}.json"

    def _recall(self, key: str) -> Reply | None:
        path = self._path(key)
        try:
            kept = read_object(path, "")
        except UserError as error:
            logger.warning("%s a kept reply is damaged and asked for again (%s)", self._where, error)
            return None
        text, finished = kept.get("text"), kept.get("finished")
        if not isinstance(text, str) or not isinstance(finished, bool) or not text.strip():
            return None  # earlier versions kept what was no answer
        return Reply(self._hide_key(text), finished)

    def _keep(self, key: str, reply: Reply) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"url": self.url, "model": self.model, **asdict(reply)})
            self._has_kept = True
        except OSError as error:
            logger.warning("%s a reply is not kept, and asked for again next time: %s", self._where, describe(error))


def is_secret(key: str) -> bool:
    """Whether a key is one, and no word that local servers take in its place."""
    return len(key) >= FEWEST_IN_KEY and key.casefold() not in NO_KEYS


def _read_key(where: str, key_env: str | None) -> str | None:
    if key_env is None:
        return None
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise UserError(
            f"{where} key_env={key_env}: this environment variable is not set. Set it: export {key_env}=..."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{where} key_env={key_env}: the key in it has characters that no HTTP header can hold.")
    return key


def _connect(where: str, url: str, key: str | None, timeout_s: float) -> Callable[..., Any]:
    """Returns the function of `endpoint_client.connect`, which needs the package openai."""
    try:
        import openai  # noqa: F401 (an optional dependency: only its presence is checked)
    except ImportError as error:
        raise UserError(f"{where} needs the package openai. Install it: pip install 'prefopt[judge]'.") from error
    from prefopt.evaluation.endpoint_client import connect

    return connect(url, key, timeout_s)
