"""Entry point: shows the state of the runs in folders, and what to do next. `python -m prefopt.status --help`."""

import argparse
import json
import sys
from pathlib import Path

from prefopt.distributed.entry import run_entry
from prefopt.process.terminal import Terminal
from prefopt.runs.find import Group, find_groups
from prefopt.state.advice import advise
from prefopt.state.look import View, look
from prefopt.state.run_status import RunStatus
from prefopt.state.show import LIMIT, MANY, count_words, print_view

HELP = f"""Show the state of runs (done, running and how long still, waiting, failed and why) and what to do next.

  prefopt status runs/<sweep>         a summary, and the points that are not done
  prefopt status runs/<run> ...       these runs
  prefopt status runs                 every run and every sweep there
  prefopt status --json runs          for programs

Of more than {MANY} runs those that are over are only counted, and at most {LIMIT} are listed; --all lists every one.
Exit code: 0 if nobody needs to do anything, 1 if a run has failed, diverged, been killed or stopped for good, 2 for a
folder without runs."""
NEEDS_PERSON = 1
"""Exit code if a run will not go on by itself."""


def main(argv: list[str]) -> None:
    """Shows the state of runs; writes nothing.

    Raises:
        UserError: A folder does not exist or has no runs, or a sweep.json is damaged.
        SystemExit: With code 1 if a run needs a person.
    """
    parser = argparse.ArgumentParser("prefopt.status", None, HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs or sweeps, or one that holds them")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every run")
    parser.add_argument("--all", action="store_true", help="list every run")
    options = parser.parse_args(argv)
    view = look(find_groups(options.folders))
    if options.json:
        print(json.dumps(to_dict(view), indent=2, allow_nan=False))
    else:
        print_view(view, advise(view), Terminal(), everything=options.all)
    if any(run.needs_person for run in view.runs):
        sys.exit(NEEDS_PERSON)


def to_dict(view: View) -> dict[str, object]:
    """The view as `--json` prints it: groups with their runs, notes on missing information, and what to do next."""
    return {
        "groups": [_group(group, runs) for group, runs in view.groups],
        "needs_person": any(run.needs_person for run in view.runs),
        "notes": view.notes,
        "next": [
            {"situation": advice.situation, "what": advice.what, "command": advice.command} for advice in advise(view)
        ],
    }


def _group(group: Group, runs: list[RunStatus]) -> dict[str, object]:
    return {
        "name": group.title,
        "path": None if group.path is None else str(group.path),
        "is_sweep": group.is_sweep,
        "counts": count_words([run for run in runs if run.place.kind.trains]),
        "runs": [_run(run) for run in runs],
    }


def _run(run: RunStatus) -> dict[str, object]:
    job = run.place.job
    return {
        "name": run.place.name,
        "path": str(run.place.run.path),
        "kind": run.place.kind.value,
        "state": run.word.value,
        "needs_person": run.needs_person,
        "why": run.why,
        "step": run.step,
        "total_steps": run.total,
        "loss": run.loss,
        "time_s": run.time_s,
        "eta_s": run.eta_s,
        "attempts": run.attempts,
        "job": None if job is None else job.id,
        "job_state": run.queue,
        "log": None if run.log is None else str(run.log),
    }


if __name__ == "__main__":
    run_entry(main)
