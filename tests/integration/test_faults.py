"""Two hundred rounds of fault and recovery, mixed at random, with 48 callers, on each topology.

After each round requests pass within a second, and no connection to Redis is lost.
"""

import asyncio
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from authsidecar.decision.model import Limit
from authsidecar.store.connect import Connection, connected
from tests.support import seed
from tests.support.decisions import Sidecar, rules, sidecar, world
from tests.support.faults import OPTIONS, Admin, BrokenWire, Fault
from tests.support.redis import start_redis
from tests.support.sidecar import start_sidecar
from tests.support.topologies import certificates, client, cluster, sentinels
from tests.support.waiting import eventually
from tests.support.wire import ask, subrequest

pytestmark = pytest.mark.any_python

ROUNDS = int(os.environ.get("AUTHSIDECAR_TEST_ROUNDS", "200"))
CALLERS = 48
BUDGET_MS = 50
BACK_S = 1.0
"""Within how many seconds of Redis being well requests pass again."""

BUSY_HOST = 3
"""How often a round may be late because the machine was busy: far fewer than one kind of fault."""

GENEROUS = rules({"user": Limit(10_000_000), "failed": Limit(10_000_000)})
PASSWORD = "a p@ss:/word"


class Crowd:
    """Callers that never stop asking: for good tokens, and for one that must never pass."""

    def __init__(self, here: Sidecar) -> None:
        self.here = here
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._ask(i)) for i in range(CALLERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}, ends

    async def _ask(self, number: int) -> None:
        address = f"192.0.2.{number}"
        while True:
            for who in (67, 68, 99):
                answer = await self.here.ask(who, rules=GENEROUS, client=address)
                self.answers[answer] += 1
                allowed = {"allow"} if who != 99 else {"token_unknown", "rate_limited"}
                if answer not in {*allowed, "store_unavailable"}:
                    self.wrong.append(f"{who}: {answer}")
            if number == 0:
                self.here.store._records.clear()  # so that records are read all the time, too
            await asyncio.sleep(0.005)

    async def until_all_pass(self) -> float:
        """How many seconds until each of a crowd is answered well."""
        start = time.monotonic()

        async def one(number: int) -> None:
            address = f"192.0.2.{number}"
            while (  # noqa: ASYNC110  # nothing would set an event
                await self.here.ask(67, rules=GENEROUS, client=address) != "allow"
                or await self.here.ask(99, rules=GENEROUS, client=address) == "store_unavailable"
            ):
                await asyncio.sleep(0.005)

        async with asyncio.timeout(30):
            await asyncio.gather(*(one(number) for number in range(CALLERS)))
        return time.monotonic() - start


async def rounds(
    here: Sidecar, faults: Mapping[str, Fault], number: int, tell: Callable[[str], None]
) -> None:
    """Run so many rounds of these faults, each about as often, in a random order."""
    number_of_run = random.randrange(1 << 30)
    chance = random.Random(number_of_run)
    order = [name for i in range(number) for name in [list(faults)[i % len(faults)]]]
    chance.shuffle(order)
    crowd = Crowd(here)
    late: list[str] = []
    took: list[float] = []
    most = 0
    for name in order:
        if os.environ.get("AUTHSIDECAR_TEST_VERBOSE"):
            tell(f"{name} ...")
        async with crowd.asking():
            await asyncio.sleep(0.01)
            async with faults[name]():
                await asyncio.sleep(chance.choice((0.03, 0.06, 0.15)))
                if name not in ALONE and chance.random() < 0.2:  # one on top of the other
                    async with faults[chance.choice(MIXABLE)]():
                        await asyncio.sleep(0.03)
            took.append(await crowd.until_all_pass())
        if os.environ.get("AUTHSIDECAR_TEST_VERBOSE"):
            tell(f"{name}: {took[-1]:.2f} s")
        if took[-1] > BACK_S:
            late.append(f"{name}: {took[-1]:.2f} s")
        await eventually(lambda: _at_rest(here), f"no connection in use after {name}", patience_s=5)
        most = max(most, sum(here.store.connections))
    tell(
        f"seed {number_of_run}: {len(order)} rounds, "
        f"back after {sorted(took)[len(took) // 2]:.2f} s "
        f"(at most {max(took):.2f}), {most} connections, {dict(crowd.answers)}, late: {late}"
    )
    assert not crowd.wrong
    assert crowd.answers["allow"] > number
    assert crowd.answers["store_unavailable"] > number
    assert len(late) <= BUSY_HOST, late


MIXABLE = ("noreplicas", "full", "closed")
ALONE = frozenset(
    {"busy", "loading", "paused", "frozen", "killed", "noauth", "wrongpass", *MIXABLE}
)
"""Faults within which the operator could do no other one."""


async def _at_rest(here: Sidecar) -> bool:
    return here.store.connections[1] == 0


@asynccontextmanager
async def filled(url: str, admin: Admin, **how: Any) -> AsyncIterator[None]:
    """The usual world, and enough beside it that reading it takes a moment."""
    async with connected(Connection(url, data_dir=None, **how)) as client:  # type: ignore[arg-type]
        await world(client)
    await admin.fill()
    yield


def replies(admin: Admin) -> dict[str, Fault]:
    """Every error reply."""
    return {
        "noreplicas": admin.noreplicas,
        "misconf": admin.misconf,
        "full": admin.full,
        "loading": admin.loading,
        "busy": admin.busy,
        "noscript": admin.noscript,
    }


def silence(admin: Admin) -> dict[str, Fault]:
    """Every way not to answer."""
    return {
        "closed": admin.closed,
        "paused": admin.paused,
        "frozen": admin.frozen,
        "killed": admin.killed,
    }


def broken(wires: Sequence[BrokenWire]) -> dict[str, Fault]:
    """Everything that can happen to what is under way, to all wires at once."""

    def all_of(name: str) -> Fault:
        @asynccontextmanager
        async def fault() -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                for wire in wires:
                    await stack.enter_async_context(getattr(wire, name)())
                yield

        return fault

    return {name: all_of(name) for name in ("cut", "reset", "halved", "stalled", "garbled")}


def demoted(admin: Admin) -> dict[str, Fault]:
    """A server that is no primary; where others watch it, they would interfere."""
    return {"readonly": admin.readonly, "masterdown": admin.masterdown}


async def test_a_short_spell_of_noreplicas_costs_no_connection(tmp_path: Path) -> None:
    """Forty rounds of 48 refusals, then all pass: each round used to cost a connection or two."""
    server = start_redis(tmp_path / "redis", *OPTIONS, port=0)
    admin = Admin([server])
    try:
        async with filled(server.tcp_url, admin), sidecar(server.tcp_url) as here:
            crowd = Crowd(here)
            await crowd.until_all_pass()
            before = sum(here.store.connections)
            for fault in (admin.noreplicas, admin.readonly):
                for _ in range(20):
                    async with fault():
                        asked = [here.ask(67, rules=GENEROUS) for _ in range(CALLERS)]
                        assert set(await asyncio.gather(*asked)) == {"store_unavailable"}
                    assert await here.ask(67, rules=GENEROUS) == "allow"  # not one more refused
                await eventually(lambda: _at_rest(here), "no connection in use")
            assert sum(here.store.connections) <= before + 2
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.alone
async def test_twenty_seconds_of_noreplicas_are_over_when_redis_is_well(tmp_path: Path) -> None:
    """A real process, twenty requests a second: all 503, and then all of the next second pass."""
    server = start_redis(tmp_path / "redis", *OPTIONS, port=0)
    admin = Admin([server])
    async with filled(server.tcp_url, admin):
        process = start_sidecar(tmp_path / "sidecar", server.tcp_url, LIMITS__USER="100000")
    good = subrequest(authorization=seed.bearer(67))

    async def second() -> Counter[int]:
        async def one(number: int) -> int:
            await asyncio.sleep(number / 20)
            return (await ask(process.port, good))[0].status

        return Counter(await asyncio.gather(*(one(number) for number in range(20))))

    try:
        async with admin.noreplicas():
            seen = Counter[int]()
            for _ in range(20):
                seen += await second()
        after = await second()
    finally:
        process.stop()
        server.stop()
    assert seen == {503: 400}
    assert after == {200: 20}


async def test_no_connection_to_be_had_is_an_error_of_its_own_and_passes(tmp_path: Path) -> None:
    """Commands that hold every connection of the pool: loads fail as `pool`, charges go on."""
    server = start_redis(tmp_path / "redis", *OPTIONS, port=0)
    try:
        async with (
            filled(server.tcp_url, Admin([server])),
            sidecar(server.tcp_url, budget_ms=3000) as here,
        ):
            assert await here.ask(67) == "allow"
            pool = here.store._client.connection_pool
            held = [await pool.get_connection() for _ in range(pool.max_connections)]
            outcome = await here.outcome(68)
            assert "redis: pool" in str(outcome.verdict)
            assert await here.ask(67) == "allow"  # its record is known: only the charge is asked
            for connection in held:
                await pool.release(connection)
            assert await here.ask(68) == "allow"
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.alone
async def test_one_server(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Every fault there is, through a wire that breaks, too."""
    server = start_redis(tmp_path / "redis", *OPTIONS, port=0)
    admin = Admin([server])
    try:
        async with filled(server.tcp_url, admin), BrokenWire(server) as wire:
            faults = {
                **replies(admin),
                **silence(admin),
                **demoted(admin),
                "noauth": admin.other_password,
                **broken([wire]),
            }
            async with sidecar(f"redis://127.0.0.1:{wire.port}", budget_ms=BUDGET_MS) as here:
                await rounds(here, faults, ROUNDS, tell)
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.alone
async def test_one_server_with_a_password_behind_tls(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """TLS that breaks, and a login that is refused."""
    pem = certificates(tmp_path / "pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem["server.pem"], pem["server.key"])
    server = start_redis(tmp_path / "redis", *OPTIONS, port=0)
    admin = Admin([server])
    try:
        async with filled(server.url, admin), BrokenWire(server, context) as wire:
            await admin.config("requirepass", PASSWORD)
            admin.password = PASSWORD
            how = {"password": PASSWORD, "tls": (("ssl_ca_certs", pem["ca.pem"]),)}
            faults = {
                "noreplicas": admin.noreplicas,
                "full": admin.full,
                "closed": admin.closed,
                "wrongpass": admin.other_password,
                **broken([wire]),
            }
            url = f"rediss://127.0.0.1:{wire.port}"
            async with sidecar(url, budget_ms=BUDGET_MS, how=how) as here:
                await rounds(here, faults, ROUNDS // 2, tell)
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.alone
async def test_behind_sentinels(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Faults that end before the sentinels fail over; failovers have tests of their own."""
    with sentinels(tmp_path, *OPTIONS) as watched:
        primary, replica = watched.servers
        replica.stop()  # whoever has no replica is not failed over
        admin = Admin([primary])
        async with BrokenWire(primary) as wire:
            for one in watched.sentinels:
                with client(one) as sentinel:
                    sentinel.execute_command("SENTINEL REMOVE", watched.name)
                    sentinel.execute_command(
                        "SENTINEL MONITOR", watched.name, "127.0.0.1", wire.port, 2
                    )
            faults = {
                **replies(admin),
                **silence(admin),
                **demoted(admin),
                "noauth": admin.other_password,
                **broken([wire]),
            }
            async with (
                filled(watched.url, admin),
                sidecar(watched.url, budget_ms=BUDGET_MS) as here,
            ):
                await rounds(here, faults, ROUNDS, tell)


@pytest.mark.slow
@pytest.mark.alone
async def test_on_a_cluster(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """All primaries at once, for less time than it takes to fail over."""
    with cluster(tmp_path, replicas=False, options=OPTIONS) as made:
        admin = Admin(made.servers, until_well=made.until_whole)
        async with AsyncExitStack() as stack:
            wires = []
            for server in made.servers:
                wires.append(wire := await stack.enter_async_context(BrokenWire(server)))
                with client(server) as node:
                    node.config_set("cluster-announce-port", wire.port)
                server.extra += ("--cluster-announce-port", str(wire.port))
            ports = {wire.port for wire in wires}
            for server in made.servers:
                with client(server) as node:
                    seen = partial(_ports, node)
                    await eventually(lambda seen=seen: _equal(seen, ports), "the wires are seen")
            faults = {
                **replies(admin),
                **silence(admin),
                "noauth": admin.other_password,
                **broken(wires),
            }
            async with filled(made.url, admin), sidecar(made.url, budget_ms=BUDGET_MS) as here:
                await rounds(here, faults, ROUNDS, tell)


def _ports(node: Any) -> set[int]:
    """Where a node says that the primaries are."""
    return {int(slots[2][1]) for slots in node.execute_command("CLUSTER SLOTS", NEVER_DECODE=True)}


async def _equal(seen: Callable[[], set[int]], expected: set[int]) -> bool:
    return await asyncio.to_thread(seen) == expected
