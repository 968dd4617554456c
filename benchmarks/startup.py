"""How long a process takes from its exec to its first answer, and what of it is the processor's."""

import http.client
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil

from benchmarks.meter import cpu_s
from tests.support.redis import free_port, guarded

PATIENCE_S = 60

EMPTY = """
import sys
import uvloop
from aiohttp import web

async def answer(request):
    return web.Response()

app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
"""An aiohttp application that does nothing, and imports nothing else."""

Start = tuple[Sequence[str], Mapping[str, str]]
"""A command, with PORT where its port stands, and what it has in its environment besides."""


def sidecar(redis_url: str, directory: Path, source: Path | None = None) -> Start:
    """How the sidecar is started, this tree's or that of another commit."""
    return (sys.executable, "-m", "authsidecar", "serve"), {
        "AUTHSIDECAR_LISTEN__ADDRESS": "127.0.0.1:PORT",
        "AUTHSIDECAR_MANAGEMENT__ADDRESS": "127.0.0.1:0",
        "AUTHSIDECAR_REDIS__URL": redis_url,
        "AUTHSIDECAR_DATA_DIR": str(directory),
        **({"PYTHONPATH": str(source)} if source is not None else {}),
    }


def first_answer(start: Start) -> tuple[float, float]:
    """Start it, ask until it answers, end it: seconds that passed, and those of the processor.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    port = free_port()
    command = [word.replace("PORT", str(port)) for word in start[0]]
    environ = {name: value.replace("PORT", str(port)) for name, value in start[1].items()}
    began = time.monotonic()
    process = subprocess.Popen(
        guarded(*command),
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > began + PATIENCE_S:
                raise RuntimeError(f"no first answer from {' '.join(command[1:4])}")
            time.sleep(0.005)
        return time.monotonic() - began, cpu_s(psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException), closing(connection):
        connection.request("GET", "/authz/traefik")
        return connection.getresponse().status > 0
    return False


def table(starts: Mapping[str, Start], rounds: int) -> str:
    """Start each in turn: medians, and the ratio to the first within a round.

    Args:
        starts: by name.
        rounds: how often each is started; once more before, uncounted, so that files are cached.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for _ in range(rounds + 1):
        for name, start in starts.items():
            seen[name].append(first_answer(start))
    first = next(iter(starts))
    lines = [f"{'from exec to the first answer':40}{'seconds':>8}{'CPU s':>7}{'ratio of CPU':>14}"]
    for name, found in seen.items():
        wall, cpu = (statistics.median(column) for column in zip(*found[1:], strict=True))
        pairs = zip(found[1:], seen[first][1:], strict=True)
        ratio = statistics.median(mine[1] / other[1] for mine, other in pairs)
        lines.append(f"{name:40}{wall:8.2f}{cpu:7.2f}{ratio:14.2f}")
    return "\n".join(lines)
