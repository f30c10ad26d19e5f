"""Held-out prompts that training has seen, word for word or nearly: a model is not new to them."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.config.choices import CheckName
from prefopt.config.schema import DataConfig
from prefopt.data.audit.engine import run_checks
from prefopt.data.cache import CODE, digest_tokenizer
from prefopt.data.loading import in_one_form
from prefopt.data.records import Record
from prefopt.data.split import prompt_keys
from prefopt.data.table import Table
from prefopt.models.examples import Examples, hash_rows
from prefopt.process.errors import UserError
from prefopt.process.paths import cache_folder
from prefopt.storage.files import read_object, write_json

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Overlap = dict[str, int | None]
"""`prompts`: different held-out prompts; `exact`: of these, those of the training, word for word; `near`: nearly."""


def find_overlap(
    examples: Examples, config: DataConfig, apart: Sequence[tuple[Sequence[Record], "Dataset"]]
) -> Overlap | None:
    """Counts the measured prompts that are training prompts; None if nothing is held out. Rank 0 only.

    Args:
        examples: The data of the run; all training examples count, not only those that are measured.
        config: As for `measure_overlap`.
        apart: Further data that are measured, records and token ids. What is returned is of the data where the share
            of such prompts is greatest: pairs that were trained do not become few beside many demonstrations.
    """
    trained, data = examples.records, examples.tokenized
    held_out = [] if data.held_out is None else [(trained.held_out or (), data.held_out)]
    measured = [(records, tokens) for records, tokens in [*held_out, *apart] if len(tokens)]
    if not measured:
        return None
    known = [hash_rows(data.train), digest_tokenizer(examples.tokenizer)]
    found = []
    for records, tokens in measured:

        def compare(records: Sequence[Record] = records, tokens: "Dataset" = tokens) -> Overlap:
            return measure_overlap(_used(trained.train, data.train), _used(records, tokens), config)

        found.append(recall_overlap([*known, hash_rows(tokens)], config, compare))
    return max(found, key=_share)


def _share(overlap: Overlap) -> float:
    exact, near, prompts = ((overlap.get(key) or 0) for key in ("exact", "near", "prompts"))
    return (exact + near) / max(prompts, 1)


def _used(records: Sequence[Record], tokens: "Dataset") -> Sequence[Record]:
    """Returns the records that are left after tokenising."""
    if len(records) == len(tokens):
        return records
    sources = set(tokens["source"])
    return Table.of(record for record in records if record.source in sources)


def describe_overlap(overlap: Overlap) -> tuple[str, str, float]:
    """Says how many prompts are shared: `3 word for word and 2 nearly`, `5 of 132 (3.8 %)`, and their share."""
    exact, near = ((overlap.get(key) or 0) for key in ("exact", "near"))
    kinds = [f"{exact} word for word"] if exact else []
    kinds += [f"{near} nearly"] if near else []
    share = _share(overlap)
    return " and ".join(kinds), f"{exact + near} of {overlap.get('prompts')} ({100 * share:.1f} %)", share


def measure_overlap(trained: Sequence[Record], held_out: Sequence[Record], config: DataConfig) -> Overlap:
    """Counts the held-out prompts that are training prompts, each prompt once.

    Word for word, apart from whitespace, is the rule of `data.on_overlap`; nearly is the check `near_leakage` of the
    audit, and None without its package.

    Args:
        trained: All training records, pairs or demonstrations.
        held_out: The records that are measured, of either kind.
        config: How plain text becomes chats, where one side is text and the other is not.
    """
    train, others = in_one_form(Table.of(trained), Table.of(held_out), config)
    known: dict[tuple[bytes, ...], int] = {}
    for row, record in enumerate(train):
        known.setdefault((*prompt_keys(record),), row)
    seen = {key for keys in known for key in keys}
    rows: dict[tuple[bytes, ...], int] = {}
    for row, record in enumerate(others):
        rows.setdefault((*prompt_keys(record),), row)
    exact = {keys[0] for keys in rows if not seen.isdisjoint(keys)}
    left = {keys: row for keys, row in rows.items() if keys[0] not in exact}
    near = _count_near(train.select([*known.values()]), others.select([*left.values()]), [keys[0] for keys in left])
    return {"prompts": len({keys[0] for keys in rows}), "exact": len(exact), "near": near}


def _count_near(train: Table[Record], held_out: Table[Record], prompts: Sequence[bytes]) -> int | None:
    """Returns how many of the prompts of the held-out records nearly repeat a training prompt; None if not known."""
    check = CheckName.near_leakage
    # One process: torch and the tokenizer have threads by now, and those do not live on in a forked process.
    records = {"train": train, "held_out": held_out}
    found, reason = run_checks(records, kind="preference", num_processes=1, only=[check])[check]
    if found is None:
        if len(held_out):
            logger.info("evaluation: prompts that are nearly training prompts were not looked for (%s)", reason)
        return None if len(held_out) else 0
    return len({prompts[row] for row in found.rows.get("held_out", np.array([], np.int64)).tolist()})


def recall_overlap(digests: Sequence[str | None], config: DataConfig, measure: Callable[[], Overlap]) -> Overlap:
    """Returns the result of `measure`, from the cache if these rows were compared before.

    Args:
        digests: Those of both sides' token ids, and of the tokenizer; with a None among them, nothing is kept.
        config: As for `measure_overlap`.
        measure: Compares the rows; not called if the result is known, as they may have to be read for it.
    """
    if None in digests:
        return measure()
    decisive = [CODE, *digests, str(config.as_chat), _version("rensa")]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    path = cache_folder() / "overlap" / f"{key[:32]}.json"
    kept = _read(path)
    if kept.get("key") == key:
        return {name: kept[name] for name in ("prompts", "exact", "near")}
    found = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**found, "key": key})
    except OSError as error:
        logger.warning("evaluation: %s cannot be written (%s); prompts are compared again next time", path, error)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "")
    except UserError:
        return {}  # damaged: it is written anew


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
