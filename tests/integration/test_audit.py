"""Who changed what: every change has its record, in the change itself, and a line in the log."""

import asyncio
import contextlib
import getpass
import json
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Restriction, Role, TeamId, TokenId, UserId
from authsidecar.store.audit import LONGEST_TEXT, MOST_ITEMS, RECORDS, Origin, Trail, Via
from authsidecar.store.bulk import Bulk
from authsidecar.store.entities import Member, Team, User
from authsidecar.store.epoch import Fence
from authsidecar.store.keys import Keys
from authsidecar.store.registry import RECORDED_ONE_BY_ONE, Registry
from tests.support import seed
from tests.support.cli import Result, invoke
from tests.support.seed import bearer, secret_of
from tests.support.sidecar import start_sidecar
from tests.support.waiting import until

ORIGIN = Origin("ada", Via.CLI, "host")


@pytest.fixture
def cli(redis_url: str):
    def run(*arguments: object, **how) -> Result:
        return invoke(*arguments, url=redis_url, **how)

    return run


def told(cli) -> list[tuple]:
    """Every record, the oldest first: action, target, before, after."""
    items = cli("audit", "tail", "--lines", "1000", "--json").json["items"]
    return [(one["action"], one["target"], one["before"], one["after"]) for one in items]


def test_each_command_that_changes_something_leaves_a_record(cli, tmp_path: Path) -> None:
    """Who, when, from where, before and after; nothing that only looks does."""
    token = {"name": "ci job", "user": 1, "team": 1, "permissions": ["read"], "expires_at": None}
    limit = {"limit": 5, "window_seconds": 60.0}
    steps = [
        (
            ("team", "add", "web"),
            ("team.add", "team 1", None, {"name": "web", "mcp_enabled": True}),
        ),
        (
            ("user", "add", "Ada", "--email", "ada@example.com"),
            ("user.add", "user 1", None, {"name": "Ada", "email": "ada@example.com"}),
        ),
        (
            ("member", "set", "--team", 1, "--user", 1, "--role", "owner"),
            ("member.set", "user 1 in team 1", None, {"role": "owner"}),
        ),
        (
            ("member", "set", "--team", 1, "--user", 1, "--role", "admin"),
            ("member.set", "user 1 in team 1", {"role": "owner"}, {"role": "admin"}),
        ),
        (
            (
                *("token", "create", "--user", 1, "--team", 1, "--name", "ci job"),
                *("--permission", "read", "--expires", "never"),
            ),
            ("token.add", "token 1", None, token),
        ),
        (
            ("api", "enable"),
            ("api.switch", "instance", {"api_enabled": False}, {"api_enabled": True}),
        ),
        (
            ("mcp", "enable"),
            ("mcp.switch", "instance", {"mcp_enabled": False}, {"mcp_enabled": True}),
        ),
        (
            ("mcp", "disable", "--team", 1),
            ("mcp.switch", "team 1", {"mcp_enabled": True}, {"mcp_enabled": False}),
        ),
        (
            ("allowlist", "set", "192.0.2.0/24", "--force"),
            ("allowlist.set", "instance", {"allowlist": ""}, {"allowlist": "192.0.2.0/24"}),
        ),
        (("limit", "set", "--user", 1, "--limit", 5), ("limit.set", "user 1", None, limit)),
        (("limit", "reset", "--user", 1), ("limit.reset", "user counter of u:1", None, None)),
        (("limit", "clear", "--user", 1), ("limit.clear", "user 1", limit, None)),
        (
            ("token", "restrict", 1, "--permission", "read"),
            ("restrict", "token 1", None, {"permissions": ["read"]}),
        ),
        (("token", "unrestrict", 1), ("unrestrict", "token 1", {"permissions": ["read"]}, None)),
        (("token", "revoke", 1), ("token.revoke", "token 1", token, None)),
        (
            ("key", "create", "--name", "k", "--scope", "read", "--expires", "never"),
            ("key.create", "key 1", None, {"name": "k", "scope": "read", "expires_at": None}),
        ),
        (
            ("key", "revoke", 1),
            ("key.revoke", "key 1", {"name": "k", "scope": "read", "expires_at": None}, None),
        ),
        (
            ("member", "remove", "--team", 1, "--user", 1),
            ("member.remove", "user 1 in team 1", {"role": "admin", "tokens": []}, None),
        ),
        (
            ("user", "remove", 1),
            (
                *("user.remove", "user 1"),
                {"name": "Ada", "email": "ada@example.com", "teams": [], "tokens": []},
                None,
            ),
        ),
        (
            ("team", "remove", 1),
            (
                *("team.remove", "team 1"),
                {"name": "web", "mcp_enabled": False, "members": [], "tokens": []},
                None,
            ),
        ),
    ]
    for words, _ in steps:
        assert cli(*words).code == 0, words
    for words in (("token", "list"), ("limit", "show"), ("key", "list"), ("allowlist", "show")):
        assert cli(*words).code == 0
    assert cli("token", "revoke", 99).code == 1
    assert told(cli) == [record for _, record in steps]
    (last,) = cli("audit", "tail", "--lines", 1, "--json").json["items"]
    assert (last["actor"], last["via"], last["place"]) == (
        getpass.getuser(),
        "cli",
        socket.gethostname(),
    )
    shown = cli("audit", "show", last["id"], "--json").json
    assert shown == last
    assert "team.remove" in cli("audit", "show", last["id"]).out
    assert "removed" in cli("audit", "tail").out


def test_who_came_by_ssh_and_sudo(cli, monkeypatch) -> None:
    """The user behind sudo, and the address of the session."""
    monkeypatch.setenv("SUDO_USER", "ada")
    monkeypatch.setenv("SSH_CLIENT", "192.0.2.7 50000 22")
    assert cli("api", "enable").code == 0
    (item,) = cli("audit", "tail", "--json").json["items"]
    assert item["actor"].startswith("ada as ")
    assert item["place"].endswith(" from 192.0.2.7")


def test_a_record_that_is_not_there(cli) -> None:
    """One line, whatever was typed."""
    for text in ("1-0", "x", "-", "1;2"):
        found = cli("audit", "show", "--", text)
        assert (found.code, found.err.count("\n")) == (1, 1)
        assert "audit tail" in found.err


async def test_the_stream_is_bounded_and_so_is_a_record(redis_client: Redis) -> None:
    """Long texts and lists are cut, and say so; what looks like a token is cut out."""
    registry = Registry(redis_client, Keys(), ORIGIN)
    await registry.set_instance(allowlist=", ".join(["192.0.2.1"] * 1000))
    await registry.add_user("Bearer abcdef 12|secret", "a@example.com")
    first, second = await Trail(redis_client, Keys()).after("0-0", 10)
    assert len(first.after["allowlist"]) < LONGEST_TEXT + 20
    assert "abcdef" not in second.after["name"]
    assert "secret" not in second.after["name"]
    async with redis_client.pipeline(transaction=False) as pipe:
        for _ in range(RECORDS + 500):
            pipe.xadd(Keys().audit, {"action": "x"})
        await pipe.execute()
    await registry.set_instance(api_enabled=True)
    assert RECORDS <= await redis_client.xlen(Keys().audit) < RECORDS + 200


async def test_many_at_once_are_one_record(redis_client: Redis) -> None:
    """An import of very many tokens does not push everything else out of the stream."""
    registry = Registry(redis_client, Keys(), ORIGIN)
    await seed.user(seed.registry(redis_client), 1, t1="owner")
    few = [seed.token(n, user=1, team=1) for n in range(1, RECORDED_ONE_BY_ONE + 1)]
    await registry.put_tokens(few)
    await registry.put_tokens([seed.token(n, user=1, team=1) for n in range(1, 201)])
    *single, many = await Trail(redis_client, Keys()).after("0-0", 100)
    assert [one.action for one in single] == ["token.add"] * len(few)
    assert (many.action, many.target, many.before) == ("token.put", "200 tokens", None)
    assert many.after["count"] == 200
    assert many.after["new"] == 200 - len(few)
    assert len(many.after["ids"]) == MOST_ITEMS + 1


async def test_what_a_sync_writes_is_recorded(redis_client: Redis) -> None:
    """Before and after of each fact; the settings only where they change."""
    fence = Fence("fence", b"me")
    await redis_client.set("fence", "me")
    bulk = Bulk(redis_client, Keys(), fence, Origin("coolify", Via.SYNC, "host"))
    await bulk.epoch.begin()
    user, team = UserId(1), TeamId(3)
    await bulk.put_users([User(user, "Ada", "a@example.com")])
    await bulk.put_users([User(user, "Ada L", "a@example.com")])
    await bulk.put_teams([Team(team, "web", mcp_enabled=True)])
    await bulk.put_members([Member(team, user, Role.OWNER)])
    await bulk.put_tokens([seed.token(5, user=1, team=3)])
    await bulk.set_instance(api_enabled=True, mcp_enabled=False, allowlist="")
    await bulk.drop_tokens(await bulk.tokens_of([TokenId(5)]))
    await bulk.drop_members([Member(team, user, Role.OWNER)])
    records = await Trail(redis_client, Keys()).after("0-0", 100)
    assert [(one.action, one.target) for one in records] == [
        ("user.add", "user 1"),
        ("user.change", "user 1"),
        ("team.add", "team 3"),
        ("member.set", "user 1 in team 3"),
        ("token.add", "token 5"),
        ("api.switch", "instance"),
        ("token.revoke", "token 5"),
        ("member.remove", "user 1 in team 3"),
    ]
    assert (records[1].before["name"], records[1].after["name"]) == ("Ada", "Ada L")
    assert {one.origin.via for one in records} == {Via.SYNC}


async def test_a_change_that_was_not_made_has_no_record(redis_client: Redis) -> None:
    """Both are one MULTI; and who is nobody leaves none."""
    registry = Registry(redis_client, Keys(), ORIGIN)
    assert not await registry.set_restriction("token", 9, Restriction())
    assert await registry.remove_user(UserId(9)) is None
    await seed.registry(redis_client).set_instance(api_enabled=True)
    assert await redis_client.exists(Keys().audit) == 0


def test_one_line_in_the_log_of_one_process(cli, tmp_path: Path, redis_url: str) -> None:
    """Of two workers one logs it, whoever changed it; the switch by a token names the token."""

    async def populate() -> None:
        async with Redis.from_url(redis_url) as client:
            await seed.user(seed.registry(client), 1, t0="owner")
            root = seed.token(1, user=1, team=0, permissions=("root",))
            await seed.registry(client).put_tokens([root])

    asyncio.run(populate())
    assert cli("team", "add", "before").code == 0
    sidecar = start_sidecar(tmp_path, redis_url, LISTEN__WORKERS="2")
    with contextlib.ExitStack() as stack:
        stack.callback(sidecar.stop)
        assert cli("team", "add", "web").code == 0
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=10)
        headers = {"Authorization": bearer(1), "X-Forwarded-For": "192.0.2.9"}
        connection.request("POST", "/api/v1/enable", headers=headers)
        assert connection.getresponse().status == 200
        connection.close()
        until(lambda: len(sidecar.events("audit")) >= 3, "three lines")
        assert cli("team", "add", "again").code == 0
        until(lambda: len(sidecar.events("audit")) >= 4, "four lines")
    found = [(one["action"], one["target"], one["via"]) for one in sidecar.events("audit")]
    assert sorted(found) == [
        ("api.switch", "instance", "authz"),
        ("team.add", "team 1", "cli"),
        ("team.add", "team 2", "cli"),
        ("team.add", "team 3", "cli"),
    ]
    (switched,) = [one for one in sidecar.events("audit") if one["via"] == "authz"]
    assert (switched["actor"], switched["place"]) == ("token 1", "192.0.2.9")
    assert secret_of(1) not in json.dumps(sidecar.events("audit"))
