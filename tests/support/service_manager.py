"""A stand-in for systemd: it opens the sockets, hands them over, and is told how things are.

`python service_manager.py serve`: what it starts. Between fork and exec systemd gives the sockets
their numbers and names the process; here the process itself does both, and becomes the sidecar.
"""

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

FIRST = 3
_HANDED = "TEST_HANDED_OVER"
"""`NAME=DESCRIPTOR`, separated by commas."""


class ServiceManager:
    """Sockets that outlive the service, and what the service says."""

    names = ("authz", "management")

    def __init__(self, directory: Path, *, unix: bool = False, watchdog_s: float = 30) -> None:
        """Open the sockets in `directory` (a short path) and on free ports."""
        self.unix = str(directory / "authz.sock")
        self.watchdog_s = watchdog_s
        self.authz = socket.socket(socket.AF_UNIX) if unix else socket.socket()
        self.authz.bind(self.unix if unix else ("127.0.0.1", 0))
        self.management = socket.create_server(("127.0.0.1", 0))
        self.authz.listen(4096)
        self.notify_path = str(directory / "notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.notify_path)
        self.notify.setblocking(False)
        self.said: list[tuple[str, ...]] = []
        self._at_end = ExitStack()

    @property
    def place(self) -> int | str:
        """Where the authz listener is: a port, or the path of its socket."""
        name = self.authz.getsockname()
        return name if isinstance(name, str) else name[1]

    @property
    def management_port(self) -> int:
        return self.management.getsockname()[1]

    @property
    def environ(self) -> Mapping[str, str]:
        """What a service finds in its environment."""
        handed = zip(self.names, self.descriptors, strict=True)
        return {
            _HANDED: ",".join(f"{name}={number}" for name, number in handed),
            "NOTIFY_SOCKET": self.notify_path,
            "WATCHDOG_USEC": str(int(self.watchdog_s * 1_000_000)),
        }

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.authz.fileno(), self.management.fileno())

    def heard(self, state: str) -> bool:
        """Whether it was told this, since it was last forgotten."""
        while True:
            try:
                message = self.notify.recv(4096).decode()
            except BlockingIOError:
                return any(state in said for said in self.said)
            self.said.append(tuple(message.split("\n")))

    def forget(self) -> None:
        self.heard("")
        self.said.clear()

    def at_end(self, end: Callable[[], None]) -> None:
        """Have this called before the sockets are closed."""
        self._at_end.callback(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._at_end.close()
        for one in (self.authz, self.management, self.notify):
            one.close()


def take_over() -> None:
    """Give what was handed over its numbers, as sd_listen_fds(3) has it."""
    pairs = [one.split("=") for one in os.environ.pop(_HANDED).split(",")]
    high = [(name, fcntl.fcntl(int(number), fcntl.F_DUPFD, 100)) for name, number in pairs]
    for place, (_, number) in enumerate(high, start=FIRST):
        os.dup2(number, place, inheritable=True)
        os.close(number)
    os.environ |= {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(pairs)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in pairs),
        "WATCHDOG_PID": str(os.getpid()),
    }
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    take_over()
