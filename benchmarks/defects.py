"""Kinds of defects that are planted into clean rows, each drawn at random: how a row is made bad."""

# ruff: noqa: RUF001 (text in many scripts is what some defects are about)
import random
import string
from collections.abc import Callable
from dataclasses import replace

from prefopt.data.audit.check import as_text
from prefopt.data.audit.minhash import SIMILAR, jaccard
from prefopt.data.messages import Content
from prefopt.data.records import PreferencePair

LETTERS = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
MIN_WORDS = 12
"""Words that a text has at least where some of them are changed."""
FRENCH = (
    "Je ne sais pas encore si nous pourrons venir demain, mais je vous écrirai dès que possible.",
    "La réunion commence à neuf heures et tout le monde doit apporter ses propres documents.",
    "Il faut remuer la sauce pendant dix minutes avant d'ajouter les légumes et le fromage.",
)
RUSSIAN = (
    "Я ещё не знаю, сможем ли мы прийти завтра, но напишу вам, как только это станет известно.",
    "Встреча начинается в девять часов, и каждый должен принести с собой свои документы.",
)
BROKEN = ("the café’s crème brûlée", "don’t — “really”", "naïve façade", "25 °C ± 2", "Ünïcödé Straße", "привет, мир")
INVISIBLE = "\x00\x07\x0b\x1b\x7f\x93\u200b\u202e\u2066\ufeff\ufffd"

Draw = random.Random
Plant = Callable[[PreferencePair, Draw], PreferencePair | None]


def rewrite(content: Content, text: str) -> Content:
    """Returns `content` with another text in its last message, or as its text."""
    if isinstance(content, str):
        return text
    return [*content[:-1], {**content[-1], "content": text}]


def last_text(content: Content) -> str:
    return content if isinstance(content, str) else as_text(content[-1:])


def edit(text: str, draw: Draw, share: float) -> str:
    """Returns text with a share of its words dropped, repeated or replaced; its white space stays."""
    words = text.split(" ")
    for place in sorted(draw.sample(range(len(words)), max(1, round(share * len(words)))), reverse=True):
        words[place : place + 1] = draw.choice([[], [words[place]] * 2, [_drawn(draw, string.ascii_lowercase, 6)]])
    return " ".join(words)


def near_copy(pair: PreferencePair, draw: Draw) -> PreferencePair | None:
    """Returns a pair with a few words changed, whose Jaccard index with the old one is 0.8 or more; None if short."""
    fields = {name: getattr(pair, name) for name in ("prompt", "chosen", "rejected")}
    if any(len(last_text(content).split()) < MIN_WORDS for content in fields.values()):
        return None
    share = draw.uniform(0.01, 0.12)
    changed = {name: rewrite(content, edit(last_text(content), draw, share)) for name, content in fields.items()}
    before, after = ("\n".join(map(as_text, each.values())) for each in (fields, changed))
    return replace(pair, **changed) if SIMILAR <= jaccard(before, after) < 1 else None


def near_prompt(pair: PreferencePair, draw: Draw) -> PreferencePair | None:
    """Returns a pair whose prompt alone is changed a little; None if it is short."""
    text = last_text(pair.prompt)
    changed = edit(text, draw, draw.uniform(0.01, 0.12))
    if len(text.split()) < MIN_WORDS or not SIMILAR <= jaccard(text.lower(), changed.lower()) < 1:
        return None
    return replace(pair, prompt=rewrite(pair.prompt, changed))


def swap(pair: PreferencePair, draw: Draw | None = None) -> PreferencePair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def insert(make: Callable[[Draw], str]) -> Plant:
    """Returns what puts a drawn string between two words of the prompt or of an answer."""

    def plant(pair: PreferencePair, draw: Draw) -> PreferencePair:
        name = draw.choice(["prompt", "chosen", "rejected"])
        words = last_text(getattr(pair, name)).split(" ")
        words.insert(draw.randrange(len(words) + 1), make(draw))
        return replace(pair, **{name: rewrite(getattr(pair, name), " ".join(words))})

    return plant


def _drawn(draw: Draw, letters: str, length: int) -> str:
    return "".join(draw.choices(letters, k=length))


def draw_secret(draw: Draw) -> str:
    """Returns a key as its provider writes it, or a password."""
    key = _drawn(draw, LETTERS, 40)
    return draw.choice(
        [
            "AKIA" + _drawn(draw, UPPER, 16),
            f"ghp_{key[:36]}",
            f"sk-{key}",
            f"sk-proj-{key}",
            f"sk-ant-api03-{key}",
            f"xoxb-{draw.randrange(10**11)}-{key[:24]}",
            f"AIza{key[:35]}",
            f"hf_{key[:34]}",
            f"sk_live_{key[:24]}",
            f"glpat-{key[:20]}",
            f"npm_{key[:36]}",
            f"https://{key[:6]}:{key[6:18]}@db.{_drawn(draw, string.ascii_lowercase, 8)}.net/main",
            f"api_key = '{key}'",
            f'"client_secret": "{key[:32]}"',
            f"password={key[:18]}",
            f"password={key[:14]}",
            f"Authorization: Bearer {key}",
            f"https://hooks.slack.com/services/T{_drawn(draw, UPPER, 8)}/B{_drawn(draw, UPPER, 8)}/{key[:24]}",
            f"https://discord.com/api/webhooks/{draw.randrange(10**17, 10**18)}/{key}{key[:28]}",
            f"SK{_drawn(draw, HEX, 32)}",
            f"dop_v1_{_drawn(draw, HEX, 64)}",
            f"pypi-AgEIcHlwaS5vcmc{key}{key}",
            f"{draw.randrange(10**8, 10**9)}:AA{key[:33]}",
            f"gsk_{key}{key[:12]}",
            f"eyJ{key[:20]}.eyJ{key[5:35]}.{key[::-1]}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{key}\n{key[::-1]}\n-----END RSA PRIVATE KEY-----",
        ]
    )


def draw_person(draw: Draw) -> str:
    """Returns an address or a number as people write them."""
    name, host = _drawn(draw, string.ascii_lowercase, 7), _drawn(draw, string.ascii_lowercase, 9)
    area, exchange, line = draw.randrange(201, 555), draw.randrange(201, 555), draw.randrange(2000, 9999)
    return draw.choice(
        [
            f"{name}.{host}@{host}.org",
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"+44 20 {draw.randrange(2000, 9999)} {line}",
            _card(draw),
            f"{draw.randrange(100, 665)}-{draw.randrange(10, 99)}-{line}",
            ".".join(map(str, [draw.choice([52, 81, 93, 185]), *(draw.randrange(1, 255) for _ in range(3))])),
        ]
    )


def _card(draw: Draw) -> str:
    digits = "4" + _drawn(draw, string.digits, 14)
    doubled = [int(digit) * 2 for digit in digits[::2]]
    total = sum(number - 9 if number > 9 else number for number in doubled) + sum(map(int, digits[1::2]))
    digits += str(-total % 10)
    return " ".join(digits[place : place + 4] for place in range(0, 16, 4))


def draw_mojibake(draw: Draw) -> str:
    """Returns words that were written as UTF-8 and read as an encoding of one byte a character."""
    return draw.choice(BROKEN).encode().decode(draw.choice(["latin-1", "cp1252"]), "replace")


def other_language(pair: PreferencePair, draw: Draw) -> PreferencePair:
    """Returns the pair with a rejected answer that is not in English."""
    return replace(pair, rejected=rewrite(pair.rejected, " ".join(draw.choice([FRENCH, RUSSIAN]))))


IN_PLACE: dict[str, Plant] = {
    "identical": lambda pair, draw: replace(pair, rejected=pair.chosen),
    "empty": lambda pair, draw: replace(pair, rejected=rewrite(pair.rejected, " ")),
    "secrets": insert(draw_secret),
    "personal_data": insert(draw_person),
    "control_characters": insert(lambda draw: f"x{draw.choice(INVISIBLE)}y"),
    "mojibake": insert(draw_mojibake),
    "language": other_language,
}
"""Check -> what makes a row of its own bad."""
COPIES: dict[str, Plant] = {
    "duplicate": lambda pair, draw: pair,
    "contradictory": swap,
    "near_duplicate": near_copy,
}
"""Check -> what is added to the training rows for a row among them."""
LEAKS: dict[str, Plant] = {"leakage": lambda pair, draw: pair, "near_leakage": near_prompt}
"""Check -> what is added to the held-out rows for a training row."""
