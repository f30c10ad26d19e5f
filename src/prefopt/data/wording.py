"""Sentences that agree with a number."""

import re

_BY_NUMBER = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")


def agree(text: str, number: int) -> str:
    """Returns a text with the words that go with a number: of `[row is|rows are]`, the first with one."""
    return _BY_NUMBER.sub(r"\1" if number == 1 else r"\2", text)


def say_rows(count: int) -> str:
    """Returns a number of rows, such as `1 row`."""
    return f"{count} {agree('[row|rows]', count)}"
