"""`transformers serve` on loopback: a real server of chats for tests and benchmarks."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.ports import find_free_ports

START_S = 240.0


@contextmanager
def serve(model: Path, log: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Yields the URL of a server of a model on the CPU.

    Args:
        model: Folder of the model.
        log: What the server prints.
        options: More arguments of `transformers serve`.
    """
    (port,) = find_free_ports(1)
    code = "from transformers.cli.transformers import main; main()"
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-c", code, "serve", str(model), *where, *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with opener.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not come up: {log.read_text()}")
