"""How Coolify's PostgreSQL is reached: passwords, poolers, and connections that fall silent."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from authsidecar.config import load
from authsidecar.coolify import status, triggers
from authsidecar.coolify.source import HEAR_S, Source, SourceError, View
from authsidecar.coolify.sync import Follower, SyncOptions
from authsidecar.decision.model import TokenId
from authsidecar.store.keys import Keys
from tests.support.coolify import Coolify, Lines, coolify_at, follower, state, sync_once
from tests.support.pgbouncer import MISSING, pgbouncer, program
from tests.support.postgres import PostgresProcess, fill, start_postgres
from tests.support.waiting import eventually

KEYS = Keys()
PASSWORD = "a/b?c#d@e:f%20g[h]+= '\"\\$i&"


async def gone(made: Redis, token: int) -> bool:
    return not await made.exists(KEYS.token(TokenId(token)))


async def told(lines: Lines, event: str) -> bool:
    return bool(lines.all(event))


@contextlib.asynccontextmanager
async def following(
    dsn: str, made: Redis, lines: Lines | None = None, **options: Any
) -> AsyncIterator[Lines]:
    """A sync that follows; yields its log."""
    lines = lines or Lines()
    task = asyncio.create_task(follower(dsn, made, lines, **options).run())
    try:

        async def followed() -> bool:
            told = await status.read(made, KEYS)
            return told is not None and told.age_s is not None

        await eventually(followed, "the first round")
        yield lines
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# Passwords


async def test_a_password_that_would_break_a_url_works_as_a_setting(
    redis_client: Redis, tmp_path: Path
) -> None:
    """On a server that asks for it; a wrong one is said in a line without it."""
    server = start_postgres()
    try:
        name = await server.database()
        async with coolify_at(server.dsn(name), name) as coolify:
            await fill(coolify.connection)
            await coolify.run("CREATE ROLE careful SUPERUSER LOGIN")
            quoted = PASSWORD.replace("'", "''")
            await coolify.run(f"ALTER ROLE careful PASSWORD '{quoted}'")
            hba = server.directory / "data" / "pg_hba.conf"
            line = "host all careful 127.0.0.1/32 scram-sha-256\n"
            hba.write_text(line + hba.read_text())
            await coolify.run("SELECT pg_reload_conf()")
        (tmp_path / "password").write_text(PASSWORD + "\n")
        environ = {
            "AUTHSIDECAR_SYNC__SOURCE": "coolify",
            "AUTHSIDECAR_SYNC__HOST": "127.0.0.1",
            "AUTHSIDECAR_SYNC__PORT": str(server.port),
            "AUTHSIDECAR_SYNC__USER": "careful",
            "AUTHSIDECAR_SYNC__DATABASE": name,
            "AUTHSIDECAR_SYNC__PASSWORD_FILE": str(tmp_path / "password"),
            "AUTHSIDECAR_DATA_DIR": str(tmp_path),
        }
        options = SyncOptions.of(load(None, environ))
        assert options is not None
        await sync_once(options.dsn, redis_client)
        assert len((await state(redis_client))["tokens"]) == 25

        (tmp_path / "password").write_text("sec/ret")
        wrong = SyncOptions.of(load(None, environ))
        assert wrong is not None
        with pytest.raises(SourceError) as caught:
            await sync_once(wrong.dsn, redis_client)
        assert "password" in str(caught.value)
        assert "sec" not in str(caught.value)

        # Rotated while it runs: the file is read again at the next connection.
        lines = Lines()
        task = asyncio.create_task(Follower(wrong, redis_client, Keys("other:"), lines.log).run())
        try:
            await eventually(lambda: told(lines, "sync_outage"), "the refused login")
            (tmp_path / "password").write_text(PASSWORD + "\n")
            await eventually(lambda: told(lines, "sync_following"), "the first round")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    finally:
        server.stop()


async def test_a_dsn_that_the_driver_cannot_read_is_told_and_not_shown(
    redis_client: Redis,
) -> None:
    """Whoever wrote it past the configuration: one line, a problem in the status, no secret."""
    lines = Lines()
    one = follower("postgresql://me:hunter/2@db:port/coolify", redis_client, lines)
    task = asyncio.create_task(one.run())
    try:

        async def told() -> bool:
            found = await status.read(redis_client, KEYS)
            return found is not None and found.problem == "outage"

        await eventually(told, "the problem")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(lines.all("sync_outage")) == 1
    assert "hunter" not in lines.stream.getvalue()


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:hunter/2@db:port/x", "postgresql://[hunter2@db/x"]
)
async def test_triggers_with_a_dsn_that_cannot_be_read_are_one_line(dsn: str) -> None:
    """Of a file that nobody has checked."""
    with pytest.raises(SourceError, match="cannot be read") as caught:
        await triggers.run(dsn, triggers.installing())
    assert "hunter" not in str(caught.value)


# PgBouncer

pooled = pytest.mark.skipif(program() is None, reason=MISSING)


@pooled
@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("ignoring", [(), ("ignore_startup_parameters = options",)])
async def test_rounds_follow_through_a_pooler(
    coolify_db: Coolify,
    postgres_server: PostgresProcess,
    redis_client: Redis,
    mode: str,
    ignoring: tuple[str, ...],
) -> None:
    """Whoever else uses it: its connections to the server change hands all the time."""
    with pgbouncer(postgres_server, mode, *ignoring) as port:
        dsn = f"postgresql://postgres@127.0.0.1:{port}/{coolify_db.name}"
        stop = asyncio.Event()

        async def neighbour() -> None:
            other = await asyncpg.connect(dsn, statement_cache_size=0)
            try:
                while not stop.is_set():
                    async with other.transaction():
                        await other.execute("SELECT pg_sleep(0.005)")
            finally:
                await other.close()

        beside = [asyncio.create_task(neighbour()) for _ in range(3)]
        try:
            async with following(dsn, redis_client) as lines:
                for token in (2, 3, 4, 5, 13):
                    await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = $1", token)
                    await eventually(lambda t=token: gone(redis_client, t), f"token {token}")
        finally:
            stop.set()
            await asyncio.gather(*beside)
        assert not lines.all("sync_outage")
        assert not lines.all("sync_defect")
        # Nothing of ours stays on a connection that others get.
        other = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            for _ in range(8):
                assert await other.fetchval("SHOW default_transaction_read_only") == "off"
                assert await other.fetchval("SHOW lock_timeout") == "0"
        finally:
            await other.close()


@pooled
@pytest.mark.parametrize(("mode", "works"), [("transaction", False), ("session", True)])
async def test_instant_mode_says_what_it_needs(
    coolify_db: Coolify,
    postgres_server: PostgresProcess,
    redis_client: Redis,
    mode: str,
    works: bool,
) -> None:
    """A notification needs a connection of its own: else that is told, and rounds go on."""
    await triggers.run(coolify_db.dsn, triggers.installing())
    try:
        with pgbouncer(postgres_server, mode) as port:
            dsn = f"postgresql://postgres@127.0.0.1:{port}/{coolify_db.name}"
            interval = 60.0 if works else 0.2
            async with following(dsn, redis_client, instant=True, interval_s=interval) as lines:

                async def told() -> bool:
                    found = await status.read(redis_client, KEYS)
                    return found is not None and found.problem == "instant"

                if not works:
                    await eventually(told, "the problem")
                await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
                await eventually(lambda: gone(redis_client, 2), "the revocation")
                assert await told() is not works
            found = lines.all("sync_instant")
            assert len(found) == (0 if works else 1)
            assert works or "session" in found[0]["detail"]
    finally:
        await triggers.run(coolify_db.dsn, triggers.removing())


# Connections that fall silent


class Silence:
    """A relay to PostgreSQL that can keep what it gets, on the connections that are open then."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self._silent: set[int] = set()
        self._open: dict[int, asyncio.Task[None]] = {}

    def fall(self, *, newest: bool = False) -> None:
        """Say nothing any more on what is open; on the newest connection alone, if so."""
        numbers = sorted(self._open)
        self._silent |= set(numbers[-1:] if newest else numbers)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        number = max(self._open, default=0) + 1
        self._open[number] = task

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if number in self._silent:
                    await asyncio.Event().wait()
                target.write(data)
                await target.drain()

        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        ways = [
            asyncio.ensure_future(pump(reader, back)),
            asyncio.ensure_future(pump(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            back.close()
            writer.close()

    async def close(self) -> None:
        for task in self._open.values():
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def silence(port: int) -> AsyncIterator[Silence]:
    made = Silence(port)
    server = await asyncio.start_server(made.connect, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()


@pytest.mark.parametrize("interval_s", [0.1, 1.0])
async def test_a_connection_that_falls_silent_delays_a_revocation_by_seconds(
    coolify_db: Coolify,
    postgres_server: PostgresProcess,
    redis_client: Redis,
    interval_s: float,
) -> None:
    """Nothing arrives and nothing is closed: each query's patience fits what it is for."""
    async with silence(postgres_server.port) as between:
        dsn = f"postgresql://postgres@127.0.0.1:{between.port}/{coolify_db.name}"
        async with following(dsn, redis_client, interval_s=interval_s) as lines:
            between.fall()
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
            start = time.monotonic()
            await eventually(lambda: gone(redis_client, 2), "the revocation")
            assert time.monotonic() - start < 10
        assert lines.all("sync_outage")


async def test_silence_while_rows_are_read_is_given_up_as_soon(
    coolify_db: Coolify,
    postgres_server: PostgresProcess,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some rows take some milliseconds here: nobody waits ten seconds for those of one bucket."""
    async with silence(postgres_server.port) as between:
        dsn = f"postgresql://postgres@127.0.0.1:{between.port}/{coolify_db.name}"
        async with following(dsn, redis_client, interval_s=0.1):
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 3")
            await eventually(lambda: gone(redis_client, 3), "a round that has read rows")
            read, fallen = View.rows, False

            async def fall(self: View, *args: Any) -> Any:
                nonlocal fallen
                if not fallen:
                    fallen = True
                    between.fall()
                return await read(self, *args)

            monkeypatch.setattr(View, "rows", fall)
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
            start = time.monotonic()
            await eventually(lambda: gone(redis_client, 2), "the revocation")
            assert fallen
            assert time.monotonic() - start < 5


async def test_another_connection_may_be_another_server(
    coolify_db: Coolify, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promoted PostgreSQL gives the same ids to other transactions: names alone prove nothing."""

    async def same(_: Source) -> str:
        return "the same"

    monkeypatch.setattr(Source, "_pg_snapshot", same)
    async with following(coolify_db.dsn, redis_client):
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
        await asyncio.sleep(0.3)
        assert not await gone(redis_client, 2)  # the name says that nothing was written
        await coolify_db.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'authsidecar'"
        )
        await eventually(lambda: gone(redis_client, 2), "the revocation")


async def test_a_listener_that_falls_silent_is_noticed(
    coolify_db: Coolify, postgres_server: PostgresProcess, redis_client: Redis
) -> None:
    """Rounds are a minute apart, and the notification never comes."""
    await triggers.run(coolify_db.dsn, triggers.installing())
    try:
        async with silence(postgres_server.port) as between:
            dsn = f"postgresql://postgres@127.0.0.1:{between.port}/{coolify_db.name}"
            async with following(dsn, redis_client, instant=True, interval_s=60.0):
                await asyncio.sleep(HEAR_S)  # it has been notified once
                between.fall(newest=True)
                await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
                start = time.monotonic()
                await eventually(lambda: gone(redis_client, 2), "the revocation")
                assert time.monotonic() - start < 15
    finally:
        await triggers.run(coolify_db.dsn, triggers.removing())


async def test_the_kernel_is_told_to_give_up_a_silent_host(coolify_db: Coolify) -> None:
    """Keepalive and user timeout are set on the very socket."""
    import socket

    from authsidecar.coolify.source import connected

    async with connected(coolify_db.dsn) as source:
        found = source._connection._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        every = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        count = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle + every * count <= 10
        assert 0 < found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 10_000
