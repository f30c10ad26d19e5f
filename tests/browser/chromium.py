"""A headless Chromium that tests drive through the DevTools protocol, over two pipes: no port, no library.

Commands and events are those of https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 120.0
"""After which an answer does not come, however busy the machine is."""
PATIENCE_S = 10.0
"""After which something on a page does not happen."""
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # root has no other way; the pages are our own
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--force-device-scale-factor=1",
    "about:blank",
)


def find_chromium() -> Path | None:
    """The program on this machine's search path; None: there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return Path(found) if found else None


class ProtocolError(Exception):
    """Chromium refused a command, or the page's script threw."""


class Chromium:
    """A browser that runs until the block ends.

    Args:
        program: The executable.
        folder: For its profile; should be empty.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        self._number = 0
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> "Chromium":
        reads_commands, self._commands = os.pipe()
        self._answers, writes_answers = os.pipe()
        command = [str(self._program), *OPTIONS[:-1], f"--user-data-dir={self._folder / 'profile'}", OPTIONS[-1]]
        # Above 4 first: one of the pipes may have been given the very number that the other is to take.
        high = [os.dup2(end, 60 + place) for place, end in enumerate((reads_commands, writes_answers))]
        log = os.open(self._folder / "chromium.log", os.O_CREAT | os.O_WRONLY)
        self._pid = os.posix_spawn(
            self._program,
            command,
            {**os.environ, "HOME": str(self._folder)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                *((os.POSIX_SPAWN_DUP2, end, 3 + place) for place, end in enumerate(high)),
            ],
            setpgroup=0,
        )
        for end in (reads_commands, writes_answers, *high, log):
            os.close(end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that come before it are kept.

        Raises:
            ProtocolError: Chromium refused it.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._events.append(answer)
        if "error" in answer:
            raise ProtocolError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def wait_for(self, method: str, session: str) -> None:
        """Waits for an event, which may have come already."""
        known = 0
        while True:
            if any(_is(event, method, session) for event in self._events[known:]):
                return
            known = len(self._events)
            self._events.append(self._read())

    def take_events(self, session: str) -> list[dict[str, Any]]:
        """The events of a page since the last call, oldest first."""
        taken = [event for event in self._events if event.get("sessionId") == session]
        self._events = [event for event in self._events if event.get("sessionId") != session]
        return taken

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                log = (self._folder / "chromium.log").read_text(errors="replace")
                raise ProtocolError(f"no answer from {self._program}; its log ends with {log[-500:]!r}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


def _is(event: dict[str, Any], method: str, session: str) -> bool:
    return event.get("method") == method and event.get("sessionId") == session


class Page:
    """One tab, of a given width and colour scheme."""

    def __init__(self, browser: Chromium) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def show(self, width: int, scheme: str, *, height: int = 900) -> None:
        """Sets the window, in CSS pixels, and `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, file: Path) -> list[dict[str, Any]]:
        """Loads a file and returns the events of loading it."""
        self.take_events()
        self.call("Page.navigate", url=file.resolve().as_uri())
        self._browser.wait_for("Page.loadEventFired", self._session)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.take_events()

    def take_events(self) -> list[dict[str, Any]]:
        """What has happened in the page since the last call."""
        self.evaluate("0")  # its answer comes after the events so far
        return self._browser.take_events(self._session)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page.

        Raises:
            ProtocolError: It threw.
        """
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise ProtocolError(str(answer["exceptionDetails"].get("exception", {}).get("description")))
        return answer["result"].get("value")

    def holds(self, condition: str) -> bool:
        """Whether a condition becomes true soon: scrolling takes some frames."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def press(self, keys: Sequence[str]) -> None:
        """Presses keys one after the other, such as Tab and ArrowRight."""
        codes = {"Tab": 9, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13}
        for key in keys:
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def screenshot(self, file: Path) -> None:
        """Writes the whole page as a PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))
