"""authsidecar.lua fails closed: whatever is no answer of the sidecar's lets nobody in."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo import proxies
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import RunningProxy, start_proxy
from tests.support.proxies import IDENTITY, need, stage
from tests.support.raw_http import send

JSON = b"Content-Type: application/json\r\n"
REFUSAL = b"HTTP/1.1 403 No\r\n" + JSON
NAMED = b"X-Auth-Decision-Id: d-1\r\n"

RUBBISH = {
    "no HTTP": b"hello\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\n",
    "another server's 200": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another 2xx": b"HTTP/1.1 204 No Content\r\n" + NAMED + b"\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "HTML": b"HTTP/1.1 403 No\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno",
    "no type": b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n{}",
    "no length": REFUSAL + b"\r\n{}",
    "half a body": REFUSAL + b"Content-Length: 100\r\n\r\n{}",
    "a large body": REFUSAL + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000,
    "a crash": b"HTTP/1.1 500 No\r\n" + JSON + b"Content-Length: 2\r\n\r\n{}",
}


@asynccontextmanager
async def in_front_of(
    answer: bytes, directory: Path, pause_s: float = 0
) -> AsyncIterator[tuple[RunningProxy, Backend]]:
    """HAProxy, and in the place of the sidecar who says these bytes, byte by byte if paused."""
    need(Proxy.HAPROXY)

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in [answer] if not pause_s else [bytes([one]) for one in answer]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with Backend() as backend, server:
        running = await start_proxy(
            Proxy.HAPROXY, authz=f"{host}:{port}", backend=backend.address, directory=directory
        )
        backend.seen.clear()
        try:
            yield running, backend
        finally:
            await running.stop()


async def closed(running: RunningProxy, backend: Backend) -> None:
    """A guarded request is answered 503, in time, and goes no further."""
    began = time.monotonic()
    status, answer = await send(running.url, "GET", "/api/v1/teams", "X-Auth-Decision-Id: mine")
    assert time.monotonic() - began < 4
    assert status == 503
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "authorization_unavailable"
    assert backend.seen == []


@pytest.mark.parametrize("answer", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_lets_nobody_in(answer: bytes, tmp_path: Path) -> None:
    """503, and nothing of it reaches client or backend."""
    async with in_front_of(answer, tmp_path) as (running, backend):
        await closed(running, backend)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n" + NAMED, REFUSAL + b"Content-Length: 90\r\n\r\n" + b"x" * 90]
)
async def test_an_answer_that_drips_is_given_up(answer: bytes, tmp_path: Path) -> None:
    """Head or body: the limit is for the whole, not for each byte."""
    async with in_front_of(answer, tmp_path, pause_s=0.2) as (running, backend):
        await closed(running, backend)


async def test_an_error_in_the_lua_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy goes on to the next rule, which is the refusal."""
    recipe = proxies.RECIPES[Proxy.HAPROXY]

    def files(places: proxies.Places) -> dict[str, dict[str, str]]:
        given = recipe.files(places)
        lua = {**given["authsidecar.lua"], "core.httpclient():get": "nothing.at_all"}
        return {**given, "authsidecar.lua": lua}

    changed = {**proxies.RECIPES, Proxy.HAPROXY: replace(recipe, files=files)}
    monkeypatch.setattr(proxies, "RECIPES", changed)
    async with in_front_of(b"", tmp_path) as (running, backend):
        await closed(running, backend)


async def test_the_question_holds_what_it_must_and_nothing_else(tmp_path: Path) -> None:
    """No cookie, no header of the client's but those that are decided by."""
    lines = ("Authorization: Bearer 1|a", "Authorization: Bearer 2|b", "Cookie: a=b", "X-A: b")
    async with stage(Proxy.HAPROXY, tmp_path) as it:
        await send(it.url, "POST", "/api/v1/teams", *lines, "X-Forwarded-Port: 1")
        [asked] = it.authz.asked
        [seen] = it.backend.seen
    assert asked.headers.getall("Authorization") == ["Bearer 1|a", "Bearer 2|b"]
    forwarded = {f"x-forwarded-{name}" for name in ("method", "uri", "for", "host", "proto")}
    client = {"accept", "user-agent"}  # of the Lua's HTTP client itself
    names = {name.lower() for name in asked.headers}
    assert names - client == {*forwarded, "authorization", "host", "x-authz-request-id"}
    assert {name.lower() for name in seen.identity()} == {name.lower() for name in IDENTITY}
