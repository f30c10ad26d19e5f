"""Entry point: says what is wrong with data, before a model learns it. `python -m prefopt.audit --help`."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import read_overrides
from prefopt.config.schema import TrainConfig
from prefopt.config.settings_parser import SettingsParser
from prefopt.data.audit.audit import audit_records, describe_data, key_of
from prefopt.data.audit.finding import Audit, Level
from prefopt.data.audit.fix import fix, require_targets, without_limits
from prefopt.data.audit.reading import Material, read_material
from prefopt.distributed.entry import run_entry
from prefopt.process.console import build_console, progress_bar
from prefopt.process.errors import UserError, explained
from prefopt.process.imports import importing
from prefopt.process.terminal import Terminal, quote
from prefopt.reports.audit import print_audit
from prefopt.reports.audit_page import name_mending, write_audit_page
from prefopt.reports.learning_curve import list_lines, render_section
from prefopt.storage.files import write_json
from prefopt.train import train

HELP = """Say what is wrong with preference pairs or demonstrations, before a model learns it: rows that cannot be
used, duplicates, leaks, contradictions, length bias, refusals, secrets, label noise, and more.

  prefopt audit pairs.jsonl
  prefopt audit +experiment=dpo_brand_voice             with the model's tokenizer and template
  prefopt audit pairs.jsonl data.held_out=held_out.jsonl --output audit
  prefopt audit pairs.jsonl --against benchmark.jsonl   are its questions among the training data?
  prefopt audit pairs.jsonl --output mended --fix       a copy without the defects that can be removed
  prefopt audit pairs.jsonl data/gate=strict            in CI: exit code 3 if the gate says error
  prefopt audit demos.jsonl algorithm=sft
  prefopt audit +experiment=dpo_brand_voice --output audit --learning-curve     are there enough data? 12 trainings

Exit code 0: nothing, or warnings; 3: an error by the limits of data/gate; 2: a mistake in the command."""
GATE_ERROR = 3
"""Exit code if a finding is an error by the gate's limits."""
CURVE = "learning_curve"
"""Folder of the trainings of a learning curve, in that of the output."""


def main(argv: list[str]) -> None:
    """Audits data, and ends with `GATE_ERROR` if a finding is an error.

    Raises:
        UserError: A setting is wrong, or a file cannot be read.
    """
    parser = SettingsParser("prefopt.audit", HELP, [TRAIN])
    parser.add_argument("overrides", nargs="+", help="files, and overrides as for prefopt.train")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write audit.json and audit.html into this folder")
    parser.add_argument("--fix", action="store_true", help="with --output: also a copy without what can be removed")
    parser.add_argument("--near", action="store_true", help="with --fix: also without near-duplicates and near leaks")
    parser.add_argument("--against", nargs="+", default=[], metavar="FILE", help="files whose questions must not leak")
    parser.add_argument(
        "--learning-curve",
        action="store_true",
        help="with --output: train on parts of the data, to say what twice as many would gain; goes on if stopped",
    )
    parser.add_argument("--json", action="store_true", help="print audit.json, and nothing else")
    parser.add_argument("--config-dir", help="a folder with your own config groups")
    options = parser.read(argv)
    if options.fix and options.output is None:
        raise UserError("--fix: needs --output <folder> for the cleaned copy; the data themselves are never changed.")
    if options.near and not options.fix:
        raise UserError("--near: says what --fix drops too. Add --fix, or leave --near out.")
    if options.learning_curve and options.output is None:
        raise UserError("--learning-curve: needs --output <folder> for its trainings, so that it goes on if stopped.")
    overrides = read_overrides(options.overrides)
    config = load_config(overrides, options.config_dir)
    if options.output is not None:
        _require_folder(options.output)
    if options.fix:
        require_targets(config.data, options.output)
        config = replace(config, data=without_limits(config.data))
    command = " ".join(["prefopt audit", *map(quote, argv)])
    audit = run_audit(config, options, with_model=_names_model(overrides), command=command)
    if audit.of_level(Level.error):
        sys.exit(GATE_ERROR)


def _names_model(arguments: Sequence[str]) -> bool:
    return any(each.lstrip("+").startswith(("model=", "model.", "experiment=")) for each in arguments)


def run_audit(config: TrainConfig, options: Any, *, with_model: bool, command: str) -> Audit:
    """Reads the data, runs the checks or finds their results, shows and writes them; `command` is what was typed."""
    console = build_console()
    kind, seed = config.algorithm.rows, config.run.seed
    reader = _load_reader(config) if with_model else None
    tokens = None if reader is None else reader.digest()
    key = key_of(config.data, kind=kind, seed=seed, rows="all", against=options.against, tokens=tokens)
    material: list[Material] = []

    def read() -> Material:
        if not material:
            material.append(read_material(config.data, kind=kind, seed=seed, against=options.against))
        return material[0]

    with progress_bar(console, "audit") as progress:
        audit = audit_records(
            read,
            kind=kind,
            gate=config.data.gate,
            data=describe_data(config.data) | ({"against": options.against} if options.against else {}),
            key=key,
            reader=reader,
            progress=None if options.json else progress,
        )
    if not options.json:
        print_audit(audit, console)
        mending = name_mending(audit, command)
        if mending:
            console.print(Text(f"A copy without what can be mended: {mending}"), soft_wrap=True)
    if options.output is not None:
        _write(audit, options.output, command)
        if options.fix:
            told = fix(config.data, read(), options.output, kind=kind, with_near=options.near)
            for line in told if not options.json else ():
                console.print(line)
        if options.learning_curve:
            shown = Terminal(stderr=True) if options.json else console
            audit = _measure_curve(config, audit, options.output, command, shown)
    if options.json:
        print(json.dumps(audit.to_dict(), ensure_ascii=False))
    elif options.output is not None:
        console.print(f"Written: {quote(options.output / 'audit.html')}")
    return audit


def _require_folder(folder: Path) -> None:
    """Refuses an output that cannot be a folder to write into, before the rows are looked at.

    Raises:
        UserError: It is a file or below one, or nothing can be written there.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"--output {folder}: {there} is a file. Name a folder; it is made if it does not exist.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--output {folder}: nothing can be written into {there}. Name another folder.")


def _measure_curve(config: TrainConfig, audit: Audit, folder: Path, command: str, console: Console) -> Audit:
    """Adds the learning curve to an audit, and to what is written of it; not for data that the gate refuses."""
    if audit.of_level(Level.error):
        console.print("learning curve: not trained, because of the errors above. Mend them, or set data/gate=off.")
        return audit
    with importing():
        from prefopt.sweeps.learning_curve import measure_learning_curve

    curve = measure_learning_curve(config, folder / CURVE, train, console)
    for line in list_lines(curve):
        console.print(line)
    audit = replace(audit, learning_curve=curve.to_dict())
    _write(audit, folder, command, [render_section(curve)])
    return audit


def _load_reader(config: TrainConfig) -> Any:
    with importing():
        from prefopt.data.audit.tokens import Reader
        from prefopt.models.load import load_tokenizer

    return Reader(load_tokenizer(config.model), config.data.max_length, config.algorithm.trained_tokens)


def _write(audit: Audit, folder: Path, command: str, sections: Sequence[str] = ()) -> None:
    with explained(folder, doing="written"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "audit.json", audit.to_dict())
    write_audit_page(audit, folder / "audit.html", command=command, sections=sections)


if __name__ == "__main__":
    run_entry(main)
