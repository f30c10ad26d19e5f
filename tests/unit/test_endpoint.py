"""Conversations through a real server on loopback, which does all that servers do wrong."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from prefopt.evaluation import endpoint_faults
from prefopt.evaluation.endpoint import Endpoint, Reply
from prefopt.process.errors import UserError
from tests.chat_server import ChatServer, Given, refuses, says
from tests.ports import find_free_ports

pytest.importorskip("openai")

KEY = "sk-secret-0123456789"
WHERE = "evaluation.judges: gpt:"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_faults, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(endpoint_faults, "LONGEST_WAIT_S", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def reach(tmp_path: Path) -> Callable[..., Endpoint]:
    def build(url: str | ChatServer, **settings: Any) -> Endpoint:
        address = url.url if isinstance(url, ChatServer) else url
        return Endpoint(WHERE, **{"url": address, "model": "m", "cache": tmp_path / "replies", **settings})

    return build


def talks(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def echo(request: dict[str, Any], _: int) -> Given:
    return says(request["messages"][-1]["content"].upper())


def test_replies_come_in_the_order_of_the_conversations_with_all_parameters_sent(reach):
    def slowest_first(request: dict[str, Any], number: int) -> Given:
        given = echo(request, number)
        given.after_s = 0.1 if request["messages"][-1]["content"] == "a" else 0
        return given

    with ChatServer(slowest_first) as server:
        replies = reach(server).chat(talks("a", "b", "c"), max_tokens=7, temperature=0.5, seed=[1, 2, 3])
    assert replies == [Reply("A", True), Reply("B", True), Reply("C", True)]
    sent = sorted(server.requests, key=lambda each: each["seed"])
    assert sent[1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "b"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "stream": False,
        "seed": 2,
    }
    assert set(server.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (says("cut", reason="length"), Reply("cut", False)),
        (says(None), Reply("", True)),
        (says("", reason="content_filter"), Reply("", False)),
    ],
)
def test_a_reply_says_whether_the_model_ended_it(reach, given, expected):
    with ChatServer(lambda *_: given) as server:
        assert reach(server).chat(talks("a"), max_tokens=5) == [expected]


def refusal(text: str | None) -> Given:
    message = {"role": "assistant", "content": text, "refusal": "I cannot help with that."}
    return Given(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())


@pytest.mark.parametrize(
    "given",
    [
        says(None),
        says(None, reason="length"),
        says("", reason="content_filter"),
        says(" "),
        refusal(None),
        refusal(""),
    ],
)
def test_what_is_no_answer_is_empty_and_asked_for_again_next_time(reach, given, tmp_path):
    with ChatServer(lambda request, number: given if number == 0 else echo(request, number)) as server:
        assert reach(server).chat(talks("a"), max_tokens=5)[0].text.strip() == ""
        assert reach(server).chat(talks("a"), max_tokens=5) == [Reply("A", True)]
        assert len(server.requests) == 2


def test_what_an_earlier_version_kept_of_no_answer_is_asked_for_again(reach, tmp_path):
    with ChatServer(echo) as server:
        reach(server).chat(talks("a"), max_tokens=5)
        (kept,) = (tmp_path / "replies").rglob("*.json")
        kept.write_text(kept.read_text().replace('"A"', '""'))
        assert reach(server).chat(talks("a"), max_tokens=5) == [Reply("A", True)]


@pytest.mark.parametrize("num_first", [0, 100_000])
def test_a_server_that_drips_is_given_up_in_time(reach, monkeypatch, num_first):
    def drip(connection: socket.socket) -> None:
        connection.settimeout(30)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b" " * num_first
        with contextlib.suppress(OSError):
            connection.sendall(head if num_first else b"")
            for byte in head * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)

    monkeypatch.setattr(endpoint_faults, "FEW_TRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(UserError, match="no reply in time"):
            reach(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_s=0.4).chat(talks("a"), max_tokens=5)
        assert time.monotonic() - begun < 4


def test_a_reply_without_end_is_not_read_to_its_end(reach, monkeypatch):
    from prefopt.evaluation import endpoint_client

    monkeypatch.setattr(endpoint_client, "MOST_BYTES", 2**20)
    for status in (200, 400):
        given = Given(b" " * 2**21, status)
        with (
            ChatServer(lambda *_, given=given: given) as server,
            pytest.raises(UserError, match="its reply has more than 1 MiB"),
        ):
            reach(server).chat(talks("a"), max_tokens=5)


def test_eight_at_once_are_five_times_as_fast_as_one_by_one(reach, tmp_path):
    texts = [str(number) for number in range(24)]
    seconds = {}
    for concurrency in (1, 8):
        with ChatServer(lambda request, _: says("ok", after_s=0.15)) as server:
            endpoint = reach(server, concurrency=concurrency, cache=tmp_path / str(concurrency))
            begun = time.monotonic()
            endpoint.chat(talks(*texts), max_tokens=5)
            seconds[concurrency] = time.monotonic() - begun
        assert server.most_at_once == concurrency
    assert seconds[1] >= 5 * seconds[8], seconds


def test_what_is_kept_is_not_asked_again_and_equal_conversations_are_asked_once(reach):
    with ChatServer(echo) as server:
        first = reach(server)
        assert [reply.text for reply in first.chat(talks("a", "b", "a"), max_tokens=5)] == ["A", "B", "A"]
        assert len(server.requests) == first.num_sent == 2
        second = reach(server)
        assert second.chat(talks("b", "a", "c"), max_tokens=5) == first.chat(talks("b", "a", "c"), max_tokens=5)
        assert second.num_kept == 2
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("settings", "asked"),
    [({"model": "other"}, {}), ({}, {"max_tokens": 6}), ({}, {"temperature": 1.0}), ({}, {"seed": 4})],
)
def test_another_model_or_parameter_is_asked_anew(reach, settings, asked):
    with ChatServer(echo) as server:
        reach(server).chat(talks("a"), max_tokens=5, seed=3)
        reach(server, **settings).chat(talks("a"), **{"max_tokens": 5, "seed": 3, **asked})
        assert len(server.requests) == 2


def test_a_damaged_kept_reply_is_asked_for_again_and_said(reach, tmp_path, caplog):
    with ChatServer(echo) as server:
        reach(server).chat(talks("a"), max_tokens=5)
        (kept,) = (tmp_path / "replies").rglob("*.json")
        kept.write_text('{"text": "A", "fin')
        with caplog.at_level(logging.WARNING):
            assert reach(server).chat(talks("a"), max_tokens=5) == [Reply("A", True)]
        assert "damaged" in caplog.text
        assert json.loads(kept.read_text())["text"] == "A"


def test_two_at_once_share_one_folder_without_a_torn_file(reach, tmp_path):
    texts = [str(number) for number in range(20)]
    with ChatServer(echo) as server:
        both = [reach(server), reach(server)]
        threads = [
            threading.Thread(target=each.chat, args=(talks(*texts),), kwargs={"max_tokens": 5}) for each in both
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    files = sorted((tmp_path / "replies").rglob("*"))
    kept = [json.loads(path.read_text()) for path in files if path.is_file()]
    assert sorted(each["text"] for each in kept) == sorted(texts)


def test_a_request_beyond_the_budget_is_refused_before_any_is_sent(reach):
    with ChatServer(echo) as server:
        endpoint = reach(server, max_requests=3)
        endpoint.chat(talks("a", "b"), max_tokens=5)
        with pytest.raises(UserError, match=r"2 requests are needed, and 1 of max_requests=3.*max_requests to 4"):
            endpoint.chat(talks("a", "c", "d"), max_tokens=5)
        assert len(server.requests) == 2
        endpoint.chat(talks("a", "c"), max_tokens=5)
        assert len(server.requests) == 3


def test_repeated_requests_count_against_the_budget(reach):
    with ChatServer(lambda *_: refuses(500)) as server:
        with pytest.raises(UserError, match="all 3 requests of max_requests are spent"):
            reach(server, max_requests=3).chat(talks("a"), max_tokens=5)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [
        refuses(500, "a hiccup"),
        refuses(503),
        refuses(429, "slowly"),
        refuses(408),
        Given(b'{"choices": [{"mess', claimed=100),
        Given(b"<html>not now</html>"),
        Given(b'{"choices": []}'),
        says("late", after_s=1.5),
    ],
    ids=["500", "503", "429", "408", "half", "nonsense", "empty", "late"],
)
def test_what_goes_wrong_once_is_tried_again(reach, fault):
    with ChatServer(lambda request, number: fault if number == 0 else echo(request, number)) as server:
        assert reach(server, timeout_s=0.5).chat(talks("a"), max_tokens=5) == [Reply("A", True)]
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "said", "num_sent"),
    [
        (refuses(500, "no memory"), r"it fails \(HTTP 500\) .*no memory.*8 tries", 8),
        (refuses(429, "quota"), r"takes no more requests \(HTTP 429\) .*quota.*8 tries.*concurrency", 8),
        (Given(b'{"choices": [{"mess', claimed=100), "half way .*3 tries", 3),
        (Given(b"<html>"), "no JSON .*<html>.*3 tries", 3),
        (Given(b'{"choices": []}'), "no choices", 3),
        (Given(b"[1]"), "no choices", 3),
        (Given(b'{"choices": [{"message": {"content": 3}}]}'), "no message with a text", 3),
        (Given(b'{"choices": ["a"]}'), "no message with a text", 3),
        (Given(b"[" * 100_000), "no JSON .*nested", 3),
        (says("late", after_s=1.0), "no reply in time", 3),
        (refuses(404, "no m here"), r"no such model or address \(HTTP 404\).*no m here.*called m there.*/models", 1),
        (refuses(400, "context is 4096"), r"refuses the request \(HTTP 400\).*context is 4096", 1),
        (refuses(302, Location="http://127.0.0.1:9/"), r"refuses the request \(HTTP 302\)", 1),
    ],
    ids=lambda value: None,
)
def test_what_goes_wrong_for_good_is_one_clear_error(reach, fault, said, num_sent):
    with ChatServer(lambda *_: fault) as server:
        with pytest.raises(UserError, match=said) as error:
            reach(server, timeout_s=0.3).chat(talks("a"), max_tokens=5)
        assert str(error.value).startswith(f"{WHERE} {server.url}: ")
        assert len(server.requests) == num_sent


def test_a_server_that_is_down_is_named_with_a_command_that_tells(reach):
    url = f"http://127.0.0.1:{find_free_ports(1)[0]}/v1"
    with pytest.raises(UserError, match=r"no connection .*4 tries.*curl http://127.0.0.1:\d+/v1/models"):
        reach(url).chat(talks("a", "b", "c"), max_tokens=5)


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_is_left_alone_as_long_as_it_asks(reach, as_date):
    times = []

    def busy_once(request: dict[str, Any], number: int) -> Given:
        times.append(time.time())
        after = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        return refuses(429, Retry_After=after) if number == 0 else echo(request, number)

    with ChatServer(busy_once) as server:
        reach(server).chat(talks("a"), max_tokens=5)
    assert times[1] - times[0] >= 0.95


def test_a_server_that_asks_for_more_patience_than_there_is_ends_it_at_once(reach):
    with ChatServer(lambda *_: refuses(429, Retry_After="86400")) as server:
        with pytest.raises(UserError, match="asks to wait 86400 s"):
            reach(server).chat(talks("a"), max_tokens=5)
        assert len(server.requests) == 1


def test_kept_replies_are_named_only_where_some_came(reach):
    with ChatServer(lambda *_: refuses(400)) as server, pytest.raises(UserError) as error:
        reach(server, concurrency=2).chat(talks("a", "b", "c"), max_tokens=5)
    assert "kept" not in str(error.value)


def test_after_a_failure_no_more_is_sent_and_replies_that_came_are_kept(reach):
    def one_bad(request: dict[str, Any], number: int) -> Given:
        return refuses(400) if request["messages"][-1]["content"] == "3" else echo(request, number)

    texts = [str(number) for number in range(30)]
    with ChatServer(one_bad) as server:
        with pytest.raises(UserError, match="asks for the others only"):
            reach(server, concurrency=2).chat(talks(*texts), max_tokens=5)
        num_sent = len(server.requests)
        assert num_sent < 30
        again = reach(server)
        again.chat(talks(*(text for text in texts if text != "3")), max_tokens=5)
        assert again.num_kept == num_sent - 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_told_by_its_variable(reach, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", KEY)
    with ChatServer(lambda *_: refuses(status, f"Incorrect API key: {KEY}")) as server:
        with pytest.raises(UserError, match=rf"refuses the key \(HTTP {status}\) in MY_KEY"):
            reach(server, key_env="MY_KEY").chat(talks("a"), max_tokens=5)
        assert len(server.requests) == 1
    with ChatServer(lambda *_: refuses(status)) as server, pytest.raises(UserError, match="none was sent, as key_env"):
        reach(server).chat(talks("a"), max_tokens=5)


def test_a_key_is_sent_to_its_server_and_stands_nowhere_else(reach, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    answers = [refuses(500, f"your key {KEY} broke me"), says("fine"), Given(f"<{KEY}>".encode())]
    with caplog.at_level(logging.DEBUG), ChatServer(lambda _, number: answers[min(number, 2)]) as server:
        logging.getLogger("openai").setLevel(logging.DEBUG)
        endpoint = reach(server, key_env="MY_KEY")
        endpoint.chat(talks("a"), max_tokens=5)
        with pytest.raises(UserError, match=r"\*\*\*") as error:
            endpoint.chat(talks("b"), max_tokens=5)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    chain, shown = error.value, ""
    while chain is not None:
        shown += f"{chain}"
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    kept = [path.read_text() + path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for text in (shown, caplog.text, repr(endpoint), *kept):
        assert KEY not in text


def test_a_key_that_a_server_says_back_stands_in_no_reply_and_no_error(reach, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    escaped = "".join(f"\\u{ord(each):04x}" for each in KEY)
    told = [says(f"You are {KEY}."), Given(says("You are ?.").body.replace(b"?", escaped.encode()))]
    for number, given in enumerate(told):
        with ChatServer(lambda *_, given=given: given) as server:
            endpoint = reach(server, key_env="MY_KEY", cache=tmp_path / str(number))
            assert endpoint.chat(talks("a"), max_tokens=5) == [Reply("You are ***.", True)]
            assert reach(server, key_env="MY_KEY", cache=tmp_path / str(number)).chat(talks("a"), max_tokens=5)
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    for wide in range(250, 300, 4):  # wherever a long text is cut, no part of the key is left
        said = "x" * wide + KEY
        with ChatServer(lambda *_, said=said: refuses(400, said)) as server, pytest.raises(UserError) as error:
            reach(server, key_env="MY_KEY").chat(talks("b"), max_tokens=5)
        assert KEY[:6] not in str(error.value)


@pytest.mark.parametrize("word", ["none", "EMPTY", "null", "e", "not-needed"])
def test_a_word_in_place_of_a_key_is_no_secret_and_changes_no_answer(reach, monkeypatch, word):
    monkeypatch.setenv("MY_KEY", word)
    said = f"There is {word} here."
    with ChatServer(lambda *_: says(said)) as server:
        assert reach(server, key_env="MY_KEY").chat(talks("a"), max_tokens=5) == [Reply(said, True)]
        assert reach(server, key_env="MY_KEY").chat(talks("a"), max_tokens=5) == [Reply(said, True)], "as it is kept"
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {word}"}


@pytest.mark.parametrize("where", ["evaluation.judges: gpt:", "evaluation.contestants: gpt:"])
def test_a_refused_request_names_the_entry_that_asked(tmp_path, where):
    with ChatServer(lambda *_: refuses(400, "too long")) as server, pytest.raises(UserError) as error:
        Endpoint(where, url=server.url, model="m", cache=tmp_path).chat(talks("a"), max_tokens=5)
    assert str(error.value).endswith(f"Change what it names; what was asked is set by {where[:-1]}.")


def test_a_key_of_the_environment_that_was_not_named_is_not_sent(reach, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, KEY)
    with ChatServer(echo) as server:
        reach(server).chat(talks("a"), max_tokens=5)
    assert KEY not in str(server.headers)
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("value", "said"), [(None, "is not set.*export MY_KEY"), ("  ", "is not set"), ("sé", "no HTTP")]
)
def test_a_key_that_cannot_be_sent_is_refused_before_any_request(reach, monkeypatch, value, said):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match=said):
        reach("http://127.0.0.1:9/v1", key_env="MY_KEY")


def test_a_proxy_of_the_environment_does_not_stand_before_loopback(reach, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{find_free_ports(1)[0]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer(echo) as server:
        assert reach(server).chat(talks("a"), max_tokens=5) == [Reply("A", True)]


def test_without_its_package_the_next_step_is_said(reach, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'prefopt\[judge\]'"):
        reach("http://127.0.0.1:9/v1")
