"""Real Redis servers for tests: quick to start, and never left behind."""

import atexit
import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from authsidecar.store.embedded import find_server
from tests.support.fork_server import Process, guarded

__all__ = ["RedisProcess", "free_port", "guarded", "redis_binary", "start_redis"]

START_S = 30.0


def redis_binary() -> str:
    """The server that the sidecar itself would start."""
    return find_server()


def _ports() -> Iterator[int]:
    """Ports for this worker of xdist alone, all different for long.

    They are below those that the kernel gives to whoever connects or asks for any port: such a
    one could be taken again before the server that it is for has started.
    """
    each = 1500
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
    start = random.randrange(each)
    for number in itertools.count(start):
        yield 20_000 + worker * each + number % each


_PORTS = _ports()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, and that nobody else is told."""
    for port in itertools.islice(_PORTS, 1500):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


@dataclass(eq=False)
class RedisProcess:
    """One redis-server; after `stop` or `kill`, `start` brings it back on the same addresses.

    Attributes:
        directory: where it works and logs.
        socket: its unix socket, in a short directory of its own.
        port: its TCP port on 127.0.0.1, 0 for none.
        extra: more words for its command line, a configuration file first if there is one.
    """

    directory: Path
    socket: Path
    port: int
    extra: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        assert self.port, "start_redis(..., port=0) opens a TCP port"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        return (self.directory / "redis.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and return once it answers."""
        assert self._process is None, "still running"
        with_file = bool(self.extra) and not self.extra[0].startswith("--")
        command = [
            redis_binary(),
            *self.extra[:with_file],
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--dir", str(self.directory)),
            *("--logfile", str(self.directory / "redis.log"), "--save", ""),
            *self.extra[with_file:],
        ]
        self._process = Process(
            command,
            env={"LC_ALL": "C"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        patience = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > patience:
                self.kill()
                raise RuntimeError(f"redis-server does not start: {self.log[-2000:]}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End it in good order; nothing happens if it is gone already."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(START_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End it as a crash does (SIGKILL); its socket file stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it accept connections, and never answer (SIGSTOP)."""
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(1)
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        return False


def start_redis(directory: Path, *extra: str, port: int | None = None) -> RedisProcess:
    """Start a server that keeps nothing on disk unless `extra` says so; ends with the test run.

    Args:
        directory: where it works and logs; created if missing.
        extra: more options ("--appendonly", "yes"), a configuration file first if there is one.
        port: a TCP port on 127.0.0.1; 0 for a free one, None for the unix socket alone.
    """
    directory.mkdir(parents=True, exist_ok=True)
    short = tempfile.mkdtemp(prefix="redis-")
    process = RedisProcess(
        directory=directory.resolve(),
        socket=Path(short, "s"),
        port=free_port() if port == 0 else port or 0,
        extra=extra,
    )
    atexit.register(shutil.rmtree, short, ignore_errors=True)
    atexit.register(process.stop)
    process.start()
    return process
