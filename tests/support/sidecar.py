"""Real sidecar processes for tests: started on free ports, ended with the test run."""

import atexit
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.fork_server import Process
from tests.support.redis import free_port

START_S = 30.0

PROGRAM = tuple(os.environ.get("TESTS_SIDECAR", "-m authsidecar").split())
"""What Python runs: `make test-memo` has another one run."""


@dataclass(frozen=True)
class Answer:
    """One answer; `headers` keeps names as sent, look one up with `header`."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) < 2, f"{name} was sent {len(found)} times"
        return found[0] if found else None

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass(eq=False)
class SidecarProcess:
    """One `authsidecar serve`, in a process of its own.

    Attributes:
        port: of the authz listener on 127.0.0.1.
        management_port: of the management listener.
        environ: its settings.
        log_path: all that it writes.
        arguments: more words for `authsidecar serve`.
        program: what Python runs; a file that breaks something first, say.
        stderr: the descriptor that it logs to, if not to the file.
        wait_for: the path that is 200 once it has started.
        descriptors: those that it inherits, beside the standard ones.
    """

    port: int
    management_port: int
    environ: Mapping[str, str]
    log_path: Path
    arguments: tuple[str, ...] = ()
    program: tuple[str, ...] = PROGRAM
    stderr: int | None = None
    wait_for: str = "/readyz"
    descriptors: tuple[int, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def log(self) -> str:
        # A line is written by a thread, in a few milliseconds after what it tells of.
        time.sleep(0.05)
        return self.log_path.read_text(errors="replace")

    def start(self, *, wait: bool = True) -> None:
        """Start it, and return once `wait_for` is 200 and the authz listener accepts.

        Args:
            wait: False returns at once.
        """
        assert self._process is None, "still running"
        with self.log_path.open("ab") as out:
            self._process = Process(
                [sys.executable, *self.program, "serve", *self.arguments],
                env={**os.environ, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out if self.stderr is None else self.stderr,
                start_new_session=True,
                pass_fds=self.descriptors,
            )
        patience = time.monotonic() + START_S
        while wait and not self._ready():
            if self._process.poll() is not None or time.monotonic() > patience:
                self.kill()
                raise RuntimeError(f"the sidecar does not start: {self.log[-4000:]}")
            time.sleep(0.02)

    def ask(
        self,
        method: str,
        uri: str,
        *,
        authorization: str | None = None,
        client: str = "192.0.2.1",
        proxy: str = "traefik",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one subrequest as a proxy would."""
        fields = {
            "X-Forwarded-Method": method,
            "X-Forwarded-Uri": uri,
            "X-Forwarded-For": client,
            **({"Authorization": authorization} if authorization is not None else {}),
            **(headers or {}),
        }
        return get(self.port, f"/authz/{proxy}", fields)

    def stop(self) -> int:
        """End it in good order; its exit code."""
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            code = self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return code

    def wait(self) -> int:
        """Let it end by itself, after a signal; its exit code."""
        assert self._process is not None, "not running"
        code = self._process.wait(START_S)
        self._process = None
        return code

    def kill(self) -> None:
        """End it as a crash does (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def another(self) -> "SidecarProcess":
        """One more with the same settings on the same ports, not started; ends with the run."""
        made = replace(self, log_path=self.log_path.with_suffix(".next.log"), _process=None)
        while made.log_path.exists():
            made = replace(made, log_path=made.log_path.with_suffix(".next.log"))
        atexit.register(made.stop)
        return made

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process is not None and self._process.poll() is None

    def events(self, name: str) -> list[dict]:
        """The lines of its log that tell of an event."""
        lines = (line for line in self.log.splitlines() if line.startswith("{"))
        return [found for found in map(json.loads, lines) if found["event"] == name]

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None, "not running"
        self._process.send_signal(number)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if get(self.management_port, self.wait_for, {}).status == 200:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return True
        return False


def get(port: int, path: str, headers: Mapping[str, str]) -> Answer:
    """One GET on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())
    finally:
        connection.close()


def start_sidecar(
    directory: Path,
    redis_url: str,
    *arguments: str,
    wait_for: str = "/readyz",
    program: Any = PROGRAM,  # Any, so that **settings may be a dict of texts
    stderr: Any = None,
    wait: Any = True,
    source: Any = None,
    **settings: str,
) -> SidecarProcess:
    """Start a sidecar on free ports; ends with the test run.

    Args:
        directory: where it logs; created if missing.
        redis_url: its Redis.
        arguments: more words for `authsidecar serve`.
        wait_for: the path of the management listener that is 200 once it has started.
        program: what Python runs.
        stderr: the descriptor that it logs to, if not to a file in `directory`.
        wait: False returns before it is ready.
        source: where `authsidecar` is imported from, if not this tree: `src` of another commit.
        settings: more settings by the environment's names without the prefix, `LIMITS__USER="5"`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port, management_port = free_port(), free_port()
    environ = {
        "AUTHSIDECAR_LISTEN__ADDRESS": f"127.0.0.1:{port}",
        "AUTHSIDECAR_MANAGEMENT__ADDRESS": f"127.0.0.1:{management_port}",
        "AUTHSIDECAR_REDIS__URL": redis_url,
        # A loaded test machine is no outage; the budget has tests of its own.
        "AUTHSIDECAR_REDIS__BUDGET_MS": "5000",
        "AUTHSIDECAR_DATA_DIR": str(directory / "data"),
        "AUTHSIDECAR_LOG__FORMAT": "json",
        **{f"AUTHSIDECAR_{name}": value for name, value in settings.items()},
        **({"PYTHONPATH": str(source)} if source is not None else {}),
    }
    process = SidecarProcess(
        port,
        management_port,
        environ,
        directory / f"sidecar-{port}.log",
        arguments,
        program,
        stderr=stderr,
        wait_for=wait_for,
    )
    atexit.register(process.stop)
    process.start(wait=wait)
    return process
