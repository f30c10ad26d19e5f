"""Entry point: writes training data in the rows of another system. `python -m prefopt.convert --help`."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from prefopt.config.load import TRAIN, load_config
from prefopt.config.overrides import assign
from prefopt.config.provider import read_provider
from prefopt.config.settings_parser import SettingsParser
from prefopt.data.conversion import CALLED, describe_limits, describe_scores, require_kind, write_records
from prefopt.data.loading import read_splits
from prefopt.data.sources import list_files
from prefopt.data.wording import agree
from prefopt.distributed.entry import run_entry
from prefopt.process.errors import UserError
from prefopt.process.paths import resolve
from prefopt.process.terminal import Terminal, quote

HELP = """Write training data in the rows of another system. Any file that can be trained on can be converted. A row
that would lose something is refused with its reason, and then nothing is written.

  prefopt convert pairs.jsonl --to together --output together.jsonl
  prefopt convert chats.jsonl --to nova --output nova.jsonl algorithm=sft
  prefopt convert table.csv --to openai --output openai.jsonl 'data.columns={prompt: question}' data.as_chat=true

Systems, with what each takes: prefopt list providers"""
SUFFIX = ".jsonl"


def main(argv: list[str]) -> None:
    """Writes one file, or none.

    Raises:
        UserError: A setting or a row is invalid, a row would lose something, or the file exists already.
    """
    options = _parse(argv)
    provider = read_provider(options.to, options.config_dir)
    output = _check_output(options.output)
    config = load_config(["data=files", _name_data(options.file), *options.overrides], options.config_dir)
    _check_replaced(output, config.data.train, options)
    if config.data.held_out is not None:
        raise UserError("data.held_out: one file is written. Convert the held-out file by a command of its own.")
    kind = config.algorithm.rows
    require_kind(provider, kind)
    splits = read_splits(replace(config.data, held_out_fraction=0), kind=kind, seed=config.run.seed)
    written = write_records(splits.train, provider, kind, output)

    console = Terminal(soft_wrap=True)
    for line in splits.notes.lines():
        console.print(f"data: {line.removeprefix('train: ')}")
    if scores := describe_scores(written, provider):
        console.print(f"data: {scores}")
    for line in describe_limits(written, provider, kind):
        console.print(f"limit: {line}")
    rules = [rule.name.value for rule in provider.rules if kind in rule.rows]
    if rules:
        console.print(f"rules: kept by every row: {'; '.join(rules)}")
    for note in provider.notes:
        console.print(f"note: {note.text} ({note.known.value}, {note.date})")
    rows = f"{written.num_rows:,} {agree('[row|rows]', written.num_rows)} for {provider.title}"
    records = f"{written.num_records:,} {CALLED[kind] if written.num_records != 1 else CALLED[kind].removesuffix('s')}"
    console.print(f"{quote(output)}: {rows}, of {records}; {written.num_bytes:,} bytes")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = SettingsParser("prefopt.convert", HELP, [TRAIN])
    parser.add_argument("file", help="a file, a pattern, a folder of datasets, hub:<id>, or data.train=<any form>")
    parser.add_argument("overrides", nargs="*", help="settings of the data, and algorithm=sft for demonstrations")
    parser.add_argument("--to", required=True, metavar="SYSTEM", help="whose rows to write")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=f"the file to write, {SUFFIX}")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if there is one")
    parser.add_argument("--config-dir", help="a folder with your own config groups, such as provider/mine.yaml")
    return parser.read(argv)


def _name_data(file: str) -> str:
    """Returns the override that names the data: the argument itself if it is one, and no file."""
    is_override = file.startswith("data.train=") and not os.path.isfile(file)
    return file if is_override else assign("data.train", file)


def _check_output(given: Path) -> Path:
    """Returns the path of the output."""
    output = resolve(str(given))
    if output.suffix.lower() != SUFFIX:
        raise UserError(f"--output {given}: JSON lines are written, so the name must end in {SUFFIX}.")
    if not output.parent.is_dir():
        raise UserError(f"--output {given}: no such folder: {output.parent}. Make it first.")
    return output


def _check_replaced(output: Path, data: object, options: argparse.Namespace) -> None:
    """Refuses to replace the data themselves, and any other file unless that is asked for."""
    if not output.exists():
        return
    if any(output.samefile(path) for path in list_files(data) or ()):
        raise UserError(f"--output {options.output}: this is a file that is read. Give another name.")
    if not options.overwrite:
        raise UserError(f"--output {options.output}: exists already. Give another name, or add --overwrite.")


if __name__ == "__main__":
    run_entry(main)
