"""Two answers side by side, and a column that says which one won: `response_a`, `response_b`, `winner`."""

from prefopt.data.formats.format import (
    HISTORY,
    PAIRS,
    PROMPTS,
    Format,
    Row,
    get,
    get_prompt,
    keep_system,
    unread_questions,
)
from prefopt.data.values import RowError, describe

SIDES = {
    (f"{stem}_{first}", f"{stem}_{second}"): (first, second)
    for stem in ("response", "answer", "completion", "output", "conversation", "model_output")
    for first, second in (("a", "b"), ("1", "2"), ("0", "1"))
}
"""Columns of the two answers -> how each is called."""
WINNERS = ("winner", "preference", "preferred", "choice", "better", "label")
TIES = (
    "tie",
    "tie (bothbad)",
    "tie_both_bad",
    "both_bad",
    "bothbad",
    "both",
    "equal",
    "same",
    "draw",
    "neither",
    "none",
)


def detect(row: Row, kind: str) -> bool:
    return _sides(row) is not None and any(name in row for name in WINNERS)


def read_pair(row: Row) -> Row | None:
    """Returns the winner as chosen and the other as rejected; None for a tie."""
    columns = _sides(row)
    assert columns is not None, "detected by these columns"
    winner = _winner(row, columns)
    if winner is None:
        return None
    answers = {"chosen": get(row, columns[winner]), "rejected": get(row, columns[1 - winner])}
    if all(isinstance(answer, list) for answer in answers.values()) and not any(name in row for name in PROMPTS):
        return answers  # whole conversations, which begin with the same question
    return {"prompt": get_prompt(row), **answers, **keep_system(row)}


def _sides(row: Row) -> tuple[str, str] | None:
    return next((columns for columns in SIDES if columns[0] in row and columns[1] in row), None)


def _winner(row: Row, columns: tuple[str, str]) -> int | None:
    """Returns which of the two answers won, 0 or 1; None for a tie."""
    name = next(name for name in WINNERS if name in row)
    said = row[name]
    word = _word(said)
    if word in TIES:
        return None
    for index, (column, side) in enumerate(zip(columns, SIDES[columns], strict=True)):
        if word in (side, column, f"model_{side}", f"response_{side}", f"answer_{side}"):
            return index
    first, second = SIDES[columns]
    raise RowError(f"'{name}' must be {first}, {second} or tie, found {describe(said)}.")


def _word(value: object) -> str:
    if isinstance(value, float) and value.is_integer():  # a table writes 1 as 1.0 where cells are empty
        value = int(value)
    if isinstance(value, str) and value.strip() in ("0.0", "1.0", "2.0"):
        value = value.strip()[0]
    return str(value).strip().lower() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


FORMAT = Format(
    detect=detect,
    looked_for_in=PAIRS,
    read={"preference": read_pair},
    columns={
        "preference": ("system", HISTORY, *PROMPTS, *WINNERS, *dict.fromkeys(name for pair in SIDES for name in pair))
    },
    unread=unread_questions,
)
