"""The command line in this very process: quick, and with all that it writes."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from redis.asyncio import Redis

from authsidecar.cli.main import run
from authsidecar.store.registry import Registry
from tests.support import seed

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One command: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.out.count("\n") == 1, "one JSON object on one line"
        return json.loads(self.out)


def invoke(
    *arguments: object, url: str = "redis://127.0.0.1:1", stdin: Any = b"", **settings: str
) -> Result:
    """Run one command line; must not be called while an event loop runs.

    Args:
        arguments: its words.
        url: its Redis; nobody listens on the default.
        stdin: what it may read.
        settings: more settings by the environment's names without the prefix.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("AUTHSIDECAR")}
    own |= {f"AUTHSIDECAR_{name}": value for name, value in settings.items()}
    own |= {"AUTHSIDECAR_REDIS__URL": url}
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, own, clear=True),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run([str(word) for word in arguments])
    return Result(code, out.getvalue(), err.getvalue())


async def with_registry(url: str, work: Callable[[Registry], Awaitable[T]]) -> T:
    """Do something with the registry of an empty event loop: `asyncio.run(with_registry(...))`."""
    async with Redis.from_url(url) as client:
        return await work(seed.registry(client))


class Used(NamedTuple):
    """What a process has used.

    Attributes:
        code: its exit code.
        cpu_s: processor time, in seconds.
        most_bytes: the most memory that it had.
    """

    code: int
    cpu_s: float
    most_bytes: int


_TELLING: str = """
import atexit, pathlib, runpy, sys
told = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: told.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("authsidecar", run_name="__main__")
"""
"""Writes down its own memory: what wait4 tells of that is never less than its parent had."""


def measured(*words: object, url: str, home: Path, reads: Path | None, writes: Path) -> Used:
    """Run a command in a process of its own, between files."""
    told = home / "status"
    with (reads or Path(os.devnull)).open("rb") as source, writes.open("wb") as target:
        process = subprocess.Popen(
            [sys.executable, "-c", _TELLING, str(told), *map(str, words)],
            env={**os.environ, "AUTHSIDECAR_REDIS__URL": url, "HOME": str(home)},
            stdin=source,
            stdout=target,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    kilobytes = int(told.read_text().partition("VmHWM:")[2].split()[0])
    return Used(process.returncode, usage.ru_utime + usage.ru_stime, kilobytes * 1024)
