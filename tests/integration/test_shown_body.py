"""Bodies that a proxy shows: read whole or not at all, by both servers, and remembered nowhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.decision import bodies
from authsidecar.decision.bodies import LONGEST
from authsidecar.decision.model import Place, Proxy, ResourceKind, TeamId
from authsidecar.decision.proxies.replies import Reply
from authsidecar.decision.restrictions import parse
from authsidecar.serving.connection import Connections
from authsidecar.serving.shown_body import BodyReader
from authsidecar.serving.subrequest import Subrequest
from tests.integration import test_connection
from tests.integration.test_planted_secrets import everything
from tests.integration.test_restricted_resources import put
from tests.support import seed
from tests.support.decisions import world
from tests.support.sidecar import start_sidecar
from tests.support.wire import Wire, subrequest

listening = test_connection.listening
"""Either server."""

HEAD = b"GET /x HTTP/1.1\r\nHost: sidecar.test\r\n%s\r\n\r\n"
CHUNKED = HEAD % b"Transfer-Encoding: chunked"
TEXT = b'{"uuid": "app"}'


def sized(size: int, *lines: bytes) -> bytes:
    return HEAD % b"\r\n".join((b"Content-Length: %d" % size, *lines))


def chunks(data: bytes, size: int) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@contextlib.asynccontextmanager
async def showing(made: Any, answer: Any) -> AsyncIterator[int]:
    async with made(answer) as (port, connections):
        connections.shows_bodies = True
        yield port


async def said(asked: Subrequest) -> Reply:
    """What the body says, or its fault, as Traefik or, below /envoy, Envoy shows it."""
    proxy = Proxy.ENVOY if asked.target == "/envoy" else Proxy.TRAEFIK
    read = BodyReader(asked, proxy, [b"application/json"])
    found = await read()
    assert await read() is found
    return Reply(200, "", (found.fault or repr(found.pairs)).encode())


GOOD = repr((("uuid", "app"),)).encode()
LONG = b'{"a": "%s"}' % (b"x" * (LONGEST - 9))
ARRIVING: list[tuple[tuple[bytes, ...], bytes]] = [
    ((sized(len(TEXT)) + TEXT,), GOOD),
    ((sized(len(TEXT)), TEXT), GOOD),
    ((sized(len(TEXT))[:30], sized(len(TEXT))[30:] + TEXT[:5], TEXT[5:]), GOOD),
    ((CHUNKED + chunks(TEXT, 4),), GOOD),
    ((CHUNKED, chunks(TEXT, 1)[:7], chunks(TEXT, 1)[7:]), GOOD),
    ((sized(len(TEXT)) + TEXT + sized(1) + b"x",), GOOD),
    ((sized(LONGEST - 1), LONG[:-1]), bodies.read([b"application/json"], LONG[:-1]).fault.encode()),
    ((sized(LONGEST + 1) + b"x" * (LONGEST + 1),), bodies.TOO_LONG.encode()),
    ((sized(10_000_000), b"x" * 200_000), bodies.TOO_LONG.encode()),
    ((CHUNKED, chunks(b"x" * (LONGEST + 1), 5000)), bodies.TOO_LONG.encode()),
    ((CHUNKED, b"5\r\nabc"), bodies.NOT_WHOLE.encode()),
    ((CHUNKED, b"zz\r\nabc"), bodies.NOT_WHOLE.encode()),
    ((sized(len(TEXT) + 1), TEXT), bodies.NOT_WHOLE.encode()),
    ((sized(0),), bodies.NOT_SHOWN.encode()),
    ((HEAD % b"Accept: */*",), bodies.NOT_SHOWN.encode()),
    ((CHUNKED + b"0\r\n\r\n",), bodies.NOT_SHOWN.encode()),
]


async def test_a_body_is_read_whole_or_not_at_all(
    listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece or in many; cut off, late and too long ones have a fault."""
    monkeypatch.setattr("authsidecar.serving.shown_body.WAIT_S", 0.2)
    async with showing(listening, said) as port:
        for parts, expected in ARRIVING:
            async with Wire(port) as wire:
                for part in parts:
                    wire.send(part)
                    await asyncio.sleep(0.01)
                answer = await wire.answer()
            assert answer.body == expected, parts[0][:90]


@pytest.mark.parametrize(
    ("lines", "whole"),
    [
        ((b"X-Envoy-Auth-Partial-Body: false",), True),
        ((b"x-envoy-auth-partial-body: true",), False),
        ((b"x-envoy-auth-partial-body: false", b"X-Envoy-Auth-Partial-Body: false"), False),
        ((b"x-envoy-auth-partial-body: False",), False),
        ((), False),
    ],
)
async def test_envoy_says_that_it_shows_all(
    listening: Any, lines: tuple[bytes, ...], whole: bool
) -> None:
    """A body without that word is none; from another proxy the word is not the proxy's own."""
    request = sized(len(TEXT), *lines) + TEXT
    async with showing(listening, said) as port:
        async with Wire(port) as wire:
            answer = await wire.ask(request.replace(b"/x", b"/envoy", 1))
        assert answer.body == (GOOD if whole else bodies.CUT_OFF.encode())
        async with Wire(port) as wire:
            answer = await wire.ask(request)
        assert answer.body == (bodies.CUT_OFF.encode() if lines else GOOD)


async def test_a_body_that_is_not_to_be_shown_is_thrown_away() -> None:
    """As ever: nothing of it is kept, and nothing can be read."""
    quick = test_connection._listening(Connections, said)
    async with quick as (port, _), Wire(port) as wire:
        assert (await wire.ask(sized(len(TEXT)) + TEXT)).body == bodies.NOT_SHOWN.encode()


# ------------------------------------------------------------------ in the whole sidecar

APP = "/api/v1/applications/app"
JSON = ("Content-Type", "application/json")
IN_P = Place(TeamId(3), ResourceKind.APPLICATION, "p", "e1", "prod")
PLANT = b"S3CR3Tplant"


async def ask(
    port: int, method: str, uri: str, body: bytes, *, proxy: str = "traefik", apart: bool = False
) -> tuple[int, str]:
    """Status and detail of a subrequest with a JSON body; `apart`: after its head."""
    more = [JSON, ("Content-Length", str(len(body)))]
    line = None
    if proxy == "envoy":
        line = f"{method} /authz/envoy{uri} HTTP/1.1"
        more.append(("x-envoy-auth-partial-body", "false"))
    head = subrequest(
        method, uri, authorization=seed.bearer(67), headers=more, proxy=proxy, line=line
    )
    async with Wire(port) as wire:
        wire.send(head if apart else head + body)
        if apart:
            await asyncio.sleep(0.01)
            wire.send(body)
        answer = await wire.answer()
    return answer.status, answer.json.get("detail", "") if answer.body else ""


async def test_what_a_body_says_decides_and_is_kept_nowhere(
    redis_url: str, redis_client: Redis, tmp_path: Path
) -> None:
    """The same head with another body is another request, however often it was asked before."""
    registry = await world(redis_client)
    await registry.set_instance(api_enabled=True)
    prod = Place(TeamId(3), ResourceKind.ENVIRONMENT, "p", "e1", "prod")
    server = Place(TeamId(3), ResourceKind.SERVER)
    q = Place(TeamId(3), ResourceKind.PROJECT, "q")
    await put(redis_client, app=IN_P, e1=prod, srv=server, q=q, **{"p/prod": prod})
    routes = ["PATCH /api/v1/applications/{uuid}", "POST /api/v1/applications/public"]
    given = {"projects": ["p"], "resources": ["srv"], "routes": routes}
    await registry.set_restriction("token", 67, parse(given))
    process = start_sidecar(
        tmp_path, redis_url, RESTRICTIONS__BODY="forwarded", RECEIPTS__SHARE="1", LOG__LEVEL="debug"
    )
    for proxy in ("traefik", "envoy"):
        for apart in (False, True):
            for body, status in [
                *[(b'{"uuid":"app"}', 200)] * 4,
                (b'{"uuid":"abc"}', 403),
                (b'{"uuid":"app"}', 200),
                (b'{"name":"%s"}' % PLANT, 200),
                (b'{"uuid":"%s"}' % PLANT, 403),
                (b"", 403),
            ]:
                got = await ask(process.port, "PATCH", APP, body, proxy=proxy, apart=apart)
                assert got[0] == status, (proxy, apart, body, got)
    for proxy in ("nginx", "caddy", "haproxy"):
        status, why = await ask(process.port, "PATCH", APP, b'{"uuid":"app"}', proxy=proxy)
        assert (status, "without a body" in why) == (403, True)
    for body, status in [
        (b'{"project_uuid": "p", "environment_name": "prod", "server_uuid": "srv"}', 200),
        (b'{"project_uuid": "q", "environment_name": "prod", "server_uuid": "srv"}', 403),
        (b'{"project_uuid": "q", "server_uuid": "srv"}', 404),
        (b'{"project_uuid": "p", "server_uuid": "%s"}' % PLANT, 403),
        (b'{"project_uuid": "p", "destination_uuid": "d"}', 403),
        (b'{"name": "x"}', 403),
        (b"", 403),
    ]:
        got = await ask(process.port, "POST", "/api/v1/applications/public", body)
        assert got[0] == status, (body, got)

    process.stop()
    assert PLANT.decode() not in process.log
    kept = await everything(redis_client)
    assert b"token_restricted" in kept  # the receipts
    assert PLANT not in kept
