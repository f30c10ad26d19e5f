"""Damages small valid data files in every way that a seed can choose, and reads each: rows or one sentence, no more.

python -m tests.fuzz.reading --files 10000           what the test does; prints counts as JSON
python -m tests.fuzz.reading --only 1234 --keep DIR  one of them; its file stays in DIR
"""

import argparse
import gzip
import io
import json
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefopt.config.algorithms import Kind
from prefopt.config.choices import OnBadRow
from prefopt.config.schema import DataConfig
from prefopt.data.loading import read_splits
from prefopt.process.errors import UserError

HANG_S = 10
"""Longest time for one small file."""
LONGEST_MESSAGE = 2000
"""Characters of a message; its values are cut, its places are few."""

Rng = random.Random
Row = dict[str, Any]


def turn(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}]
PAIRS: dict[str, Callable[[int], Row]] = {
    "text pairs": lambda n: {"prompt": f"Q{n} é?", "chosen": f"yes {n}", "rejected": "no", "score": n},
    "chat pairs": lambda n: {
        "prompt": [turn("system", "Be brief."), turn("user", f"Q{n}?")],
        "chosen": [turn("assistant", "yes")],
        "rejected": [turn("assistant", f"no {n}")],
    },
    "transcripts": lambda n: {
        "chosen": f"\n\nHuman: Q{n}?\n\nAssistant: It is so.",
        "rejected": f"\n\nHuman: Q{n}?\n\nAssistant: It is not.",
    },
    "texts with a common beginning": lambda n: {"chosen": f"Q{n}? It is so.", "rejected": f"Q{n}? It is not."},
    "conversations in pairs": lambda n: {
        "prompt": f"Q{n}?",
        "chosen": [turn("user", f"Q{n}?"), turn("assistant", "yes")],
        "rejected": [turn("user", f"Q{n}?"), turn("assistant", "no")],
    },
    "sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"Q{n}?"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "openai": lambda n: {
        "input": {"messages": [turn("user", f"Q{n}?")], "tools": TOOLS},
        "preferred_output": [turn("assistant", "yes")],
        "non_preferred_output": [turn("assistant", "no")],
    },
    "swift": lambda n: {"messages": [turn("user", f"Q{n}?"), turn("assistant", "yes")], "rejected_response": "no"},
    "nova": lambda n: {
        "system": [{"text": "Be brief."}],
        "messages": [
            turn("user", [{"text": f"Q{n}?"}]),
            {
                "role": "assistant",
                "candidates": [
                    {"content": [{"text": "yes"}], "preferenceLabel": "preferred"},
                    {"content": [{"text": "no"}], "preferenceLabel": "non-preferred"},
                ],
            },
        ],
    },
    "gemini": lambda n: {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": f"Q{n}?"}]}],
        "completions": [
            {"score": score, "completion": {"role": "model", "parts": [{"text": text}]}}
            for score, text in ((1, "yes"), (0, "no"))
        ],
    },
    "two answers": lambda n: {
        "question": f"Q{n}?",
        "response_a": "yes",
        "response_b": "no",
        "winner": ("a", "model_b", "tie")[n % 3],
    },
    "ratings": lambda n: {
        "instruction": f"Q{n}?",
        "completions": [{"response": f"answer {k}", "overall_score": (n * k) % 5} for k in range(3)],
    },
    "scores": lambda n: {"prompt": f"Q{n}?", "responses": ["yes", "no"], "scores": [1.5, n % 3]},
    "alpaca": lambda n: {"instruction": f"Q{n}?", "input": "", "chosen": "yes", "rejected": "no"},
}
DEMONSTRATIONS: dict[str, Callable[[int], Row]] = {
    "messages": lambda n: {
        "messages": [
            turn("user", [{"type": "text", "text": f"Q{n}?"}]),
            turn("assistant", "", tool_calls=[CALL]),
            turn("tool", "1"),
            turn("assistant", "yes", weight=1),
        ],
        "tools": TOOLS,
        "chat_template_kwargs": {"thinking": False},
        "system": "Be brief.",
    },
    "alpaca": lambda n: {"instruction": f"Q{n}?", "input": "", "output": "yes"},
    "sharegpt": lambda n: {"conversations": [{"from": "human", "value": f"Q{n}?"}, {"from": "gpt", "value": "yes"}]},
    "kto": lambda n: {"prompt": f"Q{n}?", "completion": "yes", "label": True},
    "text": lambda n: {"text": f"Once {n}."},
}


def nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


ODD: list[Any] = [
    None, True, False, 0, -1, 1e308, float("nan"), 10**30, "", " ", "x", "\n", "\ud800", "a\x00b", "\u202e", "[", "{}",
    "[{'role': 'user', 'content': 'x'}]", '[{"role": "user", "content": ', "x" * 5000, [], {}, [[]], [None], [{}],
    ["x"], {"role": "user"}, [turn("user", "x")], [turn("assistant", "x")], turn("assistant", "x"), {"\ud800": 1},
    {"from": [], "value": {}}, [{"type": "image", "image": "x"}], [{"text": "x"}], {"": ""},
    nested(60), nested(70), nested(400),
]  # fmt: skip
"""Put in the place of any value of a row."""
NAMES = [
    "prompt", "chosen", "rejected", "messages", "tools", "role", "content", "tool_calls", "function", "arguments",
    "system", "label", "images", "text", "completion", "function_call", "chat_template_kwargs", "\ud800", "",
]  # fmt: skip
"""Keys that an object gets in addition."""
PIECES = [
    b'"', b"{", b"[", b"}", b"]", b",", b"\n", b"\r", b"\\", b"\0", b":", b"\xff", b"\xef\xbb\xbf",
    b"1" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"a": 1, "a": 2,',
]  # fmt: skip
"""Put anywhere into a file."""


def change_row(value: Any, rng: Rng) -> Any:
    """Returns a copy of a row, or of a part of it, with one odd value, a key more or less, or a level more."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        copy: Any = value.copy()
        act = rng.random()
        if act < 0.75:
            copy[key] = change_row(value[key], rng)
        elif act < 0.9:
            del copy[key]
        elif isinstance(copy, dict):
            copy[rng.choice(NAMES)] = rng.choice((*ODD, copy[key]))
        else:
            copy.append(copy[key])
        return copy
    return rng.choice(([value], {"a": value}, str(value), json.dumps(value), *ODD))


def make_rows(shapes: dict[str, Callable[[int], Row]], rng: Rng) -> list[Any]:
    make = shapes[rng.choice(list(shapes))]
    rows: list[Any] = [make(number) for number in range(rng.choice((1, 2, 4, 8)))]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        index = rng.randrange(len(rows))
        rows[index] = change_row(rows[index], rng)
    return rows


def to_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def to_list(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def to_table(rows: list[Any], delimiter: str, write: Callable[[Any], str]) -> bytes:
    import csv

    objects = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(name for row in objects for name in row))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(columns)
    for row in objects:
        cells = [row.get(name, "") for name in columns]
        writer.writerow([cell if isinstance(cell, str) else write(cell) for cell in cells])
    return file.getvalue().encode(errors="replace")


def to_parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), file)
    except (pa.ArrowException, UnicodeError, OverflowError, NotImplementedError):
        pq.write_table(pa.table({"messages": [json.dumps(row) for row in rows]}), file)
    return file.getvalue()


FORMATS: dict[str, Callable[[list[Any], Rng], bytes]] = {
    ".jsonl": lambda rows, rng: to_lines(rows),
    ".json": lambda rows, rng: to_list(rows),
    ".csv": lambda rows, rng: to_table(rows, rng.choice(",;|"), rng.choice((str, json.dumps))),
    ".tsv": lambda rows, rng: to_table(rows, "\t", rng.choice((str, json.dumps))),
    ".parquet": lambda rows, rng: to_parquet(rows),
    ".jsonl.gz": lambda rows, rng: gzip.compress(to_lines(rows), mtime=0),
    ".json.gz": lambda rows, rng: gzip.compress(to_list(rows), mtime=0),
    ".csv.gz": lambda rows, rng: gzip.compress(to_table(rows, ",", str), mtime=0),
    ".txt": lambda rows, rng: to_lines(rows),
}


def flip(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 32))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(content: bytes, rng: Rng) -> bytes:
    return content[: rng.randrange(len(content))]


def remove(content: bytes, rng: Rng) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 40) :]


def insert(content: bytes, rng: Rng) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.choice([*PIECES, rng.randbytes(16), content]) + content[start:]


def recode(content: bytes, rng: Rng) -> bytes:
    text = content.decode("latin-1")
    return text.encode(rng.choice(("utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")))


CHANGES: list[Callable[[bytes, Rng], bytes]] = [
    flip,
    cut,
    remove,
    insert,
    recode,
    lambda content, rng: content + content,
    lambda content, rng: gzip.compress(content, mtime=0),
    lambda content, rng: rng.randbytes(rng.randrange(200)) + content,
    lambda content, rng: content.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b"", b"\x00"))),
    lambda content, rng: content.replace(
        rng.choice((b'"', b",", b":", b"a", b"role")), rng.choice((b"", b"'", b"\\"))
    ),
]


def make_file(folder: Path, kind: Kind, rng: Rng) -> Path:
    """Writes a damaged file, under the name of its format or of another one."""
    suffix = rng.choice(list(FORMATS))
    content = FORMATS[suffix](make_rows(PAIRS if kind == "preference" else DEMONSTRATIONS, rng), rng)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        if content:
            content = rng.choice(CHANGES)(content, rng)
    path = folder / f"data{suffix if rng.random() < 0.9 else rng.choice(list(FORMATS))}"
    path.write_bytes(content)
    return path


def make_folder(folder: Path, kind: Kind, rng: Rng) -> Path:
    """Writes a folder of `datasets`, and damages one of its files."""
    import datasets

    datasets.disable_progress_bars()
    path = folder / "data"
    make = PAIRS["chat pairs"] if kind == "preference" else DEMONSTRATIONS["sharegpt"]
    datasets.Dataset.from_list([make(number) for number in range(4)]).save_to_disk(str(path))
    file = rng.choice(sorted(path.iterdir()))
    file.write_bytes(rng.choice(CHANGES[:4])(file.read_bytes(), rng))
    return path


class Hang(BaseException):
    """A file that takes longer than any small file may."""


def stop(*_: Any) -> None:
    raise Hang


def read(path: Path, kind: Kind, rng: Rng) -> str:
    """Returns `read` or `refused`; raises what no user should ever meet."""
    settings: dict[str, Any] = {name: rng.choice(list(OnBadRow)) for name in ("on_empty", "on_identical")}
    config = DataConfig(train=str(path), held_out_fraction=rng.choice((0.0, 0.3)), **settings)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        splits = read_splits(config, kind=kind, seed=0)
    except UserError as error:
        message = str(error)
        message.encode()
        assert 0 < len(message) < LONGEST_MESSAGE, f"a message of {len(message)} characters"
        assert str(path) in message or "data.train" in message, f"a message without a place: {message}"
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert splits.train
    "".join(splits.notes.lines()).encode()
    json.dumps(splits.notes.to_dict()).encode()
    return "read"


def run(number: int, seed: int, folder: Path) -> str:
    """Makes and reads the file of a number: always the same one."""
    rng = random.Random(f"{seed}:{number}")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        kind: Kind = rng.choice(("preference", "sft"))
        path = (make_folder if number % 200 == 0 else make_file)(Path(place), kind, rng)
        try:
            return read(path, kind, rng)
        except (Exception, Hang) as error:
            kept = folder / f"{number}{path.suffix}"
            path.rename(kept)
            last = traceback.extract_tb(error.__traceback__)[-1]
            print(
                f"{kept}: {type(error).__name__}: {str(error)[:200]} at {last.filename}:{last.lineno}", file=sys.stderr
            )
            return "failed"


def peak_mib() -> int:
    """Of this program alone: `getrusage` begins with what its parent held when it was started."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20  # macOS, in bytes
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) >> 10


def main() -> None:
    """Runs the files and prints their counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    numbers = range(arguments.files) if arguments.only is None else [arguments.only]
    counts = Counter(run(number, arguments.seed, folder) for number in numbers)
    print(json.dumps({**counts, "peak_mib": peak_mib(), "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
