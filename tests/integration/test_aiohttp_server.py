"""aiohttp's own server: chosen when aiohttp is new, and as safe as the quick connection."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.aiohttp_server import AiohttpConnections, application
from authsidecar.serving.connection_limits import ConnectionLimits
from authsidecar.serving.servers import TESTED, choose
from authsidecar.serving.subrequest import Subrequest
from tests.integration.test_connection import (
    REQUEST,
    _awaits_no_future,
    _cancelled,
    _raises,
    _raises_later,
    told,
)
from tests.support import newer_aiohttp
from tests.support.redis import start_redis
from tests.support.sidecar import start_sidecar
from tests.support.wire import Wire


def failed(_error: BaseException, _peer: str, _target: str) -> Reply:
    return Reply(503, "")


@contextlib.asynccontextmanager
async def listening(answer: Callable[[Subrequest], Awaitable[Reply]], **options: Any):
    async def answered(asked: Subrequest) -> Reply:
        return await answer(asked)

    connections = AiohttpConnections(
        answered,
        lambda error, _peer, _begun: Reply(error.code, ""),
        fail=failed,
        trusts=options.get("trusts", lambda _: True),
        refuse_stranger=lambda _start, _peer: Reply(403, ""),
        limits=options.get("limits", ConnectionLimits()),
        dropped=lambda _cause, _peer: None,
    )
    server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await connections.end(0)
        await server.wait_closed()


@pytest.mark.parametrize("how", [_raises, _raises_later, _cancelled, _awaits_no_future])
async def test_an_answer_that_fails_is_answered_all_the_same(how) -> None:
    """Raised at once, after waiting, or cancelled: 503, and the connection goes on."""

    async def answer(asked: Subrequest) -> Reply:
        if asked.target == "/0":
            await how()
        return await told(asked)

    async with listening(answer) as port, Wire(port) as wire:
        wire.send(REQUEST % 0 + REQUEST % 1)
        assert (await wire.answer()).status == 503
        assert (await wire.answer()).body == b"/1"


async def test_answers_come_in_the_order_of_their_requests() -> None:
    """Also where the first must wait and the second need not."""

    async def slow_at_first(asked: Subrequest) -> Reply:
        if asked.target == "/0":
            await asyncio.sleep(0.05)
        return await told(asked)

    async with listening(slow_at_first) as port, Wire(port) as wire:
        wire.send(b"".join(REQUEST % n for n in range(3)))
        assert [(await wire.answer()).body for _ in range(3)] == [b"/0", b"/1", b"/2"]


async def test_a_peer_that_is_not_trusted_never_reaches_the_parser() -> None:
    """403 whatever it sends, and nothing is answered by aiohttp."""
    asked = []

    async def answer(request: Subrequest) -> Reply:
        asked.append(request)
        return await told(request)

    async with listening(answer, trusts=lambda _: False) as port:
        for sent in (REQUEST % 1, b"\x16\x03\x01 no HTTP", b"GET /"):
            async with Wire(port) as wire:
                assert (await wire.ask(sent)).status == 403
                assert await wire.ended()
    assert asked == []


async def test_half_a_request_ends_in_its_time() -> None:
    """Alone, and behind one that was whole."""
    async with listening(told, limits=ConnectionLimits(request_s=0.1)) as port:
        for whole in (b"", REQUEST % 1):
            async with Wire(port) as wire:
                wire.send(whole + b"GET /2 HT")
                if whole:
                    assert (await wire.answer()).body == b"/1"
                assert (await wire.answer()).status == 408
                assert await wire.ended()


async def test_the_application_answers_in_process(aiohttp_client) -> None:
    """Every path and method reaches the same function, and a failure is a 503."""

    async def answer(asked: Subrequest) -> Reply:
        if asked.target == "/fails":
            raise ZeroDivisionError
        return Reply(403, "X-Seen: 1\r\n", f"{asked.method} {asked.target}".encode())

    client = await aiohttp_client(application(answer, failed))
    got = await client.request("PURGE", "/authz/envoy/api?x=1")
    assert (got.status, await got.text()) == (403, "PURGE /authz/envoy/api?x=1")
    assert (got.headers["X-Seen"], got.headers["Server"]) == ("1", "authsidecar")
    assert (await client.get("/fails")).status == 503
    assert isinstance(client.app, web.Application)


@pytest.mark.parametrize(
    ("setting", "version", "server"),
    [
        ("auto", "3.14.5", "fast"),
        ("auto", "3.15.0", "aiohttp"),
        ("auto", "4.0.0a1", "aiohttp"),
        ("fast", "3.15.0", "fast"),
        ("aiohttp", "3.14.5", "aiohttp"),
    ],
)
def test_auto_is_quick_with_a_tested_aiohttp_alone(setting, version: str, server: str) -> None:
    """A new minor version may change what the quick connection stands on."""
    assert choose(setting, version) == server
    assert "3.15" not in TESTED


def test_with_a_newer_aiohttp_the_sidecar_starts_its_server_and_says_so(tmp_path: Path) -> None:
    """Not even importing the quick connection: what it imports may be gone."""
    redis = start_redis(tmp_path / "redis")
    program = ("-P", str(Path(newer_aiohttp.__file__)))
    sidecar = start_sidecar(tmp_path, redis.url, program=program)
    assert [line["server"] for line in sidecar.events("listening")] == ["aiohttp"]
    assert sidecar.ask("TRACE", "/api/v1/teams").status == 405
    assert sidecar.stop() == 0
    redis.stop()


def test_the_default_is_the_quick_one_with_the_locked_aiohttp(tmp_path: Path) -> None:
    """A lock that moves on without its tests would show here."""
    redis = start_redis(tmp_path / "redis")
    sidecar = start_sidecar(tmp_path, redis.url)
    assert [line["server"] for line in sidecar.events("listening")] == ["fast"]
    assert sidecar.stop() == 0
    redis.stop()
