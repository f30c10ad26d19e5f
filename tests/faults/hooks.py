"""Injects one fault into a rank, before `prefopt.train` begins: `Injection` says where and what.

A rank imports this module (`hooks=` of `tests.zygote`) with the injection in its environment; no code of the package
knows of it.
"""

import functools
import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "PREFOPT_FAULT"
BELL = "PREFOPT_FAULT_FOLDER"
POLL_S = 0.005


@dataclass(frozen=True)
class Injection:
    """One place in the code, and what happens there.

    Attributes:
        place: `module:name` or `module:Class.method`, where callers look the name up.
        action: A key of `ACTIONS`.
        when: "before" or "after" the call.
        call: Which call it happens in, from 1.
        times: In how many calls in a row, from that one on.
        match: Counts only calls whose first argument, as text, contains this.
        rank: Where; None for every rank.
        value: What the action takes: an errno, or seconds.
    """

    place: str
    action: str = "pause"
    when: str = "before"
    call: int = 1
    times: int = 1
    match: str = ""
    rank: int | None = None
    value: float = 0.0

    def environment(self, folder: Path) -> dict[str, str]:
        """What a rank needs to know; `folder` is where it rings."""
        return {VARIABLE: json.dumps(asdict(self)), BELL: str(folder)}


def pause(result: Any, value: float) -> Any:
    """Says that the place is reached, and waits there for whatever comes."""
    folder = Path(os.environ[BELL])
    (folder / f"reached-{os.environ.get('RANK', '0')}").touch()
    while not (folder / "go").exists():
        time.sleep(POLL_S)
    return result


def fail(result: Any, value: float) -> Any:
    """Fails as a file system does."""
    raise OSError(int(value), os.strerror(int(value)))


def slow(result: Any, value: float) -> Any:
    time.sleep(value)
    return result


def spoil_loss(result: Any, value: float) -> Any:
    """A loss of NaN, and so a gradient of NaN."""
    return result * float("nan")


def spoil_gradient(result: Any, value: float) -> Any:
    """The same loss, with a gradient of NaN."""
    import torch

    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, loss: Any) -> Any:
            return loss.clone()

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return gradient * float("nan")

    return Spoiled.apply(result)


ACTIONS: dict[str, Callable[[Any, float], Any]] = {
    "pause": pause,
    "fail": fail,
    "slow": slow,
    "spoil_loss": spoil_loss,
    "spoil_gradient": spoil_gradient,
}


def arm(injection: Injection) -> None:
    """Puts the injection in place, if it is meant for this rank."""
    if injection.rank not in (None, int(os.environ.get("RANK", "0"))):
        return
    module, _, path = injection.place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original, act, seen = getattr(owner, name), ACTIONS[injection.action], 0

    @functools.wraps(original)
    def injected(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if injection.match in str(args[0] if args else ""):
            seen += 1
        is_due = injection.call <= seen < injection.call + injection.times
        is_due = is_due and injection.match in str(args[0] if args else "")
        if is_due and injection.when == "before":
            act(None, injection.value)
        result = original(*args, **kwargs)
        return act(result, injection.value) if is_due and injection.when == "after" else result

    setattr(owner, name, injected)


if VARIABLE in os.environ:
    arm(Injection(**json.loads(os.environ[VARIABLE])))
