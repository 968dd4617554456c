"""A connection that was taken over from redis-py: its answers, and every way in which it ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, Redis

from authsidecar.store.redis_internals import DirectConnection
from tests.support.redis import RedisProcess, start_redis
from tests.support.waiting import PATIENCE_S, eventually


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path)
    yield server
    server.stop()


def command(*words: Any) -> bytes:
    return pack_command(words)


@asynccontextmanager
async def taken_over(url: str) -> AsyncIterator[tuple[DirectConnection, Any]]:
    connection = ConnectionPool.from_url(url).make_connection()
    await connection.connect()
    direct = DirectConnection(connection)
    try:
        yield direct, connection
    finally:
        direct.close()


async def answer(direct: DirectConnection, *words: str | bytes) -> Any:
    """The one answer to a command."""
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    direct.send(command(*words), got.set_result)
    async with asyncio.timeout(PATIENCE_S):
        return await got


async def come(got: list[Any]) -> bool:
    return bool(got)


async def closed(direct: DirectConnection) -> bool:
    return not direct.usable


async def test_answers_come_one_after_the_other(own: RedisProcess) -> None:
    async with taken_over(own.url) as (direct, _):
        assert await answer(direct, "PING") == b"PONG"
        assert direct.usable
        assert await answer(direct, "ECHO", "x" * 500_000) == b"x" * 500_000, "in many pieces"
        error = await answer(direct, "NOTHING")
        assert isinstance(error, exceptions.ResponseError)
        missing = await answer(direct, "EVALSHA", "0" * 40, "0")
        assert isinstance(missing, exceptions.NoScriptError)
        assert direct.usable


async def test_it_is_not_usable_while_somebody_waits(own: RedisProcess) -> None:
    async with taken_over(own.url) as (direct, _):
        direct.send(command("PING"), lambda _: None)
        assert not direct.usable


async def test_who_waits_is_told_once_that_it_is_lost(own: RedisProcess) -> None:
    async with taken_over(own.url) as (direct, _), Redis.from_url(own.url) as client:
        number = await answer(direct, "CLIENT", "ID")
        got: list[Any] = []
        direct.send(command("BLPOP", "nothing", "0"), got.append)
        await client.client_kill_filter(_id=str(number))
        await eventually(lambda: come(got), "the error")
        await asyncio.sleep(0.05)
        assert [type(one) for one in got] == [exceptions.ConnectionError]
        assert not direct.usable


async def test_one_that_redis_closed_meanwhile_is_not_used(own: RedisProcess) -> None:
    async with taken_over(own.url) as (direct, _), Redis.from_url(own.url) as client:
        number = await answer(direct, "CLIENT", "ID")
        await client.client_kill_filter(_id=str(number))
        await eventually(lambda: closed(direct), "the end")


async def test_one_that_is_to_be_opened_anew_is_not_used(own: RedisProcess) -> None:
    async with taken_over(own.url) as (direct, connection):
        connection.mark_for_reconnect()
        assert not direct.usable


async def test_more_than_was_asked_for_is_an_error(own: RedisProcess) -> None:
    """Else an answer would be read as that of the next call."""
    async with taken_over(own.url) as (direct, _):
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        direct.send(command("PING") + command("PING"), got.set_result)
        async with asyncio.timeout(PATIENCE_S):
            error = await got
        # The second may come in a packet of its own: then nobody waits, and it is closed, too.
        assert isinstance(error, exceptions.ConnectionError) or error == b"PONG"
        await eventually(lambda: closed(direct), "the end")


@pytest.mark.parametrize("sent", [b"?what\r\n", b"*1\r\n"])
async def test_what_is_no_answer_is_an_error(sent: bytes) -> None:
    """From a server that is none of Redis's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = Connection(host="127.0.0.1", port=port, protocol=2, driver_info=None)
    await connection.connect()
    direct = DirectConnection(connection)
    error = await answer(direct, "PING")
    assert isinstance(error, exceptions.ConnectionError)
    assert not direct.usable
    server.close()
