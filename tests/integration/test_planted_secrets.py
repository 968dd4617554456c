"""No secret that a client sends is ever written anywhere: planted, then searched for."""

import asyncio
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Limit
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import registry, secret_of, token
from tests.support.sidecar import get, start_sidecar
from tests.support.wire import Text, Wire, subrequest
from tests.support.world import OWNER, READ, ROOT, populate

PLANT = "S3CR3Tplant"
"""Every secret of this module holds it, in this case or folded."""

KNOWN = 77
NEEDLES = (PLANT.lower().encode(), b"secret-of-token", b"zzsecretbin")

SECRETS: dict[str, Text] = {
    "good": f"Bearer {KNOWN}|{PLANT}-of-77",
    "wrong": f"Bearer {KNOWN}|{PLANT}-wrong",
    "unknown": f"Bearer 999|{PLANT}",
    "malformed": f"Bearer 0{KNOWN}|{PLANT}",
    "without id": f"Bearer {PLANT}",
    "basic": f"Basic {PLANT}",
    "bare": PLANT,
    "twice": f"Bearer {KNOWN}|{PLANT}-of-77, Bearer {KNOWN}|{PLANT}-of-77",
    "huge id": f"Bearer {'9' * 40}|{PLANT}",
    "long": f"Bearer {KNOWN}|{PLANT * 500}",
    "over-long": f"Bearer {KNOWN}|{PLANT * 5000}",
    "not utf-8": f"Bearer {KNOWN}|{PLANT}".encode() + b"\xff\xfe zzsecretbin",
    "control": f"Bearer {KNOWN}|{PLANT}".encode() + b"\x01",
    "nul": f"Bearer {KNOWN}|{PLANT}".encode() + b"\x00",
}


def positions(secret: Text) -> Iterator[bytes]:
    """Requests with the secret in every place where a header, line or query can hold it."""
    raw = secret if isinstance(secret, bytes) else secret.encode()
    quoted = raw.replace(b" ", b"%20")
    for proxy in ("traefik", "nginx", "caddy", "haproxy"):
        yield subrequest(authorization=raw, proxy=proxy)
    for uri in ("/api/v1/projects", "/api/v1/nothing", "/mcp", "/api/health"):
        yield subrequest("POST", uri, authorization=raw, headers=[("X-Authz-Request-Id", raw)])
    yield subrequest("GET", b"/api/v1/teams?token=" + quoted, authorization=raw)
    yield subrequest("GET", b"/api/v1/" + quoted)
    yield subrequest("GET", b"/api/v1/teams#" + quoted)
    yield subrequest("GET", raw)
    yield subrequest(raw, "/api/v1/teams")
    yield subrequest(client=raw)
    yield subrequest(client=b"198.51.100.1, " + raw)
    for name in (
        "X-Api-Key",
        "Cookie",
        "X-Authz-Request-Id",
        "X-Auth-User-Id",
        "X_Auth_User_Id",
        "X-HTTP-Method-Override",
        "Proxy-Authorization",
        "Host",
        "User-Agent",
        "Origin",
        "Authorization",
        "X-Forwarded-Uri",
        "X-Forwarded-Method",
        "Connection",
        "Upgrade",
        "Expect",
        "Content-Length",
        "Transfer-Encoding",
    ):
        yield subrequest(headers=[(name, raw)])
    yield subrequest(headers=[(raw, "1")])
    yield subrequest(headers=[(b"X-" + raw, "1")])
    yield subrequest(line=b"GET /authz/caddy?" + quoted + b" HTTP/1.1")
    yield subrequest(line=b"GET /authz/envoy/api/v1/teams?" + quoted + b" HTTP/1.1")
    yield subrequest(line=b"GET /authz/" + quoted + b" HTTP/1.1")
    yield subrequest(line=raw)
    yield subrequest(line=raw + b" /authz/traefik HTTP/1.1")
    yield subrequest(line=b"GET /authz/traefik " + raw)
    yield raw + b"\r\n\r\n"


async def tell(port: int, request: bytes) -> bytes:
    """All bytes of the answer, whatever they are."""
    async with Wire(port) as wire:
        wire.send(request)
        try:
            answer = await wire.answer()
        except EOFError:
            return b""
        lines = [f"{name}: {value}" for name, value in answer.headers]
        return "\n".join(lines).encode("latin-1") + answer.body


async def everything(client: Redis) -> bytes:
    """Every key of Redis and every value, and what its slow log remembers."""
    found: list[Any] = []
    async for key in client.scan_iter():
        found += [key, await value(client, key)]
    found.append(repr(await client.execute_command("SLOWLOG", "GET", "-1")).encode())
    return b"\n".join(found)


async def value(client: Any, key: bytes) -> bytes:
    match await client.type(key):
        case b"string":
            return await client.get(key) or b""
        case b"hash":
            return b"\n".join(b + b"=" + c for b, c in (await client.hgetall(key)).items())
        case b"list":
            return b"\n".join(await client.lrange(key, 0, -1))
        case b"set":
            return b"\n".join(await client.smembers(key))
        case b"zset":
            return b"\n".join(await client.zrange(key, 0, -1))
        case b"stream":
            return repr(await client.xrange(key)).encode()
        case other:
            raise AssertionError(other)


def clean(where: str, data: bytes) -> None:
    lower = data.lower()
    for needle in NEEDLES:
        at = lower.find(needle)
        assert at < 0, f"{where}: {data[max(0, at - 80) : at + 80]!r}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"), "--slowlog-log-slower-than", "0")
    populate(server)
    yield server
    server.stop()


@pytest.mark.parametrize("shape", ["json", "console"])
async def test_a_planted_secret_is_nowhere(
    shape: str, server: RedisProcess, tmp_path: Path
) -> None:
    """Pitfall 40: not in an answer, a log line, a metric or Redis, in sunshine and in trouble."""
    sidecar = start_sidecar(
        tmp_path,
        server.url,
        LOG__FORMAT=shape,
        LOG__LEVEL="debug",
        LIMITS__FAILED="100000",
        LIMITS__UNKNOWN="100000",
        RECEIPTS__SHARE="1",
        RECEIPTS__MAX_PER_SECOND="100000",
        REDIS__BUDGET_MS="200",
    )
    asked = 0
    async with Redis.from_url(server.url) as client:
        good = token(KNOWN, user=OWNER, team=0, secret=f"{PLANT}-of-{KNOWN}")
        await registry(client).put_tokens([good])
        await registry(client).set_limit("token", KNOWN, Limit(5, 60_000))
        for name, secret in SECRETS.items():
            for request in positions(secret):
                clean(f"the answer to {name}", await tell(sidecar.port, request))
                asked += 1
        await asyncio.sleep(1)  # until the last receipts are written
        found = await everything(client)
        clean("Redis", found)
        assert found.count(b'"code":') > asked / 2, "a receipt of most requests is searched, too"
        server.freeze()
        for secret in ("good", "wrong", "not utf-8"):
            request = subrequest(authorization=SECRETS[secret])
            clean("an answer without Redis", await tell(sidecar.port, request))
        server.thaw()
    for accept in ("text/plain", "application/openmetrics-text"):
        clean("metrics", get(sidecar.management_port, "/metrics", {"Accept": accept}).body)
    assert sidecar.stop() == 0
    written = sidecar.log_path.read_bytes()
    clean("the log", written)
    assert b"Traceback" not in written
    assert b"defect" not in written
    assert asked == len(SECRETS) * len(list(positions("x")))
    assert written.count(b"\n") > asked / 2


async def test_the_search_would_find_a_secret(server: RedisProcess) -> None:
    """The net has no hole: what is written on purpose is found, in Redis and in bytes."""
    async with Redis.from_url(server.url) as client:
        await client.hset("planted", "field", PLANT)
        with pytest.raises(AssertionError, match="Redis"):
            clean("Redis", await everything(client))
        await client.delete("planted")
        await client.execute_command("SLOWLOG", "RESET")
    for needle in (PLANT.encode(), secret_of(READ).encode()):
        with pytest.raises(AssertionError, match="here"):
            clean("here", b"... " + needle)


async def test_every_log_line_is_json_and_names_the_decision(
    server: RedisProcess, tmp_path: Path
) -> None:
    """One object a line with time, level and event; ids and templates, never the target."""
    sidecar = start_sidecar(tmp_path, server.url, LOG__LEVEL="debug")
    answers = {}
    methods, uris = ("GET", "TRACE"), ("/api/v1/teams/5?x=1", "/api/v1/x", "/api//", "/api/v1/no")
    for method, uri in product(methods, uris):
        async with Wire(sidecar.port) as wire:
            request = subrequest(
                method, uri.strip(), authorization=f"Bearer {ROOT}|{secret_of(ROOT)}"
            )
            answer = await wire.ask(request)
            name = answer.header("X-Auth-Decision-Id") or answer.json["decision_id"]
            answers[name] = answer.status
    assert sidecar.stop() == 0
    lines = [json.loads(line) for line in sidecar.log.splitlines()]
    assert all({"time", "level", "event"} <= set(line) for line in lines)
    decisions = [line for line in lines if line["event"] == "decision"]
    assert {line["decision_id"]: line["status"] for line in decisions} == answers
    allowed = next(line for line in decisions if line["outcome"] == "allow")
    assert allowed["route"] == "/api/v1/teams/{id}"
    assert (allowed["user"], allowed["team"], allowed["token"]) == (OWNER, 0, ROOT)
    assert "x=1" not in sidecar.log
