"""E-mail addresses, phone, card, account and social security numbers, and IP addresses of people."""

import ipaddress
import re
from collections.abc import Callable

from prefopt.data.audit.patterns import Pattern, check_for

NUM_CLEAR = 2
"""Characters that are shown."""

FICTITIOUS_DOMAIN = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|local|domain|email|yourdomain|yourcompany|company|mycompany|sample"
    r"|website|yourwebsite|abc|xyz|acme|mail|foo|bar)\.\w+$|\.(?:example|test|invalid|localhost|local)$"
    r"|\.(?:png|jpe?g|gif|svg|webp|py|js|css|html?)$",
    re.IGNORECASE,
)
FICTITIOUS_NAME = re.compile(
    r"^(?:(?:you|my|your)(?:r?[._-]?(?:e?mail|name|address|username|account|self|company|id))?|user\w*|name|first.*last.*|email|e-mail|example\w*|some(?:one|body)|foo|bar|test\w*|abc|xyz|git|noreply|no-reply|recipient|sender|username|alice|bob)$",
    re.IGNORECASE,
)
COMMON_NAME = re.compile(r"^j(?:ohn|ane|\.)?[._]?(?:doe|smith)[\w.+-]*$", re.IGNORECASE)
MAIL_PROVIDER = re.compile(r"(?:^|\.)(?:gmail|yahoo|hotmail|outlook|aol|icloud|protonmail)\.\w+$", re.IGNORECASE)
"""At these, somebody of a name that manuals use is made up; elsewhere it may be a person."""
EMAIL = rb"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,18}(?![\w@-])"
INTERNATIONAL = rb"\+[1-9](?:[ .()-]{0,2}\d){7,12}"
NORTH_AMERICAN = rb"(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d(?(1)\1|-)\d{4}"
SOCIAL_SECURITY = rb"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}"
CARD = rb"\d{4}([ -]?)(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{5})"
IP_ADDRESS = rb"(?:\d{1,3}\.){3}\d{1,3}"
IBAN = rb"[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"

CARD_PREFIX = re.compile(r"4|5[1-5]|2[2-7]|3[47]|6011|65")
MANUALS = frozenset(
    [
        "4111111111111111",
        "4242424242424242",
        "4012888888881881",
        "4000056655665556",
        "5555555555554444",
        "5105105105105100",
        "378282246310005",
        "371449635398431",
        "6011111111111117",
        "6011000990139424",
        "4532015112830366",
        "4539578763621486",
        "GB82WEST12345698765432",
        "GB29NWBK60161331926819",
        "DE89370400440532013000",
        "FR1420041010050500013M02606",
        "123456789",
        "078051120",
        "219099999",
        "457555462",
        "8.8.8.8",
        "8.8.4.4",
        "1.1.1.1",
        "1.0.0.1",
        "9.9.9.9",
        "4.4.4.4",
    ]
)
"""Numbers that belong to nobody, or to everybody: those of manuals, and public name servers."""
SEQUENCE = "0123456789012345678909876543210987654321"


def _is_email(text: str) -> bool:
    name, _, domain = text.partition("@")
    if COMMON_NAME.search(name) and MAIL_PROVIDER.search(domain):
        return False
    return not FICTITIOUS_NAME.search(name) and not FICTITIOUS_DOMAIN.search(domain)


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _is_made_up(digits: str) -> bool:
    """Returns whether digits are few, or count up or down."""
    return len(set(digits[-7:])) <= 2 or digits[-7:] in SEQUENCE


def is_phone(text: str) -> bool:
    """Returns whether a number that looks like one is a phone number; those of films (555) are nobody's."""
    digits = _digits(text)
    is_of_a_film = (text[0] != "+" or text[1] == "1") and "555" in (digits[-10:-7], digits[-7:-4])
    return not is_of_a_film and not _is_made_up(digits)


def passes_luhn(digits: str) -> bool:
    """Returns whether the last digit of a card number is the right check digit."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number - 9 if number > 9 else number for number in doubled)) % 10 == 0


def is_card(text: str) -> bool:
    """Returns whether a number is that of a payment card."""
    digits = _digits(text)
    return (
        CARD_PREFIX.match(digits) is not None
        and digits not in MANUALS
        and len(set(digits)) > 3
        and passes_luhn(digits)
    )


def is_social_security(text: str) -> bool:
    """Returns whether a number is a social security number of the United States."""
    return _digits(text) not in MANUALS and len(set(_digits(text))) > 2


def is_ip_address(text: str) -> bool:
    """Returns whether a text is a public IPv4 address; four small numbers are a version or a section."""
    parts = [int(part) for part in text.split(".")]
    if text in MANUALS or not 32 <= max(parts) <= 255 or parts[3] in (0, 255) or ".".join(map(str, parts)) != text:
        return False
    return ipaddress.ip_address(text).is_global and len(set(parts)) > 1


def is_iban(text: str) -> bool:
    """Returns whether the check digits of an international bank account number are right."""
    plain = text.replace(" ", "")
    if plain in MANUALS or not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _number(
    kind: str, regex: bytes, anchors: tuple[bytes, ...], *, reach: int, accept: Callable[[str], bool]
) -> Pattern:
    """A number that is no part of a longer number or word. Its anchors have 0 for a digit and A for a capital."""
    whole = re.compile(rb"(?<![\w.+/@-])(?<!\w\()(?:" + regex + rb")(?![\w/]|[.-]\w)")
    return Pattern(kind=kind, anchors=anchors, regex=whole, within="shape", reach=reach, accept=accept)


CARD_SHAPES = (b"0000 0000 0000 0000", b"0000-0000-0000-0000", b"0" * 15, b"0000 000000 00000", b"0000-000000-00000")
PHONE_SHAPES = (b"000-000-0000", b"000.000.0000", b"(000) 000-0000", b"(000)000-0000")
PATTERNS = (
    Pattern(kind="e-mail address", anchors=(b"@",), reach=64, regex=re.compile(EMAIL), accept=_is_email),
    _number("IP address", IP_ADDRESS, (b"0.0.0", b"0.00.0", b"0.000.0"), reach=2, accept=is_ip_address),
    _number("bank account number", IBAN, (b"AA00",), reach=0, accept=is_iban),
    _number("card number", CARD, CARD_SHAPES, reach=0, accept=is_card),
    _number("social security number", SOCIAL_SECURITY, (b"000-00-0000",), reach=0, accept=is_social_security),
    _number("phone number", INTERNATIONAL, (b"+0",), reach=0, accept=is_phone),
    _number("phone number", NORTH_AMERICAN, PHONE_SHAPES, reach=3, accept=is_phone),
)


CHECK = check_for(
    PATTERNS,
    num_clear=NUM_CLEAR,
    what="personal data",
    remedy="Replace them by made-up ones, unless the people agreed to be in training data.",
)
