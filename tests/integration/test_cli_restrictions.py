"""`token|user|team restrict|unrestrict`: what is stored, what is refused, what is shown."""

import asyncio
import json

import pytest

from authsidecar.decision.model import DAMAGED, Place, ResourceKind, TeamId, TokenId
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.records import write_place
from tests.support import seed
from tests.support.cli import Result, invoke, with_registry

DEPLOY = "POST /api/v1/deploy"
OFFICE = "Mon,Tue,Wed,Thu,Fri 08:00-18:00 Europe/Berlin"


async def _world(registry):
    await seed.user(registry, 7, t3="owner")
    held = ("read", "deploy")
    await registry.put_tokens(
        [seed.token(67, user=7, team=3, permissions=held), seed.token(68, user=7, team=3)]
    )
    await registry.set_instance(api_enabled=True)
    places = {
        "p1": Place(TeamId(3), ResourceKind.PROJECT, "p1"),
        "p1/prod": Place(TeamId(3), ResourceKind.ENVIRONMENT, "p1", "e1", "prod"),
        "app1": Place(TeamId(3), ResourceKind.APPLICATION, "p1", "e1", "prod"),
        "theirs": Place(TeamId(9), ResourceKind.SERVER),
    }
    for key, place in places.items():
        name = registry._keys.owners(owner_bucket(key))
        await registry._client.hset(name, key, write_place(place))


@pytest.fixture
def cli(redis_url):
    """The command line; tokens 67 (read, deploy) and 68 (read) of user 7 in team 3."""
    asyncio.run(with_registry(redis_url, _world))

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        return invoke(*arguments, url=redis_url, stdin=stdin)

    return run


def restriction(cli, number=67):
    return cli("token", "show", number, "--json").json["restriction"]


def status(cli, number: int, method: str, path: str) -> int:
    text = f"{number}|{seed.secret_of(number)}\n".encode()
    words = ("explain", method, path, "--token-file", "-", "--client-ip", "192.0.2.1", "--json")
    return cli(*words, stdin=text).json["status"]


def test_every_option_is_stored_shown_and_taken_back(cli):
    """In the words of a file, and for people."""
    done = cli(
        *("token", "restrict", 67, "--permission", "read", "--permission", "deploy"),
        *("--route", DEPLOY, "--route", "* /api/v1/teams", "--from", "192.0.2.7/24"),
        *("--project", "p1", "--environment", "p1/prod", "--resource", "app1", "--tag", "shop"),
        *("--rate", "10/1m", "--uses", 5, "--hours", "Mon-Fri 08:00-18:00 Europe/Berlin"),
        *("--not-before", "2026-01-01T01:00:00+01:00", "--until", "2099-01-01T00:00:00Z"),
        *("--note", "the CI of the shop", "--json"),
    )
    expected = {
        "permissions": ["deploy", "read"],
        "routes": ["* /api/v1/teams", DEPLOY],
        "projects": ["p1"],
        "environments": ["p1/prod"],
        "resources": ["app1"],
        "tags": ["shop"],
        "from": ["192.0.2.0/24"],
        "rate": "10/60s",
        "uses": 5,
        "not_before": "2026-01-01T00:00:00Z",
        "until": "2099-01-01T00:00:00Z",
        "hours": [OFFICE],
        "note": "the CI of the shop",
    }
    assert done.code == 0, done.err
    told = {"scope": "token", "id": 67, "changed": True, "before": None, "restriction": expected}
    assert done.json == told
    shown = cli("token", "show", 67, "--json").json
    assert (shown["restriction"], shown["uses_spent"]) == (expected, 0)
    people = cli("token", "show", 67).out
    for line in (
        "restricted   itself",
        f"routes       {DEPLOY}",
        "uses         5, 0 of them spent",
    ):
        assert line in people
    listed = {
        item["id"]: item["restriction"] for item in cli("token", "list", "--json").json["items"]
    }
    assert listed == {67: expected, 68: None}
    assert cli("token", "list").out.splitlines()[1].split()[-2:] == ["yes", "-"]

    assert cli("token", "unrestrict", 67).out == "token 67: not restricted any more\n"
    assert restriction(cli) is None
    assert cli("token", "unrestrict", 67).out == "token 67: not restricted\n"


def test_it_holds_for_the_next_request_and_a_ceiling_for_all_tokens(cli):
    """As `explain` tells, by the server's own core."""
    assert status(cli, 67, "GET", "/api/v1/teams") == 200
    assert cli("token", "restrict", 67, "--route", DEPLOY).code == 0
    assert status(cli, 67, "GET", "/api/v1/teams") == 403
    assert status(cli, 67, "POST", "/api/v1/deploy") == 200
    assert cli("user", "restrict", 7, "--from", "10.0.0.0/8").code == 0
    assert (
        status(cli, 67, "POST", "/api/v1/deploy") == status(cli, 68, "GET", "/api/v1/teams") == 403
    )
    shown = cli("token", "show", 68).out
    assert "restricted   by its user" in shown
    assert cli("user", "unrestrict", 7).code == 0
    assert cli("team", "restrict", 3, "--permission", "deploy").code == 0
    assert status(cli, 67, "POST", "/api/v1/deploy") == 200
    assert status(cli, 68, "GET", "/api/v1/teams") == 403
    found = cli("token", "show", 68, "--json").json
    assert found["team_restriction"] == {"permissions": ["deploy"]}
    assert (found["restriction"], found["user_restriction"]) == (None, None)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--route", "POST /api/v1/deplyo"), f"did you mean '{DEPLOY}'?"),
        (("--route", "* /api/v1/team/member"), "did you mean '* /api/v1/team/members'?"),
        (("--route", "GET /api/health"), "no table has the route 'GET /api/health'"),
        (("--permission", "write"), "a restriction can't widen: the token holds deploy read, not"),
        (("--project", "p2"), "the sync knows no p2 for --project; did you mean p1?"),
        (("--project", "app1"), "the sync knows no app1 for --project"),
        (("--environment", "p1/prot"), "no p1/prot for --environment; did you mean p1/prod?"),
        (("--resource", "ap1"), "the sync knows no ap1 for --resource; did you mean app1?"),
        (("--resource", "theirs"), "--resource theirs is of team 9, the token of team 3"),
    ],
)
def test_what_names_nothing_is_refused_unless_forced(cli, words, why):
    """With the nearest that there is; forced, it admits nothing until there is one."""
    refused = cli("token", "restrict", 67, *words)
    assert refused.code == 1
    assert why in refused.err
    assert refused.err.count("\n") == 1
    assert restriction(cli) is None

    assert cli("token", "restrict", 67, *words, "--force").code == 0
    assert status(cli, 67, "GET", "/api/v1/teams") == 403


def test_a_wider_one_is_said_to_be_wider(cli):
    """Unless it is forced; one that is as narrow, or narrower, is not."""
    assert cli("token", "restrict", 67, "--uses", 5).code == 0
    for words in (("--uses", 6), ("--rate", "1/60s")):
        refused = cli("token", "restrict", 67, *words)
        assert refused.code == 1
        assert "a restriction can't widen: uses would admit more" in refused.err
    assert cli("token", "restrict", 67, "--uses", 4, "--note", "less").code == 0
    assert cli("token", "restrict", 67, "--uses", 6, "--force").code == 0
    assert restriction(cli) == {"uses": 6}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "it limits nothing"),
        (("--note", "x"), "it limits nothing"),
        (("--permission", "reed"), "'reed' is none of read"),
        (("--from", "office"), "not an IP address"),
        (("--rate", "often"), "is not N/WINDOW"),
        (("--uses", "0"), "no whole number from 1"),
        (("--uses", "many"), "not a valid integer"),
        (("--until", "tomorrow"), "not a time such as"),
        (("--hours", "always"), "is not such as"),
        (("--hours", "Mon 08:00-09:00 Berlin"), "is no time zone"),
        (("--route", "deploy"), "is no METHOD and template"),
        (("--environment", "prod"), "is no PROJECT/NAME"),
        (("--resource", "a/b"), "is no uuid"),
    ],
)
def test_bad_input_is_one_line(cli, words, why):
    """Exit code 2, and nothing is stored."""
    refused = cli("token", "restrict", 67, *words)
    assert refused.code == 2
    assert why in refused.err
    assert "Traceback" not in refused.err
    assert restriction(cli) is None


def test_what_is_not_there_is_said(cli):
    """By its noun."""
    for words in (("token", "restrict", 99, "--uses", 1), ("token", "unrestrict", 99)):
        assert "there is no token 99" in cli(*words).err
    assert "there is no team 9" in cli("team", "restrict", 9, "--from", "::/0").err
    assert "there is no user 9" in cli("user", "unrestrict", 9).err
    assert cli("token", "restrict").code == 2
    assert cli("token", "restrict", 67, "--file", "-", stdin=b"").code == 2
    assert cli("token", "restrict", "--file", "-", "--uses", 1, stdin=b"").code == 2


def test_a_token_that_coolify_shows_secrets_to_is_warned_of(cli, redis_url):
    """Coolify redacts by the token's own permissions, which nothing here changes."""

    async def root(registry):
        await registry.put_tokens([seed.token(70, user=7, team=3, permissions=("root",))])

    asyncio.run(with_registry(redis_url, root))
    warned = cli("token", "restrict", 70, "--permission", "read")
    assert warned.code == 0
    assert "it still shows them" in warned.err
    assert "warning" not in cli("token", "restrict", 67, "--permission", "read").err


FILE = f"""
tokens:
  67: {{routes: [{DEPLOY}], from: [192.0.2.0/24], note: CI}}
  "68":
    uses: 3
"""


def test_a_file_narrows_many_and_says_first_what_would_change(cli, tmp_path):
    """--dry-run changes nothing; carried out twice, it changes nothing either."""
    file = tmp_path / "ci.yaml"
    file.write_text(FILE)
    first = cli("token", "restrict", "--file", file, "--dry-run")
    assert first.code == 0
    assert "token 67: would be restricted" in first.out
    assert restriction(cli) is None

    done = cli("token", "restrict", "--file", file, "--json").json["items"]
    assert [(item["id"], item["changed"]) for item in done] == [(67, True), (68, True)]
    assert restriction(cli, 68) == {"uses": 3}
    again = cli("token", "restrict", "--file", "-", stdin=FILE.encode())
    assert again.out == "token 67: unchanged\ntoken 68: unchanged\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "the file has not {tokens:"),
        (b"tokens: []", "the file has not {tokens:"),
        (b"tokens: {67: {uses: 1}}\nusers: {}", "the file has not {tokens:"),
        (b"tokens: {x: {uses: 1}}", "'x' is not a whole number"),
        (b"tokens: {67: {uses: many}}", "token 67: uses: it is no whole number"),
        (b"tokens: {67: {use: 1}}", "token 67: 'use' is none of"),
        (b"tokens: {67: }", "token 67: a restriction is a mapping"),
        (b"tokens: {67: {uses: 1}, 99: {uses: 1}}", "there is no token 99"),
        (b"tokens: {67: {uses: 1}, 68: {permissions: [deploy]}}", "can't widen"),
        (b"tokens: {67: {until: 2027-01-01T00:00:00Z}}", "until: it is no text with a time"),
        (b"tokens:\n  - {", "the file is no YAML (line"),
        (b"\xff\xfe\x00", "the file is no YAML"),
        (b"!!python/object/apply:os.system ['true']", "the file is no YAML"),
        (b"[" * 100_000, "the file is no YAML"),
    ],
)
def test_a_bad_file_changes_nothing(cli, text, why):
    """Not even the tokens that it is right about."""
    refused = cli("token", "restrict", "--file", "-", stdin=text)
    assert refused.code == 1
    assert why in refused.err
    assert "nothing was changed" in refused.err
    assert restriction(cli) is None


def test_a_damaged_one_is_shown_and_put_right(cli, redis_url):
    """It admits nothing until then."""

    async def damage(registry):
        await registry._client.hset(Keys().token(TokenId(67)), "restriction", "{")
        assert await registry.restriction("token", 67) is DAMAGED

    asyncio.run(with_registry(redis_url, damage))
    assert restriction(cli) == {"damaged": True}
    assert "damaged      admits nothing" in cli("token", "show", 67).out
    assert status(cli, 67, "GET", "/api/v1/teams") == 403
    assert cli("token", "restrict", 67, "--uses", 3).code == 0
    assert restriction(cli) == {"uses": 3}


def test_a_note_cannot_steer_a_terminal(cli, redis_url):
    """However it came into Redis."""

    async def plant(registry):
        text = json.dumps({"uses": 1, "note": "\x1b[2J"})
        await registry._client.hset(Keys().token(TokenId(67)), "restriction", text)

    asyncio.run(with_registry(redis_url, plant))
    assert "\x1b" not in cli("token", "show", 67).out + cli("token", "list").out


def test_a_token_that_is_restricted_to_an_application_is_explained(cli):
    """By the path, by the query, and what would let it in."""
    assert cli("token", "restrict", 67, "--resource", "app1").code == 0
    assert status(cli, 67, "GET", "/api/v1/applications/app1") == 200
    assert status(cli, 67, "POST", "/api/v1/deploy?uuid=app1") == 200
    assert status(cli, 67, "GET", "/api/v1/applications/app1?uuid=app2") == 403
    assert status(cli, 67, "GET", "/api/v1/servers/theirs") == 404
    assert status(cli, 67, "GET", "/api/v1/applications") == 403
    text = f"67|{seed.secret_of(67)}\n".encode()
    words = ("--token-file", "-", "--client-ip", "192.0.2.1")
    shown = cli("explain", "GET", "/api/v1/servers/theirs", *words, stdin=text).out
    assert "the token's restriction has not Server theirs within it" in shown


def test_without_a_sync_no_resource_is_known(cli, redis_url):
    """It says what is to be switched on."""

    async def forget(registry):
        for key in await registry.located():
            await registry._client.delete(registry._keys.owners(owner_bucket(key)))

    asyncio.run(with_registry(redis_url, forget))
    refused = cli("token", "restrict", 67, "--project", "p1")
    assert refused.code == 1
    assert "no resource is known; does a sync run, with sync.resources?" in refused.err
