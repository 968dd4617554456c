"""The process and its connections: how it starts, what it survives, how it ends."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from authsidecar.config import load
from authsidecar.run.redis import connection
from authsidecar.serving.connection import IDLE_S
from authsidecar.serving.lingering_close import LINGER_S
from tests.support.fork_server import run
from tests.support.redis import RedisProcess, free_port, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import Answer, SidecarProcess, start_sidecar
from tests.support.wire import Wire, ask, subrequest
from tests.support.world import READ, WRITE, World, populate, world_of

GOOD = subrequest(authorization=bearer(READ))
REFUSED = subrequest(authorization=bearer(WRITE))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


def forget_counts(server: RedisProcess) -> None:
    with Redis.from_url(server.url) as client:
        for key in client.scan_iter("authsidecar:rate:*"):
            client.delete(key)


@pytest.fixture(scope="module", params=["fast", "aiohttp"])
def sidecar(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[SidecarProcess]:
    directory = tmp_path_factory.mktemp("sidecar")
    forget_counts(server)  # of the other server: one user's limit would not do for both
    sidecar = start_sidecar(directory, server.url, LISTEN__SERVER=request.param)
    yield sidecar
    assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log
    assert '"defect"' not in sidecar.log


@pytest.fixture
async def world(sidecar: SidecarProcess, server: RedisProcess) -> AsyncIterator[World]:
    async with world_of(sidecar, server) as world:
        yield world


def good(*headers: tuple[str, str], line: str | None = None) -> bytes:
    return subrequest(authorization=bearer(READ), headers=headers, line=line)


def is_clean(answer: Answer, status: int, code: str) -> None:
    """A refusal by the server itself: JSON, and not a byte of what was sent."""
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Cache-Control") == "no-store"
    assert b"zzzz" not in answer.body
    assert not any("zzzz" in value for _, value in answer.headers)


# Ending


async def until(condition, patience_s: float = 10.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_stop_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """A request that waits for Redis when SIGTERM comes still gets its answer; exit code 0."""
    server = start_redis(tmp_path / "redis")
    async with asyncio.timeout(30):
        await asyncio.to_thread(populate, server)
        sidecar = start_sidecar(tmp_path, server.url)
        async with world_of(sidecar, server):
            pass
        async with Wire(sidecar.port) as waiting, Wire(sidecar.port) as idle:
            assert (await idle.ask(subrequest("TRACE"))).status == 405
            server.freeze()
            waiting.send(GOOD)
            # Answered without Redis, and after the other one was read: that is in flight now.
            assert (await idle.ask(subrequest("TRACE"))).status == 405
            sidecar.signal(signal.SIGTERM)
            await until(lambda: not accepts(sidecar.port))
            server.thaw()
            assert (await waiting.answer()).status == 200
            assert await waiting.ended()
            assert await idle.ended()
    assert sidecar.wait() == 0
    events = [json.loads(line)["event"] for line in sidecar.log.splitlines()]
    assert events[-2:] == ["decision", "stopped"]
    assert "Traceback" not in sidecar.log
    server.stop()


def test_a_long_budget_is_not_cut_short_by_the_connection() -> None:
    """redis.budget_ms of 5 seconds means 5 seconds, also where redis-py has its own timeouts."""
    settings = load(None, {"AUTHSIDECAR_REDIS__BUDGET_MS": "5000"})
    assert connection(settings).timeout_s >= 5


async def test_a_client_that_leaves_disturbs_nobody(world: World) -> None:
    """Half a request, a request whose answer nobody reads: the others are answered."""
    for part in (b"GET /authz/tra", GOOD[:-2], GOOD):
        async with Wire(world.sidecar.port) as wire:
            wire.send(part)
            await wire.writer.drain()
    assert [a.status for a in await ask(world.sidecar.port, GOOD, REFUSED)] == [200, 403]


# Large and broken requests


@pytest.mark.parametrize("size", [8191, 16_384, 32_000])
async def test_a_header_of_up_to_32_kib_is_fine(size: int, world: World) -> None:
    """Pitfall 19: the client's cookies are no reason to refuse."""
    (answer,) = await ask(world.sidecar.port, good(("Cookie", "c" * size)))
    assert answer.status == 200


async def test_up_to_200_headers_are_fine(world: World) -> None:
    """Pitfall 19: including those of the proxy."""
    (answer,) = await ask(world.sidecar.port, good(*((f"X-{n}", "1") for n in range(195))))
    assert answer.status == 200


@pytest.mark.parametrize("where", ["value", "name", "authorization", "line", "uri"])
async def test_too_much_is_a_clean_refusal(where: str, world: World) -> None:
    """Pitfalls 19 and 40: 431 or 414 as JSON, which repeats nothing of what was sent."""
    junk = "zzzz" * 10_000
    request = {
        "value": good(("Cookie", junk)),
        "name": good((f"X-{junk}", "1")),
        "authorization": subrequest(authorization=f"Bearer 11|{junk}"),
        "line": good(line=f"GET /authz/traefik?{junk} HTTP/1.1"),
        "uri": subrequest("GET", f"/{junk[:20_000]}", authorization=bearer(READ)),
    }[where]
    async with Wire(world.sidecar.port) as wire:
        answer = await wire.ask(request)
        if where == "uri":
            is_clean(answer, 414, "target_too_long")
        else:
            is_clean(answer, 431, "headers_too_large")
            assert await wire.ended()


async def test_too_many_headers_are_a_clean_refusal(world: World) -> None:
    """Past 200 the connection ends, after JSON."""
    request = good(*((f"X-{n}", "zzzz") for n in range(300)))
    async with Wire(world.sidecar.port) as wire:
        is_clean(await wire.ask(request), 431, "headers_too_large")
        assert await wire.ended()


MANY_LINES = b"\r\n".join(b"X-%d: z" % n for n in range(300))
START = b"GET /authz/traefik HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (400, START + b"X zzzz: 1\r\n\r\n" + START + MANY_LINES[:1500]),
        (400, START + b"X zzzz: 1\r\n\r\n" + (START + b"\r\n") * 300),
        (400, START + b"\r\n".join([*MANY_LINES.split(b"\r\n")[:199], b"X z: 1", b"", b""])),
        (431, START + b"\r\n".join([*MANY_LINES.split(b"\r\n")[:200], b"X z: 1", b"", b""])),
    ],
)
@pytest.mark.parametrize("cut", [0, 40])
async def test_only_a_head_that_is_too_large_is_431(
    status: int, request_bytes: bytes, cut: int, world: World
) -> None:
    """What comes behind it is not a part of it."""
    async with Wire(world.sidecar.port) as wire:
        if cut:
            wire.send(request_bytes[:cut])
            await asyncio.sleep(0.02)
        answer = await wire.ask(request_bytes[cut:])
        is_clean(answer, status, "headers_too_large" if status == 431 else "request_unreadable")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"zzzz\r\n\r\n",
        b"GET zzzz HTTP/9.9\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nX zzzz: 1\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nX-A : zzzz\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nX-A: zz\x00zz\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nContent-Length: zzzz\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nTransfer-Encoding: zzzz\r\n\r\n",
        b"GET /authz/traefik HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00zzzz\r\n\r\n",
    ],
)
async def test_a_broken_request_is_a_clean_refusal(request_bytes: bytes, world: World) -> None:
    """JSON without an echo, then the end of the connection."""
    async with Wire(world.sidecar.port) as wire:
        answer = await wire.ask(request_bytes)
        assert answer.status in {400, 405}
        is_clean(answer, answer.status, answer.json["code"])
        assert await wire.ended()


UNPARSABLE = {
    "value": (431, "headers_too_large", b"Cookie: " + b"z" * 40_000),
    "number": (431, "headers_too_large", b"\r\n".join(b"X-%d: z" % n for n in range(300))),
    "name": (400, "request_unreadable", b"X zzzz: 1"),
    "nul": (400, "request_unreadable", b"X-A: zz\x00zz"),
    "length": (400, "request_unreadable", b"Content-Length: zzzz"),
}


@pytest.mark.parametrize("cut", [0, 1, 9, 30])
@pytest.mark.parametrize("what", UNPARSABLE)
async def test_nginx_is_told_403_of_what_cannot_be_parsed(
    what: str, cut: int, world: World
) -> None:
    """It would make a 500 of any other status; wherever the first packet ends."""
    status, code, header = UNPARSABLE[what]
    data = b"GET /authz/nginx HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n"
    async with Wire(world.sidecar.port) as wire:
        wire.send(data[:cut])
        await wire.writer.drain()
        await asyncio.sleep(0.01 if cut else 0)
        answer = await wire.ask(data[cut:])
        assert (answer.status, answer.header("X-Authz-Status")) == (403, str(status))
        assert json.loads(answer.header("X-Authz-Body") or "")["code"] == code
        assert await wire.ended()


@pytest.mark.parametrize(
    "line", [b"WHAT /authz/nginx HTTP/1.1", b"GET /authz/nginx HTTP/9.9", b"GET /authz/nginx\x01"]
)
async def test_nginx_is_told_403_of_a_line_that_cannot_be_parsed(line: bytes, world: World) -> None:
    """It is enough that the line names its endpoint."""
    first = GOOD.replace(b"/authz/traefik", b"/authz/nginx")
    async with Wire(world.sidecar.port) as wire:
        assert (await wire.ask(first)).status == 200
        answer = await wire.ask(line + b"\r\nHost: a\r\n\r\n")
        assert answer.status == 403
        assert answer.header("X-Authz-Status") in {"400", "405"}


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405),
        (b"zzzz\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nX-A: " + b"z" * 20_000 + b"\r\n\r\n", 400),
    ],
)
async def test_the_management_listener_tells_no_version(
    request_bytes: bytes, status: int, world: World
) -> None:
    """Neither of what it says itself nor of what aiohttp says for it."""
    async with Wire(world.sidecar.management_port) as wire:
        answer = await wire.ask(request_bytes)
    assert (answer.status, answer.header("Server")) == (status, "authsidecar")
    assert not any("aiohttp" in value or "Python" in value for _, value in answer.headers)


# Bodies, upgrades, kept connections

SMUGGLED = REFUSED


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("declared", "body"),
    [
        (("Content-Length", "5"), b""),
        (("Content-Length", "5"), b"hello"),
        (("Content-Length", str(len(SMUGGLED))), SMUGGLED),
        (("Content-Length", "5"), b"hello" + SMUGGLED),
        (("Transfer-Encoding", "chunked"), b""),
        (("Transfer-Encoding", "chunked"), b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    ],
)
async def test_a_declared_body_ends_the_connection_after_the_answer(
    method: str, declared: tuple[str, str], body: bytes, world: World
) -> None:
    """Pitfall 20: sent or not, it is never read as the next request."""
    async with Wire(world.sidecar.port) as wire:
        wire.send(good(declared, line=f"{method} /authz/traefik HTTP/1.1") + body)
        answer = await wire.answer()
        assert answer.status == 200
        assert answer.header("Connection") == "close"
        assert await wire.ended()


def chunks(body: bytes) -> bytes:
    """A body in the chunked coding."""
    parts = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


LARGE = b"x" * 8_000_000


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (good(("Content-Length", str(len(LARGE)))) + LARGE, {200}),
        (good(("Transfer-Encoding", "chunked")) + chunks(LARGE), {200}),
        (good(("Content-Length", "4")) + LARGE, {200, 405}),
        (good(("X-Long", "zzzz" * 2_000_000)), {431}),
        (b"zzzz\r\n\r\n" + LARGE, {405}),
        (good(("Connection", "close")) + LARGE, {200, 400}),
    ],
    ids=["length", "chunked", "longer than declared", "header", "no request", "behind the last"],
)
def test_who_sends_all_before_reading_has_its_answer(
    request_bytes: bytes, statuses: set[int], world: World
) -> None:
    """A connection that is closed with unread bytes is reset: nobody would see the answer."""
    with socket.create_connection(("127.0.0.1", world.sidecar.port), timeout=30) as client:
        client.sendall(request_bytes)
        answer = b""
        while data := client.recv(65_536):
            answer += data
    assert int(answer.split(b" ", 2)[1]) in statuses
    assert answer.count(b"HTTP/1.") == 1  # aiohttp's own answers what is no request as 1.0


async def test_who_never_ends_sending_is_cut_off(world: World) -> None:
    """And keeps nobody waiting meanwhile."""
    async with Wire(world.sidecar.port) as endless, Wire(world.sidecar.port) as other:
        endless.send(good(("Transfer-Encoding", "chunked")))
        assert (await endless.answer()).status == 200
        begun = time.monotonic()

        async def send() -> None:
            while True:
                endless.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                await endless.writer.drain()

        sending = asyncio.ensure_future(send())
        while not sending.done():
            assert (await other.ask(subrequest("TRACE"))).status == 405
            await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 60
        assert isinstance(sending.exception(), ConnectionError)
        assert time.monotonic() - begun > LINGER_S - 0.5


@pytest.mark.parametrize(
    "headers",
    [
        [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ],
        [("Expect", "100-continue")],
        [("Content-Length", "0")],
        [("TE", "trailers")],
    ],
)
async def test_an_upgrade_or_expectation_leaves_the_connection_usable(
    headers: list[tuple[str, str]], world: World
) -> None:
    """Pitfall 18: one plain answer for each request, one after the other or pipelined."""
    async with Wire(world.sidecar.port) as wire:
        for _ in range(2):
            assert (await wire.ask(good(*headers))).status == 200
            assert (await wire.ask(REFUSED)).status == 403
        wire.send(good(*headers) + REFUSED + GOOD)
        assert [(await wire.answer()).status for _ in range(3)] == [200, 403, 200]


async def test_h2c_ends_the_connection_after_the_answer(world: World) -> None:
    """Pitfall 18: aiohttp loses what is pipelined behind it, so nobody may wait for that."""
    h2c = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AA")]
    for behind in (b"", REFUSED + GOOD):
        async with Wire(world.sidecar.port) as wire:
            wire.send(good(*h2c) + behind)
            answer = await wire.answer()
            assert (answer.status, answer.header("Connection")) == (200, "close")
            assert await wire.ended()


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    """However they arrive, also in pieces."""
    async with Wire(world.sidecar.port) as wire:
        data = (GOOD + REFUSED) * 20
        for start in range(0, len(data), 77):
            wire.send(data[start : start + 77])
            await wire.writer.drain()
        assert [(await wire.answer()).status for _ in range(40)] == [200, 403] * 20


def test_idle_connections_are_kept_longer_than_by_any_proxy() -> None:
    """Extra pitfall: Go's proxies keep idle connections for 90 seconds; we outlast them."""
    assert IDLE_S > 90


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE", "PROPFIND", "LOCK"]
)
async def test_the_subrequest_may_have_any_method(method: str, world: World) -> None:
    """Pitfall 17: what counts is the forwarded method; the connection stays."""
    async with Wire(world.sidecar.port) as wire:
        line = f"{method} /authz/traefik HTTP/1.1"
        assert (await wire.ask(good(line=line))).status == 200
        refused = subrequest(authorization=bearer(WRITE), line=line)
        assert (await wire.ask(refused)).status == 403


async def test_a_head_subrequest_has_the_same_answer_without_a_body(world: World) -> None:
    """Pitfall 17: status and headers of the GET, and the next answer is in its place."""
    async with Wire(world.sidecar.port) as wire:
        line = "HEAD /authz/traefik HTTP/1.1"
        head = subrequest(authorization=bearer(WRITE), line=line)
        answer = await wire.ask(head, head=True)
        assert (answer.status, answer.header("Content-Type")) == (403, "application/json")
        assert (await wire.ask(good(line=line), head=True)).status == 200
        assert (await wire.ask(GOOD)).status == 200


async def test_a_method_that_nobody_knows_is_405(world: World) -> None:
    """Pitfall 17: as a subrequest's own method as well (Envoy passes on the client's)."""
    (answer,) = await ask(world.sidecar.port, good(line="ZZZZ /authz/traefik HTTP/1.1"))
    is_clean(answer, 405, "method_not_allowed")
    assert "GET" in (answer.header("Allow") or "")


# Starting


def serve(*, config: str | None = None, **environ: str) -> tuple[int, str]:
    """Run `authsidecar serve` until it gives up: its exit code and standard error."""
    command = [sys.executable, "-m", "authsidecar"]
    arguments = [] if config is None else ["--config", config]
    found = run(
        [*command, *arguments, "serve"],
        env={
            "PATH": os.environ["PATH"],
            "AUTHSIDECAR_LISTEN__ADDRESS": f"127.0.0.1:{free_port()}",
            "AUTHSIDECAR_MANAGEMENT__ADDRESS": f"127.0.0.1:{free_port()}",
            "AUTHSIDECAR_LOG__FORMAT": "json",
            **{f"AUTHSIDECAR_{name}": value for name, value in environ.items()},
        },
        timeout=30,
    )
    assert found.stdout == ""
    return found.returncode, found.stderr


def said(code: int, stderr: str, *, expected: int, words: tuple[str, ...]) -> None:
    """One line for people, with the words; besides it nothing but log lines."""
    assert code == expected, stderr
    assert "Traceback" not in stderr
    plain = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(plain) == 1, stderr
    assert all(word in plain[0] for word in words), plain[0]


def test_a_port_in_use_is_one_clear_line(sidecar: SidecarProcess, server: RedisProcess) -> None:
    """Two sidecars on one port: the second says which setting, the first goes on."""
    taken = f"127.0.0.1:{sidecar.port}"
    code, stderr = serve(REDIS__URL=server.url, LISTEN__ADDRESS=taken)
    said(code, stderr, expected=1, words=("listen.address", taken, "in use"))
    taken = f"127.0.0.1:{sidecar.management_port}"
    code, stderr = serve(REDIS__URL=server.url, MANAGEMENT__ADDRESS=taken)
    said(code, stderr, expected=1, words=("management.address", taken, "in use"))
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(READ)).status == 200


def test_a_socket_in_use_is_one_clear_line(server: RedisProcess, tmp_path: Path) -> None:
    """A socket that somebody serves is not taken away; one that a crash left is."""
    path = str(tmp_path / "authz.sock")
    first = start_sidecar(tmp_path, server.url, LISTEN__UNIX_SOCKET=path)
    code, stderr = serve(REDIS__URL=server.url, LISTEN__UNIX_SOCKET=path)
    said(code, stderr, expected=1, words=("listen.unix_socket", path, "in use"))
    first.kill()
    assert Path(path).exists()
    first.start()
    assert asyncio.run(ask(path, GOOD))[0].status == 200
    assert first.stop() == 0


def test_an_unreachable_redis_is_one_clear_line() -> None:
    """Named without its password, with what to look at."""
    port = free_port()
    code, stderr = serve(
        REDIS__URL=f"redis://user:hunter2@127.0.0.1:{port}/0", REDIS__WAIT_AT_START_SECONDS="0"
    )
    said(code, stderr, expected=1, words=("redis.url", f"127.0.0.1:{port}", "running?"))
    assert "hunter2" not in stderr


def test_a_redis_that_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    """Frozen, it accepts connections and says nothing: no endless wait."""
    server = start_redis(tmp_path / "redis", port=0)
    server.freeze()
    code, stderr = serve(REDIS__URL=server.tcp_url, REDIS__WAIT_AT_START_SECONDS="0")
    server.stop()
    said(code, stderr, expected=1, words=("redis.url", server.tcp_url, "no answer in time"))


def test_a_wrong_configuration_is_one_clear_line(tmp_path: Path) -> None:
    """Exit code 2: the setting and what may be given."""
    code, stderr = serve(LIMITS__USER="many")
    said(code, stderr, expected=2, words=("limits.user",))
    code, stderr = serve(TRUSTED_PEERS="0.0.0.0/0")
    said(code, stderr, expected=2, words=("trusted_peers",))
    code, stderr = serve(config=str(tmp_path / "missing.yaml"))
    said(code, stderr, expected=2, words=("missing.yaml",))
    broken = tmp_path / "broken.yaml"
    broken.write_text("listen: [")
    code, stderr = serve(config=str(broken))
    said(code, stderr, expected=2, words=("broken.yaml",))


def test_wrong_routes_are_one_clear_line(server: RedisProcess, tmp_path: Path) -> None:
    """The operator's own rows: the file, the line, and what is wrong with it."""
    rows = tmp_path / "rows.tsv"
    rows.write_text("GET /api/v1/mine read\nFETCH /api/v1/mine read\n")
    code, stderr = serve(REDIS__URL=server.url, COOLIFY__EXTRA_ROUTES=str(rows))
    said(code, stderr, expected=1, words=("coolify.extra_routes", "line 2", "FETCH"))
