"""The client of a server of a model, with an end to every reply: in time, and in size.

Needs the package openai.
"""

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai

from prefopt.evaluation.endpoint_faults import NonsenseError

MOST_BYTES = 16 * 2**20
"""Size of a reply from which it is none of a chat: a hundred times the longest answer."""


def connect(url: str, key: str | None, timeout_s: float) -> Callable[..., Any]:
    """Returns a function that sends a request and returns the raw response, or raises an error of the package openai.

    It repeats nothing by itself, follows no redirection, and sends no key but the given one.

    Args:
        url: Of the API.
        key: None: none is sent.
        timeout_s: Seconds until a whole reply must have come.
    """
    http = _BoundedClient(
        limits=openai.DEFAULT_CONNECTION_LIMITS,
        trust_env=not _is_loopback(url),  # a proxy of the environment does not reach this machine
        follow_redirects=False,
        timeout=timeout_s,
        headers={"Accept-Encoding": "identity"},  # else the size of what comes says nothing of what it unpacks to
    )
    client = openai.OpenAI(
        base_url=url,
        api_key=key or "none",
        max_retries=0,
        timeout=timeout_s,
        http_client=http,
    )
    # Else the client would tell whatever server this is what OPENAI_API_KEY, OPENAI_ORG_ID and OPENAI_PROJECT_ID hold.
    left_out = ["OpenAI-Organization", "OpenAI-Project", *(["Authorization"] if key is None else [])]
    headers = dict.fromkeys(left_out, openai.Omit())
    send = partial(client.chat.completions.with_raw_response.create, extra_headers=headers)
    return partial(_send_in_time, send, timeout_s)


def _send_in_time(send: Callable[..., Any], timeout_s: float, **request: Any) -> Any:
    """Sends a request in a thread of its own, and waits no longer than `timeout_s` for its whole reply.

    The client's own limits are for each read: a server that sends a byte now and then would never be given up.
    """
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(send(**request))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="endpoint request", daemon=True)
    thread.start()
    thread.join(timeout_s + 1)  # the client's own limit comes first, and says more
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError
    return found[0]


class _BoundedClient(httpx.Client):
    """Gives a reply up that takes too long or is too large, while it is read."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        timeout_s = request.extensions["timeout"]["read"]
        ends_at = time.monotonic() + timeout_s
        response = super().send(request, **{**options, "stream": True})
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Bounded(response.stream, ends_at)
        if not options.get("stream"):
            response.read()
        return response


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, ends_at: float) -> None:
        self._stream, self._ends_at = stream, ends_at

    def __iter__(self) -> Iterator[bytes]:
        num = 0
        for part in self._stream:
            num += len(part)
            if num > MOST_BYTES:
                raise NonsenseError(f"its reply has more than {MOST_BYTES // 2**20} MiB")
            if time.monotonic() > self._ends_at:
                raise httpx.ReadTimeout("the whole reply did not come in time")
            yield part

    def close(self) -> None:
        self._stream.close()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
