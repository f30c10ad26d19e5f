"""Keys, tokens and passwords: a model that was trained on them may tell them."""

import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from prefopt.data.audit.patterns import Pattern, check_for

NUM_CLEAR = 4
"""Characters of a secret that are shown: they tell its kind, and nothing more."""
MIN_ENTROPY = 3.4
"""Bits a character: random text of 20 letters and digits has 3.6 to 4.3, names and words mostly less than 3.3."""
MIN_DIGITS = 3
MIN_CHANGES = 0.4
"""Changes between digits, small and capital letters, a character: namesLikeThisOne have about 0.3, keys 0.6."""
PLACEHOLDER = re.compile(
    r"example|sample|placeholder|your|redacted|dummy|fake|changeme|insert|test_?key|\*\*|\.\.\.|(.)\1{5}"
    r"|123456789|abcdefg",
    re.IGNORECASE,
)
"""What stands in manuals instead of a secret."""
NOT_PASSWORDS = frozenset(
    ["pass", "password", "passwd", "pwd", "pw", "secret", "token", "user", "username", "postgres", "root", "admin"]
)
ASSIGNED = re.compile(
    rb"(?i:key|token|secret|passw(?:or)?d)(?i:_?id)?[\"'`]?\s{0,2}(?:=>|:=|=|:)\s{0,2}[\"'`]?"
    rb"([A-Za-z0-9_+/=\-]{16,120})(?![A-Za-z0-9_+/(.\[])"
)


def is_random(text: str) -> bool:
    """Returns whether a string looks drawn at random: digits, small and capital letters mixed, hardly any repeated."""
    if PLACEHOLDER.search(text) or not any(map(str.isalpha, text)):
        return False
    counts = Counter(text).values()
    entropy = -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
    kinds = ["0" if letter.isdigit() else "A" if letter.isupper() else "a" for letter in text]
    num_changes = sum(one != other for one, other in pairwise(kinds))
    return entropy >= MIN_ENTROPY and (kinds.count("0") >= MIN_DIGITS or num_changes >= MIN_CHANGES * len(text))


def _is_openai_key(text: str) -> bool:
    return is_random(text) and re.search("[A-Za-z0-9]{12}", text) is not None


def _is_assigned(text: str) -> bool:
    return is_random(re.split("[:=>\\s\"'`]+", text, maxsplit=1)[1])


def _is_bearer(text: str) -> bool:
    return is_random(text.split()[1])


def _is_password(text: str) -> bool:
    """Returns whether letters and digits look drawn at random: short ones must mix small, capital and digits."""
    value = re.split("[:= \"'`]+", text, maxsplit=1)[1]
    kinds = {"0" if letter.isdigit() else "A" if letter.isupper() else "a" for letter in value}
    return not PLACEHOLDER.search(value) and len(kinds) == 3 and len(set(value)) >= 9


def _is_key_block(text: str) -> bool:
    body = text.split("-----")[2]
    return not PLACEHOLDER.search(body) and len("".join(body.split())) >= 32


def _has_password(url: str) -> bool:
    password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return password.lower() not in NOT_PASSWORDS and not re.search(r"[<{$\[*]|^x+$|example", password, re.IGNORECASE)


def _is_filled(text: str) -> bool:
    return not PLACEHOLDER.search(text)


def _prefixed(kind: str, anchors: bytes, regex: bytes, *, accept: Callable[[str], bool] = _is_filled) -> Pattern:
    """A secret that begins with one of `anchors`, as words, and is no part of a longer word."""
    whole = re.compile(rb"(?<![A-Za-z0-9])" + regex + rb"(?![A-Za-z0-9])")
    return Pattern(kind=kind, anchors=tuple(anchors.split()), regex=whole, accept=accept)


PATTERNS = (
    _prefixed("AWS access key", b"AKIA ASIA", rb"(?:AKIA|ASIA)[A-Z2-7]{16}"),
    _prefixed("GitHub token", b"ghp_ gho_ ghu_ ghs_ ghr_", rb"gh[pousr]_[A-Za-z0-9]{36,251}"),
    _prefixed("GitHub token", b"github_pat_", rb"github_pat_[A-Za-z0-9_]{22,251}"),
    _prefixed("GitLab token", b"glpat-", rb"glpat-[A-Za-z0-9_-]{20,64}"),
    _prefixed("Anthropic key", b"sk-ant-", rb"sk-ant-[A-Za-z0-9_-]{20,200}"),
    _prefixed("OpenAI key", b"sk-", rb"sk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,250}", accept=_is_openai_key),
    _prefixed("Slack token", b"xox", rb"xox[abeoprs]-[A-Za-z0-9-]{10,200}"),
    _prefixed("DigitalOcean token", b"dop_v1_ doo_v1_ dor_v1_", rb"do[opr]_v1_[a-f0-9]{64}"),
    _prefixed("PyPI token", b"pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{50,300}"),
    _prefixed("Groq key", b"gsk_", rb"gsk_[A-Za-z0-9]{40,64}"),
    _prefixed("Twilio key", b"SK", rb"SK[0-9a-f]{32}"),
    _prefixed("Slack webhook", b"hooks.slack.com/", rb"hooks\.slack\.com/services/T\w{6,14}/B\w{6,14}/\w{16,40}"),
    _prefixed("Discord webhook", b"discord", rb"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{50,80}"),
    Pattern(
        kind="Telegram bot token",
        anchors=(b":AA",),
        reach=10,
        regex=re.compile(rb"(?<![\w:])\d{8,10}:AA[A-Za-z0-9_-]{33}(?![\w-])"),
        accept=_is_filled,
    ),
    _prefixed("Google key", b"AIza", rb"AIza[A-Za-z0-9_-]{35}"),
    _prefixed("Hugging Face token", b"hf_", rb"hf_[A-Za-z0-9]{30,64}"),
    _prefixed("Stripe key", b"sk_live_ rk_live_", rb"[sr]k_live_[A-Za-z0-9]{16,200}"),
    _prefixed("npm token", b"npm_", rb"npm_[A-Za-z0-9]{36}"),
    _prefixed("SendGrid key", b"SG.", rb"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    _prefixed("JSON web token", b"eyJ", rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    Pattern(
        kind="private key",
        anchors=(b"-----BEGIN ",),
        regex=re.compile(rb"-----BEGIN (?:[A-Z]+ ){0,2}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s:,.-]{32,300}"),
        accept=_is_key_block,
    ),
    Pattern(
        kind="password in a URL",
        anchors=(b"://",),
        reach=20,
        regex=re.compile(rb"(?<![a-z0-9])[a-z][a-z0-9+.-]{1,18}://[^\s:/@\"'<>]{1,64}:[^\s:/@\"'<>]{3,64}@[\w.-]+"),
        accept=_has_password,
    ),
    Pattern(
        kind="bearer token",
        anchors=(b"bearer ",),
        within="lower",
        regex=re.compile(rb"(?i:bearer) {1,2}([A-Za-z0-9_.~+/=-]{20,300})"),
        accept=_is_bearer,
    ),
    Pattern(
        kind="password",
        anchors=(b"passw", b"pwd"),
        within="lower",
        regex=re.compile(
            rb"(?i:passw(?:or)?d|pwd)[\"'`]?(?:=|: ?)[\"'`]?([A-Za-z0-9]{12,15})(?![A-Za-z0-9_+/(.\[=-])"
        ),
        accept=_is_password,
    ),
    Pattern(
        kind="assigned key or password",
        anchors=(b"key", b"token", b"secret", b"passw"),
        within="lower",
        regex=ASSIGNED,
        accept=_is_assigned,
    ),
)


CHECK = check_for(
    PATTERNS,
    num_clear=NUM_CLEAR,
    what="keys, tokens or passwords",
    remedy="Remove them from the file, and revoke those that are real: whoever has the file has them.",
)
