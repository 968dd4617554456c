"""The table of what each proxy answers by itself, held against the proxies."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import deploy_dir
from tests.e2e.own_answers import (
    ASKED,
    BROKEN,
    CLOSED,
    PASSED,
    ROWS,
    SHOWN,
    SILENT,
    UPLOADS,
    Row,
    While,
    page,
    seen,
)
from tests.e2e.scenarios import PROXIES
from tests.support import seed
from tests.support.lab import Lab
from tests.support.raw_http import exchanged
from tests.support.world import DEPLOY, READ, ROOT

on_proxies = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def only(lab: Lab, during: While) -> AsyncIterator[None]:
    """What is not as usual, and afterwards is again."""
    match during:
        case While.SIDECAR_AWAY:
            lab.sidecar.stop()
        case While.SIDECAR_SILENT:
            lab.sidecar.signal(signal.SIGSTOP)
        case While.SIDECAR_503:
            await lab.client.config_set("min-replicas-to-write", 1)
        case While.COOLIFY_AWAY:
            await lab.backend.stop()
    try:
        yield
    finally:
        match during:
            case While.SIDECAR_AWAY:
                lab.sidecar.start()
            case While.SIDECAR_SILENT:
                lab.sidecar.signal(signal.SIGCONT)
            case While.SIDECAR_503:
                await lab.client.config_set("min-replicas-to-write", 0)
            case While.COOLIFY_AWAY:
                await lab.backend.start()
        if during is not While.USUAL:
            await lab.settle()


async def answered(lab: Lab, proxy: Proxy, row: Row) -> str:
    """What the client sees of this row, in the table's words."""
    lab.seen.clear()
    async with only(lab, row.during):
        url = lab.proxies[proxy].url
        answer = await exchanged(url, row.request(url.removeprefix("http://"), seed.bearer(ROOT)))
        said = seen(answer)
        if lab.seen:  # what the proxy answers where the sidecar was asked has its decision in it
            return ASKED if lab.seen[0].identity() else PASSED
    return ASKED if b"decision_id" in answer else said


CELLS = [
    pytest.param(proxy, row, id=f"{row.name}-{proxy}")
    for row in ROWS
    for proxy in PROXIES
    # It waits for 30 seconds: test_sidecar_down.py, slow.
    if not (row.during is While.SIDECAR_SILENT and proxy is Proxy.TRAEFIK)
]


@on_proxies
@pytest.mark.parametrize(("proxy", "row"), CELLS)
async def test_a_proxy_answers_as_the_table_says(lab: Lab, proxy: Proxy, row: Row) -> None:
    """Status, body and header of all that the sidecar does not write."""
    assert await answered(lab, proxy, row) == row.sees[proxy]


REFUSED = (
    Row("no token", "GET /api/v1/teams", {}, ("Host: {host}", "Connection: close"), usual=False),
    Row("a wrong permission", "GET /api/v1/security/keys", {}),
    Row("no route", "GET /api/v1/nothing", {}),
    Row("a wrong method", "GET /api/v1/enable", {}),
    Row("an override", "GET /api/v1/teams", {}, ("X-HTTP-Method-Override: DELETE",)),
    Row(
        "no admission", "GET /api/v1/whoami", {}, ("Host: {host}", "Connection: close"), usual=False
    ),
)
"""What the sidecar refuses."""

COUNTED = {"date", "content-length", "transfer-encoding", "x-envoy-upstream-service-time"}
COUNTED |= {"ratelimit", "x-ratelimit-remaining", "x-ratelimit-reset"}
"""Headers that need not be the same on two answers."""


def header(answer: bytes) -> tuple[str, set[tuple[str, str]]]:
    """The status line and the headers that a second answer has as well."""
    start, *lines = answer.decode("latin-1").partition("\r\n\r\n")[0].split("\r\n")
    fields = ((name.lower(), value.strip()) for name, _, value in (x.partition(":") for x in lines))
    return start, {field for field in fields if field[0] not in COUNTED}


@on_proxies
@pytest.mark.parametrize("during", [each for each in While if each is not While.SIDECAR_SILENT])
async def test_a_head_is_answered_as_its_get(lab: Lab, during: While) -> None:
    """Of every refusal, whoever writes it, with its Content-Type; the body alone is missing."""
    rows = [row for row in ROWS if row.during is during and row.start.startswith("GET ")]
    rows += REFUSED if during is While.USUAL else ()
    async with only(lab, during):
        for proxy, running in lab.proxies.items():
            for row in rows:
                get = row.request(running.url.removeprefix("http://"), seed.bearer(DEPLOY))
                answer = await exchanged(running.url, get)
                head = await exchanged(running.url, b"HEAD" + get.removeprefix(b"GET"))
                assert header(head) == header(answer), (proxy, row.name)
                assert row not in REFUSED or b'"code":' in answer, (proxy, row.name)
                if b'"code":' in answer:
                    assert b"\r\ncontent-type: application/json" in head.lower(), (proxy, row.name)


async def upload(lab: Lab, proxy: Proxy, size: int) -> str:
    """What a client sees that reads nothing before it has sent all of a refused body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port(proxy))
    head = f"POST /api/v1/projects HTTP/1.1\r\nHost: 127.0.0.1:{lab.port(proxy)}"
    head += f"\r\nAuthorization: {seed.bearer(READ)}\r\nContent-Length: {size}\r\n\r\n"
    try:
        writer.write(head.encode())
        for _ in range(size // 50_000):
            writer.write(b"x" * 50_000)
            await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return BROKEN
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return SHOWN if answer.startswith(b"HTTP/1.1 403 ") else answer.decode("latin-1")


@on_proxies
@pytest.mark.parametrize("size", UPLOADS)
@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_refused_body_ends_as_the_table_says(lab: Lab, proxy: Proxy, size: int) -> None:
    """Where the refusal is promised, it comes each time; nothing reaches the backend."""
    for _ in range(3):
        saw = await upload(lab, proxy, size)
        assert saw == SHOWN or (saw, UPLOADS[size][proxy]) == (BROKEN, BROKEN)
    assert lab.seen == []


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a request and never answer."""
    await reader.read()
    writer.close()


async def silently(lab: Lab, proxies: Sequence[Proxy]) -> list[str]:
    """What clients see within 70 seconds of a Coolify that takes a request and says nothing."""
    await lab.backend.stop()
    port = int(lab.backend.address.rpartition(":")[2])
    server = await asyncio.start_server(_silent, "127.0.0.1", port)

    async def asked(proxy: Proxy) -> str:
        url = lab.proxies[proxy].url
        head = f"Host: {url.removeprefix('http://')}\r\nAuthorization: {seed.bearer(READ)}"
        request = f"GET /api/v1/teams HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n"
        with contextlib.suppress(TimeoutError):
            return seen(await exchanged(url, request.encode(), patience_s=70))
        return CLOSED

    try:
        return list(await asyncio.gather(*map(asked, proxies)))
    finally:
        server.close()
        await server.wait_closed()
        await lab.backend.start()
        await lab.settle()


@on_proxies
@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_a_silent_coolify_is_given_up_or_waited_for(lab: Lab) -> None:
    """A minute, where the proxy has a limit."""
    proxies = list(lab.proxies)
    assert await silently(lab, proxies) == [SILENT[proxy] for proxy in proxies]


def test_the_page_shows_the_table() -> None:
    """`python -m tests.e2e.own_answers` has written docs/reference/proxy-answers.md."""
    shown = deploy_dir().parent / "docs" / "reference" / "proxy-answers.md"
    assert shown.read_text(encoding="utf-8") == page()
