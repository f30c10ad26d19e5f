"""ms-swift's pairs: `messages` as chosen, and `rejected_response` or `rejected_messages`.

Its demonstrations are TRL's.
"""

from prefopt.data.formats.format import PAIRS, Format, Row, get, get_messages
from prefopt.data.values import check_text

REJECTED = ("rejected_response", "rejected_messages")


def detect(row: Row, kind: str) -> bool:
    return any(name in row for name in REJECTED)


def read_pair(row: Row) -> Row:
    """Returns prompt and completions; whole conversations as chosen and rejected, which have a common beginning."""
    messages = get_messages(row)
    system = {"system": row.get("system")}
    if row.get("rejected_messages") is not None:
        return {"chosen": messages, "rejected": row["rejected_messages"], **system}
    rejected = {"role": "assistant", "content": check_text(get(row, "rejected_response"), "rejected_response")}
    return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [rejected], **system}


FORMAT = Format(
    detect=detect,
    looked_for_in=PAIRS,
    read={"preference": read_pair},
    columns={"preference": ("messages", "system", *REJECTED)},
)
