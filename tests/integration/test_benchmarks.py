"""The benchmark's contestants do what the page says of them."""

import asyncio
import contextlib
import re
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from benchmarks import before, report, requests, startup
from benchmarks.bench import accepting, aiohttp_server
from benchmarks.load import drive, generator, statuses
from benchmarks.many_tokens import one, write_owners, write_tokens
from benchmarks.nginx_lua import missing, nginx_lua
from benchmarks.simulate_failover import table
from tests.support.redis import free_port
from tests.support.seed import bearer
from tests.support.sidecar import get, start_sidecar

USERS, TOKENS = 20, 50
SCALING = Path(__file__).parents[2] / "docs/explanation/scaling.md"


def test_scaling_page_tells_what_the_simulation_finds():
    """The tables of the page are those that a run prints today."""
    text = SCALING.read_text()
    assert report.filled(text, "failover", table()) == text
    assert report.filled(text, "trips", report.trips()) == text


async def test_script_writes_tokens_as_the_registry_does(redis_client: Redis):
    """Every key, value and expiry is the same, so a million of them weigh the same."""
    registry, script = Keys("registry:"), Keys("script:")
    numbers = range(1, TOKENS + 1)
    for keys in (registry, script):
        await write_owners(redis_client, keys, USERS)
    await Registry(redis_client, registry).put_tokens([one(n, USERS) for n in numbers])
    await write_tokens(redis_client, script, 1, TOKENS, USERS)
    expected, found = [await _state(redis_client, keys) for keys in (registry, script)]
    assert len(expected) > TOKENS
    assert found == expected


async def test_naive_version_answers_what_the_sidecar_answers(redis_url, tmp_path):
    """It is compared with the sidecar for the same work: status and headers are the same."""
    await requests.seed(redis_url)
    sidecar = start_sidecar(tmp_path, redis_url)
    fields = {
        "Authorization": bearer(1),
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Uri": "/api/v1/servers",
    }
    port = free_port()
    with aiohttp_server("naive", port, redis_url):
        accepting(port)
        for path in (
            "/authz/traefik",
            "/authz/nginx",
            "/authz/caddy",
            "/authz/envoy/api/v1/servers",
        ):
            expected, found = (get(p, path, fields) for p in (sidecar.port, port))
            assert (expected.status, found.status) == (200, 200)
            mine, theirs = ({n.lower() for n, _ in a.headers} for a in (expected, found))
            assert mine - {"content-type"} == theirs - {"content-type"}
    sidecar.stop()


async def test_a_commit_before_runs_by_its_own_code(redis_url, tmp_path):
    """What takes part as the commit before is not this tree once more."""
    source = before.source("HEAD", tmp_path)
    package = source / "authsidecar/__init__.py"
    package.write_text(package.read_text() + '\n__version__ = "0.0.1"\n')
    sidecar = start_sidecar(tmp_path / "run", redis_url, source=source)
    metrics = get(sidecar.management_port, "/metrics", {}).body
    sidecar.stop()
    assert b'authsidecar_build_info{version="0.0.1"}' in metrics


async def test_nginx_with_lua_judges_and_charges(redis_server, redis_url):
    """It is compared for work that it does: a wrong secret is refused, a right one is counted."""
    if (why := missing()) is not None:
        pytest.skip(why)
    await requests.seed(redis_url)
    port = free_port()
    with nginx_lua(port, redis_server):
        accepting(port)
        answers = [
            get(port, "/authz/traefik", {"Authorization": bearer(1, secret)})
            for secret in (None, "wrong", None)
        ]
    assert [answer.status for answer in answers] == [200, 401, 200]
    assert [answer.header("X-RateLimit-Remaining") for answer in answers] == [
        "99999",
        None,
        "99998",
    ]
    assert answers[0].header("X-Auth-User-Id") == "1"


def test_a_start_is_measured_to_its_first_answer(redis_url, tmp_path):
    """Both that are compared answer, and a process that ends at once is no measurement."""
    empty = (sys.executable, "-c", startup.EMPTY, "PORT"), {}
    for start in (empty, startup.sidecar(redis_url, tmp_path)):
        wall, cpu = startup.first_answer(start)
        assert 0 < cpu < wall * 2
    with pytest.raises(RuntimeError, match="no first answer"):
        startup.first_answer(((sys.executable, "-c", "raise SystemExit"), {}))


@pytest.mark.parametrize("tool", ["wrk", "benchmarks/load.py"])
def test_load_counts_refusals(redis_url, monkeypatch, tool):
    """Whichever generator is used, it reports each answer of 400 and above."""
    if tool == "wrk" and generator() != "wrk":
        pytest.skip("wrk is not installed")
    monkeypatch.setattr("benchmarks.load.generator", lambda: tool)
    port = free_port()
    with aiohttp_server("empty", port, redis_url):
        accepting(port)
        good = requests.allowed()[0]
        bad = good.replace(b"/authz/traefik", b"/authz/nothing")
        assert statuses(port, [good, good, bad]) == {200: 2, 404: 1}
        measured = drive(port, [good, bad], connections=2, seconds=1)
    assert measured.requests > 100
    assert abs(measured.refused * 2 - measured.requests) <= 4


@pytest.mark.parametrize("tool", ["wrk", "benchmarks/load.py"])
async def test_load_sends_what_was_never_seen(monkeypatch, tool):
    """A request with a number in it is another one each time, whichever generator is used."""
    if tool == "wrk" and generator() != "wrk":
        pytest.skip("wrk is not installed")
    monkeypatch.setattr("benchmarks.load.generator", lambda: tool)
    seen = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sent = requests.never_seen()[:2]
        await asyncio.to_thread(drive, port, sent, connections=2, seconds=1)
    assert len(seen) > 100
    assert len(set(seen)) == len(seen)
    assert {re.sub(rb"servers/\d{16,}", b"servers/{number}", one) for one in seen} == set(sent)


async def _state(client: Redis, keys: Keys) -> dict[str, object]:
    """All keys under a prefix but nonces, epochs and last ids, by their names' rest."""
    found: dict[str, object] = {}
    value: object
    for key in sorted([k async for k in client.scan_iter(f"{keys.prefix}*")]):
        name = key.decode().removeprefix(keys.prefix)
        if name.startswith(("nonce:", "last-id:", "benchmark:", "{sync}:")):
            continue
        match await client.type(key):
            case b"hash":
                value = await client.hgetall(key)
            case b"set":
                value = await client.smembers(key)
            case b"zset":
                value = await client.zrange(key, 0, -1, withscores=True)
            case kind:
                raise AssertionError(f"{name} is a {kind!r}")
        found[name] = (value, await client.pexpiretime(key), await client.object("encoding", key))
    return found
