"""Connections of either server alone: order, silence, a peer that does not read, the end."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.aiohttp_server import AiohttpConnections
from authsidecar.serving.connection import SHARE_REQUESTS, Connections
from authsidecar.serving.connection_limits import ConnectionLimits
from authsidecar.serving.subrequest import Fail, Subrequest
from tests.support.wire import Wire

LIMITS = ConnectionLimits()
REQUEST = b"GET /%d HTTP/1.1\r\nHost: sidecar.test\r\n\r\n"


def failed(_error: BaseException, _peer: str, _target: str) -> Reply:
    return Reply(503, "")


@asynccontextmanager
async def answering(
    server: type[Connections | AiohttpConnections],
    answer: Callable[[Subrequest], Awaitable[Reply]],
    *,
    fail: Fail = failed,
    limits: ConnectionLimits = LIMITS,
    trusts: Callable[[str], bool] = lambda _: True,
) -> AsyncIterator[tuple[int, Connections | AiohttpConnections]]:
    """Connections that answer on a free port."""

    async def answered(asked: Subrequest) -> Reply:
        return await answer(asked)

    connections = server(
        answered,
        lambda error, _peer, _begun: Reply(error.code, ""),
        fail=fail,
        trusts=trusts,
        refuse_stranger=lambda _start, _peer: Reply(403, ""),
        limits=limits,
        dropped=lambda _cause, _peer: None,
    )
    listener = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], connections
    finally:
        listener.close()
        await connections.end(0)
        await listener.wait_closed()


@pytest.fixture(params=[Connections, AiohttpConnections])
def listening(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Either server: what is held of one is held of both."""
    return partial(answering, request.param)


async def told(asked: Subrequest) -> Reply:
    """The target, as the body."""
    return Reply(200, "", asked.target.encode())


async def test_answers_come_in_the_order_of_their_requests(listening) -> None:
    """Also where the first must wait and the second need not."""
    gate = asyncio.Event()

    async def slow_at_first(asked: Subrequest) -> Reply:
        if asked.target == "/0":
            await asyncio.ensure_future(gate.wait())
        return await told(asked)

    async with listening(slow_at_first) as (port, _), Wire(port) as wire:
        wire.send(b"".join(REQUEST % n for n in range(3)))
        await asyncio.sleep(0.02)
        gate.set()
        assert [(await wire.answer()).body for _ in range(3)] == [b"/0", b"/1", b"/2"]


async def test_a_silent_connection_is_closed_and_a_busy_one_is_not(
    listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence counts from the last request; waiting for an answer is no silence."""
    for server in ("connection", "aiohttp_server"):
        monkeypatch.setattr(f"authsidecar.serving.{server}.IDLE_S", 0.1)

    async def slow(asked: Subrequest) -> Reply:
        await asyncio.ensure_future(asyncio.sleep(0.3))
        return await told(asked)

    async def answer(asked: Subrequest) -> Reply:
        return await (told if asked.target == "/0" else slow)(asked)

    async with listening(answer) as (port, _), Wire(port) as busy, Wire(port) as silent:
        assert (await silent.ask(REQUEST % 0)).status == 200
        busy.send(REQUEST % 1)
        assert await silent.ended()
        assert (await busy.answer()).status == 200
        assert await busy.ended()


async def test_a_peer_that_does_not_read_is_not_read_from(listening) -> None:
    """What it may send meanwhile is bounded; when it reads, every answer is there."""
    answered = 0

    async def large(_: Subrequest) -> Reply:
        nonlocal answered
        answered += 1
        return Reply(200, "", b"x" * 10_000)

    async with listening(large) as (port, _), Wire(port) as wire:
        sent = 3_000
        wire.send(b"".join(REQUEST % n for n in range(sent)))
        before = -1
        while answered != before:  # until nothing moves any more
            before = answered
            await asyncio.sleep(0.2)
        assert 0 < answered < sent / 2
        for _ in range(sent):
            assert len((await wire.answer()).body) == 10_000
    assert answered == sent


async def test_the_end_waits_for_answers_and_not_for_ever(listening) -> None:
    """What is idle goes at once; what is not answered within the grace is cut off."""
    gate = asyncio.Event()

    async def gated(asked: Subrequest) -> Reply:
        await asyncio.ensure_future(gate.wait())
        return await told(asked)

    async with listening(gated) as (port, connections), Wire(port) as idle, Wire(port) as busy:
        busy.send(REQUEST % 1)
        await asyncio.sleep(0.02)
        ending = asyncio.ensure_future(connections.end(10))
        assert await idle.ended()
        assert not ending.done()
        gate.set()
        assert (await busy.answer()).header("Connection") == "close"
        assert await busy.ended()
        await ending
    gate.clear()
    async with listening(gated) as (port, connections), Wire(port) as busy:
        busy.send(REQUEST % 1)
        await asyncio.sleep(0.02)
        await connections.end(0.05)
        with contextlib.suppress(ConnectionError):
            assert await busy.ended()
        gate.set()


async def test_a_peer_that_leaves_before_its_answer_leaves_nothing_behind(listening) -> None:
    """The answer is made and goes nowhere."""
    gate, made = asyncio.Event(), asyncio.Event()

    async def gated(asked: Subrequest) -> Reply:
        await asyncio.ensure_future(gate.wait())
        made.set()
        return await told(asked)

    async with listening(gated) as (port, connections):
        async with Wire(port) as wire:
            wire.send(REQUEST % 1)
            await wire.writer.drain()
            await asyncio.sleep(0.02)
        start = asyncio.get_running_loop().time()
        # aiohttp's server waits for the answer all the same, as long as it may.
        quick = isinstance(connections, Connections)
        await connections.end(5 if quick else 0.1)
        assert asyncio.get_running_loop().time() - start < 4  # it was gone already
        gate.set()
        await made.wait()


async def test_a_connection_has_its_share_of_a_tick_and_no_more(listening) -> None:
    """However many requests it sends at once, others have their turn between them."""
    tick = 0
    answered: Counter[int] = Counter()
    loop = asyncio.get_running_loop()

    async def at_once(asked: Subrequest) -> Reply:
        answered[tick] += 1
        return await told(asked)

    def next_tick() -> None:
        nonlocal tick
        tick += 1
        ticking = loop.call_soon(next_tick)
        if sum(answered.values()) == sent:
            ticking.cancel()

    sent = 500
    async with listening(at_once) as (port, connections), Wire(port) as wire:
        next_tick()
        wire.send(b"".join(REQUEST % n for n in range(sent)))
        bodies = [(await wire.answer()).body for _ in range(sent)]
        assert bodies == [b"/%d" % n for n in range(sent)]
    assert max(answered.values()) == (SHARE_REQUESTS if isinstance(connections, Connections) else 1)


async def test_a_long_head_in_pieces_is_one_request(listening) -> None:
    """What is longer than a connection's share of a tick arrives whole."""
    long = REQUEST[:-2] % 0 + b"X-Long: " + b"x" * 30_000 + b"\r\n\r\n"
    async with listening(told) as (port, _), Wire(port) as wire:
        wire.send((long + REQUEST % 1) * 3)
        assert [(await wire.answer()).body for _ in range(6)] == [b"/0", b"/1"] * 3


class _NoFuture:
    def __await__(self):
        yield self


async def _cancelled() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.cancel)
    await future


async def _raises_later() -> None:
    await asyncio.ensure_future(asyncio.sleep(0.01))
    raise ZeroDivisionError


async def _raises() -> None:
    raise ZeroDivisionError


async def _awaits_no_future() -> None:
    await _NoFuture()


@pytest.mark.parametrize("how", [_raises, _raises_later, _cancelled, _awaits_no_future])
@pytest.mark.parametrize("behind", [0, 1])
async def test_an_answer_that_fails_is_answered_all_the_same(listening, how, behind: int) -> None:
    """Raised at once, after waiting, or cancelled: 503, and the connection goes on."""

    async def answer(asked: Subrequest) -> Reply:
        if asked.target == "/0":
            await how()
        return await told(asked)

    errors: list[BaseException] = []

    def fail(error: BaseException, _peer: str, _target: str) -> Reply:
        errors.append(error)
        return Reply(503, "")

    async with listening(answer, fail=fail) as (port, connections), Wire(port) as wire:
        wire.send(REQUEST % 0 + REQUEST % 1 * behind)
        assert (await wire.answer()).status == 503
        if not behind:
            wire.send(REQUEST % 1)
        assert (await wire.answer()).body == b"/1"
        assert len(errors) == 1
        begun = asyncio.get_running_loop().time()
        await connections.end(20)
        assert asyncio.get_running_loop().time() - begun < 10
        assert await wire.ended()


async def test_an_answer_that_cannot_be_sent_is_one_that_fails() -> None:
    """A header that is not Latin-1, say, of which aiohttp's server makes UTF-8."""

    async def answer(asked: Subrequest) -> Reply:
        return Reply(200, "X: \u2192\r\n") if asked.target == "/0" else await told(asked)

    async with answering(Connections, answer) as (port, _), Wire(port) as wire:
        assert (await wire.ask(REQUEST % 0)).status == 503
        assert (await wire.ask(REQUEST % 1)).body == b"/1"


async def test_where_even_the_failure_fails_the_connection_ends(listening, caplog) -> None:
    """Nobody waits for ever, and the error is told: to the loop, or to aiohttp's log."""

    def fail(_error: BaseException, _peer: str, _target: str) -> Reply:
        raise ZeroDivisionError

    async def answer(_: Subrequest) -> Reply:
        await _raises_later()
        raise AssertionError

    raised = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    async with listening(answer, fail=fail) as (port, _), Wire(port) as wire:
        wire.send(REQUEST % 0)
        with contextlib.suppress(ConnectionError):
            assert await wire.ended()
    raised += [record.exc_info[1] for record in caplog.records if record.name == "aiohttp.server"]
    assert [type(error) for error in raised] == [ZeroDivisionError]


async def test_an_answer_may_wait_for_the_next_tick(listening) -> None:
    """asyncio.sleep(0) yields no future."""

    async def answer(asked: Subrequest) -> Reply:
        await asyncio.sleep(0)
        return await told(asked)

    async with listening(answer) as (port, _), Wire(port) as wire:
        assert (await wire.ask(REQUEST % 1)).body == b"/1"


async def test_a_peer_that_is_not_trusted_never_reaches_the_parser(listening) -> None:
    """403 whatever it sends, and nobody is asked."""
    asked = []

    async def answer(request: Subrequest) -> Reply:
        asked.append(request)
        return await told(request)

    async with listening(answer, trusts=lambda _: False) as (port, _):
        for sent in (REQUEST % 1, b"\x16\x03\x01 no HTTP", b"GET /"):
            async with Wire(port) as wire:
                assert (await wire.ask(sent)).status == 403
                assert await wire.ended()
    assert asked == []


async def test_half_a_request_ends_in_its_time(listening) -> None:
    """Alone, and behind one that was whole."""
    async with listening(told, limits=ConnectionLimits(request_s=0.1)) as (port, _):
        for whole in (b"", REQUEST % 1):
            async with Wire(port) as wire:
                wire.send(whole + b"GET /2 HT")
                if whole:
                    assert (await wire.answer()).body == b"/1"
                assert (await wire.answer()).status == 408
                assert await wire.ended()
