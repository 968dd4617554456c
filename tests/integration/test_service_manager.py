"""Under systemd: sockets that are handed over, and what it is told."""

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.integration.test_life import WORKERS, children, load, populate
from tests.support.service_manager import ServiceManager
from tests.support.sidecar import SidecarProcess, get
from tests.support.waiting import until

LAUNCHER = ("-m", "tests.support.service_manager")


@pytest.fixture
async def ready_redis(redis_client: Redis, redis_url: str) -> str:
    await populate(redis_client)
    return redis_url


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose sockets' paths fit."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def service(
    manager: ServiceManager,
    directory: Path,
    url: str,
    workers: int = 1,
    *,
    program: tuple[str, ...] = ("-m", "authsidecar"),
    **settings: str,
) -> SidecarProcess:
    """A sidecar that the manager starts; not started yet."""
    environ = {
        # Nobody may listen there: what is handed over stands in their place.
        "AUTHSIDECAR_LISTEN__ADDRESS": "192.0.2.1:1",
        "AUTHSIDECAR_MANAGEMENT__ADDRESS": "192.0.2.1:2",
        "AUTHSIDECAR_REDIS__URL": url,
        "AUTHSIDECAR_REDIS__BUDGET_MS": "5000",
        "AUTHSIDECAR_LIMITS__USER": "100000",
        "AUTHSIDECAR_LOG__FORMAT": "json",
        **{f"AUTHSIDECAR_{name}": value for name, value in settings.items()},
        **manager.environ,
    }
    place = manager.place
    process = SidecarProcess(
        place if isinstance(place, int) else 0,
        manager.management_port,
        environ,
        directory / "sidecar.log",
        ("--workers", str(workers)),
        (*LAUNCHER, *program),
        descriptors=manager.descriptors,
    )
    manager.at_end(process.kill)
    return process


def started(manager: ServiceManager, process: SidecarProcess) -> None:
    begun(manager, process)
    ready(manager, process)


def begun(manager: ServiceManager, process: SidecarProcess) -> None:
    manager.forget()
    process.start(wait=False)


def ready(manager: ServiceManager, process: SidecarProcess) -> None:
    until(lambda: manager.heard("READY=1") or not process.running, "READY=1")
    assert process.running, process.log


@pytest.mark.parametrize(("workers", "unix"), [(1, False), (2, True)])
async def test_a_restart_on_a_handed_over_socket_fails_no_request(
    ready_redis: str, short: Path, workers: int, unix: bool
) -> None:
    """Twice it is stopped, and started when it is gone, under load."""
    with ServiceManager(short, unix=unix) as manager:
        process = service(manager, short, ready_redis, workers)
        started(manager, process)
        async with load(manager.place) as asked:
            for _ in range(2):
                await asked.more()
                assert await asyncio.to_thread(process.stop) == 0
                assert manager.heard("STOPPING=1")
                begun(manager, process)
                await asyncio.to_thread(ready, manager, process)
            await asked.more()
        assert process.stop() == 0
        assert not unix or os.path.exists(manager.unix)  # noqa: ASYNC240, PTH110


@WORKERS
def test_readiness_is_told_once_it_answers(short: Path, workers: int) -> None:
    """A Redis that is away is no reason to be ended by a manager that waits for READY=1."""
    with ServiceManager(short) as manager, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        process = service(manager, short, url, workers)
        started(manager, process)
        assert get(manager.management_port, "/healthz", {}).status == 200
        assert get(manager.management_port, "/readyz", {}).status == 503
        assert process.stop() == 0


@WORKERS
def test_signs_of_life_end_when_the_loop_is_stuck(
    ready_redis: str, short: Path, workers: int
) -> None:
    """The process is there, and so are its threads, but nobody is answered."""
    with ServiceManager(short, watchdog_s=0.3) as manager:
        process = service(
            manager, short, ready_redis, workers, program=("-m", "tests.support.stuck")
        )
        started(manager, process)
        for _ in range(3):
            manager.forget()
            until(lambda: manager.heard("WATCHDOG=1"), "a sign of life")
        process.signal(signal.SIGALRM)
        until(lambda: silent_for(manager, 1.0), "silence")
        assert process.running
        process.kill()


def silent_for(manager: ServiceManager, seconds: float) -> bool:
    manager.forget()
    manager.notify.settimeout(seconds)
    try:
        manager.notify.recv(4096)
    except TimeoutError:
        return True
    finally:
        manager.notify.setblocking(False)
    return False


@WORKERS
def test_a_reload_is_told_of_and_its_end(ready_redis: str, short: Path, workers: int) -> None:
    """SIGHUP reads the configuration again, in the same processes."""
    with ServiceManager(short) as manager:
        process = service(manager, short, ready_redis, workers)
        started(manager, process)
        before = children(process)
        manager.forget()
        process.signal(signal.SIGHUP)
        until(lambda: manager.heard("RELOADING=1") and manager.heard("READY=1"), "the reload")
        assert children(process) == before
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("name", "listens", "problem"),
    [("web", True, "'web'"), ("authz", False, "does not listen")],
)
def test_a_socket_of_another_kind_is_refused(
    ready_redis: str, short: Path, name: str, listens: bool, problem: str
) -> None:
    """A unit that is wrong is told so, in one line."""
    with ServiceManager(short) as manager, socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if listens:
            one.listen()
        process = service(manager, short, ready_redis)
        environ = {**process.environ, "TEST_HANDED_OVER": f"{name}={one.fileno()}"}
        process.environ, process.descriptors = environ, (one.fileno(),)
        process.start(wait=False)
        assert process.wait() == 1
        assert problem in process.log.splitlines()[-1]
        assert "Traceback" not in process.log
