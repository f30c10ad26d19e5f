"""Shows one row as the model gets it: in the terminal, as an HTML page, and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from prefopt.data.anatomy import Anatomy, TokenSequence
from prefopt.process.errors import explained
from prefopt.process.terminal import Terminal
from prefopt.reports.render import environment
from prefopt.storage.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT, TRAINED, CUT = "context", "trained", "cut"
MEANING = {
    CONTEXT: "given to the model, no loss on it",
    TRAINED: "the loss is on these tokens",
    CUT: "beyond data.max_length: the model does not get it",
}
OF_PAIR = ": the chosen answer is to become likelier than the rejected one"
STYLES = {CONTEXT: "", TRAINED: "bold green", CUT: "red strike"}
MARKS = {CONTEXT: ("", ""), TRAINED: ("⟦", "⟧"), CUT: ("⟨cut: ", "⟩")}
"""What surrounds a stretch of text where colours are not seen."""
LONGEST_CHARACTER = 8
"""Tokens that are tried together until they make whole characters."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or several that make one character.

    Attributes:
        text: What they stand for.
        ids: Their token ids.
        role: `context`, `trained` or `cut`.
    """

    text: str
    ids: list[int]
    role: str


def to_json(anatomy: Anatomy, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The row as `prefopt show --json` prints it; `text` is that of `ids`, special tokens included."""
    return {
        "source": anatomy.source,
        "sequences": [
            {
                "name": part.name,
                "ids": part.ids,
                "text": decode(tokenizer, part.ids),
                "trained": part.trained,
                "cut_ids": part.cut,
                "cut_text": decode(tokenizer, part.cut),
            }
            for part in anatomy.sequences
        ],
        "left_out": anatomy.fate or None,
        "is_refused": anatomy.is_refused,
        "form": anatomy.form or None,
    }


def print_row(
    anatomy: Anatomy, tokenizer: "PreTrainedTokenizerBase", console: Terminal, remarks: Sequence[str] = ()
) -> None:
    """Prints each part of the row with its counts, trained text in another colour than context; remarks first."""
    in_colour = console.color_system is not None
    console.print(Text(anatomy.source, "bold"))
    for remark in remarks:
        console.print(Text(remark, "dim"))
    if anatomy.fate:
        console.print(Text(f"{_begin_fate(anatomy)}: {anatomy.fate}", "bold red"))
    if anatomy.form:
        console.print(Text(anatomy.form, "yellow"))
    for part in anatomy.sequences:
        console.print(Text.assemble("\n", (part.name, "bold"), f"  {describe_counts(part)}"))
        console.print(_coloured(pieces(tokenizer, part), in_colour))
    console.print()
    for role, meaning in _meaning(anatomy).items():
        begin, end = MARKS[role]
        sample = Text(role, STYLES[role]) if in_colour else Text(f"{begin}{role}{end}")
        console.print(Text.assemble(sample, f"  {meaning}"))


def _begin_fate(anatomy: Anatomy) -> str:
    return "training refuses this row" if anatomy.is_refused else "left out of training"


def write_row_page(
    anatomy: Anatomy, tokenizer: "PreTrainedTokenizerBase", path: Path, *, remarks: Sequence[str]
) -> None:
    """Writes the row as a page in which each token shows its id; completely or not at all.

    Args:
        anatomy: The row.
        tokenizer: That of the ids.
        path: The HTML file.
        remarks: Which row it is, what is to be known of the others, and whose tokens these are.

    Raises:
        UserError: The file cannot be written.
    """
    template = environment("prefopt.reports").get_template("row.html.j2")
    name = anatomy.source.rpartition("/")[2]
    parts = [(part.name, describe_counts(part), pieces(tokenizer, part)) for part in anatomy.sequences]
    meaning = _meaning(anatomy)
    page = template.render(anatomy=anatomy, name=name, parts=parts, meaning=meaning, remarks=remarks)
    with explained(path, "written"):
        write_text(path, page)


def describe_counts(part: TokenSequence) -> str:
    """The counts of a part: `31 tokens: 24 context, 7 trained; 3 more cut`."""
    num_trained = sum(part.trained)
    words = [
        f"{count} {role}" for role, count in ((CONTEXT, len(part.ids) - num_trained), (TRAINED, num_trained)) if count
    ]
    total = f"{len(part.ids)} token{'' if len(part.ids) == 1 else 's'}"
    cut = f"; {len(part.cut)} more cut" if part.cut else ""
    return f"{total}{': ' if words else ''}{', '.join(words)}{cut}"


def pieces(tokenizer: "PreTrainedTokenizerBase", part: TokenSequence) -> list[Piece]:
    """The tokens of a part with their text, in order; what is cut off comes last."""
    roles = [TRAINED if is_trained else CONTEXT for is_trained in part.trained] + [CUT] * len(part.cut)
    ids = part.ids + part.cut
    found = list(_pieces(tokenizer, ids, roles))
    if "".join(piece.text for piece in found) == decode(tokenizer, ids):
        return found
    # This tokenizer writes a token otherwise beside others: whole stretches of one role are decoded together.
    stretches = groupby(zip(ids, roles, strict=True), key=lambda pair: pair[1])
    together = [(role, [token for token, _ in run]) for role, run in stretches]
    return [Piece(decode(tokenizer, stretch), stretch, role) for role, stretch in together]


def _pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], roles: Sequence[str]) -> Iterator[Piece]:
    """Yields the text that each token adds to the one before it: alone, SentencePiece's lose their leading blank."""
    open_ids: list[int] = []
    before: list[int] = []
    for token, role in zip(ids, roles, strict=True):
        open_ids.append(token)
        text = decode(tokenizer, before + open_ids)[len(decode(tokenizer, before)) :]
        if text.endswith("\ufffd") and len(open_ids) < LONGEST_CHARACTER:
            continue
        yield Piece(text, open_ids, role)
        before, open_ids = open_ids, []
    if open_ids:
        yield Piece(decode(tokenizer, open_ids), open_ids, roles[-1])


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _coloured(found: Sequence[Piece], in_colour: bool) -> Text:
    shown = Text()
    for role, run in groupby(found, key=lambda piece: piece.role):
        text = "".join(piece.text for piece in run)
        begin, end = ("", "") if in_colour else MARKS[role]
        shown.append(f"{begin}{text}{end}", STYLES[role])
    return shown


def _meaning(anatomy: Anatomy) -> dict[str, str]:
    """What the roles mean that occur in the row."""
    found = set()
    for part in anatomy.sequences:
        found |= {TRAINED if is_trained else CONTEXT for is_trained in part.trained}
        found |= {CUT} if part.cut else set()
    of_pair = OF_PAIR if any(part.name == "rejected" for part in anatomy.sequences) else ""
    return {role: meaning + of_pair * (role == TRAINED) for role, meaning in MEANING.items() if role in found}
