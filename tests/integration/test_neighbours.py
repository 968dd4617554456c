"""Peers that are not trusted: one answer for a connection, and no more than their share of us."""

import asyncio
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests.support.flood import SHAPES, flood
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import until
from tests.support.wire import Wire, subrequest
from tests.support.world import READ, address, populate

GOOD = subrequest(authorization=bearer(READ))
STRANGER = "127.0.0.9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["fast", "aiohttp"])
def sidecar(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[SidecarProcess]:
    """Trusts 127.0.0.1 alone: every other loopback address is a stranger."""
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        LISTEN__SERVER=request.param,
        TRUSTED_PEERS="127.0.0.1/32",
        LIMITS__USER="100000",
    )
    yield sidecar
    assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log
    assert '"defect"' not in sidecar.log
    assert '"library"' not in sidecar.log


def refusals(sidecar: SidecarProcess, reason: str = "untrusted_peer") -> float:
    """How many decisions were refused for this reason, by the metric."""
    text = get(sidecar.management_port, "/metrics", {}).body.decode()
    lines = [line for line in text.splitlines() if f'reason="{reason}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def lines_of(sidecar: SidecarProcess, peer: str) -> list[dict]:
    """The log's lines about a peer."""
    found = [json.loads(line) for line in sidecar.log.splitlines()]
    return [line for line in found if line.get("peer") == peer]


async def test_a_pipelining_stranger_gets_one_answer(sidecar: SidecarProcess) -> None:
    """However much it sends: one 403, then the end, and the answer can be read."""
    before = refusals(sidecar)
    async with Wire(sidecar.port, STRANGER) as wire:
        wire.send(GOOD * 50)
        answer = await wire.answer()
        assert (answer.status, answer.json["code"]) == (403, "untrusted_peer")
        assert answer.header("Connection") == "close"
        assert await wire.ended()
    assert refusals(sidecar) == before + 1


@pytest.mark.parametrize(
    "start", [b"G", GOOD[:60], b"\x16\x03\x01\x02\x00", b"\r\n", b"X" * 100_000, b""]
)
async def test_a_stranger_is_answered_whatever_it_sends(
    start: bytes, sidecar: SidecarProcess
) -> None:
    """Nothing is parsed, and nothing is waited for, not even the first byte."""
    before = refusals(sidecar)
    async with Wire(sidecar.port, STRANGER) as wire:
        wire.send(start)
        begun = time.monotonic()
        answer = await wire.answer()
        assert (answer.status, answer.json["code"]) == (403, "untrusted_peer")
        assert await wire.ended()
        assert time.monotonic() - begun < 9  # far less on an idle machine
    assert refusals(sidecar) == before + 1


async def test_a_stranger_is_answered_in_the_dialect_that_it_asks_in(
    sidecar: SidecarProcess,
) -> None:
    """A proxy that is missing in trusted_peers is told so in its own way."""
    async with Wire(sidecar.port, STRANGER) as wire:
        answer = await wire.ask(subrequest(proxy="nginx"))
        assert (answer.status, answer.header("X-Authz-Status")) == (403, "403")
        assert "untrusted_peer" in (answer.header("X-Authz-Body") or "")
    async with Wire(sidecar.port, STRANGER) as wire:
        head = subrequest(line="HEAD /authz/traefik HTTP/1.1")
        answer = await wire.ask(head, head=True)
        assert answer.status == 403
        assert await wire.ended()


async def test_refusals_of_a_stranger_are_logged_at_a_pace(sidecar: SidecarProcess) -> None:
    """Every one is counted; a line a second says how many were left out."""
    peer = "127.0.0.21"
    asked = 40
    before = refusals(sidecar)
    begun = time.monotonic()
    for _ in range(asked):
        async with Wire(sidecar.port, peer) as wire:
            assert (await wire.ask(GOOD)).status == 403
    assert refusals(sidecar) == before + asked

    def told() -> int:
        return sum(1 + line.get("left_out", 0) for line in lines_of(sidecar, peer))

    await asyncio.to_thread(until, lambda: told() == asked, "the last line")
    assert len(lines_of(sidecar, peer)) <= math.ceil(time.monotonic() - begun) + 1


async def test_bad_tokens_past_their_limit_are_logged_at_a_pace(sidecar: SidecarProcess) -> None:
    """The 401s have a line each, the 429s behind them a line a second."""
    client = address()  # one sidecar after the other has the same Redis
    begun = time.monotonic()
    bad = subrequest(authorization="Bearer 11|" + "x" * 40, client=client)
    async with Wire(sidecar.port) as wire:
        statuses = [(await wire.ask(bad)).status for _ in range(300)]
    assert set(statuses) == {401, 429}
    late = statuses.count(429)
    assert late > 200

    def lines() -> list[dict]:
        found = [json.loads(line) for line in sidecar.log.splitlines()]
        return [one for one in found if one.get("client") == client and one.get("status") == 429]

    def told() -> int:
        return sum(1 + line.get("left_out", 0) for line in lines())

    await asyncio.to_thread(until, lambda: told() == late, "the last line")
    assert len(lines()) <= math.ceil(time.monotonic() - begun) + 1


async def test_unknown_paths_past_their_limit_are_logged_at_a_pace(
    sidecar: SidecarProcess,
) -> None:
    """A 404 has a line each, the 429s behind them a line a second; IPv6 by its /64."""
    begun = time.monotonic()
    async with Wire(sidecar.port) as wire:
        statuses = [
            (
                await wire.ask(subrequest(uri="/api/v1/no-such-path", client=f"2001:db8:7::{n:x}"))
            ).status
            for n in range(500)
        ]
    late = statuses.count(429)
    assert late > 200

    def lines() -> list[dict]:
        found = [json.loads(line) for line in sidecar.log.splitlines()]
        return [
            one
            for one in found
            if str(one.get("client")).startswith("2001:db8:7:") and one["status"] == 429
        ]

    await asyncio.to_thread(
        until,
        lambda: sum(1 + line.get("left_out", 0) for line in lines()) == late,
        "the last line",
    )
    assert len(lines()) <= math.ceil(time.monotonic() - begun) + 1


# ---------------------------------------------------------------------------------- the flood


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def _p99(port: int, seconds: float, statuses: list[int]) -> float:
    """The 99th percentile, in seconds, of requests at an even pace on ten connections."""
    times = []
    end = time.monotonic() + seconds

    async def one(wire: Wire, phase: float) -> None:
        await asyncio.sleep(phase)
        while time.monotonic() < end:
            begun = time.perf_counter()
            statuses.append((await wire.ask(GOOD)).status)
            times.append(time.perf_counter() - begun)
            await asyncio.sleep(0.03)

    wires = [Wire(port) for _ in range(10)]
    try:
        for wire in wires:
            await wire.__aenter__()
        await asyncio.gather(*(one(wire, n * 0.003) for n, wire in enumerate(wires)))
    finally:
        for wire in wires:
            await wire.__aexit__(None, None, None)
    return sorted(times)[math.ceil(len(times) * 0.99) - 1]


SLACK_S = 0.002
"""The least that a machine with two cores can be told apart by."""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_flood_of_a_stranger_hardly_slows_others(
    shape: str, sidecar: SidecarProcess, tell
) -> None:
    """64 connections of an untrusted neighbour: p99, 503s, log lines and memory stay bounded."""
    statuses: list[int] = []
    quiet, flooded, pace = [], [], []
    before = peak = await asyncio.to_thread(resident_mib, sidecar.pid)
    for _ in range(3):
        quiet.append(await _p99(sidecar.port, 3, statuses))
        with flood(sidecar.port, shape, source=STRANGER):
            await asyncio.sleep(1)
            begun, lines = time.monotonic(), len(lines_of(sidecar, STRANGER))
            flooded.append(await _p99(sidecar.port, 4, statuses))
            written = len(lines_of(sidecar, STRANGER)) - lines
            pace.append(written / (time.monotonic() - begun))
            peak = max(peak, resident_mib(sidecar.pid))
    tell(
        f"{shape}: p99 {median(quiet) * 1000:.1f} ms quiet, {median(flooded) * 1000:.1f} ms "
        f"flooded; {max(pace):.1f} lines a second; {peak - before:+.1f} MiB"
    )
    assert set(statuses) == {200}
    assert median(flooded) <= 2 * median(quiet) + SLACK_S
    assert max(pace) <= 10
    assert peak - before <= 32
