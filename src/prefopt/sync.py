"""Entry point: uploads W&B sessions that were recorded offline. `python -m prefopt.sync --help` shows the usage."""

import argparse
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console

from prefopt.distributed.entry import run_entry
from prefopt.process.console import build_console
from prefopt.process.errors import UserError
from prefopt.runs.find import find_folders, is_closed
from prefopt.runs.lock import RunLock
from prefopt.storage.lock_file import Life, find_holder, read_lock
from prefopt.tracking.credentials import base_url, has_api_key
from prefopt.tracking.sessions import Outcome, Session, find_sessions

HELP = """Upload what W&B recorded offline, such as on compute nodes without a network.

  prefopt sync runs/<sweep>           every run of a sweep
  prefopt sync runs                   every run and every sweep there
  prefopt sync runs/<name> ...        these runs
  prefopt sync runs/<sweep> --workspace   and save a view of the project that compares them

Attempts at a run become one W&B run, in their order. What was uploaded is not uploaded again; a run that is still
going on is left for later. Exit code 1 if something could not be uploaded: the same command tries again."""

REACH_TIMEOUT_S = 10


class SyncState(Enum):
    """Result of uploading a run's sessions."""

    uploaded = "uploaded"
    unchanged = "nothing new"
    later = "later"
    failed = "failed"


@dataclass(frozen=True)
class RunSync:
    """Result of one run, a row of the table.

    Attributes:
        run: The run's folder.
        sessions: Number of its sessions, and of those that were uploaded now.
        state: Result of the upload.
        detail: Reason for the state, if it needs one.
        url: Address of the run in W&B; empty if this machine does not know it.
    """

    run: Path
    sessions: tuple[int, int]
    state: SyncState
    detail: str = ""
    url: str = ""


def main(argv: list[str]) -> None:
    """Uploads all sessions that are not uploaded yet.

    Raises:
        UserError: There is nothing to upload, no key, or no connection to the server.
        SystemExit: With code 1 if a run could not be uploaded.
    """
    parser = argparse.ArgumentParser("prefopt.sync", None, HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs or sweeps, or one that holds them")
    parser.add_argument("-n", "--jobs", type=int, default=4, help="runs that are uploaded at a time (4)")
    parser.add_argument("--timeout-s", type=float, default=1800, help="seconds that one session may take (1800)")
    parser.add_argument(
        "--workspace", action="store_true", help="also save a view of the W&B project to compare these runs by"
    )
    options = parser.parse_args(argv)
    if options.jobs < 1 or options.timeout_s <= 0:
        raise UserError("--jobs must be >= 1 and --timeout-s > 0.")
    if options.workspace:
        from prefopt.comparison.workspace import check_workspace

        check_workspace()
    runs = find_folders(options.folders)
    closed = {run for run in runs if is_closed(run) or is_closed(run / "wandb")}
    sessions = {run: [] if run in closed else find_sessions(run) for run in runs}
    recorded = [run for run in runs if sessions[run] or run in closed]
    if not recorded:
        raise UserError(
            f"{', '.join(map(str, options.folders))}: {len(runs)} runs, and W&B recorded none of them. "
            "Runs with logger=none leave nothing to upload; metrics.jsonl has their records."
        )
    if options.workspace or any(session.is_pending() for run in recorded for session in sessions[run]):
        check_server()
    console = build_console()
    results = sync_runs(recorded, jobs=options.jobs, timeout_s=options.timeout_s, console=console)
    show(results, console)
    if options.workspace:
        console.print(f"workspace: {_save_workspace(options.folders, [run for run in recorded if run not in closed])}")
    if any(result.state is SyncState.failed for result in results):
        raise SystemExit(1)


def _save_workspace(targets: Sequence[Path], runs: Sequence[Path]) -> str:
    from prefopt.comparison.workspace import plan_view, save_view

    if not runs:
        raise UserError(
            f"--workspace: {', '.join(map(str, targets))} may not be entered, so nothing is known of its runs."
        )
    return save_view(plan_view(targets, runs))


def check_server() -> None:
    """Checks once, before any upload, that there is a key and a connection.

    Raises:
        UserError: No key was found, or the server cannot be reached.
    """
    server = base_url()
    if not has_api_key():
        raise UserError(
            f"no key for {server} was found. Run `wandb login` once on this machine, or set WANDB_API_KEY "
            "(and WANDB_BASE_URL for a server of your own)."
        )
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # even an error is an answer: the server can be reached
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # W&B's client has its own settings for certificates
        raise UserError(
            f"{server} cannot be reached from here ({reason}). Run this where there is a network, such as on a login "
            "node, or set WANDB_BASE_URL."
        ) from error


def sync_runs(runs: Sequence[Path], *, jobs: int, timeout_s: float, console: Console) -> list[RunSync]:
    """Uploads the pending sessions of these runs, several runs at a time, and prints each result."""
    results: dict[Path, RunSync] = {}
    with ThreadPoolExecutor(jobs) as pool:
        tasks = {pool.submit(sync_run, run, timeout_s): run for run in runs}
        try:
            for number, task in enumerate(as_completed(tasks), start=1):
                result = results[tasks[task]] = task.result()
                if result.state is not SyncState.unchanged:
                    console.print(f"{number}/{len(runs)}  {result.run}: {_words(result)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[run] for run in runs]


def sync_run(run: Path, timeout_s: float) -> RunSync:
    """Uploads the pending sessions of one run in their order; stops at the first that fails."""
    if is_closed(run) or is_closed(run / "wandb"):
        return RunSync(run, (0, 0), SyncState.failed, "the folder may not be entered")
    folder, num_sessions = run / "wandb", len(find_sessions(run))
    try:
        holder = find_holder(run)
        if holder is not None:
            return RunSync(run, (num_sessions, 0), SyncState.later, f"running: in use by {holder}")
        with RunLock(folder):  # two uploads at once would send everything twice
            return _upload(run, find_sessions(run), timeout_s)
    except (UserError, OSError) as error:
        sighting = read_lock(folder)
        if sighting is not None and sighting.life is not Life.dead:
            return RunSync(run, (num_sessions, 0), SyncState.later, f"being uploaded by {sighting.who}")
        return RunSync(run, (num_sessions, 0), SyncState.failed, str(error))


def _upload(run: Path, sessions: Sequence[Session], timeout_s: float) -> RunSync:
    num_uploaded, details = 0, []
    url = next((found for session in reversed(sessions) if (found := session.find_url())), "")
    for session in sessions:
        if not session.is_pending():
            continue
        upload = session.upload(timeout_s)
        url = upload.url or url
        if upload.outcome is Outcome.failed:
            detail = f"{session.folder.name}: {upload.reason}"
            return RunSync(run, (len(sessions), num_uploaded), SyncState.failed, detail, url)
        num_uploaded += upload.outcome is not Outcome.empty
        if upload.outcome is Outcome.cut:
            details.append(f"{session.folder.name}: {upload.outcome.value}")
    state = SyncState.uploaded if num_uploaded else SyncState.unchanged
    return RunSync(run, (len(sessions), num_uploaded), state, "; ".join(details), url)


def show(results: Sequence[RunSync], console: Console) -> None:
    """Prints the table of results, the reasons for failures, and the totals."""
    rows = [("run", "sessions", "state", "W&B")]
    for result in results:
        total, new = result.sessions
        rows.append((str(result.run), f"{total} ({new} new)" if new else str(total), result.state.value, result.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(line.rstrip())
    for result in results:
        if result.detail:
            console.print(f"{result.run}: {_words(result)}", style=_style(result.state))
    counts = {state: sum(result.state is state for result in results) for state in SyncState}
    console.print(", ".join(f"{number} {state.value}" for state, number in counts.items() if number))


def _words(result: RunSync) -> str:
    return f"{result.state.value} ({result.detail})" if result.detail else result.state.value


def _style(state: SyncState) -> str:
    return {SyncState.failed: "red", SyncState.later: "yellow"}.get(state, "")


if __name__ == "__main__":
    run_entry(main)
