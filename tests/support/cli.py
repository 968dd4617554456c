"""The command line in this very process: quick, and with all that it writes."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
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
