"""HAProxy's deploy file on a real HAProxy, where one is installed; its Lua is a stand-in."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.replies import EXPOSED
from tests.e2e.own_answers import BROKEN, ROWS, SHOWN, SILENT, UPLOADS, Row
from tests.e2e.test_names import PREFIX, REFUSED, TEMPLATE, judged, made, php
from tests.e2e.test_own_answers import answered, silently, upload
from tests.support.haproxy import BINARY, haproxy
from tests.support.lab import Lab
from tests.support.raw_http import exchanged
from tests.support.world import READ

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(BINARY is None, reason="haproxy is not installed"),
]

OTHER = "  use_backend coolify if { req.hdr(host) other.test }\n"
"""A second site of the same frontend; its backend is the same, so that one stand-in sees it."""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def booted(shared_lab: Lab, tmp_path_factory) -> AsyncIterator[Lab]:
    """The laboratory with HAProxy alone in front of it."""
    authz, backend = f"127.0.0.1:{shared_lab.sidecar.port}", shared_lab.backend.address
    directory = tmp_path_factory.mktemp("haproxy")
    async with haproxy(directory, authz=authz, backend=backend, more=OTHER) as running:
        yield replace(shared_lab, proxies={Proxy.HAPROXY: running})


@pytest_asyncio.fixture(loop_scope="session")
async def it(booted: Lab) -> Lab:
    await booted.reset()
    return booted


async def test_a_name_reaches_the_backend_as_it_was_sent(it: Lab) -> None:
    """200, the right template, the target's bytes, and the sidecar's identity."""
    for name in ("prüfung", "日本", "a#b", "R&D (new), a+b: x@y.z"):
        it.seen.clear()
        answer = await it.ask(Proxy.HAPROXY, "GET", PREFIX + php(name), token=READ)
        assert answer.status == 200, answer
        [reached] = it.seen
        assert reached.target == PREFIX + php(name)
        assert reached.routed is not None
        assert reached.routed.template == TEMPLATE
        assert reached.headers["X-Auth-Token-Id"] == str(READ)
        assert answer.header("Access-Control-Expose-Headers") == ", ".join(EXPOSED)


async def test_no_name_of_a_few_is_refused(it: Lab) -> None:
    """The short run: the same names each time."""
    assert (await judged(it, Proxy.HAPROXY, made(150, 4)))[200] >= 150


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_name_of_two_thousand_is_refused(it: Lab) -> None:
    """The long run."""
    assert set(await judged(it, Proxy.HAPROXY, made(2000, 17))) == {200}


async def test_what_is_no_name_is_refused_as_before(it: Lab) -> None:
    """By HAProxy or the sidecar; the backend sees none of them."""
    for spelled in REFUSED:
        answer = await it.ask(Proxy.HAPROXY, "GET", PREFIX + spelled, token=READ)
        assert (answer.status, it.seen) == (400, []), spelled


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_it_answers_as_the_table_says(it: Lab, row: Row) -> None:
    """Status, body and header of all that the sidecar does not write."""
    assert await answered(it, Proxy.HAPROXY, row) == row.sees[Proxy.HAPROXY]


@pytest.mark.parametrize("size", UPLOADS)
async def test_a_refused_body_ends_as_the_table_says(it: Lab, size: int) -> None:
    """With the refusal, or a broken connection; nothing reaches the backend."""
    assert await upload(it, Proxy.HAPROXY, size) in {SHOWN, BROKEN}
    assert it.seen == []


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_a_silent_coolify_is_given_up(it: Lab) -> None:
    """After a minute."""
    assert await silently(it, [Proxy.HAPROXY]) == [SILENT[Proxy.HAPROXY]]


async def test_a_method_override_is_refused_in_json(it: Lab) -> None:
    """HAProxy refuses it before it asks."""
    answer = await it.ask(
        Proxy.HAPROXY, "POST", "/api/v1/projects", "X-HTTP-Method-Override: PUT", token=READ
    )
    assert (answer.status, answer.json["code"]) == (400, "method_override")
    assert it.seen == []


async def test_another_site_is_left_alone(it: Lab) -> None:
    """Its paths and headers are its own, and a host of no site reaches nobody."""
    url = it.proxies[Proxy.HAPROXY].url
    for target in ("/files/100%25.txt", "/a%2Fb", "/x//y/../z", "/api/v1/teams"):
        it.seen.clear()
        lines = "Host: other.test\r\nX_Custom: 1\r\nX-Auth-User-Id: mine\r\nConnection: close\r\n"
        answer = await exchanged(url, f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 ")
        [reached] = it.seen
        assert reached.target == target
        assert reached.headers["X-Auth-User-Id"] == "mine"
        assert reached.headers["X_Custom"] == "1"
    it.seen.clear()
    lines = "Host: evil.test\r\nConnection: close\r\n\r\n"
    assert b" 503 " in await exchanged(url, f"GET /api/v1/teams HTTP/1.1\r\n{lines}".encode())
    assert it.seen == []
