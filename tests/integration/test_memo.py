"""Two sidecars, one with its memo and one without, answer alike whatever changes between."""

import asyncio
import json
import random
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from authsidecar.decision.model import Limit, Proxy, Restriction, TokenId, UserId
from authsidecar.store.refusals import RECHECK_MS
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import Answer, SidecarProcess, get, start_sidecar
from tests.support.wire import Wire, subrequest

USERS = range(1, 7)
URIS = ("/api/v1/teams", "/api/v1/servers/abc", "/api/v1/deploy?uuid=1", "/api/v1/nowhere", "/mcp")
PROXIES = tuple(proxy.value for proxy in Proxy if proxy is not Proxy.DIRECT)


@dataclass
class Side:
    """One sidecar with a Redis of its own."""

    sidecar: SidecarProcess
    client: Redis
    wire: Wire

    @property
    def registry(self) -> Registry:
        return seed.registry(self.client)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisProcess]]:
    made = [start_redis(tmp_path_factory.mktemp("redis")) for _ in range(2)]
    yield made
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def sidecars(servers, tmp_path_factory) -> Iterator[list[SidecarProcess]]:
    """The first remembers, the second does not."""
    made = [
        start_sidecar(
            tmp_path_factory.mktemp("sidecar"),
            server.url,
            LISTEN__MEMO_ENTRIES=entries,
            LIMITS__TOKEN="40",
            LIMITS__TEAM="100000",
            LIMITS__USER="1000",
            LIMITS__FAILED="100000",
            LIMITS__UNKNOWN="100000",
            MAIL__EXPIRY_HEADER_HOURS="24",
        )
        for server, entries in zip(servers, ("8192", "0"), strict=True)
    ]
    yield made
    for one in made:
        one.stop()


@asynccontextmanager
async def both(sidecars, servers) -> AsyncIterator[tuple[Side, Side]]:
    async with AsyncExitStack() as stack:
        sides = []
        for sidecar, server in zip(sidecars, servers, strict=True):
            client = await stack.enter_async_context(Redis.from_url(server.url))
            wire = await stack.enter_async_context(Wire(sidecar.port))
            sides.append(Side(sidecar, client, wire))
            await client.flushall()
            registry = sides[-1].registry
            await registry.set_instance(api_enabled=True, allowlist="")
            for number in USERS:
                await seed.user(registry, number, t0="admin" if number % 2 else "member")
                held = ("read",) if number < 4 else ("read", "deploy")
                await registry.put_tokens(
                    [seed.token(number, user=number, team=0, permissions=held)]
                )
        await asyncio.sleep(2 * RECHECK_MS / 1000)  # what refused before a flush stands no more
        yield sides[0], sides[1]


def told(answer: Answer) -> tuple[object, ...]:
    """An answer without what differs between two right ones: ids, the date, what time does."""
    fields = [
        (name, re.sub(r";t=\d+", "", value))
        for name, value in answer.headers
        if name not in {"Date", "X-Auth-Decision-Id", "Retry-After", "X-RateLimit-Reset"}
    ]
    fields = [
        (n, re.sub(r'"decision_id": "\w+"', "", v) if n == "X-Authz-Body" else v) for n, v in fields
    ]
    body = json.loads(answer.body) if answer.body else {}
    body.pop("decision_id", None)
    if answer.status == 429:  # whether it was asked about or stands is a matter of milliseconds
        fields = []
        body.pop("limit_name", None)
    return answer.status, fields, body


def asked(chance: random.Random) -> bytes:
    """One of some hundred subrequests; nginx's has an id of its own each time."""
    proxy, uri = chance.choice(PROXIES), chance.choice(URIS[:1] * 6 + URIS)
    number = chance.choice(USERS)
    secret = "wrong" if chance.random() < 0.05 else None
    line = f"GET /authz/envoy{uri} HTTP/1.1" if proxy == "envoy" else None
    headers = []
    if proxy in {"nginx", "caddy"}:
        headers.append(("X-Authz-Request-Id", chance.choice(["7" * 32, uuid.uuid4().hex])))
    return subrequest(
        uri=uri,
        authorization=seed.bearer(number, secret),
        client=chance.choice(["192.0.2.1", "198.51.100.7"]),
        proxy=proxy,
        headers=headers,
        line=line,
    )


async def change(side: Side, kind: int, number: int, now: int) -> None:
    """One change of the state, made at `now` (Unix seconds); the same on both."""
    registry, token, user = side.registry, TokenId(number), UserId(number)
    match kind:
        case 0:
            await registry.remove_token(token)
        case 1:
            await registry.put_tokens([seed.token(number, user=number, team=0)])
        case 2:
            await registry.set_instance(api_enabled=False)
        case 3:
            await registry.set_instance(api_enabled=True, allowlist="192.0.2.0/24")
        case 4:
            await registry.set_instance(api_enabled=True, allowlist="")
        case 5:
            await registry.set_limit("user", user, Limit(12, 3_600_000))
        case 6:
            made = seed.token(number, user=number, team=0, expires_at=(now + 3600) * 1000)
            await registry.put_tokens([made])
        case 7:
            await registry.put_tokens([seed.token(number, user=number, team=0, expires_at=1)])
        case 8:
            await registry.set_limit("token", token, Limit(3, 3_600_000))
        case 9:
            restriction = Restriction(rate=Limit(7, 3_600_000), uses=9)
            await registry.set_restriction("token", token, restriction)
        case 10:
            await registry.set_restriction("token", token, Restriction(routes=frozenset()))


async def test_a_memo_changes_no_answer(sidecars, servers) -> None:
    chance = random.Random(18)
    statuses: dict[int, int] = {}
    async with both(sidecars, servers) as (one, other):
        for number in range(1200):
            if number % 60 == 59:
                kind, whose = chance.randrange(11), chance.choice(USERS)
                now, _ = await one.client.time()
                for side in (one, other):
                    await change(side, kind, whose, now)
            request = asked(chance)
            first, second = await one.wire.ask(request), await other.wire.ask(request)
            if first.status != second.status and 429 in {first.status, second.status}:
                # A refusal by a full counter may stand for RECHECK_MS, on either side alone.
                await asyncio.sleep(2 * RECHECK_MS / 1000)
                first, second = await one.wire.ask(request), await other.wire.ask(request)
            assert told(first) == told(second), request
            statuses[first.status] = statuses.get(first.status, 0) + 1
    assert min(statuses.get(status, 0) for status in (200, 401, 403, 404)) > 10, statuses


async def test_the_lines_are_alike_too(sidecars, servers) -> None:
    async with both(sidecars, servers) as (one, other):
        request = subrequest(authorization=seed.bearer(1))
        logged = []
        for side in (one, other):
            before = len(side.sidecar.log)
            for _ in range(5):
                await side.wire.ask(request)
            lines = [json.loads(line) for line in side.sidecar.log[before:].splitlines()]
            for line in lines:
                for varies in ("time", "decision_id", "ms"):
                    assert line.pop(varies)
            logged.append(lines)
    assert logged[0] == logged[1]
    assert len(logged[0]) == 5


MAY_DIFFER = {
    "authsidecar_cache_lookups",
    "authsidecar_store_trip_seconds",
    "authsidecar_event_loop_lag_seconds",
    "authsidecar_receipts_dropped",
    "authsidecar_receipts_written",
}
"""What says how an answer was found, or when."""


def counted(side: Side) -> dict[tuple[object, ...], float]:
    """What a sidecar has counted of decisions, by series."""
    text = get(side.sidecar.management_port, "/metrics", {}).body.decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith("authsidecar_") and family.name not in MAY_DIFFER
        for sample in family.samples
        if sample.name.endswith(("_total", "_count"))
    }


async def test_the_metrics_are_alike_too(sidecars, servers) -> None:
    """Whatever counts decisions counts those that were seen before as well, of every proxy."""
    async with both(sidecars, servers) as (one, other):
        grown = []
        for side in (one, other):
            await side.registry.set_limit("user", UserId(2), Limit(30, 3_600_000))
            before = counted(side)
            for proxy in PROXIES:
                for uri in ("/api/v1/teams", "/api/v1/servers/" + "x" * 1500):
                    line = f"GET /authz/envoy{uri} HTTP/1.1" if proxy == "envoy" else None
                    for number in (1, 2):
                        request = subrequest(
                            uri=uri, authorization=seed.bearer(number), proxy=proxy, line=line
                        )
                        for _ in range(6):
                            await side.wire.ask(request)
            after = counted(side)
            grown.append({key: after[key] - before.get(key, 0) for key in after})
    assert {k: v for k, v in grown[0].items() if v} == {k: v for k, v in grown[1].items() if v}
    sums: dict[object, float] = {}
    for (name, *_), value in grown[0].items():
        sums[name] = sums.get(name, 0) + value
    assert sums["authsidecar_decisions_total"] == 24 * len(PROXIES)
    assert sums["authsidecar_near_limit_total"] > 0


async def test_what_fails_in_the_warm_path_leaves_nobody_without_an_answer(
    servers, tmp_path
) -> None:
    """An answer is sent before it is noted; those that come after a defect are counted."""
    async with Redis.from_url(servers[0].url) as client:
        await client.flushall()
        registry = seed.registry(client)
        await registry.set_instance(api_enabled=True, allowlist="")
        await seed.user(registry, 1, t0="admin")
        await registry.put_tokens([seed.token(1, user=1, team=0)])
    program = ("-m", "tests.support.broken_notes")
    sidecar = start_sidecar(tmp_path, servers[0].url, program=program)
    try:
        async with Wire(sidecar.port) as wire:
            request = subrequest(authorization=seed.bearer(1))
            statuses = [(await wire.ask(request)).status for _ in range(8)]
        assert statuses == [200, 200, 503, 200, 200, 200, 200, 200]
        metrics = get(sidecar.management_port, "/metrics", {}).body.decode()
        assert 'outcome="allow",proxy="traefik",reason="none"} 6.0' in metrics
    finally:
        sidecar.stop()
    assert sidecar.log.count("an admission is not noted") == 1
    assert sidecar.log.count("admissions have no line") == 1
    assert len(sidecar.events("decision")) == 6
    assert "a-secret" not in sidecar.log
