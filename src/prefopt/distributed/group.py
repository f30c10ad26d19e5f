"""Communication among the ranks of a run: agreeing on values, sharing results and errors, detecting lost ranks.

Before `start` and after `stop` every function acts as with a single rank, and imports no torch. The exchanges use
process groups of their own on the CPU, so they neither wait for a device nor mix with the collectives of training.
"""

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from prefopt.config.schema import TrainConfig
from prefopt.distributed.native_ops import leave_out_shared_memory
from prefopt.process.errors import EndedError, ToldByRank0, UserError, first_line
from prefopt.process.ranks import is_main, rank, world_size

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import PrefixStore

T = TypeVar("T")
R = TypeVar("R")

WATCH_S = 1.0
GRACE_S = 15.0
"""Seconds after `run.timeout_s` in which a stuck rank may still end by a more precise error, before it is ended."""
FAILED = "rank 0 failed, and says why"
CAUSE = "cause"
"""Key of the store: why the first rank that failed did."""

PATIENCE = timedelta(days=30)
"""How long ranks wait for one whose work has no known length, such as tokenising.

If that rank dies, the wait ends at once."""

_prompt: Any = None
_patient: Any = None
_was_stopped = False
_position: "_Position | None" = None


class _Position(NamedTuple):
    """What this rank is doing, since when by the monotonic clock, and whether it may take long."""

    what: str
    since: float
    may_take_long: bool


def start(config: TrainConfig) -> None:
    """Connects the processes that a launcher started, on NCCL where there are GPUs and on Gloo elsewhere.

    Args:
        config: `run.timeout_s` limits how long a rank waits for another one; `deepspeed` says whether DeepSpeed runs.

    Raises:
        UserError: They were connected and disconnected before, by an earlier run of a Python program.
    """
    global _prompt, _patient
    if _prompt is not None:
        return
    if _was_stopped:
        raise UserError(
            "torchrun: this program has trained or evaluated a run already, and its ranks can be connected once. "
            "Start torchrun for each run, or a single process for all."
        )
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    timeout = timedelta(seconds=config.run.timeout_s)
    with_deepspeed, with_cuda = config.deepspeed.stage is not None, torch.cuda.is_available()
    if with_deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        if not with_cuda:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            leave_out_shared_memory()
    backend = {} if with_cuda else {"backend": "gloo"}
    PartialState(cpu=not with_cuda and not with_deepspeed, timeout=timeout, **backend)
    _prompt = dist.new_group(backend="gloo", timeout=timeout)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    threading.Thread(target=_watch, args=(config.run.timeout_s,), name="watch", daemon=True).start()


def stop() -> None:
    """Disconnects the processes; the counterpart of `start`."""
    global _prompt, _patient, _was_stopped
    if _prompt is not None:
        import torch.distributed as dist

        barrier()
        _prompt, _patient, _was_stopped = None, None, True
        dist.destroy_process_group()


def num_ranks() -> int:
    """Number of connected processes: 1 before `start` and after `stop`."""
    return world_size() if _prompt is not None else 1


def place() -> tuple[int, int]:
    """Index of this process among the connected ones, and their number; (0, 1) before `start` and after `stop`."""
    return (rank(), num_ranks()) if num_ranks() > 1 else (0, 1)


def agree(*values: float) -> list[float]:
    """The maximum of each value over all ranks; all ranks call it at the same point."""
    if num_ranks() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_prompt)
    return list(tensor.tolist())


def gather(value: T) -> list[T]:
    """The values of all ranks, in the order of the ranks, on every rank."""
    if num_ranks() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value, group=_prompt)
    return values


def barrier() -> None:
    """Waits until all ranks have called it, up to `PATIENCE`."""
    if num_ranks() > 1:
        import torch.distributed as dist

        dist.barrier(group=_patient)


def raise_on_all(problem: UserError | None) -> None:
    """Raises on every rank the problem of the first rank that has one; all ranks call it at the same point."""
    found = next((text for text in gather(None if problem is None else str(problem)) if text is not None), None)
    if found is not None:
        raise UserError(found) from problem


def pool(value: T) -> list[T]:
    """`gather` after work of unequal length: waits up to `PATIENCE` for the slowest rank."""
    barrier()
    return gather(value)


def share_out(items: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """Returns `compute(item)` of all items, in order, on every rank; each of n ranks computes every n-th item."""
    index, count = place()
    shares = pool([compute(item) for item in items[index::count]])
    return [shares[number % count][number // count] for number in range(len(items))]


def on_main(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 alone and returns its result on every rank, however long it takes.

    Raises:
        UserError: On every rank, if rank 0 raised it.
    """
    return _on_main(function, is_shared=True)


def keep_on_main(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 alone and returns its result there; the other ranks wait for it and get None.

    Raises:
        UserError: On every rank, if rank 0 raised it.
    """
    return _on_main(function, is_shared=False)


def _on_main(function: Callable[[], T], *, is_shared: bool) -> T:
    if num_ranks() == 1:
        return function()
    import torch.distributed as dist

    told: list[Any] = [None, None]
    if not is_main():
        dist.broadcast_object_list(told, src=0, group=_patient)
        result, problem = told
        if problem == FAILED:
            raise RankLostError(problem)
        if problem is not None:
            raise ToldByRank0(problem)
        return cast(T, result)
    problem = FAILED
    try:
        result = function()
        told, problem = [result if is_shared else None, None], None
    except UserError as error:
        problem = str(error)
        raise
    finally:
        dist.broadcast_object_list(told if problem is None else [None, problem], src=0, group=_patient)
    return result


def is_first_to_say(message: str) -> bool:
    """True on the first rank that asks about this message, so that it is shown once; True on all unconnected ranks."""
    if num_ranks() == 1:
        return True
    try:
        return bool(_store().add(f"said/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1)
    except RuntimeError:  # the store ended with the rank that hosted it
        return True


class RankLostError(EndedError):
    """A rank did not take part in an operation of all ranks."""


@contextmanager
def during(what: str, *, may_take_long: bool = False) -> Iterator[None]:
    """Tells the other ranks what this one is doing; an error of a collective in the block names the ranks that lag.

    A block that takes longer than `run.timeout_s` ends the process, since not every collective has its own timeout.

    Args:
        what: Name of the block in messages.
        may_take_long: One rank may work alone in the block: if it takes long, a line is printed and no process ends.

    Raises:
        RankLostError: In place of the errors that Gloo and NCCL raise when a rank has died or does not arrive.
    """
    global _position
    outer, _position = _position, _Position(what, time.monotonic(), may_take_long)
    if num_ranks() > 1:
        _store().set(f"position/{rank()}", f"{time.time():.0f} {what}")
    try:
        yield
    except RuntimeError as error:
        if num_ranks() == 1 or not _is_lost_rank(error):
            raise
        raise RankLostError(_find_cause() or f"{_describe_positions(what)} ({_first_sentence(error)})") from error
    finally:
        _position = outer


def leave_cause(error: BaseException) -> None:
    """Tells the other ranks why this one ends, before they miss it. The first cause stays."""
    if num_ranks() == 1 or isinstance(error, ToldByRank0) or _is_lost(error):
        return
    told = str(error) if isinstance(error, UserError | EndedError) else f"{type(error).__name__}: {first_line(error)}"
    with suppress(RuntimeError):  # the store ended with the rank that hosted it
        _store().compare_set(CAUSE, "", f"rank {rank()} failed: {told}")


def cause_of(error: BaseException) -> str | None:
    """Why another rank has ended, if `error` is that of an operation which missed it; None if that is not known."""
    return _find_cause() if num_ranks() > 1 and _is_lost(error) else None


def _find_cause() -> str | None:
    try:
        store = _store()
        return str(store.get(CAUSE).decode()) if store.check([CAUSE]) else None
    except (RuntimeError, ValueError):  # the store ended with the rank that hosted it
        return None


def _first_sentence(error: BaseException) -> str:
    """What a library says of an error, without the place in its source and what it advises then."""
    said = re.sub(r"^\[\S+:\d+\] ", "", first_line(error))
    return said.partition(". ")[0]


def _watch(timeout_s: float) -> None:
    """Thread: if this rank waits too long, prints what the others are doing; ends the process if it remains stuck."""
    told = None
    while num_ranks() > 1:
        time.sleep(WATCH_S)
        position = _position
        waited_s = 0.0 if position is None else time.monotonic() - position.since
        if position is not None and position is not told and waited_s > timeout_s:
            told = position
            print(
                f"{_describe_positions(position.what)}, for more than {timeout_s:.0f} s", file=sys.stderr, flush=True
            )
        if position is not None and not position.may_take_long and waited_s > timeout_s + GRACE_S:
            print(f"rank {rank()} is stuck and ends itself; run the same command again", file=sys.stderr, flush=True)
            os._exit(1)


def _describe_positions(what: str) -> str:
    """Says what the other ranks were last seen doing, for the message of a run that fails because of it."""
    try:
        store = _store()
        keys = {other: f"position/{other}" for other in range(num_ranks()) if other != rank()}
        others = {other: store.get(key).decode() for other, key in keys.items() if store.check([key])}
    except (RuntimeError, ValueError):  # the store ended with the rank that hosted it
        return f"rank {rank()} lost the other ranks during {what}"
    seen = {other: text.split(" ", 1) for other, text in others.items()}
    where = [
        f"rank {other} was last seen {time.time() - float(at):.0f} s ago during {place}"
        for other, (at, place) in seen.items()
    ]
    return f"rank {rank()} waited in vain during {what}: " + "; ".join(where)


def _store() -> "PrefixStore":
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore("prefopt", _get_default_store())


LOST = ("gloo", "connection", "timed out", "timeout", "nccl", "socket", "broken pipe", "tcpstore")


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, RankLostError) or (isinstance(error, RuntimeError) and _is_lost_rank(error))


def _is_lost_rank(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in LOST)
