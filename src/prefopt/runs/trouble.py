"""Errors of the folder or the disk of a run, told with what mends them."""

from prefopt.process.errors import FULL, OF_THE_MACHINE, UserError, describe
from prefopt.runs.directory import RunDirectory


def trouble_of(run: RunDirectory, error: BaseException) -> UserError | None:
    """Returns an error that says how to mend the folder or disk of a begun run; None if they are not the cause."""
    goes_on = "run the same command: it goes on from its newest checkpoint"
    if not run.path.is_dir():
        return UserError(
            f"{run.path}: is gone, renamed or removed while the run was on. Put it back under this name, if it is "
            f"elsewhere, and {goes_on}."
        )
    if not isinstance(error, OSError) or error.errno not in OF_THE_MACHINE:
        return None
    newest = max(run.checkpoints.glob("step-*"), key=lambda path: path.stat().st_mtime, default=None)
    from_where = f"{goes_on}, {newest.name}" if newest else "run the same command: it begins again"
    what = describe(error, run.path, "written")
    return UserError(f"{what}. {'Free space there' if error.errno in FULL else 'Mend that'}, and {from_where}.")
