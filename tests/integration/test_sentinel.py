"""Redis behind sentinels: real servers, the primary killed, frozen and demoted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions

from authsidecar.decision.model import Limit, Role, TeamId, TokenId, UserId
from authsidecar.store.connect import Connection, connected
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.decisions import rules, sidecar, world
from tests.support.failover import Load
from tests.support.topologies import Watched, client, sentinels, until_in_step
from tests.support.waiting import eventually

pytestmark = pytest.mark.any_python

TEAM, USER = TeamId(3), UserId(7)
TRIES = 5

SILENCE_S = 0.9
"""Less than the second that a sentinel has to answer in."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A primary that lives as long as the module."""
    with sentinels(tmp_path_factory.mktemp("sentinel")) as made:
        yield made


@contextlib.asynccontextmanager
async def registered(url: str, **how: Any) -> AsyncIterator[tuple[Any, Registry]]:
    async with connected(Connection(url, data_dir=None, **how)) as made:  # type: ignore[arg-type]
        yield made, await world(made)


@pytest.fixture
async def registry(watched: Watched) -> AsyncIterator[Registry]:
    """The usual world on an empty primary."""
    with client(watched.servers[0]) as primary:
        primary.flushall()
    async with registered(watched.url) as (_, made):
        yield made


async def test_39_a_change_is_seen_by_the_very_next_request_of_another_process(
    watched: Watched, registry: Registry
) -> None:
    """Behind sentinels it is one Redis, and all that is promised of one holds."""
    async with sidecar(watched.url) as here, sidecar(watched.url) as elsewhere:
        for each in (here, elsewhere):
            assert await each.ask(67) == "allow"
        await registry.set_member(TEAM, USER, Role.MEMBER)
        for each in (here, elsewhere):
            assert await each.ask(67) == "team_role_required"
        await registry.set_instance(api_enabled=False)
        for each in (here, elsewhere):
            assert await each.ask(68) == "api_disabled"


async def test_a_cold_start_of_many_tokens_waits_for_connections_and_fails_nobody(
    watched: Watched, registry: Registry
) -> None:
    """More loads at once than there are connections are a queue, not an outage."""
    assert registry is not None
    async with sidecar(watched.url) as here:
        asked = [here.ask(10_000 + i, client=f"192.0.{i // 200}.{i % 200}") for i in range(200)]
        assert set(await asyncio.gather(*asked)) == {"token_unknown"}


async def test_a_sentinel_that_does_not_answer_is_passed_over(
    watched: Watched, registry: Registry
) -> None:
    """The first one frozen costs the first request its budget, and the next one nothing."""
    assert registry is not None
    how = Connection(watched.url, data_dir=None)  # type: ignore[arg-type]
    took: list[float] = []
    watched.sentinels[0].freeze()
    try:
        while not took or (len(took) < TRIES and min(took) >= SILENCE_S):
            async with connected(how) as made:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await made.ping()
                start = time.monotonic()
                await made.ping()
                took.append(time.monotonic() - start)
    finally:
        watched.sentinels[0].thaw()
    assert min(took) < SILENCE_S


async def test_none_is_lost_where_many_ask_at_once(watched: Watched, registry: Registry) -> None:
    """The first one frozen, and callers without and with patience: all are kept, and closed."""
    assert registry is not None
    how = Connection(watched.url, data_dir=None)  # type: ignore[arg-type]
    async with connected(how) as made:
        pool: Any = made.connection_pool
        known = pool.sentinel_manager

        async def ask(patience_s: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await known.discover_master(watched.name)

        before = set(known.sentinels)
        watched.sentinels[0].freeze()
        try:
            await asyncio.gather(*(ask(0.1 * i) for i in range(1, 20)))
        finally:
            watched.sentinels[0].thaw()
        assert len(known.sentinels) == len(before) == 3
        assert set(known.sentinels) == before


async def test_a_service_that_no_sentinel_knows_is_a_connection_error(watched: Watched) -> None:
    """A wrong name is told, without the login in it."""
    url = watched.url.replace("://", "://someone:secret-of-mine@").replace("/auth", "/other")
    with pytest.raises(exceptions.ConnectionError, match="other") as told:
        async with registered(url):
            pass
    assert "secret" not in str(told.value)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_killed_primary_under_load_lets_nobody_in_and_is_forgotten_quickly(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """After WAITed changes there is no wrong allow; recovery is under 5 s after promotion."""
    with sentinels(tmp_path) as servers:
        async with registered(servers.url) as (made, registry):
            tokens = list(range(1, 41))
            await registry.put_tokens([seed.token(i, user=7, team=3) for i in tokens])

            async def replicated() -> bool:
                return await made.wait(1, 900) == 1  # its client gives up after a second

            async with contextlib.AsyncExitStack() as stack:
                sides = [
                    await stack.enter_async_context(sidecar(servers.url, budget_ms=100))
                    for _ in range(2)
                ]
                load = Load(sides, rules({"user": Limit(1_000_000)}))
                for token in tokens:
                    for side in sides:
                        await side.until_allowed(token)
                async with load.running([67], expected="allow"):
                    for token in tokens:
                        await registry.remove_token(TokenId(token))
                    await eventually(replicated, "all changes on the replica")
                    load.forbidden = tokens
                    await asyncio.sleep(0.2)
                    load.killed_at = time.monotonic()
                    servers.servers[0].kill()
                    await asyncio.to_thread(servers.until_promoted, 1)
                    promoted = time.monotonic()
                    recovered = await load.until_good(67, after=promoted)
                    # The old primary comes back, empty, and believes for a moment to be one.
                    servers.servers[0].start()
                    await asyncio.sleep(2)
                assert load.wrong == []
                assert load.asked_forbidden > 50
                tell(
                    f"sentinel: promoted {promoted - load.killed_at:.2f} s after the kill, "
                    f"first good answer {recovered:.2f} s after that"
                )
                assert recovered < 5.0
                await registry.set_member(TEAM, USER, Role.MEMBER)
                for side in sides:
                    assert await side.decided(67, rules=load.rules) == "team_role_required"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_primary_that_is_demoted_alive_is_left_at_once(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """A planned failover: the old primary answers for ten more seconds, and nobody asks it."""
    with sentinels(tmp_path) as servers:
        async with registered(servers.url) as (_, registry), sidecar(servers.url) as here:
            load = Load([here], rules({"user": Limit(1_000_000)}))
            async with load.running([67], expected="allow"):
                with client(servers.sentinels[0]) as sentinel:
                    sentinel.execute_command("SENTINEL FAILOVER", servers.name)
                await asyncio.to_thread(servers.until_promoted, 1)
                recovered = await load.until_good(67, after=time.monotonic())
                await asyncio.sleep(1)
            assert load.wrong == []
            tell(f"sentinel: first good answer {recovered:.2f} s after a planned failover")
            assert recovered < 5.0
            await registry.set_member(TEAM, USER, Role.MEMBER)
            assert await here.ask(67, rules=load.rules) == "team_role_required"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_failover_keeps_the_limit_but_for_what_was_not_replicated(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Admissions that the replica had are counted; so at most the lag is admitted on top."""
    limit = 400
    with sentinels(tmp_path) as servers:
        async with registered(servers.url), sidecar(servers.url, budget_ms=2000) as here:
            some = rules({"user": Limit(limit, 600_000)})

            async def admitted(rounds: int) -> int:
                answers: list[str] = []
                for _ in range(rounds):
                    answers += await asyncio.gather(*(here.ask(67, rules=some) for _ in range(50)))
                return answers.count("allow")

            before = await admitted(5)
            until_in_step(*servers.servers)
            servers.servers[0].kill()
            await asyncio.to_thread(servers.until_promoted, 1)
            await Load([here], some).until_good(67, after=time.monotonic())
            total = before + 1 + await admitted(6)
            tell(f"sentinel: {total} of {limit} admitted across a failover")
            assert (before, total) == (250, limit)
