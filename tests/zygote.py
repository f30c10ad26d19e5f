"""Starts the ranks of a run in a second: a process that has imported everything forks them.

Importing torch, TRL and DeepSpeed takes a process ten seconds and more, and the tests of many ranks start hundreds of
processes. Those are real ones, with ranks, groups and signals of their own; only the launcher is not torchrun (the
tests of `test_torchrun.py` use that). Like torchrun it keeps the store where ranks meet, on a port that nobody else
can have taken in between, and ends all ranks once one has failed.

Run as `python -m tests.zygote`: reads a JSON object per line (`argv`, `environments`, `log`, `hooks`), forks a child
per environment, and answers with their process ids; a line {"pid": n} waits for one and answers with its exit code,
and {"end": true} ends it.
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

DEADLINE_S = 600.0
"""After which something hangs, however busy the machine is."""
GRACE_S = 30.0
"""Between SIGTERM and SIGKILL to the other ranks when one has failed, as torchrun has it."""


@dataclass
class Ranks:
    """Running processes of one launch, one per rank.

    Attributes:
        pids: Process ids in the order of ranks.
        log: What all of them print.
    """

    pids: list[int]
    log: Path
    _zygote: "Zygote" = field(repr=False)
    _store: Any = field(repr=False)
    codes: dict[int, int] = field(default_factory=dict)

    def kill(self, number: int = signal.SIGKILL, *, only: int | None = None) -> None:
        """Signals one rank or all."""
        for rank, pid in enumerate(self.pids):
            if only in (None, rank) and rank not in self.codes:
                os.kill(pid, number)

    def poll(self) -> bool:
        """Looks at every rank without waiting; True if all have ended."""
        for rank in range(len(self.pids)):
            self._collect(rank, wait=False)
        return len(self.codes) == len(self.pids)

    def wait(self, timeout_s: float = DEADLINE_S, *, grace_s: float = GRACE_S) -> list[int]:
        """Waits for all ranks and returns their exit codes, negative for a signal.

        When one fails, the others get SIGTERM at once and SIGKILL `grace_s` later, as torchrun does.
        """
        deadline, grace = time.monotonic() + timeout_s, None
        while not self.poll():
            now = time.monotonic()
            if now > deadline:
                self.kill()
                raise TimeoutError(f"the ranks did not end in {timeout_s} s:\n{self.output()}")
            if grace is None and any(code != 0 for code in self.codes.values()):
                grace = now + grace_s
                self.kill(signal.SIGTERM)
            elif grace is not None and now > grace:
                self.kill()
            time.sleep(0.005)
        return [self.codes[rank] for rank in range(len(self.pids))]

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _collect(self, rank: int, *, wait: bool) -> None:
        if rank not in self.codes:
            code = self._zygote.ask({"pid": self.pids[rank], "wait": wait})
            if code is not None:
                self.codes[rank] = code


class Zygote:
    """The process that forks ranks; a context manager."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"},
        )

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        # Said, not only closed: a process that a test has forked may still hold this end of the pipe.
        self._process.stdin.write(json.dumps({"end": True}) + "\n")
        self._process.stdin.close()
        self._process.wait(timeout=DEADLINE_S)

    def start(self, argv: list[str], *, ranks: int, log: Path, hooks: str | None = None, **environment: str) -> Ranks:
        """Starts `prefopt.train` on a number of ranks; 0 means one process without a launcher.

        Args:
            argv: Overrides of `prefopt.train`.
            ranks: Processes.
            log: File for their output.
            hooks: A module that is imported first, such as one that injects faults; it reads `environment`.
            environment: Further environment variables.
        """
        store = _start_store() if ranks else None
        common = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(ranks), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        common |= {"MASTER_PORT": str(store.port)} if store is not None else {}
        launched = [
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
            for rank in range(ranks)
        ]
        environments = [environment | own for own in launched or [{}]]
        log.parent.mkdir(parents=True, exist_ok=True)
        pids = self.ask({"argv": argv, "environments": environments, "log": str(log), "hooks": hooks})
        return Ranks(pids, log, self, store)

    def run(self, argv: list[str], *, ranks: int, log: Path, expect: int = 0, **rest: Any) -> Ranks:
        """Runs `prefopt.train` to its end, which must have the exit code `expect` on every rank."""
        started = self.start(argv, ranks=ranks, log=log, **rest)
        codes = started.wait()
        assert codes == [expect] * len(codes), f"exit codes {codes}:\n{started.output()}"
        return started

    def ask(self, message: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote has died"
        return json.loads(answer)


def _start_store() -> Any:
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    _load_what_children_need()
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of what is loaded here
    for line in sys.stdin:
        message = json.loads(line)
        if "end" in message:
            return
        if "pid" in message:
            pid, status = os.waitpid(message["pid"], 0 if message["wait"] else os.WNOHANG)
            answer: Any = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = [_fork(message, environment) for environment in message["environments"]]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _load_what_children_need() -> None:
    with suppress(ImportError):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (with it torch's inductor)

    import prefopt.evaluation.run
    import prefopt.reports.render
    import prefopt.training.runner  # noqa: F401
    from prefopt.train import load_config

    load_config(["logger=none"])  # the parser of overrides learns its grammar


def _fork(message: dict[str, Any], environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment)
        if message["hooks"]:
            runpy.run_module(message["hooks"])
        from prefopt.distributed.entry import run_entry
        from prefopt.train import main

        run_entry(main, message["argv"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
