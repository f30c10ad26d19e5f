"""Entry point: compares runs in a table, compare.html and compare.csv. `python -m prefopt.compare --help`."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from prefopt.comparison.csv_file import to_json, write_csv
from prefopt.comparison.metrics import find_metric
from prefopt.comparison.page import write_page
from prefopt.comparison.places import find_places, title_of
from prefopt.comparison.ranking import Comparison, build_comparison
from prefopt.comparison.read import RunReader
from prefopt.comparison.records import RunRecord
from prefopt.comparison.table import print_table, render_table
from prefopt.comparison.wandb_source import WandbGroup, distinct, parse_group, read_group
from prefopt.distributed.entry import run_entry
from prefopt.evaluation.metrics import BY_KEY, Metric
from prefopt.process.errors import UserError
from prefopt.process.paths import expand
from prefopt.process.terminal import Terminal

HELP = f"""Compare runs: a table, compare.html with curves and charts, and compare.csv.

  python -m prefopt.compare runs/<sweep>
  python -m prefopt.compare runs/<run> runs/<run> --rank-by mean_margin
  python -m prefopt.compare runs/<sweep> --watch
  python -m prefopt.compare <entity>/<project>/<group>          runs in Weights & Biases
  python -m prefopt.compare runs/<sweep> --json                 for programs; writes nothing

Metrics: {", ".join(BY_KEY)}."""
EVERY_S = 10.0
ROWS = 40
PAGE, TABLE = "compare.html", "compare.csv"


@dataclass(frozen=True, slots=True)
class Targets:
    """What to compare: folders, W&B groups, or both."""

    folders: list[Path]
    groups: list[WandbGroup]


@dataclass(frozen=True, slots=True)
class Output:
    """The folder for the files; `has_page` is True if compare.html is one of them."""

    folder: Path
    has_page: bool


def main(argv: list[str]) -> None:
    """Compares runs from a command line.

    Raises:
        UserError: For every mistake that the user can fix; nothing is written then.
    """
    parser = argparse.ArgumentParser("prefopt.compare", None, HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="+", help="sweep folders, run folders, or entity/project/group of W&B")
    parser.add_argument("--rank-by", metavar="METRIC", help="default: preference_accuracy; loss where no run has one")
    parser.add_argument("--output", metavar="FOLDER", help="default: the one sweep's folder, else the current folder")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=EVERY_S, metavar="SECONDS",
        help=f"look again until all runs have ended; every {EVERY_S:g} s by default",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, help=f"rows of the table here, {ROWS} by default")
    parser.add_argument("--no-html", action="store_true", help="write compare.csv only")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every run, and write nothing")
    options = parser.parse_args(argv)
    metric = find_metric(options.rank_by) if options.rank_by is not None else None
    rows = ROWS if options.rows is None else options.rows
    _require(rows >= 1, f"--rows: must be >= 1, found {rows}.")
    _require(options.watch is None or options.watch > 0, f"--watch: must be > 0 seconds, found {options.watch}.")
    _require(not (options.json and options.watch is not None), "--json: prints once, so leave out --watch.")
    of_files = {"--output": options.output, "--rows": options.rows, "--no-html": options.no_html or None}
    unused = [name for name, given in of_files.items() if given is not None]
    told = f"--json: prints every run and writes nothing, so leave out {', '.join(unused)}."
    _require(not (options.json and unused), told)
    targets = sort_targets(options.targets)
    if options.json:
        print(json.dumps(to_json(_comparer(targets, metric)()), indent=2, allow_nan=False))
        return
    output = Output(choose_folder(options.output, targets.folders), has_page=not options.no_html)
    compare = _comparer(targets, metric)
    console = Terminal()
    if options.watch is None:
        comparison = compare()
        print_table(comparison, console, limit=rows)
        _say_written(write(comparison, output), console)
    else:
        watch(compare, output, console, every_s=options.watch, rows=rows)


def sort_targets(targets: list[str]) -> Targets:
    """Splits the targets into folders and W&B groups: a group has three parts and does not exist as a folder."""
    folders, groups = [], []
    for target in targets:
        group = None if expand(target).exists() else parse_group(target)
        if group is None:
            folders.append(expand(target))
        else:
            groups.append(group)
    return Targets(folders, groups)


def choose_folder(wanted: str | None, folders: list[Path]) -> Path:
    """The folder for the files: `wanted`, else the only given folder unless it is a run's, else the current one.

    Raises:
        UserError: The folder cannot be written.
    """
    if wanted is not None:
        folder = expand(wanted)
    else:
        is_one = len(folders) == 1 and folders[0].is_dir() and not (folders[0] / "config.yaml").is_file()
        folder = folders[0] if is_one else Path()
    ancestor = next((path for path in (folder, *folder.resolve().parents) if path.exists()), Path("/"))
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written ({ancestor} is not a writable folder). Set --output.")
    return folder


def write(comparison: Comparison, output: Output) -> list[Path]:
    """Writes the files and returns their paths.

    Raises:
        UserError: The files cannot be written.
    """
    writers = {PAGE: write_page, TABLE: write_csv} if output.has_page else {TABLE: write_csv}
    try:
        output.folder.mkdir(parents=True, exist_ok=True)
        for name, write_file in writers.items():
            write_file(comparison, output.folder / name)
    except OSError as error:
        raise UserError(f"{output.folder}: cannot be written ({error.strerror}). Set --output.") from error
    return [output.folder / name for name in writers]


def watch(compare: Callable[[], Comparison], output: Output, console: Console, *, every_s: float, rows: int) -> None:
    """Shows and writes the comparison whenever it has changed, until no run can continue by itself, or Ctrl-C."""
    shown: list[RunRecord] | None = None
    written: list[Path] = []
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                comparison = compare()
                if comparison.runs != shown:
                    shown = comparison.runs
                    written = write(comparison, output)
                    if console.is_terminal:
                        fitting = min(rows, max(console.height - 16, 4))
                        live.update(render_table(comparison, width=console.width, limit=fitting), refresh=True)
                    else:
                        print_table(comparison, console, limit=rows)
                if not comparison.is_open:
                    break
                time.sleep(every_s)
    except KeyboardInterrupt:
        console.print("stopped watching; the runs go on")
    _say_written(written, console)


def _comparer(targets: Targets, metric: Metric | None) -> Callable[[], Comparison]:
    """Returns a function that compares the targets anew at each call; unchanged runs are not read again."""
    reader = RunReader()
    title = ", ".join([*([title_of(targets.folders)] if targets.folders else []), *map(str, targets.groups)])
    folders = [str(folder) for folder in targets.folders]

    def compare() -> Comparison:
        runs = reader.read(find_places(targets.folders)) if targets.folders else []
        runs += [run for group in targets.groups for run in read_group(group)]
        return build_comparison(distinct(runs), title=title, metric=metric, folders=folders)

    return compare


def _say_written(paths: list[Path], console: Console) -> None:
    if paths:
        console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


if __name__ == "__main__":
    run_entry(main)
