"""`authsidecar health`: the exit code that a container's health check needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fork_server import run
from tests.support.redis import free_port, start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.waiting import until


def health(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "authsidecar", "health", *words]
    return run(command, env={**os.environ, **environ}, timeout=30)


def of(process: SidecarProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return health(*words, **process.environ)


def test_it_says_what_readyz_says(tmp_path: Path) -> None:
    """0 and 1, one line, and why."""
    server = start_redis(tmp_path / "redis")
    process = start_sidecar(tmp_path, server.url)
    assert (of(process).returncode, of(process).stdout) == (0, "ready\n")
    assert of(process, "--json").stdout == '{"ready": true}\n'
    assert of(process, "--quiet").stdout == ""
    server.kill()
    until(lambda: of(process).returncode == 1, "1 without Redis")
    assert of(process).stderr == "authsidecar: not ready (redis: connection)\n"
    process.stop()
    server.stop()


@pytest.mark.parametrize("address", ["0.0.0.0:{}", ":{}", "127.0.0.1:{}"])
def test_it_finds_a_listener_on_all_interfaces(
    tmp_path: Path, redis_url: str, address: str
) -> None:
    """The same configuration as the sidecar's own is enough."""
    port = free_port()
    process = start_sidecar(tmp_path, redis_url, wait=False)
    process.stop()
    environ = {**process.environ, "AUTHSIDECAR_MANAGEMENT__ADDRESS": address.format(port)}
    moved = SidecarProcess(process.port, port, environ, tmp_path / "moved.log")
    moved.start()
    assert of(moved).returncode == 0
    moved.stop()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"AUTHSIDECAR_LOG__LEVEL": "loud"}, "log.level"),
        ({"AUTHSIDECAR_MANAGEMENT__ADDRESS": "127.0.0.1:0"}, "management.address"),
        ({"AUTHSIDECAR_MANAGEMENT__ADDRESS": "127.0.0.1:1"}, "is the sidecar running?"),
    ],
)
def test_whatever_is_wrong_is_1_and_one_line(environ: dict[str, str], said: str) -> None:
    """Docker knows 0 and 1 alone."""
    found = health(**environ)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert said in found.stderr
