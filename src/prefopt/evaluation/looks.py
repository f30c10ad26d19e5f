"""Looks at test data: each is written down before it happens, and a report says how many there were.

Test data measure what a model can do on prompts by which nothing was chosen. With every look that influences a choice,
such as which of two runs to keep, they become held-out data, and the best number on them is too good.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefopt.config.limits import LimitsConfig
from prefopt.config.mixture import paths_of
from prefopt.data.records import Record
from prefopt.data.sources import digest_files
from prefopt.data.split import prompt_keys
from prefopt.evaluation.decision import Finding
from prefopt.evaluation.overlap import Overlap, describe_overlap
from prefopt.process.errors import UserError, explained
from prefopt.runs.directory import RunDirectory
from prefopt.runs.lock import RunLock
from prefopt.storage.files import append_line, hash_file, read_lines
from prefopt.storage.sealed import MANIFEST

LEDGER = "test_looks.jsonl"
"""File beside the runs, in a sweep's folder for its points: a line for each measurement on test data."""
PATIENCE_S = 60.0
"""Seconds to wait for other evaluations that write to the ledger; each takes a moment."""
NEXT = "New test data, by which nothing was chosen: prefopt evaluate run=<folder> split=test data.test=<file>"


def digest_prompts(records: Iterable[Record]) -> str:
    """Returns the SHA-256 (hex) of a set of prompts: the same for another order of rows and another form of file."""
    keys = sorted({next(iter(prompt_keys(record))) for record in records})
    return hashlib.sha256(b"".join(keys)).hexdigest()


def record_look(run: RunDirectory, data: object, prompts: str | None = None) -> dict[str, Any]:
    """Writes down that a run is about to be measured on test data, and returns what was written down until now.

    The look counts from here on, whether or not the measurement is finished. Rank 0 only.

    Args:
        run: The run; its `model/` tells it from an earlier run of this name.
        data: The test data, as `data.test` names them.
        prompts: Digest of their prompts, by which the same data are known in another order or form of file.

    Returns:
        The entry `test` of report.json: `looks`, how often these data were measured on, this time included; `runs`,
        the runs of which; `others`, those of them that are not this one; `sha256` of the data; `ledger`.

    Raises:
        UserError: The ledger cannot be written, or a line of it is damaged.
    """
    ledger = run.path.resolve().parent / LEDGER
    manifest = run.model / MANIFEST
    look: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.path.resolve().name,
        "model": hash_file(manifest) if manifest.is_file() else None,
        "data": [str(path) for path in paths_of(data)],
        "sha256": _digest(data),
        "prompts": prompts,
    }
    with _alone(ledger), explained(ledger, "written"):
        before = list(read_lines(ledger)) if ledger.exists() else []
        append_line(ledger, look)
    same = [each for each in [*before, look] if _are_same(each, look)]
    measured = dict.fromkeys((str(each.get("run")), each.get("model")) for each in same)
    return {
        "looks": len(same),
        "runs": [name for name, _ in measured],
        "others": [name for name, model in measured if (name, model) != (look["run"], look["model"])],
        "sha256": look["sha256"],
        "ledger": str(ledger),
    }


def _are_same(earlier: dict[str, Any], look: dict[str, Any]) -> bool:
    """Whether two looks were at the same data, by the files' content or by their prompts."""
    return any(look[key] is not None and earlier.get(key) == look[key] for key in ("sha256", "prompts"))


def judge_looks(test: dict[str, Any], limits: LimitsConfig) -> list[Finding]:
    """Says how often the test data of a report were looked at; nothing if it is not one on test data.

    From the second run on it is a severe warning: whoever sees both numbers can choose by them. So it is if more than
    `limits.overlap` of the prompts are held-out prompts of the run.
    """
    if not test:
        return []
    return [_judge_count(test), *_judge_shared(test.get("held_out") or {}, limits)]


def _judge_count(test: dict[str, Any]) -> Finding:
    before, others = test["looks"] - 1, test["others"]
    evidence = f"{before + 1} measurement{'s' if before else ''} on these data, by {Path(test['ledger']).name}"
    if not before:
        return Finding("info", "Test data: looked at for the first time.", evidence)
    times = "once" if before == 1 else f"{before} times"
    if not others:
        return Finding("info", f"Test data: measured {times} before, for this run alone.", evidence)
    text = (
        f"Test data: measured {times} before, also for {', '.join(dict.fromkeys(others))}. With every look that "
        "influences a choice, a test set becomes held-out data."
    )
    return Finding("warning", text, evidence, is_severe=True, remedy=f"{NEXT}.")


def _judge_shared(overlap: Overlap, limits: LimitsConfig) -> list[Finding]:
    kinds, evidence, share = describe_overlap(overlap)
    if not kinds:
        return []
    text = f"Test prompts are also held-out prompts, by which this run may have been chosen: {kinds}."
    is_severe = share > limits.overlap
    return [Finding("warning", text, f"{evidence} test prompts", is_severe=is_severe, remedy=f"{NEXT}.")]


def _digest(data: object) -> str:
    """Returns the SHA-256 (hex) of the files' contents, whatever their names; of a data set on the hub, of its id."""
    found = digest_files(data)
    return found or hashlib.sha256(json.dumps([str(path) for path in paths_of(data)]).encode()).hexdigest()


@contextmanager
def _alone(ledger: Path) -> Iterator[None]:
    """Holds the ledger's lock, also against evaluations on other machines.

    Raises:
        UserError: Its folder cannot be written, or another process does not let go of it.
    """
    lock, end = RunLock(ledger), time.monotonic() + PATIENCE_S
    while True:
        try:
            lock.acquire()
            break
        except UserError as error:
            if isinstance(error.__cause__, OSError) or time.monotonic() > end:
                raise UserError(
                    f"{ledger}: each look at test data is written down there first, and it cannot be written. Make "
                    f"its folder writable, or wait for the other process. {error}"
                ) from error
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()
