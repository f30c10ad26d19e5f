"""Ports for servers that can only be told a number, and start later."""

import random
import socket
from contextlib import ExitStack

RANGE = range(10_000, 20_000)
"""Below those that systems give to connections: nobody is given one of these meanwhile."""


def find_free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody uses now."""
    found: list[int] = []
    with ExitStack() as probes:
        for port in random.SystemRandom().sample(RANGE, len(RANGE)):
            if len(found) == number:
                return found
            probe = probes.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    raise OSError(f"fewer than {number} free ports in {RANGE}")
