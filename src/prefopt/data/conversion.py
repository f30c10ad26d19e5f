"""Writes records in the rows of another system: all of them or none, with every reason why one cannot be written."""

import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from prefopt.config.algorithms import Kind
from prefopt.config.provider import Known, Limit, LimitName, ProviderConfig
from prefopt.data.formats import FORMATS
from prefopt.data.formats.format import Format, Row
from prefopt.data.formats.writing import as_json
from prefopt.data.messages import UNTRAINED
from prefopt.data.provider_rules import check_rules
from prefopt.data.records import NOT_CONTENT, PreferencePair, Record
from prefopt.data.values import RowError
from prefopt.data.wording import agree, say_rows
from prefopt.process.errors import UserError, explained
from prefopt.storage.files import PARTIAL, bring_to_disk

MAX_PLACES = 3
"""Most rows that are named for one reason."""
MAX_REASONS = 12
"""Most reasons that are told."""
CALLED: dict[Kind, str] = {"preference": "pairs", "sft": "demonstrations"}
_NUMBERS = re.compile(r"\d+")
"""What differs between messages of one reason."""


@dataclass
class Reason:
    """Why some rows cannot be written: what is said of the first of them, and where they are."""

    text: str
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(self.places[:MAX_PLACES])
        if len(self.places) == 1:
            return f"{shown}: {self.text}"
        more = ", ..." if len(self.places) > MAX_PLACES else ""
        return f"{len(self.places):,} rows ({shown}{more}): {self.text}"


@dataclass(kw_only=True)
class Written:
    """What was written, or could not be."""

    num_records: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    longest_bytes: int = 0
    """Bytes of the longest row."""
    longest: str = ""
    """Place of the record that it was made of."""
    num_margins: int = 0
    """Pairs with scores."""
    reasons: dict[str, Reason] = field(default_factory=dict)

    def refuse(self, record: Record, why: str) -> None:
        """Adds a record that cannot be written."""
        self.reasons.setdefault(_NUMBERS.sub("#", why), Reason(why)).places.append(record.source)


def write_records(records: Sequence[Record], provider: ProviderConfig, kind: Kind, path: Path) -> Written:
    """Writes records as JSON lines.

    Args:
        records: Pairs or demonstrations.
        provider: The system whose rows they become.
        kind: Which of both they are.
        path: The file. It appears, or is replaced, when all rows are written.

    Raises:
        UserError: A row would lose something or breaks a rule, or the file passes a limit; nothing is left behind.
    """
    require_kind(provider, kind)
    form = FORMATS[provider.layout]
    written = Written()
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    with explained(path, "written"):
        try:
            with partial.open("wb") as file:
                for record in records:
                    file.writelines(_make_lines(record, form, provider, kind, written))
                file.flush()
                os.fsync(file.fileno())
            _require_all(written, provider, kind)
            partial.replace(path)
            bring_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    return written


def require_kind(provider: ProviderConfig, kind: Kind) -> None:
    """Refuses rows of a kind that a provider does not take.

    Raises:
        UserError: It says which one it takes.
    """
    taken = [each for each in FORMATS[provider.layout].write if each in provider.rows]
    if not taken:
        raise UserError(f"{provider.title}: rows of the layout {provider.layout.name} are only read, not written.")
    if kind not in taken:
        setting = {"preference": "dpo", "sft": "sft"}[taken[0]]
        raise UserError(
            f"{provider.title} takes {CALLED[taken[0]]}, not {CALLED[kind]}. Set algorithm={setting}, with a file of "
            f"{CALLED[taken[0]]}."
        )


def to_row(record: Record) -> Row:
    """Returns a record as a row in TRL's format.

    Marks of answers in a pair's prompt are left out: nothing of a prompt is trained.
    """
    values = {each.name: getattr(record, each.name) for each in fields(record) if each.name not in NOT_CONTENT}
    row = {name: value for name, value in values.items() if value or value == ""}
    if isinstance(record, PreferencePair) and isinstance(record.prompt, list):
        row["prompt"] = [{key: item for key, item in turn.items() if key != UNTRAINED} for turn in record.prompt]
    return row


def _make_lines(record: Record, form: Format, provider: ProviderConfig, kind: Kind, written: Written) -> list[bytes]:
    """Returns the lines of one record, and counts them; none for one that cannot be written."""
    row = to_row(record)
    margin = getattr(record, "margin", None)
    scores = {form.margin: margin} if form.margin and margin is not None else {}
    try:
        check_rules(row, provider, kind)
        lines = [f"{as_json({**each, **scores})}\n".encode() for each in form.write[kind](row)]
    except RowError as error:
        written.refuse(record, str(error))
        return []
    written.num_records += 1
    written.num_margins += margin is not None
    written.num_rows += len(lines)
    written.num_bytes += sum(map(len, lines))
    longest = max(map(len, lines))
    if longest > written.longest_bytes:
        written.longest_bytes, written.longest = longest, record.source
    return lines


def _require_all(written: Written, provider: ProviderConfig, kind: Kind) -> None:
    """Refuses a file of which a row cannot be written, or that passes a limit."""
    reasons = sorted(written.reasons.values(), key=lambda reason: -len(reason.places))
    faults = [str(reason) for reason in reasons[:MAX_REASONS]]
    if len(reasons) > MAX_REASONS:
        faults.append(f"... and {len(reasons) - MAX_REASONS} more reasons")
    if not faults:
        faults = [
            fault
            for limit in limits_of(provider, kind)
            if limit.known is not Known.unverified and (fault := find_passed(limit, written)) is not None
        ]
    if faults:
        raise UserError("\n  ".join([f"nothing was written for {provider.title}:", *faults]))


def limits_of(provider: ProviderConfig, kind: Kind) -> Iterator[Limit]:
    """Yields a provider's limits for rows of a kind."""
    return (limit for limit in provider.limits if kind in limit.rows)


def find_passed(limit: Limit, written: Written) -> str | None:
    """Returns how a file passes a limit; None if it does not, or if that cannot be known."""
    most = {LimitName.max_rows: (written.num_rows, "rows"), LimitName.max_bytes: (written.num_bytes, "bytes")}
    since = f"({limit.source}, {limit.date})"
    if limit.name is LimitName.min_rows and written.num_rows < limit.value:
        return f"{say_rows(written.num_rows)}, and at least {limit.value:,} are asked for {since}. Give more."
    if limit.name in most and most[limit.name][0] > limit.value:
        number, unit = most[limit.name]
        return f"{number:,} {unit}, and at most {limit.value:,} are taken {since}. Write fewer rows, in several files."
    return None


def describe_scores(written: Written, provider: ProviderConfig) -> str:
    """Returns a sentence on the scores of the pairs; empty if there are none."""
    column = FORMATS[provider.layout].margin
    if not written.num_margins:
        return ""
    scores = f"the scores of {written.num_margins:,} {agree('[pair|pairs]', written.num_margins)} are"
    if column:
        return f"{scores} written as their difference, in the column '{column}'"
    return f"{scores} left out: rows for {provider.title} have no place for them"


def describe_limits(written: Written, provider: ProviderConfig, kind: Kind) -> list[str]:
    """Returns a sentence for each limit of a file that was written: kept, passed, or not checked."""
    return [_describe_limit(limit, written) for limit in limits_of(provider, kind)]


def _describe_limit(limit: Limit, written: Written) -> str:
    said = f"{limit.name.value}: {limit.value:,}"
    if limit.name is LimitName.max_tokens:
        longest = f"the longest row ({written.longest}) has {written.longest_bytes:,} bytes"
        if written.longest_bytes <= limit.value:
            return f"kept: {said}; {longest}, and a token has at least one"
        return f"not checked: {said}, of the provider's tokenizer; {longest}"
    if limit.name is LimitName.recommended_rows and written.num_rows < limit.value:
        return f"below: {said}; there {agree('[is|are]', written.num_rows)} {written.num_rows:,}"
    passed = find_passed(limit, written)
    return f"kept: {said}" if passed is None else f"perhaps passed: {passed} This limit is not certain."
