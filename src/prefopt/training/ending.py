"""How a run ended, written to its status.json."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prefopt.distributed.group import cause_of, leave_cause
from prefopt.distributed.preemption import Preempted
from prefopt.process import phases
from prefopt.process.errors import UserError
from prefopt.process.ranks import is_main
from prefopt.runs.directory import RunDirectory, RunTakenOverError, State
from prefopt.runs.trouble import trouble_of
from prefopt.training.guards import DivergedError

logger = logging.getLogger(__name__)


@contextmanager
def recorded_end(run: RunDirectory) -> Iterator[None]:
    """Writes why a run ended early to its status.json, and lets the error go on."""
    try:
        yield
    except Preempted as error:
        _record(run, State.preempted, f"stopped on request ({error.reason}); the same command goes on")
        raise
    except KeyboardInterrupt as error:
        _record(run, State.preempted, "interrupted by the user; the same command goes on from the last checkpoint")
        raise KeyboardInterrupt("the same command goes on from the last complete checkpoint") from error
    except RunTakenOverError:
        raise  # the status is the other process's now
    except DivergedError as error:
        _record(run, State.diverged, str(error))
        raise
    except UserError as error:
        leave_cause(error)
        _record(run, State.failed, f"UserError: {error}")
        raise
    except BaseException as error:
        trouble = trouble_of(run, error)
        told = error if trouble is None else trouble
        leave_cause(told)
        _record(run, State.failed, cause_of(told) or f"{type(told).__name__}: {told}")
        if trouble is not None:
            raise trouble from error
        raise


def _record(run: RunDirectory, state: State, message: str) -> None:
    if is_main() and os.path.isdir(run.path):
        phases.save()
        try:
            run.set_state(state, message=message)
        except (OSError, UserError) as error:  # how the run ended must not be covered up
            logger.error("%s: cannot be written (%s); this is %s: %s", run.status, error, state.value, message)
