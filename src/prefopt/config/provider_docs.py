"""The table of docs/formats.md: what each system takes, from `conf/provider/`. `make docs` writes it into the page."""

import sys
from pathlib import Path

from prefopt.config.catalog import read_options
from prefopt.config.provider import PROVIDER, Fact, Limit, ProviderConfig, Rule, read_provider

BEGIN, END = "<!-- begin: conf/provider -->", "<!-- end: conf/provider -->"
"""Lines of the page between which the table stands."""


def to_markdown() -> str:
    """Returns a section for each system: what it takes, and each limit and rule with its source."""
    providers = [(option.name, read_provider(option.name)) for option in read_options()[PROVIDER]]
    return "\n".join(line for name, provider in providers for line in _section(name, provider))


def put_into(page: str) -> str:
    """Returns a page with the table as it is now between `BEGIN` and `END`."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{to_markdown()}\n{END}{after}"


def _section(name: str, provider: ProviderConfig) -> list[str]:
    taken = " and ".join({"preference": "pairs", "sft": "demonstrations"}[kind] for kind in provider.rows)
    head = ["", f"**`--to {name}`**: {provider.title}, {taken}, in the layout `{provider.layout.name}`.", ""]
    facts: list[tuple[str, Fact]] = [(_say_limit(limit), limit) for limit in provider.limits]
    facts += [(_say_rule(rule), rule) for rule in provider.rules]
    facts += [(note.text, note) for note in provider.notes]
    return head + [f"- {text} ({fact.known.value}: {fact.source}, {fact.date})" for text, fact in facts]


def _say_limit(limit: Limit) -> str:
    return f"{limit.name.value}: {limit.value:,}{_of(limit.rows)}"


def _say_rule(rule: Rule) -> str:
    values = ", ".join(f"`{value!r}`" if "\n" in value else f"`{value}`" for value in rule.value)
    return f"{rule.name.value}{f': {values}' if values else ''}{_of(rule.rows)}"


def _of(rows: list[str]) -> str:
    return "" if len(rows) > 1 else {"preference": ", of pairs", "sft": ", of demonstrations"}[rows[0]]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(put_into(path.read_text(encoding="utf-8")), encoding="utf-8")
