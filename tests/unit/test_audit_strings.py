"""Secrets, personal data, control characters and mojibake: what is one, what is none, and what is shown."""

# ruff: noqa: RUF001 (text in many scripts is what these tests are about)
import json
import re
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.audit import control_characters, mojibake
from prefopt.data.audit.check import Chunk, Texts
from prefopt.data.audit.patterns import Forms, find_hits, find_matches
from prefopt.data.audit.personal_data import PATTERNS as PERSONAL
from prefopt.data.audit.personal_data import is_iban, passes_luhn
from prefopt.data.audit.secrets import PATTERNS as SECRETS
from prefopt.data.records import PreferencePair
from tests.audit_rows import found, pair, pairs, rows_of

NAMES = ["secrets", "personal_data", "control_characters", "mojibake"]
# Written in pieces, so that no scanner of this repository takes them for keys.
RANDOM = "q7Zt9LmX2vRk8Ws4Yb6Nc1Pd3Hf5Jg0T"
SECRET = {
    "AWS access key": "AKIA" + "Q3ZT7LMX2VRK6WS4",
    "GitHub token": "ghp_" + RANDOM + "abcd",
    "GitLab token": "glpat-" + RANDOM[:20],
    "Anthropic key": "sk-ant-" + "api03-" + RANDOM,
    "OpenAI key": "sk-" + "proj-" + RANDOM,
    "Slack token": "xoxb-" + "2384756102-" + RANDOM[:20],
    "Google key": "AIza" + RANDOM + "x_-",
    "Hugging Face token": "hf_" + RANDOM + "Qw",
    "Stripe key": "sk_live_" + RANDOM[:24],
    "npm token": "npm_" + RANDOM + "abcd",
    "SendGrid key": "SG." + RANDOM[:22] + "." + RANDOM + RANDOM[:11],
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiI4NDcxIn0." + RANDOM,
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----\n" + RANDOM + RANDOM,
    "password in a URL": "postgres://" + "app:h8Fk2pQz@db.internal/main",
    "DigitalOcean token": "dop_v1_" + "4f9c02ab7d31e658" * 4,
    "PyPI token": "pypi-AgE" + "IcHlwaS5vcmc" + RANDOM + RANDOM,
    "Groq key": "gsk_" + RANDOM + RANDOM[:20],
    "Twilio key": "SK" + "4f9c02ab7d31e658" * 2,
    "Slack webhook": "https://hooks.slack" + ".com/services/T02AB7D31/B04F9C02A/" + RANDOM[:24],
    "Discord webhook": "https://discord" + ".com/api/webhooks/104729384756102938/" + RANDOM + RANDOM,
    "Telegram bot token": "847561029:" + "AA" + RANDOM + "k",
    "bearer token": "Authorization: " + "Bearer " + RANDOM + RANDOM[:8],
    "password": "password=" + RANDOM[:14],
    "assigned key or password": 'API_KEY = "' + RANDOM + '"',
}
NO_SECRET = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "sk-learn-contrib-2023-examples-of-2024",
    "secret = getUserAccountAccessTokenFromStore",
    "the task-oriented-dialogue-systems-2023-benchmark of sk-learn-contrib-examples-package",
    "api_key = 'YOUR_API_KEY_GOES_HERE_1234'",
    "api_key=xxxxxxxxxxxxxxxxxxxxxxxx123",
    "password: correcthorsebatterystaple",
    "secret_key = os.environ['DJANGO_SECRET_KEY_2']",
    "key: https://www.wikidata.org/wiki/Q42",
    "https://user:password@host.com/path",
    "http://localhost:8080/a@b",
    "token = tokenizer.convert_ids_to_tokens2(ids)",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "Authorization: Bearer YOUR_ACCESS_TOKEN_FROM_THE_PORTAL",
    "password: correcthorse12",
    "password = getPassword()",
    "the password: Wednesday",
    "pwd: /home/user/Projects",
    "ghp_ tokens begin with ghp_",
]
PERSON = {
    "e-mail address": "maria.keller@uni-freiburg.de",
    "phone number": "+49 761 2034817",
    "card number": "4539 1488 0343 6467",
    "social security number": "536-22-8741",
    "IP address": "93.184.216.34",
    "bank account number": "NL91 ABNA 0417 1643 00",
}
NOBODY = [
    "john.doe@example.com",
    "you@yourcompany.com",
    "your.name@gmail.com",
    "jane.doe@gmail.com",
    "my-email@gmail.com",
    "+1 415 555 2671",
    "info@mail.example.org",
    "logo@2x.png",
    "git@github.com:a/b.git",
    "  472547338\n+960583100000686",
    "call 212-555-0187",
    "(555) 123-4567",
    "123-456-7890",
    "4111 1111 1111 1111",
    "4539 1488 0343 6468",
    "123-45-6789",
    "000-12-3456",
    "192.168.1.77",
    "version 2.31.0.4",
    "255.255.255.0",
    "section 3.2.1.4",
    "1234567890123456",
    "3.14159265358979",
    "2019-03-12 10:22:45",
    "GB82 WEST 1234 5698 7654 32",
    "NL91 ABNA 0417 1643 01",
    "1990-2000, 2001-2010",
    "ISBN 978-3-16-148410-0",
]


def kinds_of(name: str, text: str) -> set[str]:
    return set(found(name, pairs(("Hi", f"Well: {text}, so.", "No."))).values["matches"])


@pytest.mark.parametrize("kind", SECRET)
def test_each_kind_of_secret_is_found_in_every_text_of_a_row(kind):
    secret = SECRET[kind]
    finding = found("secrets", pairs((secret, "a", "b"), ("a", f"it is {secret}", "b"), ("a", "b", f"({secret})")))
    assert rows_of(finding) == [0, 1, 2]
    assert finding.values["matches"] == {kind: 3}
    assert finding.share == 1


def calling(arguments: dict[str, Any], *, tools: list[Any] | None = None) -> PreferencePair:
    asked = [{"role": "user", "content": "Do it."}]
    called = [{"type": "function", "function": {"name": "send", "arguments": arguments}}]
    chosen = [{"role": "assistant", "content": "", "tool_calls": called}]
    return PreferencePair(asked, chosen, [{"role": "assistant", "content": "No."}], tools, {}, "rows.jsonl:1")


@pytest.mark.parametrize("kind", [*SECRET, *PERSON])
def test_tools_and_the_arguments_of_their_calls_are_searched_too(kind):
    name, text = ("secrets", SECRET[kind]) if kind in SECRET else ("personal_data", PERSON[kind])
    for row in (
        calling({"header": {"values": [text]}}),
        calling({}, tools=[{"type": "function", "function": {"name": "f", "description": f"with {text}"}}]),
    ):
        finding = found(name, [row, calling({"city": "Rome"})])
        assert rows_of(finding) == [0]
        assert finding.values["matches"] == {kind: 1}
        assert finding.examples[0].detail.endswith("in tools")


def test_the_name_of_an_argument_tells_a_password_and_numbers_are_searched():
    assert rows_of(found("secrets", [calling({"api_key": RANDOM[:20]})])) == [0]
    assert rows_of(
        found("personal_data", [calling({"card": int("".join(filter(str.isdigit, PERSON["card number"])))})])
    ) == [0]


@pytest.mark.parametrize("text", NO_SECRET)
def test_what_manuals_and_code_write_is_no_secret(text):
    assert kinds_of("secrets", text) == set()


@pytest.mark.parametrize("kind", PERSON)
def test_each_kind_of_personal_data_is_found(kind):
    assert kinds_of("personal_data", PERSON[kind]) == {kind}


@pytest.mark.parametrize("text", NOBODY)
def test_numbers_and_addresses_of_nobody_are_no_personal_data(text):
    assert kinds_of("personal_data", text) == set()


@pytest.mark.parametrize(
    "text", ["(415) 234-2671", "415-234-2671", "415.234.2671", "+1 415 234 2671", "(415)234-2671", "+44 20 9555 8045"]
)
def test_a_phone_number_is_found_in_each_way_of_writing_it(text):
    assert kinds_of("personal_data", text) == {"phone number"}


def test_check_digits_of_cards_and_accounts_are_those_of_the_standards():
    assert passes_luhn("79927398713")
    assert not any(passes_luhn(f"7992739871{digit}") for digit in "012456789")
    assert is_iban("GB33BUKB20201555555555")
    assert not is_iban("GB33BUKB20201555555556")


@pytest.mark.parametrize(("name", "texts"), [("secrets", SECRET), ("personal_data", PERSON)])
def test_what_is_found_is_masked_everywhere(name, texts):
    finding = found(name, pairs(*(("Hi", f"x {text} y", "no") for text in texts.values())))
    written = json.dumps(asdict(replace(finding, rows={})))
    for text in texts.values():
        assert text not in written
        assert text[4:] not in written
        assert not re.search(re.escape(text[4:9]), written)
    assert all(set(example.text[4:]) == {"*"} for example in finding.examples)
    assert all(example.source == f"rows.jsonl:{row + 1}" for row, example in enumerate(finding.examples))


def test_a_secret_counts_once_under_its_most_special_name():
    text = "api_key = '" + SECRET["OpenAI key"] + "'"
    assert found("secrets", pairs(("a", text, "b"))).values["matches"] == {"OpenAI key": 1}


@pytest.mark.parametrize("pattern", [*SECRETS, *PERSONAL], ids=lambda pattern: pattern.kind)
def test_a_pattern_finds_what_its_expression_finds_without_anchors(pattern):
    """The fast way against the slow one, on all samples in a row."""
    text = "\n".join([*SECRET.values(), *NO_SECRET, *PERSON.values(), *NOBODY]).encode("ascii", "replace")
    fast = {(hit.start, hit.end) for hit in pattern.find(Forms(text))}
    slow = {match.span() for match in pattern.regex.finditer(text) if pattern.accept(match.group().decode())}
    assert fast == slow


@pytest.mark.parametrize("pattern", [*SECRETS, *PERSONAL], ids=lambda pattern: pattern.kind)
def test_every_text_with_an_anchor_is_searched(pattern):
    """The rows whose texts are searched, against those that have an anchor in any of its ways of writing."""
    written = [anchor.decode() for anchor in pattern.anchors]
    if pattern.within == "shape":
        written = [
            anchor.replace("0", digit).replace("A", letter)
            for anchor in written
            for digit, letter in ("0A", "7Q", "9Z")
        ]
    elif pattern.within == "lower":
        written += [anchor.upper() for anchor in written] + [anchor.title() for anchor in written]
    texts = Texts(
        ["", "is none", "é😀", *(f"é{before}{anchor}{before}" for anchor in written for before in ("", "x", "\n"))]
    )
    assert texts.rows_with(pattern.hint) == [*range(3, len(texts.each))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*SECRET.values(), *NO_SECRET, *PERSON.values(), *NOBODY, "", "é", "\n"]), max_size=8))
def test_a_search_of_suspects_finds_what_a_search_of_all_texts_finds(texts):
    for patterns in (SECRETS, PERSONAL):
        rows = [pair(text, f"a {text}", text[::-1], line) for line, text in enumerate(texts)]
        chunk = Chunk(split="train", start=0, records=rows)
        fast = find_matches(chunk, patterns=patterns, num_clear=4)
        fields = (chunk.prompts, chunk.chosen, chunk.rejected)
        slow = [(find_hits(Forms(of.ascii), patterns), of) for of in fields]
        assert fast.counts == Counter(hit.kind for hits, _ in slow for hit in hits)
        assert set(fast.rows.tolist()) == {row for hits, of in slow for row in of.rows_at([hit.start for hit in hits])}


def test_text_outside_ascii_does_not_move_what_is_found():
    finding = found("personal_data", pairs(("é😀", "ü 😀 maria.keller@uni-freiburg.de", "ok"), ("a", "b", "c")))
    assert rows_of(finding) == [0]
    assert finding.examples[0].text.startswith("ma*")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a\x07b", "control character"),
        ("a\rb", "control character"),
        ("ends with\r", "control character"),
        ("a\x85b", "control character"),
        ("pass\u200bword", "zero-width character"),
        ("\u200babc", "zero-width character"),
        ("a\u202eb", "bidirectional override"),
        ("a\ufeffb", "byte order mark"),
        ("lost \ufffd", "replacement character"),
        ("hi\U000e0041\U000e0042", "invisible tag"),
    ],
)
def test_each_kind_of_control_character_is_found_among_clean_rows(text, kind):
    finding = found("control_characters", pairs(("a\r\nb\tc\n", "d", "e"), ("f", text, "é")))
    assert rows_of(finding) == [1]
    assert set(finding.values["matches"]) == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "a\r\nb\tc",
        "👩\u200d👩\u200d👧",
        "می\u200cخواهم",
        "क्\u200dष",
        "🏴\U000e0067\U000e0062\U000e007f",
        "ภาษา\u200bไทย",
    ],
)
def test_line_ends_joined_pictures_and_scripts_with_joiners_are_clean(text):
    assert rows_of(found("control_characters", pairs(("a", text, "b"), ("a", "b", text)))) == []
    assert control_characters.repair(text) == text


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("a\x00b\x07", "ab"),
        ("a\rb\r\nc", "a\nb\r\nc"),
        ("\ufeffa\u200bb\u202ec", "abc"),
        (r"\(" + "\x0crac{1}{2}" + r"\) and " + "\x08eta", r"\(\frac{1}{2}\) and \beta"),
        ("lost \ufffd and \x93", "lost \ufffd and \x93"),
        ("plain", "plain"),
    ],
)
def test_repair_removes_what_nobody_sees_and_keeps_what_stands_for_something_lost(text, repaired):
    assert control_characters.repair(text) == repaired


@pytest.mark.parametrize(
    ("text", "meant"),
    [("donâ€™t", "don’t"), ("fiancÃ©", "fiancé"), ("2Â°C", "2°C"), ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"), ("ðŸ˜€ yes", "😀 yes")],
)
def test_mojibake_is_found_and_repaired(text, meant):
    finding = found("mojibake", pairs(("a", "clean – “text”", "b"), ("a", "b", text)))
    assert rows_of(finding) == [1]
    assert mojibake.repair(text) == meant


@pytest.mark.parametrize(
    "text", ["naïve café à la carte", "Ångström", "Привет", "日本語", "ação não", "“quoted” – dash…", "Ð and Þ"]
)
def test_right_text_in_any_language_is_no_mojibake(text):
    assert mojibake.repair(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_chunks_of_any_size_give_one_finding(name):
    samples = [*SECRET.values(), *PERSON.values(), "a\x07b", "x\r", "donâ€™t", "clean", "é"]
    rows = pairs(*((text, f"{text} ok", "no") for text in samples))
    whole = found(name, rows)
    for chunk_rows in (1, 4):
        parts = found(name, rows, chunk_rows=chunk_rows)
        assert rows_of(parts) == rows_of(whole)
        assert parts.values == whole.values
        assert list(parts.examples) == list(whole.examples)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_any_text_is_looked_at_and_repaired_text_stays_as_it_is(texts):
    rows = [pair(text, text[::-1], text + "@", line) for line, text in enumerate(texts)]
    for name in NAMES:
        assert np.all(np.diff(rows_of(found(name, rows))) > 0)
    for text in texts:
        repaired = control_characters.repair(text)
        assert control_characters.repair(repaired) == repaired


def test_lone_surrogates_and_nothing_at_all_do_no_harm():
    for name in NAMES:
        assert rows_of(found(name, pairs(("\ud800", "", "\udfff a@b")))) in ([], [0])


@pytest.mark.parametrize("address", ["john.doe@realcompany.org", "j.smith@stadtwerke-ulm.de"])
def test_a_common_name_at_an_own_domain_may_be_a_person(address):
    assert found("personal_data", [pair(chosen=f"Write to {address}.")]).count == 1
