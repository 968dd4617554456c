"""Users, teams, members, switches, allowlist and limits from the command line, on a real Redis."""

import asyncio
import os
import pty
import subprocess
import sys
from ipaddress import ip_address

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Role, TeamId, TokenId, UserId
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import LastUses
from authsidecar.times import UnixMs
from tests.support.cli import Result, invoke, with_registry
from tests.support.seed import token


@pytest.fixture
def cli(redis_url):
    """The command line over an empty Redis."""

    def run(*arguments: object, stdin: bytes = b"", **settings: str) -> Result:
        return invoke(*arguments, url=redis_url, stdin=stdin, **settings)

    return run


@pytest.fixture
def ada(cli):
    """Team 0 and team 3, and user 7 who owns team 3."""
    cli("team", "add", "Root Team", "--id", 0)
    cli("team", "add", "Web shop", "--id", 3)
    cli("user", "add", "Ada", "--email", "ada@example.test", "--id", 7)
    cli("member", "set", "--team", 3, "--user", 7, "--role", "owner")
    return cli


def create(cli, *permissions: str, name="ci job", user=7, team=3, expires="never") -> Result:
    words = [word for permission in permissions for word in ("--permission", permission)]
    return cli(
        *("token", "create", "--user", user, "--team", team, "--name", name),
        *("--expires", expires, *words, "--json"),
    )


def refused(result: Result, *said: str) -> None:
    """Exit code 1, nothing on standard output, one line that says why."""
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("authsidecar: ")
    assert result.err.count("\n") == 1
    for words in said:
        assert words in result.err


def test_ids_count_up_unless_given(cli):
    """Users and teams are numbered; a wanted id is kept, and later ones are above it."""
    assert cli("team", "add", "First", "--json").json == {
        "id": 1,
        "name": "First",
        "mcp_enabled": True,
    }
    assert cli("team", "add", "Ninth", "--id", 9, "--quiet").out == "9\n"
    assert cli("team", "add", "Next", "--quiet").out == "10\n"
    added = cli("user", "add", "Ada", "--email", "a@example.test", "--json").json
    assert added == {"id": 1, "name": "Ada", "email": "a@example.test"}


@pytest.mark.parametrize("noun", [["team", "add", "X"], ["user", "add", "X", "--email", "x@y.z"]])
def test_taken_id_is_refused(cli, noun):
    """An id that is taken is nobody else's; the line says what to do."""
    assert cli(*noun, "--id", 5).code == 0
    refused(cli(*noun, "--id", 5), "the id 5 is taken", "leave --id out")


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "a\nb", "\x1b[31m"])
def test_name_that_is_none_is_wrong_usage(cli, name):
    """Empty, endless and control characters are no names of users or teams."""
    assert cli("team", "add", name).code == 2
    assert cli("user", "add", name, "--email", "x@y.z").code == 2


@pytest.mark.parametrize("email", ["ada", "a@b\r\nBcc: c@d", "a b@c", "@", "a@" + "b" * 255])
def test_email_that_is_none_is_wrong_usage(cli, email):
    """Warnings are mailed there: no header can be smuggled in."""
    assert cli("user", "add", "Ada", "--email", email).code == 2


def test_lists_for_people_and_scripts(ada):
    """A table with a head for people, `items` for scripts."""
    assert ada("team", "list").out == (
        "ID  NAME       MCP ENABLED\n0   Root Team  on\n3   Web shop   on\n"
    )
    assert ada("user", "list").out == "ID  NAME  EMAIL\n7   Ada   ada@example.test\n"
    assert ada("--json", "team", "list").json == {
        "items": [
            {"id": 0, "name": "Root Team", "mcp_enabled": True},
            {"id": 3, "name": "Web shop", "mcp_enabled": True},
        ]
    }
    assert ada("user", "list", "--json").json == {
        "items": [{"id": 7, "name": "Ada", "email": "ada@example.test"}]
    }
    assert ada("member", "list", "--team", 3, "--json").json == {
        "items": [{"team": 3, "user": 7, "role": "owner"}]
    }
    assert ada("member", "list", "--team", 3).out == "USER  ROLE\n7     owner\n"


def test_empty_lists(cli):
    """An empty list is an empty list for scripts, and a hint for people."""
    for noun in ("team", "user", "token"):
        assert cli(noun, "list", "--json").json == {"items": []}
        people = cli(noun, "list")
        assert (people.code, people.out) == (0, "")
        assert f"`authsidecar {noun} " in people.err
        assert cli(noun, "list", "--quiet").err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("team remove 99", "there is no team 99; `authsidecar team list`"),
        ("user remove 99", "there is no user 99; `authsidecar user list`"),
        ("member set --team 99 --user 7 --role member", "there is no team 99"),
        ("member set --team 3 --user 99 --role member", "there is no user 99"),
        ("member remove --team 3 --user 99", "user 99 is not in team 3"),
        ("member list --team 99", "there is no team 99"),
        ("token show 99", "there is no token 99; `authsidecar token list`"),
        ("token revoke 99", "there is no token 99"),
        ("token list --team 99", "there is no team 99"),
        ("token list --user 99", "there is no user 99"),
        ("mcp enable --team 99", "there is no team 99"),
        ("mcp status --team 99", "there is no team 99"),
        ("limit set --user 99 --limit 5", "there is no user 99"),
        ("limit show --token 99", "there is no token 99"),
        ("limit clear --team 99", "there is no team 99"),
        ("limit reset --token 99", "there is no token 99"),
    ],
)
def test_unknown_id_is_refused(ada, words, said):
    """What is not there is named, with the command that shows what is."""
    refused(ada(*words.split()), said)


def test_removing_takes_tokens_along_and_counts_them(ada):
    """A user, a member or a team goes with its tokens, at once."""
    ada("user", "add", "Eve", "--email", "eve@example.test", "--id", 8)
    for team in (0, 3):
        ada("member", "set", "--team", team, "--user", 8, "--role", "admin")
    for user, team in ((8, 0), (8, 3), (8, 3), (7, 3)):
        assert create(ada, "read", user=user, team=team).code == 0
    out = ada("member", "remove", "--team", 3, "--user", 8, "--json")
    assert out.json == {"team": 3, "user": 8, "removed_tokens": 2}
    assert ada("user", "remove", 8).out == "user 8 removed, with 1 token\n"
    assert ada("team", "remove", 3, "--json").json == {"id": 3, "removed_tokens": 1}
    assert ada("token", "list", "--json").json == {"items": []}


def test_lowered_role_warns_of_tokens_that_it_cuts_off(ada):
    """Tokens above read outlive a lowered role, but are refused; the operator is told."""
    create(ada, "deploy")
    create(ada, "read")
    result = ada("member", "set", "--team", 3, "--user", 7, "--role", "member")
    assert result.code == 0
    assert "warning: 1 token of user 7 in team 3" in result.err
    assert ada("member", "set", "--team", 3, "--user", 7, "--role", "admin").err == ""


def test_api_switch(cli):
    """A new installation's API is off; the switch is said in one word with --quiet."""
    assert cli("api", "status", "--json").json == {"api_enabled": False}
    assert cli("api", "enable").out == "the API is on\n"
    assert cli("api", "status", "--quiet").out == "on\n"
    assert cli("api", "disable", "--json").json == {"api_enabled": False}


def test_mcp_switches(ada):
    """The instance and every team have a switch of their own."""
    assert ada("mcp", "status", "--json").json == {"mcp_enabled": False}
    assert ada("mcp", "enable").out == "MCP is on\n"
    assert ada("mcp", "disable", "--team", 3, "--json").json == {"team": 3, "mcp_enabled": False}
    assert ada("mcp", "status", "--team", 3).out == "MCP of team 3 is off\n"
    assert ada("mcp", "status", "--team", 0).out == "MCP of team 0 is on\n"
    assert ada("mcp", "status").out == "MCP is on\n"


def test_allowlist_is_saved_without_redundant_entries(cli):
    """What is shown is what is meant."""
    assert cli("allowlist", "show").out == "everyone\n"
    saved = cli("allowlist", "set", " 10.0.0.0/8, 10.1.1.1 ,2001:db8::/32", "--my-ip", "10.2.3.4")
    assert (saved.code, saved.err) == (0, "")
    assert cli("allowlist", "show", "--json").json == {
        "text": "10.0.0.0/8,2001:db8::/32",
        "everyone": False,
        "entries": ["10.0.0.0/8", "2001:db8::/32"],
    }
    cleared = cli("allowlist", "set", "", "--json")
    assert cleared.json == {"text": "", "everyone": True, "entries": []}


def test_allowlist_that_locks_out_the_caller_is_refused_unless_forced(cli):
    """The caller keeps access, or says that it is meant."""
    refused(
        cli("allowlist", "set", "10.0.0.0/8", "--my-ip", "192.0.2.1"),
        "would lock you out: 192.0.2.1",
        "--force",
        "nothing was saved",
    )
    assert cli("allowlist", "show").out == "everyone\n"
    assert cli("allowlist", "set", "10.0.0.0/8", "--my-ip", "192.0.2.1", "--force").code == 0
    assert cli("allowlist", "show").out == "10.0.0.0/8\n"


def test_mapped_address_is_the_caller_that_it_maps(cli):
    """`::ffff:10.1.1.1` is 10.1.1.1."""
    assert cli("allowlist", "set", "10.0.0.0/8", "--my-ip", "::ffff:10.1.1.1").code == 0


def test_a_list_of_an_unknown_caller_is_refused(cli):
    """In a container, under sudo or in a script nothing is known: nobody is locked out there."""
    refused(
        cli("allowlist", "set", "10.0.0.0/8"),
        "your own address is not known",
        "--my-ip",
        "--force",
        "nothing was saved",
    )
    assert cli("allowlist", "show").out == "everyone\n"
    forced = cli("allowlist", "set", "10.0.0.0/8", "--force")
    assert (forced.code, forced.err) == (0, "")


@pytest.mark.parametrize("text", ["", " , ", "0.0.0.0", "10.0.0.1,0.0.0.0", "0.0.0.0/0,::/0"])
def test_a_list_that_admits_everyone_locks_nobody_out(cli, text):
    """Whoever it is that saves it."""
    assert cli("allowlist", "set", text).code == 0


HERE, THERE, ELSEWHERE = "10.1.2.3", "2001:db8::7", "192.0.2.9"


@pytest.mark.parametrize(
    ("used", "said"),
    [
        ({10: HERE}, None),
        ({10: HERE, 11: THERE}, None),
        ({10: HERE, 12: ELSEWHERE}, None),
        ({10: HERE, 13: ELSEWHERE}, None),
        ({10: HERE, 14: ELSEWHERE}, None),
        ({10: HERE, 15: ELSEWHERE}, None),
        ({10: ELSEWHERE}, f"root token 10 was last used from {ELSEWHERE}"),
        ({10: HERE, 11: ELSEWHERE}, f"root token 11 was last used from {ELSEWHERE}"),
        ({12: HERE, 13: HERE, 14: HERE, 15: HERE}, "could lock you out"),
        ({}, "could lock you out"),
    ],
)
def test_the_root_tokens_of_the_instance_team_vouch_for_a_list(cli, redis_url, used, said):
    """If all that can be used were last used from inside it; no other token's use counts.

    10 and 11 are such; 12 may only read, 13 is another team's, 14 is a member's, 15 expired.
    """
    root = ("root",)
    tokens = (
        token(10, user=1, team=0, permissions=root),
        token(11, user=1, team=0, permissions=("*",)),
        token(12, user=1, team=0),
        token(13, user=1, team=3, permissions=root),
        token(14, user=2, team=0, permissions=root),
        token(15, user=1, team=0, permissions=root, expires_at=1),
    )

    async def build(registry):
        for team in (0, 3):
            await registry.add_team(f"Team {team}", TeamId(team))
        for user in (1, 2):
            await registry.add_user(f"User {user}", f"{user}@example.test", UserId(user))
        await registry.set_member(TeamId(0), UserId(1), Role.OWNER)
        await registry.set_member(TeamId(3), UserId(1), Role.OWNER)
        await registry.set_member(TeamId(0), UserId(2), Role.MEMBER)
        await registry.put_tokens(tokens)

    async def use():
        async with Redis.from_url(redis_url) as client:
            uses = LastUses(client, Keys())
            for number, address in used.items():
                uses.used(TokenId(number), UnixMs(5), ip_address(address), "/api/v1/teams")
            await uses.write()

    asyncio.run(with_registry(redis_url, build))
    asyncio.run(use())
    result = cli("allowlist", "set", "10.0.0.0/8,2001:db8::/32")
    if said is None:
        assert result.code == 0, result.err
        assert f"root tokens were last used from {HERE}" in result.err
        assert cli("allowlist", "show").out == "10.0.0.0/8\n2001:db8::/32\n"
    else:
        refused(result, "your own address is not known", said, "nothing was saved")
        assert cli("allowlist", "show").out == "everyone\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("SSH_CLIENT", "192.0.2.9 50000 22"), ("SSH_CONNECTION", "192.0.2.9 50000 10.0.0.1 22")],
)
def test_ssh_client_is_the_caller_on_a_terminal(redis_url, tmp_path, name, value):
    """On a terminal, an SSH session's address must stay allowed; a script's is not looked at."""
    command = [sys.executable, "-m", "authsidecar", "allowlist", "set", "10.0.0.0/8"]
    environ = {
        name: value,
        "AUTHSIDECAR_REDIS__URL": redis_url,
        "AUTHSIDECAR_DATA_DIR": str(tmp_path),
    }
    ours, terminal = pty.openpty()
    try:
        asked = {"capture_output": True, "text": True, "env": environ, "timeout": 20}
        on_terminal = subprocess.run(command, check=False, stdin=terminal, **asked)
        in_script = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **asked)
    finally:
        os.close(ours)
        os.close(terminal)
    assert on_terminal.returncode == 1
    assert "would lock you out: 192.0.2.9" in on_terminal.stderr
    assert in_script.returncode == 1
    assert "your own address is not known" in in_script.stderr


@pytest.mark.parametrize(
    ("entry", "named"),
    [("10.0.0.0/33", "entry 2, '10.0.0.0/33'"), ("example.com", "not looked up")],
)
def test_bad_entry_is_refused_by_name(cli, entry, named):
    """A bad entry saves nothing, and is named with its place."""
    refused(cli("allowlist", "set", f"192.0.2.1,{entry}"), named, "nothing was saved")
    assert cli("allowlist", "show").out == "everyone\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.0.0.0", "0.0.0.0 admits everyone"),
        ("0.0.0.0/0", "0.0.0.0/0 admits every IPv4 address"),
        ("10.0.0.0/8,::/0", "::/0 admits every IPv6 address"),
    ],
)
def test_wildcards_are_warned_of(cli, text, said):
    """A list that admits everyone, or a whole family, is saved with a warning."""
    result = cli("allowlist", "set", text, "--my-ip", "10.0.0.1")
    assert result.code == 0
    assert f"warning: {said}" in result.err


def test_allowlist_check_says_by_exit_code(cli):
    """0 is allowed, 1 is not."""
    cli("allowlist", "set", "10.0.0.0/8", "--force")
    assert cli("allowlist", "check", "10.1.2.3", "--json").json == {
        "address": "10.1.2.3",
        "allowed": True,
    }
    denied = cli("allowlist", "check", "192.0.2.1", "--json")
    assert denied.code == 1
    assert denied.json == {"address": "192.0.2.1", "allowed": False}
    assert "192.0.2.1 is on no entry of the allowlist" in denied.err


@pytest.mark.parametrize(
    ("scope", "settings", "seconds", "said"),
    [
        ("user", {}, 60, "the configured window"),
        ("user", {"LIMITS__USER__WINDOW_SECONDS": "3600"}, 3600, "the configured window"),
        ("user", {"LIMITS__USER__WINDOW_SECONDS": "1.5"}, 1.5, "the configured window"),
        ("team", {"LIMITS__USER__WINDOW_SECONDS": "3600"}, 60, "the usual window"),
    ],
)
def test_a_limit_without_a_window_has_the_configured_one(ada, scope, settings, seconds, said):
    """A number of requests means what it means in the configuration; which one is said."""
    number = {"user": 7, "team": 3}[scope]
    words = ("limit", "set", f"--{scope}", number, "--limit", 5)
    assert ada(*words, **settings).out == f"{scope} {number}: 5 requests in {seconds} s ({said})\n"
    found = ada("limit", "show", f"--{scope}", number, "--json", **settings).json
    assert found["window_seconds"] == seconds
    assert ada(*words, "--window", 9, **settings).out == f"{scope} {number}: 5 requests in 9 s\n"


def test_limits_are_set_shown_and_cleared(ada):
    """An override wins over the configuration, and can be taken back."""
    token = create(ada, "read").json["id"]
    assert ada("limit", "show", "--user", 7, "--json").json == {
        "scope": "user",
        "id": 7,
        "limit": 200,
        "window_seconds": 60,
        "source": "configuration",
    }
    assert ada("limit", "show", "--token", token).out == f"token {token}: not limited\n"
    assert ada("limit", "set", "--user", 7, "--limit", 5, "--json").json == {
        "scope": "user",
        "id": 7,
        "limit": 5,
        "window_seconds": 60,
        "source": "override",
    }
    ada("limit", "set", "--token", token, "--limit", 1, "--window", 3600)
    ada("limit", "set", "--team", 3, "--limit", 9)
    shown = {
        (i["scope"], i["id"]): i["limit"] for i in ada("limit", "show", "--json").json["items"]
    }
    assert shown == {("team", 3): 9, ("token", token): 1, ("user", 7): 5}
    text = f"token {token}: 1 requests in 3600 s (override)\n"
    assert ada("limit", "show", "--token", token).out == text
    for scope, number in shown:
        assert ada("limit", "clear", f"--{scope}", number).code == 0
    assert ada("limit", "show", "--json").json == {"items": []}


@pytest.mark.parametrize("words", ["clear", "reset", "set --limit 3", "clear --user 7 --team 3"])
def test_limit_needs_exactly_one_holder(ada, words):
    """No holder, or two, is wrong usage."""
    result = ada("limit", *words.split())
    assert result.code == 2
    assert "exactly one of --user, --token and --team" in result.err


def test_embedded_redis_is_started_for_one_command(tmp_path):
    """Without a Redis of the operator's, state is kept in the data directory."""
    environ = {"DATA_DIR": str(tmp_path / "data")}
    assert invoke("team", "add", "Kept", url="embedded", **environ).code == 0
    shown = invoke("team", "list", "--json", url="embedded", **environ)
    assert [team["name"] for team in shown.json["items"]] == ["Kept"]
