"""The console script: `prefopt <command> ...` is `python -m prefopt.<command> ...`."""

import difflib
from importlib import import_module

from prefopt import __version__
from prefopt.distributed.entry import run_entry
from prefopt.process.errors import UserError

COMMANDS = {
    "train": "tune a model and report whether it became better",
    "audit": "find what is wrong with the data, and mend it",
    "list": "show what can be chosen: models, experiments, sweeps, clusters, ...",
    "show": "show a row of the data as the model gets it: what is trained, masked, cut",
    "convert": "write training data in the rows of another system",
    "sample": "make preference pairs of a model's own answers, by a judge",
    "submit": "queue a run, a sweep or a chain on a cluster, or run it here",
    "prepare": "compute what several runs share: tokens and reference log-probs",
    "evaluate": "measure a finished run again and rebuild its report",
    "compare": "put runs side by side: a table, a page with curves, a CSV file",
    "status": "show what state runs and sweeps are in, and what to do next",
    "sync": "upload what W&B recorded offline",
}

USAGE = "usage: prefopt <command> [arguments]\n\ncommands:\n" + "".join(
    f"  {name:<10} {text}\n" for name, text in COMMANDS.items()
)


def dispatch(argv: list[str]) -> None:
    """Runs one command, and imports its module only."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "\nprefopt <command> --help shows one command.")
        return
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"{argv[0]}: no such command. {hint}Commands: {', '.join(COMMANDS)}.")
    import_module(f"prefopt.{argv[0]}").main(argv[1:])


def main() -> None:
    run_entry(dispatch)
