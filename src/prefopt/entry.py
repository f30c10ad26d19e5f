"""How an entry point ends: what is shown, and the exit code."""

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prefopt.distributed import group
from prefopt.distributed.preemption import EXIT_CODE, Preempted
from prefopt.distributed.ranks import is_main
from prefopt.errors import ToldByRank0, UserError
from prefopt.files import write_text
from prefopt.terminal import printable
from prefopt.tracking import phases

USER_ERROR = 2
"""Exit code of a `UserError`."""
ATTEMPT = "PREFOPT_ATTEMPT"
"""Environment variable of a job's ranks: the folder of this attempt."""
REFUSED = "refused.txt"
"""In that folder: what the user must mend. torchrun turns every exit code of its ranks into 1."""
WORD_S = 10.0
"""How long ranks that are not connected yet leave it to rank 0 to say what all of them have found."""


def run_entry(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs an entry point.

    Exit codes: 2 for a `UserError`, 75 for a run that stopped on request and goes on with the same command, 130 for a
    second Ctrl-C; other errors keep their traceback.
    """
    if argv is None:
        phases.count_from_process_start()
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if _is_ours_to_say(error):
            print(printable(f"error: {error}"), file=sys.stderr, flush=True)
        _note_refusal(str(error))
        _exit(USER_ERROR)
    except Preempted as error:
        if is_main():
            print(f"stopped on request ({error.reason}); the same command goes on", file=sys.stderr, flush=True)
        _exit(EXIT_CODE)
    except KeyboardInterrupt:
        if group.num_ranks() > 1:
            _exit(130)
        print("interrupted; the same command goes on from the last complete checkpoint", file=sys.stderr)
        _exit(130)
    except BaseException:
        if group.num_ranks() == 1:
            raise
        traceback.print_exc()
        _exit(1)
    finally:
        if argv is None:
            gc.freeze()  # what is left goes with the process; to look through it for garbage first takes a second


def _is_ours_to_say(error: UserError) -> bool:
    if isinstance(error, ToldByRank0):
        return False
    if group.num_ranks() == 1 and not is_main():
        _leave_word_to_rank_0()
        return True
    return group.is_first_to_say(str(error))


def _leave_word_to_rank_0() -> None:
    """Waits to be ended by the launcher, which ends all ranks once one has ended: before rank 0 has spoken, too.

    Returns if rank 0 has not found what this rank has.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(USER_ERROR))
    with suppress(KeyboardInterrupt):
        time.sleep(WORD_S)


def _note_refusal(message: str) -> None:
    """Leaves the message where the job script looks for it."""
    folder = os.environ.get(ATTEMPT)
    if folder is not None:
        with suppress(OSError):
            write_text(Path(folder) / REFUSED, f"{message}\n")


def _exit(code: int) -> None:
    """Ends the process; with other ranks at once, because a rank at the end of Python waits for groups to close."""
    if group.num_ranks() == 1:
        sys.exit(code)
    sys.stdout.flush()
    os._exit(code)
