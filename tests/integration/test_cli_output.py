"""Standard output that can't be written: a full disk, a reader that has left, none at all."""

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from redis import exceptions

from authsidecar.admin.refusal import LeftoverError
from authsidecar.admin.tokens import issue
from authsidecar.cli.main import cli, run
from authsidecar.decision.model import Limit, Permission, TeamId, TokenId, UserId
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.cli import Result, with_registry
from tests.support.coolify import Coolify
from tests.support.redis import RedisProcess, start_redis

FULL = "authsidecar: standard output can't be written: No space left on device"
CLOSED = "authsidecar: standard output can't be written: it is closed"
RAN = "; the command has run all the same"

CREATE = "token create --user 7 --team 3 --name more --permission read --expires 7".split()  # noqa: SIM905


async def _world(registry: Registry) -> None:
    await seed.user(registry, 7, t3="owner")
    await registry.put_tokens([seed.token(67, user=7, team=3)])
    await registry.set_limit("user", 7, Limit(100))


@contextlib.contextmanager
def full() -> Iterator[Any]:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        yield stream
        with contextlib.suppress(OSError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def left() -> Iterator[Any]:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    yield stream
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    stream.close()


@contextlib.contextmanager
def closed() -> Iterator[Any]:
    yield None


SINKS: dict[str, Callable[[], Any]] = {"full": full, "left": left, "closed": closed}


def said(
    *words: object, sink: str | Any, url: str = "redis://127.0.0.1:1", **settings: str
) -> Result:
    """Run one command line whose standard output is bad."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AUTHSIDECAR")}
    own |= {f"AUTHSIDECAR_{name}": value for name, value in settings.items()}
    own |= {"AUTHSIDECAR_REDIS__URL": url}
    err = io.StringIO()
    opened = SINKS[sink]() if isinstance(sink, str) else contextlib.nullcontext(sink)
    with (
        opened as stream,
        mock.patch.dict(os.environ, own, clear=True),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(_line()))),
        mock.patch.object(sys, "stdout", stream),
        contextlib.redirect_stderr(err),
    ):
        code = run([str(word) for word in words])
    told = err.getvalue()
    return Result(code, "", _plain(told) if "--json" in words else told)


def _plain(told: str) -> str:
    """Errors that were said to a script, as people are told them."""
    errors = [json.loads(line)["error"] for line in told.splitlines()]
    return "".join(f"authsidecar: {error}\n" for error in errors)


def _line() -> bytes:
    """A token that may be imported."""
    given = {"id": 500, "sha256": sha256(b"x").hexdigest(), "user": 7, "team": 3, "name": "more"}
    return json.dumps({**given, "permissions": ["read"], "expires_at": None}).encode() + b"\n"


def leaves(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from leaves(command, *before, name)


EVERY = [(), *leaves(cli)]

READING = [
    "team list",
    "user list",
    "member list --team 3",
    "token list",
    "token show 67",
    "token advise",
    "token advise 67",
    "api status",
    "mcp status",
    "allowlist show",
    "allowlist check 192.0.2.7",
    "limit show",
    "limit show --user 7",
    "routes list",
    "routes match GET /api/v1/teams",
    "routes diff 4.1 4.3",
    "check-config",
    "config schema",
    "config example",
    "completion bash",
    "explain GET /api/v1/teams",
    "decisions report",
    "decisions report --csv",
    "simulate",
]

CHANGING = [
    "team add more",
    "team remove 3",
    "user add more --email more@example.test",
    "user remove 7",
    "member set --team 3 --user 7 --role member",
    "member remove --team 3 --user 7",
    "token revoke 67",
    "token disable 67",
    "token restrict 67 --permission read",
    "token unrestrict 67",
    "user restrict 7 --permission read",
    "user unrestrict 7",
    "team restrict 3 --permission read",
    "team unrestrict 3",
    "token import -",
    "api enable",
    "api disable",
    "mcp enable",
    "mcp disable --team 3",
    "allowlist set 192.0.2.0/24 --my-ip 192.0.2.7",
    "limit set --user 7 --limit 5",
    "limit clear --user 7",
    "limit reset --user 7",
    "sync coolify release",
    "notify --once",
]

ELSEWHERE = {
    "console",
    "token create",
    "key create",
    "key list",
    "key revoke",
    "audit tail",
    "audit show",
    "serve",
    "health",
    "demo",
    "doctor",
    "doctor echo",
    "sync coolify",
    "sync coolify install-triggers",
    "sync coolify remove-triggers",
    "routes import",
    "decisions tail",
    "decisions top",
    "decisions show",
    "decisions export",
    "token rotate",
    "token enable",
    "canary create",
    "canary list",
    "canary remove",
    "allowlist confirm",
    "api confirm",
    "state export",
    "state import",
}
"""Commands with a test of their own, or that write nothing to standard output but a log."""


def test_the_lists_name_every_command() -> None:
    """A new command is tried on a full disk, too."""
    tried = {*READING, *CHANGING}
    groups = {" ".join(words[:-1]) for words in EVERY if words}
    missing = [
        line
        for line in map(" ".join, EVERY)
        if line not in groups | ELSEWHERE
        and not any(one == line or one.startswith(f"{line} ") for one in tried)
    ]
    assert missing == []


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_say_that_they_can_not_be_written(option: str, sink: str) -> None:
    """For every command: one plain line, or none for a reader that has left (`| head`)."""
    expected = {"full": FULL + "\n", "left": "", "closed": CLOSED + "\n"}[sink]
    for words in EVERY:
        result = said(*words, option, sink=sink)
        assert (result.code, result.err) == (1, expected), words
    assert said(sink=sink).err == expected, "the bare command shows its help"


@pytest.fixture
def url(redis_url: str) -> str:
    asyncio.run(with_registry(redis_url, _world))
    return redis_url


def last(result: Result) -> str:
    assert "defect" not in result.err
    return result.err.splitlines()[-1] if result.err else ""


@pytest.mark.parametrize("how", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("line", READING)
def test_a_command_that_reads_says_that_it_can_not_write(
    url: str, line: str, how: tuple[str, ...]
) -> None:
    """One plain line and exit code 1; a reader that has left is told nothing."""
    expected = {"full": FULL, "left": "", "closed": CLOSED}
    for sink, text in expected.items():
        result = said(*line.split(), *how, sink=sink, url=url)
        assert (result.code, last(result)) == (1, text), sink


@pytest.mark.parametrize("line", CHANGING)
@pytest.mark.parametrize("sink", SINKS)
def test_a_command_that_changes_something_says_that_it_has_run(
    url: str, line: str, sink: str
) -> None:
    """Exit code 1, and nobody must guess whether the change was made."""
    more = {"MAIL__WEBHOOK_URL": "http://127.0.0.1:1/"} if "notify" in line else {}
    result = said(*line.split(), sink=sink, url=url, **more)
    assert result.code == 1
    assert last(result).startswith("authsidecar: standard output can't be written: ")
    assert last(result).endswith(RAN)


def test_a_changed_thing_is_changed(url: str) -> None:
    """What the line says is true."""
    assert said("token", "revoke", 67, sink="full", url=url).code == 1
    assert said("token", "revoke", 67, sink="full", url=url).err.startswith(
        "authsidecar: there is no token 67"
    )


def test_an_imported_route_table_that_can_not_be_written(tmp_path: Path) -> None:
    """The table is the result: without it the command has failed."""
    php = tmp_path / "api.php"
    php.write_text("<?php\nRoute::get('/version', [X::class, 'version']);\n")
    for sink, expected in {"full": FULL, "left": "", "closed": CLOSED}.items():
        result = said("routes", "import", php, sink=sink)
        assert (result.code, last(result)) == (1, expected)


def test_a_text_that_the_terminal_can_not_show(url: str) -> None:
    """An old locale is an output error as well."""
    asyncio.run(with_registry(url, lambda r: r.add_user("日本", "nihon@example.test")))
    western = io.TextIOWrapper(io.BytesIO(), encoding="iso8859-1")
    result = said("user", "list", sink=western, url=url)
    assert result.code == 1
    assert (
        result.err == "authsidecar: standard output can't be written: latin-1 can't say '\\u65e5'\n"
    )


async def test_a_sync_that_can_not_say_what_it_did(coolify_db: Coolify, redis_url: str) -> None:
    """A dry run has failed; a round and the triggers are made all the same."""

    def told(*words: str) -> Result:
        more = {"SYNC__DSN": coolify_db.dsn}
        return said("sync", "coolify", *words, sink="full", url=redis_url, **more)

    assert last(await asyncio.to_thread(told, "--once", "--dry-run")) == FULL
    for words in (["--once"], ["install-triggers"], ["remove-triggers"]):
        assert last(await asyncio.to_thread(told, *words)) == FULL + RAN


# What is shown once


def tokens(url: str) -> list[int]:
    async def ids(registry: Registry) -> list[int]:
        return sorted([token.id async for token in registry.tokens()])

    return asyncio.run(with_registry(url, ids))


@pytest.mark.parametrize("how", [[], ["--json"], ["--quiet"]], ids=["text", "json", "quiet"])
@pytest.mark.parametrize("sink", SINKS)
def test_a_token_that_nobody_was_shown_is_taken_back(url: str, sink: str, how: list[str]) -> None:
    """A full disk, a closed pipe or output: exit code 1, one line, and no such token."""
    result = said(*CREATE, *how, sink=sink, url=url)
    assert result.code == 1
    assert result.err.startswith("authsidecar: standard output can't be written: ")
    assert result.err.endswith("; the new token was taken back\n")
    assert result.err.count("\n") == 1
    assert tokens(url) == [67]


@pytest.mark.parametrize(
    ("redirection", "why"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "it is closed"),
        (">&- 2>&-", None),
        (">/dev/full 2>/dev/full", None),
        ("<&- >&-", "it is closed"),
    ],
)
def test_a_process_takes_its_token_back(url: str, redirection: str, why: str | None) -> None:
    """From the shell, too, whose descriptors a connection must not get; nothing is said at exit."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m authsidecar "$@" {redirection}', sys.executable, *CREATE],
        env={**os.environ, "AUTHSIDECAR_REDIS__URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    text = f"authsidecar: standard output can't be written: {why}; the new token was taken back\n"
    assert done.stderr == ("" if why is None else text)
    assert tokens(url) == [67]


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_notes_that_can_not_be_written_take_nothing_back(url: str, redirection: str) -> None:
    """The token was shown: that its expiry was not is no reason to revoke it."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m authsidecar "$@" {redirection}', sys.executable, *CREATE],
        env={**os.environ, "AUTHSIDECAR_REDIS__URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    number, _, secret = done.stdout.strip().partition("|")
    assert secret
    assert tokens(url) == [67, int(number)]


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path / "redis")
    asyncio.run(with_registry(server.url, _world))
    yield server
    server.stop()


def test_a_token_that_can_not_be_taken_back_is_named(own_redis: RedisProcess) -> None:
    """Redis is gone as well by then: its id and the command that revokes it are said."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            own_redis.kill()
            raise OSError(28, "No space left on device")

    result = said(*CREATE, sink=Gone(), url=own_redis.url)
    assert result.code == 1
    assert result.err == (
        f"{FULL}; token 68 was made, is shown to nobody and could not be taken back: "
        "`authsidecar token revoke 68`\n"
    )


# What may have been written, but was not answered


async def _issued(registry: Registry) -> Any:
    return await issue(
        registry,
        user=UserId(7),
        team=TeamId(3),
        name="more",
        permissions=[Permission.READ],
        days=7,
    )


@pytest.mark.parametrize("error", [exceptions.TimeoutError("late"), asyncio.CancelledError()])
def test_a_token_of_an_unclear_write_is_taken_back(
    url: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Redis wrote it and its answer did not come, or Ctrl-C did: nobody will see its secret."""
    put = Registry.put_tokens

    async def unclear(self: Registry, written: Any) -> None:
        await put(self, written)
        if any(token.id != 67 for token in written):
            raise error

    monkeypatch.setattr(Registry, "put_tokens", unclear)

    async def attempt(registry: Registry) -> None:
        with pytest.raises(type(error)):
            await _issued(registry)
        assert await registry.token(TokenId(68)) is None

    asyncio.run(with_registry(url, attempt))
    assert tokens(url) == [67]


def test_a_token_of_an_unclear_write_is_named_where_redis_is_gone(
    own_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By id: whoever reads the line can revoke it later."""
    put = Registry.put_tokens

    async def lost(self: Registry, written: Any) -> None:
        await put(self, written)
        own_redis.kill()
        raise exceptions.ConnectionError("lost")

    monkeypatch.setattr(Registry, "put_tokens", lost)
    with pytest.raises(LeftoverError) as caught:
        asyncio.run(with_registry(own_redis.url, _issued))
    assert caught.value.number == 68
    own_redis.start()
    asyncio.run(with_registry(own_redis.url, _world_before(put)))
    result = said(*CREATE, sink=io.StringIO(), url=own_redis.url)
    assert result.code == 1
    assert "Redis failed under way (lost); token 68 may have been made" in result.err
    assert "`authsidecar token revoke 68`" in result.err


def _world_before(put: Any) -> Callable[[Registry], Any]:
    async def work(registry: Registry) -> None:
        await seed.user(registry, 7, t3="owner")
        await put(registry, [seed.token(67, user=7, team=3)])

    return work
