"""How a command ends: the message that is shown, and the exit code."""

import gc
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

from prefopt.distributed import group
from prefopt.distributed.preemption import EXIT_CODE, Preempted
from prefopt.process import phases
from prefopt.process.errors import OF_THE_MACHINE, EndedError, ToldByRank0, UserError, describe, first_line
from prefopt.process.output import lasting_output, write_traceback
from prefopt.process.ranks import is_main
from prefopt.process.terminal import printable
from prefopt.storage.files import write_text

USER_ERROR = 2
"""Exit code of a `UserError`."""
FAULT = 1
"""Exit code of a failed run and of an unexpected error."""
ATTEMPT = "PREFOPT_ATTEMPT"
"""Environment variable of a job's ranks: the folder of this attempt."""
REFUSED = "refused.txt"
"""File in that folder with the message of a `UserError`, since torchrun turns every exit code of its ranks into 1."""
WORD_S = 10.0
"""Seconds that a rank waits for rank 0 to report an error that both have found, before it reports it itself."""


def run_entry(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs an entry point.

    Exit codes: 2 for a `UserError`, 75 for a run that stopped on request and goes on with the same command, 130 for a
    second Ctrl-C, 1 for any other error. An unexpected error is shown in one line too; its traceback is in a file.
    """
    if argv is None:
        phases.count_from_process_start()
    with lasting_output() if argv is None else nullcontext():
        try:
            main(sys.argv[1:] if argv is None else argv)
        except UserError as error:
            _refuse(error)
        except Preempted as error:
            if is_main():
                _say(f"stopped on request ({error.reason}); the same command goes on")
            _exit(EXIT_CODE)
        except KeyboardInterrupt as error:
            if group.num_ranks() == 1:
                _say(f"interrupted; {error}" if error.args else "interrupted")
            _exit(130)
        except EndedError as error:
            if _is_ours_to_say(error, str(error), FAULT):
                _say(f"error: {error}")
            _exit(FAULT)
        except SystemExit as ended:
            if group.num_ranks() == 1:
                raise
            _exit(ended.code if isinstance(ended.code, int) else FAULT)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in OF_THE_MACHINE and error.filename is not None:
                _refuse(UserError(f"{describe(error, doing='used')}."))
            _report_fault(error, argv)
            _exit(FAULT)
        finally:
            if argv is None:
                gc.freeze()  # the process ends now; to scan its objects for garbage takes a second


def _refuse(error: UserError) -> NoReturn:
    if _is_ours_to_say(error, str(error), USER_ERROR):
        _say(f"error: {error}")
    _note_refusal(str(error))
    _exit(USER_ERROR)


def _report_fault(error: BaseException, argv: list[str] | None) -> None:
    """Shows an unexpected error in one line, with the file of its traceback; once, even if several ranks met it."""
    path = write_traceback(error, shlex.join(sys.argv if argv is None else argv))
    told = f"{type(error).__name__}: {first_line(error)}"
    if _is_ours_to_say(error, told, FAULT):
        where = "Its traceback could be kept nowhere." if path is None else f"Its traceback is in {path}."
        _say(f"error: {told}\n{where} If it is a mistake of prefopt, report it with that file and this command.")


def _say(message: str) -> None:
    print(printable(message), file=sys.stderr, flush=True)


def _is_ours_to_say(error: BaseException, told: str, code: int) -> bool:
    if isinstance(error, ToldByRank0) or told == group.FAILED:
        return False
    if group.num_ranks() == 1 and not is_main():
        _leave_word_to_rank_0(code)
        return True
    return group.is_first_to_say(told)


def _leave_word_to_rank_0(code: int) -> None:
    """Waits for rank 0 to report the error: the launcher ends all ranks as soon as one ends, so this one must not.

    When rank 0 ends, the launcher ends this process too, with `code`. Returns after `WORD_S` if rank 0 does not.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
    with suppress(KeyboardInterrupt):
        time.sleep(WORD_S)


def _note_refusal(message: str) -> None:
    """Writes the message to the file `REFUSED`, where the job script looks for it."""
    folder = os.environ.get(ATTEMPT)
    if folder is not None:
        with suppress(OSError):
            write_text(Path(folder) / REFUSED, f"{message}\n")


def _exit(code: int) -> NoReturn:
    """Ends the process; with several ranks at once, since Python's normal exit waits for process groups to close."""
    if group.num_ranks() == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
