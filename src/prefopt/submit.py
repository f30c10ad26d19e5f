"""Entry point: checks a run, sweep or chain and submits it to SLURM, or runs it on this machine.

`python -m prefopt.submit --help` shows the use. Nothing here imports torch, so it answers at once.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence

from rich.text import Text

from prefopt.cluster.local import list_commands, run_here
from prefopt.cluster.planning import plan_submission
from prefopt.cluster.script import render
from prefopt.cluster.slurm import cancel, require_sbatch, submit
from prefopt.cluster.submission import Submission
from prefopt.config.choices import ClusterKind
from prefopt.config.cluster import GROUPS, SUBMIT, ClusterConfig, SubmitConfig
from prefopt.config.load import TRAIN
from prefopt.config.overrides import parse
from prefopt.config.settings_parser import SettingsParser
from prefopt.distributed.entry import run_entry
from prefopt.process.console import build_console
from prefopt.process.terminal import quote
from prefopt.runs.jobs import JOBS, LOG
from prefopt.runs.provenance import command_line
from prefopt.storage.files import append_line, write_text
from prefopt.sweeps.jobs import Job, write_tasks

HELP = """Submit a run, a sweep or a chain of runs: the overrides of prefopt.train, and where they are to be executed.

  python -m prefopt.submit +experiment=dpo_brand_voice cluster=slurm_1x8
  python -m prefopt.submit +experiment=dpo_brand_voice cluster=slurm_cpu sweep=beta_lr cluster.max_parallel=4
  python -m prefopt.submit +experiment=dpo_brand_voice cluster=local algorithm.beta=0.05,0.1,0.3
  python -m prefopt.submit +experiment=dpo_brand_voice cluster=slurm_cpu sweep=optuna_dpo cluster.max_parallel=4
  python -m prefopt.submit chain=sft_then_dpo cluster=slurm_cpu
  python -m prefopt.submit chain=iterative_dpo chain.rounds=3 cluster=local model=<name> data=files \
      data.train=<prompts> data.held_out=<pairs> 'evaluation.judges=[{kind: rule, patterns: [...]}]'

Everything is checked first; submit.dry_run=true prints the scripts and submits nothing. The same command again, with
sweep.resume=true for a sweep, submits what is not done. What can be chosen: prefopt list clusters (sweeps, chains)."""


def main(argv: list[str]) -> None:
    """Checks, writes scripts and submits them.

    Raises:
        UserError: For every mistake that the user can fix; nothing is submitted then.
    """
    parser = SettingsParser("prefopt.submit", HELP, [TRAIN, SUBMIT])
    parser.add_argument("overrides", nargs="*", help="of prefopt.train, and of: " + ", ".join(GROUPS))
    parser.add_argument("--config-dir", help="a folder with your own config groups, such as cluster/mine.yaml")
    given = parser.read(argv)
    own, runs = split(given.overrides)
    config: SubmitConfig = SUBMIT.compose(own, given.config_dir).build()
    submission = plan_submission(config, runs, given.config_dir)
    command = command_line("prefopt.submit", argv)
    if config.submit.dry_run and submission.answer:
        print(submission.answer, file=sys.stderr)  # stdout, which may go to a file, gets only the script
    elif not submission.jobs:
        build_console().print(submission.answer)
    if config.submit.dry_run:
        print("\n".join(_preview(submission.jobs, config.cluster)), end="")
    elif not submission.jobs:
        return
    elif config.cluster.kind is ClusterKind.local:
        submission.write(command)
        sys.exit(_run_here(submission, config))
    else:
        _submit(submission, config, command)


def split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Splits overrides into those of the submission and those of its runs."""
    own: list[str] = []
    runs: list[str] = []
    for line, override in zip(overrides, parse(overrides), strict=True):
        (own if override.key_or_group.split(".")[0] in GROUPS else runs).append(line)
    return own, runs


def _preview(jobs: Sequence[Job], cluster: ClusterConfig) -> Iterator[str]:
    """Yields what would be executed: the scripts, or the commands on this machine."""
    if cluster.kind is ClusterKind.local:
        yield "".join(f"{command}\n" for job in jobs for command in list_commands(job, cluster))
        return
    ids: list[str] = []
    for job in jobs:
        yield render(job.with_ids(ids), cluster)
        ids.append(f"<id of {job.name}>")


def _run_here(submission: Submission, config: SubmitConfig) -> int:
    """Runs everything on this machine; for a sweep, prints where its runs are and how to compare them."""
    console = build_console()
    if submission.is_sweep:
        num, place = len(submission.jobs[-1].tasks), quote(submission.folder)
        console.print(Text.assemble(f"{num} {'run' if num == 1 else 'runs'} in ", (str(submission.folder), "bold")))
        console.print(f"  log     {submission.folder}/<run>/slurm/{LOG}")
        console.print(f"  state   prefopt status {place}")
        console.print("  stop    Ctrl-C  (each run saves first)")
    code = run_here(submission.jobs, config.cluster, console)
    if submission.is_sweep:
        console.print(f"  compare prefopt compare {place}")
    return code


def _submit(submission: Submission, config: SubmitConfig, command: str) -> None:
    require_sbatch()
    for job in submission.jobs:
        render(job, config.cluster)  # refuses what a script cannot hold, before anything is written
    console = build_console()
    ids: list[str] = []
    fresh = {job.folder for job in submission.jobs if not job.folder.exists()}
    try:
        submission.write(command)
        for job in submission.jobs:
            placed = job.with_ids(ids)
            job.script.parent.mkdir(parents=True, exist_ok=True)
            if job.is_array and not job.is_search:
                write_tasks(job)
            write_text(job.script, render(placed, config.cluster))
            ids.append(submit(job.script))
            append_line(job.folder / "slurm" / JOBS, {**placed.to_record(ids[-1]), "command": command})
    except BaseException:
        cancel(ids)
        for folder in fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for job, number in zip(submission.jobs, ids, strict=True):
        log = job.log.with_name(job.log.name.replace("%j", number).replace("%A", number).replace("%a", "*"))
        console.print(Text.assemble("submitted ", (number, "bold"), f"  {job.title}"))
        console.print(f"  log     {log}")
    place = quote(submission.folder)
    console.print(f"  state   prefopt status {place}")
    if submission.is_sweep:
        console.print(f"  compare prefopt compare {place}")
    console.print(f"  stop    scancel {' '.join(ids)}  (each run saves first)")


if __name__ == "__main__":
    run_entry(main)
