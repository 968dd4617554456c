"""`authsidecar sync coolify` as an operator types it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from authsidecar.coolify.lease import Lease
from authsidecar.coolify.sync import Follower
from authsidecar.store.keys import Keys
from authsidecar.tasks import end
from tests.support.cli import Result, invoke
from tests.support.coolify import Coolify, contents, state, sync_once

Command = Callable[..., Awaitable[Result]]


@pytest.fixture
def command(coolify_db: Coolify, redis_url: str) -> Command:
    """Runs `authsidecar ...` on Coolify's database and an empty Redis."""

    async def run(*words: str, dsn: str = coolify_db.dsn) -> Result:
        # In a thread, because this one has a loop already.
        return await asyncio.to_thread(invoke, *words, url=redis_url, SYNC__DSN=dsn)

    return run


async def test_look_sync_and_look_again(command: Command, redis_client: Redis) -> None:
    """A dry run says it all and writes nothing; a round does it; then there is nothing to do."""
    first = await command("sync", "coolify", "--once", "--dry-run")
    assert await redis_client.dbsize() == 0
    done = await command("sync", "coolify", "--once", "--json")
    second = await command("sync", "coolify", "--once", "--dry-run", "--json")

    assert [first.code, done.code, second.code] == [0, 0, 0]
    lines = first.out.splitlines()
    assert "+ token 2 of user 1, team 1: read" in lines
    assert lines[-1] == "41 new, 0 gone, 1 changed; nothing was written"
    assert json.loads(done.out)["applied"]["token_put"] == 25
    assert json.loads(second.out) == {"items": [], "new": 0, "gone": 0, "changed": 0}
    assert len((await state(redis_client))["tokens"]) == 25


def test_a_follower_that_ends_by_itself_ends_the_command(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect is told; nobody goes on waiting for a signal, with nothing followed."""

    async def broken(_: Follower) -> None:
        raise TypeError

    monkeypatch.setattr(Follower, "run", broken)
    result = invoke("sync", "coolify", url=redis_url, SYNC__DSN="postgresql://x@127.0.0.1:1/x")
    assert result.code == 1
    assert "TypeError" in result.err


async def test_an_emptied_database_is_refused_until_it_is_confirmed(
    command: Command, coolify_db: Coolify, redis_client: Redis
) -> None:
    """Exit code 1, one line that names the flag, and nothing lost."""
    await command("sync", "coolify", "--once")
    await coolify_db.run("TRUNCATE users, teams, team_user, personal_access_tokens")

    for words in (["--once"], ["--once", "--dry-run"]):
        refused = await command("sync", "coolify", *words, "--quiet")
        said = refused.err.splitlines()[-1]
        assert refused.code == 1
        assert "users is empty" in said
        assert "--allow-empty" in said
        assert len((await state(redis_client))["tokens"]) == 25

    assert (await command("sync", "coolify", "--once", "--allow-empty")).code == 0
    assert (await state(redis_client))["tokens"] == []


async def test_triggers_are_installed_and_removed(
    command: Command, coolify_db: Coolify, tmp_path: Path
) -> None:
    """By whoever owns the tables; the DSN comes from a file, and is never shown."""
    count = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"
    file = tmp_path / "dsn"
    file.write_text(coolify_db.dsn + "\n")

    installed = await command("sync", "coolify", "install-triggers", "--dsn-file", str(file))
    assert (installed.code, await coolify_db.connection.fetchval(count)) == (0, 10)
    removed = await command("sync", "coolify", "remove-triggers")
    assert (removed.code, await coolify_db.connection.fetchval(count)) == (0, 0)

    await coolify_db.run("DROP ROLE IF EXISTS guest")
    await coolify_db.run("CREATE ROLE guest LOGIN")
    try:
        file.write_text(coolify_db.dsn.replace("postgres@", "guest@"))
        refused = await command("sync", "coolify", "install-triggers", "--dsn-file", str(file))
    finally:
        await coolify_db.run("DROP ROLE guest")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "InsufficientPrivilege" in refused.err


@pytest.mark.parametrize(
    ("dsn", "code"),
    [
        ("postgresql://ann:hunter2@127.0.0.1:1/coolify", 1),
        ("mysql://ann:hunter2@127.0.0.1/coolify", 2),
    ],
)
async def test_a_database_that_is_not_there_is_said_in_one_line(
    command: Command, dsn: str, code: int
) -> None:
    """Without the password, and without a traceback."""
    failed = await command("sync", "coolify", "--once", dsn=dsn)

    assert failed.code == code
    assert failed.err.count("\n") == 1
    assert "hunter2" not in failed.err


def test_without_asyncpg_it_says_what_to_install(redis_url: str, tmp_path: Path) -> None:
    """The driver is an extra; `serve` with a sync refuses to start without it, too."""
    (tmp_path / "asyncpg.py").write_text("raise ImportError('not here')\n")

    environ = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "AUTHSIDECAR_REDIS__URL": redis_url,
        "AUTHSIDECAR_SYNC__DSN": "postgresql://x@127.0.0.1:1/x",
        "AUTHSIDECAR_SYNC__SOURCE": "coolify",
        "AUTHSIDECAR_DATA_DIR": str(tmp_path),
    }
    for words in (["sync", "coolify"], ["serve"]):
        failed = subprocess.run(
            [sys.executable, "-m", "authsidecar", *words],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert failed.returncode == 1
        assert "pip install '.[coolify]' in a checkout" in failed.stderr.splitlines()[-1]


async def test_a_role_of_its_own_cannot_be_tricked_into_writing(coolify_db: Coolify) -> None:
    """Even as the owner of the tables, the sync's connection is read-only."""
    from authsidecar.coolify.source import connected

    async with connected(coolify_db.dsn) as source:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await source._connection.execute("DELETE FROM users")


CHANGES = [
    ["user", "add", "Ann", "--email", "ann@example.test"],
    ["user", "remove", "1"],
    ["team", "add", "One"],
    ["team", "remove", "1"],
    ["member", "set", "--team", "1", "--user", "1", "--role", "owner"],
    ["member", "remove", "--team", "1", "--user", "1"],
    ["token", "revoke", "2"],
    ["api", "enable"],
    ["api", "disable"],
    ["mcp", "enable"],
    ["mcp", "disable", "--team", "1"],
    ["allowlist", "set", "10.0.0.0/8"],
]


async def test_while_coolify_owns_the_state_commands_say_so(
    coolify_db: Coolify, redis_client: Redis, redis_url: str
) -> None:
    """Each command that would fight the sync is refused and changes nothing; a release frees it."""
    await sync_once(coolify_db.dsn, redis_client)
    before = await contents(redis_client)

    async def command(*arguments: str) -> tuple[int, str]:
        found = await asyncio.to_thread(invoke, *arguments, url=redis_url)
        return found.code, found.err

    refused = [await command(*words) for words in CHANGES]
    assert [code for code, _ in refused] == [1] * len(CHANGES)
    assert all("Coolify owns" in said for _, said in refused)
    assert await contents(redis_client) == before
    running = Lease(redis_client, Keys())
    assert await running.acquire()
    keeping = asyncio.create_task(running.keep())
    code, said = await command("sync", "coolify", "release")
    await end([keeping])
    assert (code, "a sync is running" in said, "nothing was changed" in said) == (1, True, True)
    assert (await command("api", "disable"))[0] == 1
    # Not given back, as by a process that was killed: it is waited for.
    assert await command("sync", "coolify", "release") == (0, "")
    assert await command("api", "disable") == (0, "")
