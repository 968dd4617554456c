"""Receipts of decisions: which are kept, what they hold, how they are bounded, and who waits."""

import asyncio
import json
import time
from ipaddress import ip_address
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis import exceptions

from authsidecar.decision.allowlist import parse
from authsidecar.decision.authorize import Outcome
from authsidecar.decision.checks import PERMISSION_MISSING
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Limit,
    Permission,
    Proxy,
    Quota,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.policy import Instance
from authsidecar.observe.receipts import MadeUnder
from authsidecar.store import receipt_reader as reader
from authsidecar.store import receipts as written
from authsidecar.store.keys import Keys
from authsidecar.store.receipt_reader import Reader, backwards, find
from authsidecar.store.receipts import ReceiptOptions, ReceiptWriter
from authsidecar.times import UnixMs
from tests.support import seed
from tests.support.seed import bearer
from tests.support.sidecar import get, start_sidecar
from tests.support.waiting import eventually

KEEP_ALL = ReceiptOptions(
    share=1, max_entries=100_000, max_age_ms=3_600_000, max_per_second=100_000
)
ORIGIN = MadeUnder("1.2.3", "c0ffee", {"api", "v1", "teams"}, report_only=False)
UUID = "abcdefghijklmnopqrstuvwx"


class State:
    """The part of a store that a receipt looks at."""

    @staticmethod
    def current():
        return Instance(api_enabled=True, allowlist=parse("192.0.2.0/24"), mcp_enabled=False)


STATE: Any = State()


def record(token: int = 7) -> TokenRecord:
    return TokenRecord(
        token=TokenId(token),
        digest=b"d" * 32,
        name="a name",
        user=UserId(1),
        team=TeamId(3),
        permissions=frozenset({Permission.READ}),
        expires_at=None,
        role=Role.MEMBER,
    )


def request(path: str = "/api/v1/teams") -> AccessRequest:
    credential = Credential(TokenId(7), b"d" * 32)
    return AccessRequest(
        Proxy.NGINX, "GET", path, b"/x?secret=1", ip_address("192.0.2.1"), credential
    )


def outcome(verdict=None, token: int | None = 7, at: int | None = None) -> Outcome:
    now = UnixMs(int(time.time() * 1000) if at is None else at)
    quota = Quota("user", Limit(200), 199, UnixMs(now + 60_000))
    known = None if token is None else record(token)
    return Outcome(
        Allow(None) if verdict is None else verdict, now, (quota,), "/api/v1/teams", known
    )


def receipts(client, registry=None, **options) -> ReceiptWriter:
    return ReceiptWriter(
        client, Keys(), ReceiptOptions(**{**vars_of(KEEP_ALL), **options}), ORIGIN, registry
    )


def vars_of(options: ReceiptOptions) -> dict:
    return {name: getattr(options, name) for name in ReceiptOptions.__slots__}


async def all_of(client) -> list:
    found = [
        one async for kept in Reader(client, Keys(), UnixMs(0)).pages() for one in kept.receipts
    ]
    return sorted(found, key=lambda one: one.id)


def refuse(kept: ReceiptWriter, name: str, *, token: int | None = 7) -> None:
    deny = Deny(PERMISSION_MISSING, "the route needs write", (Permission.WRITE,))
    kept.refused(name, Proxy.NGINX, request(), outcome(deny, token), "", STATE)


async def test_a_refusal_is_found_by_its_id_with_all_it_was_decided_from(redis_client):
    """Ids, template, address, code, counters, what the token held, release and configuration."""
    kept = receipts(redis_client)
    refuse(kept, "one")
    refuse(kept, "two")
    await kept.write()
    found = await find(redis_client, Keys(), "one")
    assert found is not None
    assert (found.outcome, found.code, found.status) == ("deny", "permission_missing", 403)
    assert (found.token, found.user, found.team, found.role) == (7, 1, 3, "member")
    assert (found.method, found.route, found.path) == ("GET", "/api/v1/teams", "/api/v1/teams")
    assert (found.client, found.detail) == ("192.0.2.1", "the route needs write")
    assert (found.release, found.config) == ("1.2.3", "c0ffee")
    assert found.counters[0][:3] == ("user", Limit(200), 199)
    assert (found.api_enabled, found.mcp_enabled, found.address_allowed) == (True, False, True)
    assert await find(redis_client, Keys(), "three") is None


async def test_of_admissions_a_share_and_the_first_of_token_and_route_in_an_hour(redis_client):
    """Share 0: the firsts alone, with a weight of 1; share 0.1: about a tenth, each for ten."""
    firsts = receipts(redis_client, share=0)
    for n in range(100):
        firsts.admitted(f"f{n}", Proxy.NGINX, request(), outcome(token=n % 2), STATE)
    await firsts.write()
    assert [(one.id, one.weight) for one in await all_of(redis_client)] == [("f0", 1), ("f1", 1)]
    await redis_client.flushdb()
    some = receipts(redis_client, share=0.1)
    for n in range(5000):
        some.admitted(f"s{n}", Proxy.NGINX, request(), outcome(), STATE)
    await some.write()
    sampled = [one for one in await all_of(redis_client) if one.weight > 1]
    assert {one.weight for one in sampled} == {10}
    assert 350 < len(sampled) < 650  # 500 expected, 7 standard deviations away


async def test_what_is_too_much_is_dropped_counted_and_told_to_readers(redis_client):
    """More than so many a second; strangers can take no more than their half of it."""
    registry = CollectorRegistry()
    kept = receipts(redis_client, registry, max_per_second=20)
    for n in range(50):
        refuse(kept, f"stranger{n:02}", token=None)
    for n in range(5):
        refuse(kept, f"token{n}")
    await kept.write()
    assert registry.get_sample_value("authsidecar_receipts_written_total") == 15
    by_rate = registry.get_sample_value("authsidecar_receipts_dropped_total", {"cause": "rate"})
    assert by_rate == 40
    pages = [kept async for kept in Reader(redis_client, Keys(), UnixMs(0)).pages()]
    assert sum(len(page.receipts) for page in pages) == 15
    assert sum(page.dropped for page in pages) == 40


async def test_redis_away_drops_and_counts_and_raises_nothing():
    """What was taken note of meanwhile is not written later: it would be without bound."""

    class Away:
        def pipeline(self, **_):
            raise exceptions.ConnectionError

    registry = CollectorRegistry()
    kept = receipts(Away(), registry)
    refuse(kept, "one")
    await kept.write()
    await kept.write()
    by_redis = registry.get_sample_value("authsidecar_receipts_dropped_total", {"cause": "redis"})
    assert by_redis == 1


async def test_the_queue_is_bounded(redis_client, monkeypatch):
    """A writer that does not get on costs no more memory than this."""
    monkeypatch.setattr(written, "QUEUED", 3)
    registry = CollectorRegistry()
    kept = receipts(redis_client, registry)
    for n in range(5):
        refuse(kept, f"{n}")
    await kept.write()
    assert [one.id for one in await all_of(redis_client)] == ["0", "1", "2"]
    sample = registry.get_sample_value("authsidecar_receipts_dropped_total", {"cause": "queue"})
    assert sample == 2


async def test_their_number_and_age_are_bounded(redis_client):
    """Strangers push out strangers only; what is too old goes."""
    kept = receipts(redis_client, max_entries=1600)  # a hundred in each stream
    refuse(kept, "token")
    for n in range(8000):
        refuse(kept, f"stranger{n}", token=None)
    await kept.write()
    found = await all_of(redis_client)
    assert "token" in {one.id for one in found}
    assert 800 <= len(found) < 2200  # Redis cuts off whole nodes
    old = receipts(redis_client, max_age_ms=1)
    await asyncio.sleep(0.01)
    await old._trim()
    assert await all_of(redis_client) == []


async def test_only_words_of_the_routes_and_ids_stay_of_a_path(redis_client):
    """A secret that somebody writes into a path is not kept; nor are target and query."""
    kept = receipts(redis_client)
    for n, path in enumerate(
        (f"/api/v1/teams/{UUID}", "/api/v1/hunter2/S3CRET", "/api" + "/a" * 99)
    ):
        kept.admitted(f"{n}", Proxy.NGINX, request(path), outcome(token=n), STATE)
    await kept.write()
    found = [one.path for one in await all_of(redis_client)]
    assert found == [f"/api/v1/teams/{UUID}", "/api/v1/*/*", None]


async def test_a_reader_goes_on_where_it_was(redis_client):
    """Nothing twice, nothing missed, whatever stream it comes in."""
    kept, reader = receipts(redis_client), Reader(redis_client, Keys(), UnixMs(0))
    for names in ("abc", "defghijklm", ""):
        for name in names:
            refuse(kept, name)
        await kept.write()
        assert {one.id for one in (await reader.read()).receipts} == set(names)


async def test_all_streams_are_read_in_one_order_forwards_and_backwards(redis_client, monkeypatch):
    """Whatever the size of a trip; nothing twice, and from any place on."""
    kept = receipts(redis_client)
    names = [f"{n:02}" for n in range(60)]
    for n, name in enumerate(names):
        token = 7 if n % 5 else None
        kept.refused(
            name, Proxy.NGINX, request(), outcome(Deny(PERMISSION_MISSING), token, n), "", STATE
        )
        if n % 3 == 0:
            await kept.write()
            await asyncio.sleep(0.002)  # what is written in one millisecond has no order
    await kept.write()
    for size in (4, 8, 200):
        monkeypatch.setattr(reader, "PAGE", size)
        pages = Reader(redis_client, Keys(), UnixMs(0)).pages()
        assert [one.id async for page in pages for one in page.receipts] == names
        newest_first = [found async for found in backwards(redis_client, Keys())]
        there = [one.id for _, one in newest_first if one is not None]
        assert sorted(there) == names
        assert [place for place, _ in newest_first] == sorted(
            (place for place, _ in newest_first), reverse=True
        )
        for place, one in newest_first[::7]:
            older = [found async for found in backwards(redis_client, Keys(), place)]
            assert older == newest_first[newest_first.index((place, one)) + 1 :]


@pytest.fixture
def sidecar(redis_server, tmp_path):
    process = start_sidecar(tmp_path, redis_server.url, RECEIPTS__SHARE="0")
    yield process
    process.stop()


async def test_a_sidecar_keeps_what_it_refuses(sidecar, redis_client):
    """Readable or not; the answer's decision_id finds it, and the metrics count it."""
    registry = seed.registry(redis_client)
    await seed.user(registry, 7, t3="owner")
    await registry.put_tokens([seed.token(1, user=7, team=3)])
    await registry.set_instance(api_enabled=True)
    names = [
        sidecar.ask(method, uri, authorization=bearer(1)).json["decision_id"]
        for method, uri in (("POST", "/api/v1/projects"), ("GET", "/api/v1/no"), ("GET", "/a//b"))
    ]
    await eventually(lambda: _codes(redis_client, names), "a receipt")
    found = [await find(redis_client, Keys(), name) for name in names]
    assert [one.code for one in found] == [
        "permission_missing",
        "route_unknown",
        "ambiguous_target",
    ]
    assert [one.claimed for one in found] == [1, 1, None]
    assert found[1].path == "/api/v1/*"
    assert found[2].peer == "127.0.0.1"
    assert len({one.config for one in found}) == 1
    text = get(sidecar.management_port, "/metrics", {}).body.decode()
    assert "authsidecar_receipts_written_total 3.0" in text
    assert 'authsidecar_receipts_dropped_total{cause="redis"} 0.0' in text


async def test_requests_that_were_seen_before_are_kept_like_others(
    redis_server, redis_client, tmp_path
):
    """With a share of all, each admission has its receipt, also on the short way."""
    registry = seed.registry(redis_client)
    await seed.user(registry, 7, t3="owner")
    await registry.put_tokens([seed.token(1, user=7, team=3)])
    await registry.set_instance(api_enabled=True)
    process = start_sidecar(tmp_path, redis_server.url, RECEIPTS__SHARE="1")
    names = set()
    for _ in range(8):
        answer = process.ask("GET", "/api/v1/teams", authorization=bearer(1))
        names.add(answer.header("X-Auth-Decision-Id"))
    assert process.stop() == 0  # the last receipts are written at the end
    found = {one.id: one for one in await all_of(redis_client)}
    assert set(found) == names
    counters = sorted(one.counters[0].remaining for one in found.values())
    assert counters == list(range(192, 200))
    assert {(one.token, one.path, one.code) for one in found.values()} == {
        (1, "/api/v1/teams", None)
    }


async def _codes(client, names) -> bool:
    return None not in [await find(client, Keys(), name) for name in names]


async def test_a_receipt_is_read_back_as_it_was_written(redis_client):
    """Also by a reader that meets what another version wrote: it is passed over."""
    kept = receipts(redis_client)
    refuse(kept, "one")
    await kept.write()
    await redis_client.xadd(Keys().receipts("token", 0), {"r": json.dumps({"id": "later"})})
    await redis_client.xadd(Keys().receipts("token", 0), {"r": b"\xff"})
    assert [one.id for one in await all_of(redis_client)] == ["one"]
