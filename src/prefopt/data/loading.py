"""Reads the data of a run, from the configuration to records: training rows and held-out ones."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefopt.config.algorithms import Kind
from prefopt.config.choices import AUTO, CheckName
from prefopt.config.mixture import Part, parts_of
from prefopt.config.schema import DataConfig
from prefopt.data.as_chat import Chats, is_question, is_text, to_chat
from prefopt.data.bad_rows import UNREADABLE, BadRows, require_usable
from prefopt.data.defects import drop_defects, drop_unwanted, is_empty, is_identical
from prefopt.data.implicit_prompts import agree_on_prompts
from prefopt.data.labels import Labels
from prefopt.data.mix import SliceNotes, count_slices, cut, weigh
from prefopt.data.notes import DataNotes, SplitName
from prefopt.data.pairing import PairRule
from prefopt.data.read_notes import ReadNotes
from prefopt.data.reading import ReadResult, read_records
from prefopt.data.records import Record
from prefopt.data.split import find_overlap, find_overlapping_rows, prompt_keys, split_by_prompt
from prefopt.data.table import Table, TableWriter
from prefopt.data.values import RowError
from prefopt.process.errors import UserError

logger = logging.getLogger(__name__)

REMOVE_OVERLAP = (
    "What is measured there would not be held out (the audit's check 'leakage'). Remove them, or set "
    "data.on_overlap=skip; with data/gate=off they are trained, and the report says so."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The training records and the held-out records; no prompt is in both."""

    kind: Kind
    train: Sequence[Record]
    held_out: Sequence[Record] | None
    """None if nothing is held out: `data.held_out` unset and `data.held_out_fraction` 0."""
    notes: DataNotes


def read_splits(config: DataConfig, *, kind: Kind, seed: int, measured: object = None) -> Splits:
    """Reads `config.train`, and takes the held-out records from `config.held_out` or splits them off by prompt.

    Args:
        config: The files, and what happens to rows that cannot be used.
        kind: Whether rows are preference pairs or demonstrations.
        seed: Seed of the choice of held-out prompts.
        measured: Other data to use as held-out records; the training records stay those of `config`.

    Raises:
        UserError: A row is invalid, a prompt is in both splits, or a split is empty, as the settings decide.
    """
    notes = DataNotes()
    labels = Labels()
    specs: dict[SplitName, object] = {"train": config.train}
    if config.held_out is not None:
        specs["held_out"] = config.held_out
    bad = {split: BadRows(f"data.{split}", config) for split in specs}
    read = _read(specs, bad, config, kind, notes, labels)
    held_out: Table[Record] | None = None
    train = read["train"]
    if "held_out" in read:
        train, held_out = agree_among((train, notes.read["train"]), (read["held_out"], notes.read["held_out"]))
        held_out = _as_chats(held_out, bad["held_out"], config, notes, "held_out")
    plain, train = train, _as_chats(train, bad["train"], config, notes, "train")
    if held_out is not None:
        train = without_overlap(train, held_out, bad["train"], config, notes)
    require_usable(*bad.values())
    parts = parts_of(config.train, "data.train")
    num_usable = len(train)
    train, notes.slices["train"] = cut(train, parts, config.max_rows, config.shuffle_seed)
    if not parts:
        notes.read["train"].num_over_limit = num_usable - len(train)
    held_out_parts = parts_of(config.held_out, "data.held_out") if config.held_out is not None else parts
    if held_out is not None:
        held_out, notes.slices["held_out"] = cut(held_out, held_out_parts, None, config.shuffle_seed)
    if held_out is None and config.held_out_fraction > 0:
        train, held_out = _set_apart(train, config, seed)
    if measured is not None:
        trained = {record.source for record in train}
        plain = plain.select(np.fromiter((record.source in trained for record in plain), bool, len(plain)))
        held_out_parts = parts_of(measured, "data.held_out")
        held_out = _read_apart(measured, plain, "data.held_out", config, kind, notes, "held_out", labels)
        held_out, notes.slices["held_out"] = cut(held_out, held_out_parts, None, config.shuffle_seed)
    train = weigh(train, parts, config.shuffle_seed)
    _count_slices(train, held_out, parts, held_out_parts, notes)
    _require_records(train, held_out, notes)
    return Splits(kind=kind, train=train, held_out=held_out, notes=notes)


def read_all(config: DataConfig, *, kind: Kind, seed: int, bad: Mapping[SplitName, BadRows]) -> Splits:
    """Reads the rows that `read_splits` takes, and keeps those from which nothing can be learned: for an audit.

    Args:
        config: The files.
        kind: Whether rows are preference pairs or demonstrations.
        seed: Seed of the choice of held-out prompts; they are those of `read_splits`.
        bad: Gets the rows that cannot be read, for each split that has files of its own.

    Raises:
        UserError: A file cannot be read.
    """
    notes, labels = DataNotes(), Labels()
    specs: dict[SplitName, object] = {"train": config.train, "held_out": config.held_out}
    results = {split: read_rows(specs[split], each, config, kind, labels) for split, each in bad.items()}
    notes.read = {split: result.notes for split, result in results.items()}
    read = {
        split: drop_unwanted(result.records, labels, bad[split], result.notes) for split, result in results.items()
    }
    agreed = agree_among(*((records, notes.read[split]) for split, records in read.items()))
    chats = {
        split: _as_chats(records, bad[split], config, notes, split)
        for split, records in zip(read, agreed, strict=True)
    }
    train, held_out = chats["train"], chats.get("held_out")
    train = _taken(train, parts_of(config.train, "data.train"), config.max_rows, config.shuffle_seed)
    if held_out is not None:
        held_out = _taken(held_out, parts_of(config.held_out, "data.held_out"), None, config.shuffle_seed)
    if held_out is None and config.held_out_fraction > 0:
        _, chosen = split_by_prompt(select_usable(train), fraction=config.held_out_fraction, seed=seed)
        prompts = {key for record in chosen for key in prompt_keys(record)}
        is_apart = (not prompts.isdisjoint(prompt_keys(record)) for record in train)
        is_held_out = np.fromiter(is_apart, bool, len(train))
        train, held_out = train.select(~is_held_out), train.select(is_held_out)
    return Splits(kind=kind, train=train, held_out=held_out, notes=notes)


def read_pairs(config: DataConfig, trained: Sequence[Record]) -> Splits:
    """Reads `config.train` as preference pairs on which an SFT run is evaluated; none of them is held out.

    Args:
        config: As for `read_splits`.
        trained: The records that the run trains on.

    Raises:
        UserError: As for `read_splits`; or a pair has a prompt of the training records.
    """
    notes = DataNotes()
    parts = parts_of(config.train, "evaluation.pairs")
    pairs = _read_apart(config.train, trained, "evaluation.pairs", config, "preference", notes, "train", Labels())
    pairs, _ = cut(pairs, parts, None, config.shuffle_seed)
    _require_records(pairs, None, notes)
    return Splits(kind="preference", train=pairs, held_out=None, notes=notes)


def _taken(records: Table[Record], parts: Sequence[Part], max_rows: int | None, seed: int | None) -> Table[Record]:
    """Returns the records that training takes, and those from which nothing can be learned: it refuses these."""
    usable = select_usable(records)
    used, _ = cut(usable, parts, max_rows, seed)
    if len(used) == len(usable):
        return records
    left_out = {record.source for record in usable} - {record.source for record in used}
    return records.select(np.fromiter((each.source not in left_out for each in records), bool, len(records)))


def select_usable(records: Table[Record]) -> Table[Record]:
    """Returns the records from which something can be learned."""
    is_usable = (not is_empty(each) and not is_identical(each) for each in records)
    return records.select(np.fromiter(is_usable, bool, len(records)))


def _read(
    specs: Mapping[SplitName, object],
    bad: Mapping[SplitName, BadRows],
    config: DataConfig,
    kind: Kind,
    notes: DataNotes,
    labels: Labels,
) -> dict[SplitName, Table[Record]]:
    """Returns the records of each split from which something can be learned; `bad` gets the other rows."""
    results = {split: read_rows(spec, bad[split], config, kind, labels) for split, spec in specs.items()}
    records = {}
    for split, result in results.items():
        wanted = drop_unwanted(result.records, labels, bad[split], result.notes)
        records[split] = drop_defects(wanted, bad[split], result.notes)
        notes.read[split] = result.notes
    return records


def read_rows(spec: object, bad: BadRows, config: DataConfig, kind: Kind, labels: Labels) -> ReadResult:
    """Returns the records of `spec`, read as the settings say; see `read_records`."""
    return read_records(
        spec,
        format=config.format,
        kind=kind,
        columns=config.columns,
        labels=labels,
        pairs=PairRule.of(config),
        as_chat=config.as_chat is not False,
        tag=config.tag,
        bad=bad,
    )


def _as_chats(
    records: Table[Record], bad: BadRows, config: DataConfig, notes: DataNotes, split: SplitName
) -> Table[Record]:
    """Returns the records as the chats that the settings ask for; implicit prompts must have been found before."""
    chats = Chats.of(config)
    if not chats.are_made and chats.system is None:
        return records
    writer = TableWriter[Record]()
    read = notes.read[split]
    for record in records:
        try:
            chat = to_chat(record) if chats.are_made else record
            made = chats.make(chat)
        except RowError as error:
            bad.add(record.source, str(error), kind=UNREADABLE)
            continue
        read.num_as_chat += chat is not record
        if chats.system is not None:
            read.num_given_system += made is not chat
            read.num_own_system += made is chat
        writer.append(made)
    if chats.are_made and len(writer) and not read.num_as_chat:
        logger.warning("data.as_chat=true changes nothing: the rows of data.%s are messages already", split)
    read.num_unreadable_skipped, read.first_unreadable = bad.num_skipped(UNREADABLE), bad.first_skipped(UNREADABLE)
    return writer.table()


def _read_apart(
    spec: object,
    trained: Sequence[Record],
    setting: str,
    config: DataConfig,
    kind: Kind,
    notes: DataNotes,
    split: SplitName,
    labels: Labels,
) -> Table[Record]:
    """Returns evaluation records ready to be tokenised, and checks that none has a prompt of the training records.

    Args:
        spec: The evaluation data.
        trained: The training records, before or after text was converted to chats. They are not changed.
        setting: Name of the setting that names the data, for errors.
        split: Under which their counts are added to the notes.

    Raises:
        UserError: A row cannot be used; or a prompt of the training is among them, and the gate stops for that.
    """
    bad = BadRows(setting, config)
    measured = _read({split: spec}, {split: bad}, config, kind, notes, labels)[split]
    training = replace(notes.read["train"]) if split != "train" else None  # a copy, since its counts must not change
    measured, agreed = agree_among((measured, notes.read[split]), (Table.of(trained), training))
    measured = _as_chats(measured, bad, config, notes, split)
    require_usable(bad)
    if config.gate.error.get(CheckName.leakage.value) is None:
        return measured  # the report tells of them
    overlap = find_overlap(*in_one_form(Table.of(map(Chats.of(config).make, agreed)), measured, config))
    if overlap:
        first = overlap[0]
        raise UserError(
            f"{setting}: {len(overlap)} training prompts are among them, first {first.train.source} in "
            f"{first.held_out.source}, so they are not held out. Drop them from one side; with data/gate=off "
            "they are measured, and the report says so."
        )
    return measured


def agree_among(*sides: tuple[Table[Record], ReadNotes | None]) -> list[Table[Record]]:
    """Applies `agree_on_prompts` to several tables of records together, and adds its counts to their notes.

    It changes only tables with prompts that were cut at the end of a word (`num_word_prompts` in their notes). The
    other tables, and those without notes, have a prompt column; their prompts are kept.
    """
    cut = [notes is not None and notes.num_word_prompts > 0 for _, notes in sides]
    if not any(cut):
        return [records for records, _ in sides]
    pairs = Table.of(record for (records, _), is_cut in zip(sides, cut, strict=True) if is_cut for record in records)
    others = (record for (records, _), is_cut in zip(sides, cut, strict=True) if not is_cut for record in records)
    given = [question for record in others if (question := _question(record))]
    agreed, found = agree_on_prompts(pairs, given)
    results = []
    start = 0
    for (records, notes), is_cut in zip(sides, cut, strict=True):
        if not is_cut or notes is None:
            results.append(records)
            continue
        end = start + len(records)
        results.append(agreed[start:end])
        both = zip(agreed[start:end], records, strict=True)
        notes.num_shortened_prompts += sum(new.prompt != old.prompt for new, old in both)
        notes.num_crowded_prompts = found.num_crowded_prompts
        notes.crowded_prompt = found.crowded_prompt
        found.num_crowded_prompts = 0  # the count is of all tables together, so only one reports it
        start = end
    return results


def _question(record: Record) -> str:
    """Returns the prompt as plain text, also if it was converted to a chat; empty for other chats."""
    prompt = record.prompt
    if isinstance(prompt, list):
        prompt = prompt[0].get("content") if len(prompt) == 1 and prompt[0]["role"] == "user" else None
    return prompt or ""


def _count_slices(
    train: Table[Record],
    held_out: Table[Record] | None,
    parts: Sequence[Part],
    held_out_parts: Sequence[Part],
    notes: DataNotes,
) -> None:
    """Counts the rows of each part on both sides; parts of held-out rows that were set apart are the training's."""
    if parts:
        count_slices(train, notes.slices["train"])
    else:
        notes.slices.pop("train", None)
    notes.slices.setdefault("held_out", {part.name: SliceNotes() for part in held_out_parts})
    if held_out is not None and held_out_parts:
        count_slices(held_out, notes.slices["held_out"])
    else:
        notes.slices.pop("held_out")


def _set_apart(records: Table[Record], config: DataConfig, seed: int) -> tuple[Table[Record], Table[Record]]:
    train, held_out = split_by_prompt(records, fraction=config.held_out_fraction, seed=seed)
    if held_out and not train:
        same = "there is one row" if len(records) == 1 else f"all {len(records)} rows have the same prompt"
        raise UserError(
            f"data.train: {same} (first {records[0].source}), so none is left to train on once a prompt's rows are "
            f"set apart (data.held_out_fraction={config.held_out_fraction}). A prompt is all that comes before the "
            "answer that is trained. Name a file in data.held_out, or set data.held_out_fraction=0 to train on all."
        )
    return train, held_out


def without_overlap(
    train: Table[Record], held_out: Table[Record], bad: BadRows, config: DataConfig, notes: DataNotes
) -> Table[Record]:
    """Returns the training rows whose prompts are not held out; `bad` gets the others, unless the gate lets them in.

    Raises:
        UserError: None is left.
    """
    overlap = find_overlapping_rows(*in_one_form(train, held_out, config))
    if not overlap:
        return train
    if not bad.skips("on_overlap") and config.gate.error.get(CheckName.leakage.value) is None:
        return train  # the audit tells of them, and so does the report
    first, other = overlap[0]
    places = train[first].source, held_out[other].source
    if len(overlap) == len(train):
        raise UserError(
            f"data.held_out: has the prompts of all {len(train)} training rows (first {places[0]} in "
            f"{places[1]}): this is the same data. Leave data.held_out out, and a share of "
            f"{config.held_out_fraction:g} of the prompts is set apart."
        )
    for row, same in overlap:
        found = f"this training row has the same prompt as the held-out row {held_out[same].source}"
        bad.add(train[row].source, found, switch="on_overlap", remedy=REMOVE_OVERLAP)
    notes.num_overlap_skipped = bad.num_skipped("on_overlap")
    is_kept = np.ones(len(train), dtype=bool)
    is_kept[[row for row, _ in overlap]] = False
    return train.select(is_kept)


def in_one_form(one: Table[Record], other: Table[Record], config: DataConfig) -> tuple[Table[Record], Table[Record]]:
    """Returns both tables; as chats, if one is text that may become chats when it is tokenised, and one is not."""
    if config.as_chat != AUTO or not len(one) or not len(other) or is_text(one[0]) == is_text(other[0]):
        return one, other
    first, second = (Table.of(to_chat(each) if is_question(each) else each for each in side) for side in (one, other))
    return first, second


def _require_records(train: Sequence[Record], held_out: Sequence[Record] | None, notes: DataNotes) -> None:
    sides: dict[SplitName, Sequence[Record] | None] = {"train": train, "held_out": held_out}
    for split, records in sides.items():
        if records is None:
            continue
        notes.num_records[split] = len(records)
        if not records:
            raise UserError(
                f"data.{split}: no rows are left. " + notes.reasons() + "Give more rows, "
                "name a file in data.held_out, or set data.held_out_fraction=0 to hold nothing out."
            )
