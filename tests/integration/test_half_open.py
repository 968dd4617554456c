"""Requests that never come whole, connections without end: a proxy always finds room."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import few_files
from tests.support.flood import addresses, half_open
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import PATIENCE_S, until
from tests.support.wire import Wire, subrequest
from tests.support.world import READ, populate

GOOD = subrequest(authorization=bearer(READ))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


def dropped(sidecar: SidecarProcess, cause: str) -> float:
    """How many connections were dropped for a cause, by the metric."""
    text = get(sidecar.management_port, "/metrics", {}).body.decode()
    name = f'authsidecar_connections_dropped_total{{cause="{cause}"}} '
    return next((float(x[len(name) :]) for x in text.splitlines() if x.startswith(name)), 0)


def well(sidecar: SidecarProcess) -> None:
    """It ends in good order, and nothing odd was logged."""
    assert sidecar.stop() == 0
    for word in ("Traceback", '"defect"', '"library"'):
        assert word not in sidecar.log


# ---------------------------------------------------------------------------------- deadlines


@pytest.fixture(scope="module", params=["fast", "aiohttp"])
def hurried(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[SidecarProcess]:
    """A second for the first byte of a connection, two for a request."""
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("hurried"),
        server.url,
        LISTEN__SERVER=request.param,
        LISTEN__FIRST_BYTE_TIMEOUT_SECONDS="1",
        LISTEN__REQUEST_TIMEOUT_SECONDS="2",
        LIMITS__USER="100000",
    )
    yield sidecar
    well(sidecar)


async def test_half_a_request_is_given_up(hurried: SidecarProcess) -> None:
    """From its first byte on, however many follow; the answer says why."""
    before = dropped(hurried, "request")
    async with Wire(hurried.port) as wire:
        begun = time.monotonic()

        async def trickle() -> None:
            for byte in GOOD[:-2]:
                wire.send(bytes([byte]))
                await asyncio.sleep(0.1)

        trickling = asyncio.ensure_future(trickle())
        answer = await wire.answer()
        assert (answer.status, answer.json["code"]) == (408, "request_timeout")
        assert answer.header("Connection") == "close"
        assert time.monotonic() - begun >= 1.9
        trickling.cancel()
        with contextlib.suppress(ConnectionError):
            assert await wire.ended()
    assert dropped(hurried, "request") == before + 1


async def test_half_a_request_behind_a_whole_one_is_given_up(hurried: SidecarProcess) -> None:
    """The first one has its answer; a connection that was used may be silent, not half-told."""
    async with Wire(hurried.port) as wire:
        wire.send(GOOD + GOOD[:30])
        assert (await wire.answer()).status == 200
        assert (await wire.answer()).status == 408
        assert await wire.ended()


async def test_a_silent_new_connection_is_closed(hurried: SidecarProcess) -> None:
    """One that has asked before is kept, and a slow request is answered."""
    before = dropped(hurried, "first_byte")
    async with Wire(hurried.port) as used, Wire(hurried.port) as slow:
        assert (await used.ask(GOOD)).status == 200
        slow.send(GOOD[:30])
        async with Wire(hurried.port) as silent:
            begun = time.monotonic()
            await asyncio.sleep(0.5)
            slow.send(GOOD[30:])
            assert (await slow.answer()).status == 200
            assert await silent.ended()
            assert time.monotonic() - begun >= 0.9
        await asyncio.sleep(2.5)
        assert (await used.ask(GOOD)).status == 200
        assert (await slow.ask(GOOD)).status == 200
    assert dropped(hurried, "first_byte") == before + 1


# ---------------------------------------------------------------------------------- bounds


@pytest.fixture(scope="module")
def narrow(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    """Ten connections, four of one peer."""
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("narrow"),
        server.url,
        LISTEN__MAX_CONNECTIONS="10",
        LISTEN__MAX_CONNECTIONS_PER_PEER="4",
        LIMITS__USER="100000",
    )
    yield sidecar
    well(sidecar)


@asynccontextmanager
async def wires(port: int, sources: Sequence[str]) -> AsyncIterator[list[Wire]]:
    """Connections from these addresses that have asked once."""
    made = []
    try:
        for source in sources:
            wire = Wire(port, source)
            await wire.__aenter__()
            made.append(wire)
            assert (await wire.ask(GOOD)).status == 200
        yield made
    finally:
        for wire in made:
            await wire.__aexit__(None, None, None)


async def is_open(wire: Wire) -> bool:
    """Whether the other side has not closed yet."""
    try:
        async with asyncio.timeout(0.5):
            await wire.reader.read(1)
    except TimeoutError:
        return True
    except ConnectionError:
        pass
    return False


async def test_a_peer_has_a_bounded_number_of_connections(narrow: SidecarProcess) -> None:
    """The longest waiting for a request gives way; if none is, the new one is closed."""
    before = dropped(narrow, "peer_limit")
    async with wires(narrow.port, ["127.0.0.5"] * 2) as used:
        async with Wire(narrow.port, "127.0.0.5") as older, Wire(narrow.port, "127.0.0.5") as newer:
            older.send(GOOD[:30])
            newer.send(GOOD[:30])
            await asyncio.sleep(0.2)
            async with Wire(narrow.port, "127.0.0.5") as fifth:
                assert (await fifth.ask(GOOD)).status == 200
                assert not await is_open(older)
                assert await is_open(newer)
                newer.send(GOOD[30:])
                assert (await newer.answer()).status == 200
                async with Wire(narrow.port, "127.0.0.5") as sixth:
                    assert not await is_open(sixth)
                async with Wire(narrow.port, "127.0.0.6") as other:
                    assert (await other.ask(GOOD)).status == 200
        assert [(await wire.ask(GOOD)).status for wire in used] == [200, 200]
    assert dropped(narrow, "peer_limit") == before + 2


async def test_all_together_have_a_bounded_number(narrow: SidecarProcess) -> None:
    """Idle ones of the peer that has the most give way to another peer."""
    before = dropped(narrow, "limit")
    sources = ["127.0.1.1"] * 4 + ["127.0.1.2"] * 3 + ["127.0.1.3"] * 3
    async with wires(narrow.port, sources) as full, Wire(narrow.port, "127.0.1.9") as new:
        assert (await new.ask(GOOD)).status == 200
        assert [await is_open(wire) for wire in full] == [False] + [True] * 9
    assert dropped(narrow, "limit") == before + 1


# ---------------------------------------------------------------------------------- descriptors


@asynccontextmanager
async def traffic(sidecar: SidecarProcess, lost: list[str]) -> AsyncIterator[list[int]]:
    """A proxy at 127.0.0.1 at work: kept connections and new ones all the time, and /healthz."""
    statuses: list[int] = []
    going = True

    async def keep_asking() -> None:
        async with Wire(sidecar.port) as wire:
            while going:
                statuses.append((await wire.ask(GOOD)).status)
                await asyncio.sleep(0.01)

    async def connect_again() -> None:
        while going:
            async with Wire(sidecar.port) as wire:
                statuses.append((await wire.ask(GOOD)).status)
            await asyncio.sleep(0.01)

    async def look() -> None:
        while going:
            answer = await asyncio.to_thread(get, sidecar.management_port, "/healthz", {})
            assert answer.status == 200
            await asyncio.sleep(0.05)

    async def noted(work) -> None:
        try:
            await work
        except (OSError, EOFError, TimeoutError) as error:
            lost.append(f"{work.__name__}: {error!r}")

    works = [keep_asking() for _ in range(5)] + [connect_again() for _ in range(5)] + [look()]
    working = asyncio.gather(*(noted(work) for work in works))
    try:
        yield statuses
    finally:
        going = False
        await working


def limited(directory: Path, url: str, soft: int, hard: int, **settings: str) -> SidecarProcess:
    """A sidecar under `ulimit -n`."""
    program = ("-P", str(Path(few_files.__file__)), str(soft), str(hard))
    return start_sidecar(directory, url, program=program, LIMITS__USER="100000", **settings)


async def besieged(sidecar: SidecarProcess, sources: list[str], count: int, seconds: float) -> int:
    """How many requests a proxy got answered meanwhile; all of them, or it fails."""
    lost: list[str] = []
    held: list[socket.socket] = []
    async with traffic(sidecar, lost) as statuses:
        await asyncio.sleep(0.3)
        try:
            held = await asyncio.to_thread(half_open, sidecar.port, sources, count)
            await asyncio.sleep(seconds)
        finally:
            for one in held:
                one.close()
    assert lost == []
    assert set(statuses) == {200}
    return len(statuses)


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "127.0.0.1/32"])
async def test_six_hundred_half_requests_with_256_files(
    trusted: str, server: RedisProcess, tmp_path: Path
) -> None:
    """Trusted or not, one address or several: a proxy and /healthz always get a connection."""
    sidecar = limited(tmp_path, server.url, 128, 256, TRUSTED_PEERS=trusted)
    limit = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
    assert limit == (256, 256)
    assert await besieged(sidecar, addresses(1), 600, 1) > 50
    assert await besieged(sidecar, addresses(7), 600, 1) > 50
    causes = ("limit", "peer_limit") if trusted.endswith("/8") else ("strangers",)
    assert sum(dropped(sidecar, cause) for cause in causes) > 0
    assert "out of system resource" not in sidecar.log
    well(sidecar)


async def test_half_requests_at_the_management_listener(
    server: RedisProcess, tmp_path: Path
) -> None:
    """It is bounded as well: whoever comes last is served, and subrequests are."""
    sidecar = limited(tmp_path, server.url, 256, 256)
    lost: list[str] = []
    held: list[socket.socket] = []
    async with traffic(sidecar, lost) as statuses:
        for number in range(600):
            one = socket.create_connection(("127.0.0.1", sidecar.management_port), 10)
            held.append(one)
            with contextlib.suppress(OSError):
                one.sendall(b"GET /healthz HTTP/1.1\r\nHos")
            if number % 20 == 0:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
    for one in held:
        one.close()
    assert lost == []
    assert set(statuses) == {200}
    assert dropped(sidecar, "management") > 300
    well(sidecar)


@pytest.mark.slow
@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "127.0.0.1/32"])
@pytest.mark.parametrize("sources", [1, 9])
async def test_five_thousand_half_requests_under_real_traffic(
    trusted: str, sources: int, server: RedisProcess, tmp_path: Path, tell
) -> None:
    """From one address and from several, held until long after the deadline: none is lost."""
    sidecar = limited(tmp_path, server.url, 1024, 4096, TRUSTED_PEERS=trusted)
    answered = await besieged(sidecar, addresses(sources), 5000, 14)
    tell(f"{answered} requests answered beside 5000 half ones of {sources} addresses")
    assert answered > 500

    def ended() -> bool:
        return len(list(Path(f"/proc/{sidecar.pid}/fd").iterdir())) < 200

    await asyncio.to_thread(until, ended, "the end of the half ones", patience_s=PATIENCE_S)
    well(sidecar)
