"""Issuing, importing, listing and revoking tokens, and the rules by which one may come to be."""

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.admin.refusal import Refusal
from authsidecar.admin.token_import import BATCH, LONGEST_LINE, import_tokens
from authsidecar.admin.tokens import issue
from authsidecar.decision.model import Permission, Role, TeamId, UserId
from tests.support import seed
from tests.support.cli import Result, invoke, with_registry
from tests.support.fork_server import Process

ROLES = {7: "owner", 8: "admin", 9: "member"}


async def _world(registry):
    for user, role in ROLES.items():
        await seed.user(registry, user, t3=role)
    await seed.user(registry, 10)


@pytest.fixture
def cli(redis_url):
    """The command line; team 3 has owner 7, admin 8 and member 9; user 10 is in no team."""
    asyncio.run(with_registry(redis_url, _world))

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        return invoke(*arguments, url=redis_url, stdin=stdin)

    return run


def create(cli, *permissions, name="ci job", user=7, team=3, expires="never", how="--json"):
    words = [word for permission in permissions for word in ("--permission", permission)]
    return cli(
        *("token", "create", "--user", user, "--team", team, "--name", name),
        *("--expires", expires, *words, how),
    )


def line(number=500, **changes) -> dict:
    """A line that may be imported."""
    return {
        "id": number,
        "sha256": sha256(f"secret-{number}".encode()).hexdigest(),
        "user": 7,
        "team": 3,
        "permissions": ["read"],
        "expires_at": None,
        "name": f"imported {number}",
        **changes,
    }


def lines(*items) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def stored(cli) -> list[dict]:
    return cli("token", "list", "--json").json["items"]


def test_created_token_is_shown_once(cli, redis_url):
    """The secret is printed by create and by nothing else, and only its SHA-256 is stored."""
    result = create(cli, "read", "deploy", expires="30")
    made = result.json
    assert list(made) == ["id", "token", "name", "user", "team", "permissions", "expires_at"]
    number, _, secret = made["token"].partition("|")
    assert int(number) == made["id"] == 1
    assert re.fullmatch(r"[A-Za-z0-9]{40}", secret)
    assert (made["user"], made["team"], made["permissions"]) == (7, 3, ["deploy", "read"])
    life = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < life <= timedelta(days=30)

    async def kept(registry):
        return (await registry.token(1)).sha256

    assert asyncio.run(with_registry(redis_url, kept)) == sha256(secret.encode()).digest()
    for words in (["token", "list"], ["token", "show", 1], ["token", "show", 1, "--json"]):
        shown = cli(*words)
        assert shown.code == 0
        assert secret not in shown.out + shown.err


def test_quiet_create_prints_the_token_alone(cli):
    """A script gets exactly `ID|SECRET`; for people the notes are on standard error."""
    quiet = create(cli, "read", how="--quiet")
    assert re.fullmatch(r"1\|[A-Za-z0-9]{40}\n", quiet.out)
    assert quiet.err == ""
    people = cli(
        *("token", "create", "--user", 7, "--team", 3, "--name", "abc"),
        *("--permission", "read", "--expires", 7),
    )
    assert re.fullmatch(r"2\|[A-Za-z0-9]{40}\n", people.out)
    assert "not shown again" in people.err


def test_secrets_differ(cli):
    """Two tokens have nothing in common."""
    secrets = {create(cli, "read").json["token"].partition("|")[2] for _ in range(3)}
    assert len(secrets) == 3


REFUSED = [
    ({"name": "ab"}, ["read"], "the name needs 3 to 255 characters, it has 2"),
    ({"name": "x" * 256}, ["read"], "the name needs 3 to 255 characters, it has 256"),
    ({"name": "    "}, ["read"], "the name needs 3 to 255 characters"),
    ({"name": "a\x1b[31m"}, ["read"], "control character"),
    ({}, ["root", "read"], "root stands alone"),
    ({}, ["root", "read:sensitive"], "root stands alone"),
    ({"user": 9}, ["deploy"], "deploy may only be held by an owner or admin of the team"),
    ({"user": 9}, ["read", "write"], "write may only be held"),
    ({"user": 9}, ["read:sensitive"], "read:sensitive may only be held"),
    ({"user": 9}, ["write:sensitive"], "write:sensitive may only be held"),
    ({"user": 9}, ["root"], "and the user is member"),
    ({"user": 10}, ["read"], "user 10 is not in team 3; `authsidecar member set --team 3"),
    ({"user": 99}, ["read"], "there is no user 99"),
    ({"team": 99}, ["read"], "there is no team 99"),
]


@pytest.mark.parametrize(("changes", "permissions", "why"), REFUSED)
def test_rules_of_issuing_refuse_creation(cli, changes, permissions, why):
    """Each rule says its reason, and nothing is stored."""
    result = create(cli, *permissions, **changes)
    assert (result.code, result.out) == (1, "")
    assert why in result.err
    assert result.err.count("\n") == 1
    assert stored(cli) == []


@pytest.mark.parametrize(("changes", "permissions", "why"), REFUSED)
def test_rules_of_issuing_refuse_import(cli, changes, permissions, why):
    """The very same rules stand on the other path by which a token can come to be."""
    item = line(permissions=permissions, **changes)
    result = cli("token", "import", "-", stdin=lines(item))
    assert result.code == 1
    assert f"line 1: {why}" in result.err or why in result.err
    assert stored(cli) == []


@pytest.mark.parametrize("user", [7, 8])
@pytest.mark.parametrize("permission", [p for p in Permission if p != "*"])
def test_owner_and_admin_may_hold_every_permission(cli, user, permission):
    """Above read, the role decides."""
    expected = ["read", "read:sensitive"] if permission == "read:sensitive" else [permission]
    assert create(cli, permission, user=user).json["permissions"] == expected


def test_member_may_hold_read(cli):
    """Read alone needs no role."""
    assert create(cli, "read", user=9).json["permissions"] == ["read"]


@pytest.mark.parametrize("days", ["1", "8", "0", "366", "-7", "Never", ""])
def test_other_lifetimes_are_not_on_offer(cli, days):
    """7, 30, 60, 90, 365 or never."""
    assert create(cli, "read", expires=days).code == 2
    assert stored(cli) == []


@pytest.mark.parametrize(("name", "length"), [("abc", 3), ("x" * 255, 255), ("日本語", 3)])
def test_names_are_counted_in_characters(cli, name, length):
    """3 to 255 characters, not bytes."""
    assert len(create(cli, "read", name=name).json["name"]) == length


async def test_use_case_knows_the_rules_too(redis_client):
    """No lifetime, permission or legacy name gets past the command line's own checks."""
    registry = seed.registry(redis_client)
    await _world(registry)
    who: dict[str, Any] = {"user": UserId(7), "team": TeamId(3), "name": "abc"}
    for permissions, days, why in (
        ([Permission.READ], 8, "not after 8"),
        ([], 7, "at least one permission"),
        ([Permission.LEGACY_ROOT], 7, "legacy permission *"),
    ):
        answer = await issue(registry, **who, permissions=permissions, days=days)
        assert isinstance(answer, Refusal)
        assert why in answer.why


async def test_token_of_a_member_removed_meanwhile_is_taken_back(redis_client):
    """Between the look at the role and the write, the member may go: no token stays behind."""
    registry = seed.registry(redis_client)
    await _world(registry)
    put = registry.put_tokens

    async def removed_meanwhile(tokens):
        await registry.remove_member(TeamId(3), UserId(7))
        await put(tokens)

    registry.put_tokens = removed_meanwhile
    answer = await issue(
        registry,
        user=UserId(7),
        team=TeamId(3),
        name="abc",
        permissions=[Permission.ROOT],
        days=None,
    )
    assert isinstance(answer, Refusal)
    assert [t async for t in registry.tokens()] == []


def test_list_show_and_revoke(cli):
    """Tokens are listed by id, of a team, a user, or both; a revoked one is gone."""
    create(cli, "read", user=9, name="one")
    create(cli, "deploy", user=7, name="two", expires="7")
    items = stored(cli)
    assert [(i["id"], i["user"], i["name"]) for i in items] == [(1, 9, "one"), (2, 7, "two")]
    assert set(items[0]) == {
        *("id", "name", "user", "team", "permissions", "expires_at", "created_at"),
        *("last_used_at", "last_used_address", "last_used_route", "restriction"),
        "disabled",
    }
    assert items[0]["expires_at"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", items[1]["expires_at"])
    only = cli("token", "list", "--user", 7, "--team", 3, "--json").json["items"]
    assert only == items[1:]
    beside = dict.fromkeys(("uses_spent", "user_restriction", "team_restriction"))
    assert cli("token", "show", 2, "--json").json == items[1] | beside
    table = cli("token", "list").out.splitlines()
    assert table[0].split()[:6] == ["ID", "NAME", "USER", "TEAM", "PERMISSIONS", "EXPIRES"]
    assert "never" in table[1]
    assert cli("token", "revoke", 1, "--json").json == {"id": 1, "revoked": True}
    assert [i["id"] for i in stored(cli)] == [2]


def test_names_in_lists_cannot_steer_a_terminal(cli, redis_url):
    """A name that came in some other way is shown escaped."""

    async def plant(registry):
        token = seed.token(5, user=7, team=3)
        object.__setattr__(token, "name", "evil\x1b]0;x\x07")
        await registry.put_tokens([token])

    asyncio.run(with_registry(redis_url, plant))
    for words in (["list"], ["show", 5]):
        assert "\x1b" not in cli("token", *words).out
        assert "evil\\x1b" in cli("token", *words).out


def test_import_reports_every_bad_line_by_number(cli):
    """Good lines are imported, bad ones are named with what is wrong, and import nothing."""
    bad = {
        2: (b"{", "is not JSON"),
        3: (b"[1]", "is not a JSON object"),
        4: (b'{"id": 1}', "has no sha256, user, team, permissions, expires_at, name"),
        5: (lines(line(id="7")).strip(), "id is not a whole number from 1"),
        6: (lines(line(id=True)).strip(), "id is not a whole number"),
        7: (lines(line(id=2**63)).strip(), "id is not a whole number"),
        8: (lines(line(sha256="ab")).strip(), "sha256 is not 64 hexadecimal digits"),
        9: (lines(line(permissions="read")).strip(), "permissions is not a list of texts"),
        10: (lines(line(permissions=[])).strip(), "at least one permission"),
        11: (lines(line(permissions=["reed"])).strip(), "'reed' is no permission"),
        12: (lines(line(permissions=["*"])).strip(), "legacy permission *"),
        13: (lines(line(expires_at="2030-01-01T00:00:00")).strip(), "no time zone"),
        14: (lines(line(expires_at=1893456000)).strip(), "neither null nor a time"),
        15: (lines(line(name=7)).strip(), "name is not a text"),
        16: (b"\xff\xfe", "is not JSON"),
        17: (b'"' + b"x" * LONGEST_LINE + b'"', f"longer than {LONGEST_LINE} bytes"),
        18: (b"[" * 60_000, "is not JSON"),
        19: (b'{"id": 1, "name": "\\ud800bc", "sha256": "' + b"a" * 64 + b'", "user": 7, '
             b'"team": 3, "permissions": ["read"], "expires_at": null}', "control character"),
    }  # fmt: skip
    content = b"\n".join([lines(line(100)).strip(), *(text for text, _ in bad.values())])
    content += b"\n\n" + lines(line(101, expires_at="2030-01-01T01:00:00+01:00"))
    result = cli("token", "import", "-", "--json", stdin=content)
    assert result.code == 1
    report = result.json
    assert (report["imported"], report["unchanged"], report["refused"]) == (2, 0, len(bad))
    assert [error["line"] for error in report["errors"]] == list(bad)
    for error in report["errors"]:
        assert bad[error["line"]][1] in error["reason"]
        assert f"line {error['line']}: {error['reason']}" in result.err
    tokens = stored(cli)
    assert [t["id"] for t in tokens] == [100, 101]
    assert tokens[1]["expires_at"] == "2030-01-01T00:00:00Z"
    assert "18 lines were refused" in result.err


def test_import_is_safe_to_repeat(cli, redis_url, tmp_path):
    """The same file again changes nothing, not even when a token was created."""
    file = tmp_path / "tokens.jsonl"
    file.write_bytes(lines(*(line(number) for number in range(1, 1201))))
    assert cli("token", "import", file).out == "1200 imported, 0 unchanged, 0 refused\n"
    before = stored(cli)
    assert len(before) == 1200
    again = cli("token", "import", file, "--json").json
    assert again == {"imported": 0, "unchanged": 1200, "refused": 0, "errors": []}
    assert stored(cli) == before
    assert create(cli, "read").json["id"] == 1201


def test_import_brings_changes(cli):
    """A line that says something new about a token is written; the rest of it stays."""
    cli("token", "import", "-", stdin=lines(line(5), line(6)))
    cli("limit", "set", "--token", 5, "--limit", 9)
    changed = line(5, permissions=["read:sensitive"], expires_at="2030-06-01T00:00:00Z")
    result = cli("token", "import", "-", "--json", stdin=lines(changed, line(6)))
    assert (result.json["imported"], result.json["unchanged"]) == (1, 1)
    shown = cli("token", "show", 5, "--json").json
    assert shown["permissions"] == ["read", "read:sensitive"]
    assert shown["expires_at"] == "2030-06-01T00:00:00Z"
    assert cli("limit", "show", "--token", 5, "--json").json["limit"] == 9


def test_import_never_takes_over_another_tokens_id(cli):
    """An id in use with another secret is refused, in the store and within the file."""
    created = create(cli, "read").json
    other = sha256(b"other").hexdigest()
    content = lines(line(created["id"]), line(50), line(50, sha256=other), line(50))
    result = cli("token", "import", "-", "--json", stdin=content)
    assert [error["line"] for error in result.json["errors"]] == [1, 3]
    assert "belongs to a token with another secret" in result.err
    assert cli("token", "show", created["id"], "--json").json["name"] == "ci job"


async def test_interrupted_import_repeated_ends_the_same(redis_client):
    """Cut anywhere, then run again, it leaves what one whole run leaves."""
    registry = seed.registry(redis_client)
    await _world(registry)
    content = lines(*(line(number) for number in range(1, 3 * BATCH)))

    def fail(line: int, why: str) -> None:
        pytest.fail(f"{line}: {why}")

    def stop(done: int) -> None:
        if done >= BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await import_tokens(registry, io.BytesIO(content), refused=fail, progress=stop)
    assert len([t async for t in registry.tokens()]) == BATCH
    report = await import_tokens(registry, io.BytesIO(content), refused=fail)
    assert (report.imported, report.unchanged) == (2 * BATCH - 1, BATCH)
    assert len([t async for t in registry.tokens()]) == 3 * BATCH - 1


def test_killed_import_repeated_ends_the_same(cli, redis_url, tmp_path):
    """A process that is killed in the middle leaves whole tokens only."""
    file = tmp_path / "tokens.jsonl"
    file.write_bytes(lines(*(line(number) for number in range(1, 8001))))
    process = Process(
        [sys.executable, "-m", "authsidecar", "token", "import", str(file)],
        env={"AUTHSIDECAR_REDIS__URL": redis_url, "AUTHSIDECAR_DATA_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        asyncio.run(_until_some(redis_url))
    finally:
        process.kill()
        process.wait()
    result = cli("token", "import", file, "--json").json
    assert result["imported"] + result["unchanged"] == 8000
    assert result["unchanged"] >= BATCH
    assert [t["id"] for t in stored(cli)] == list(range(1, 8001))


def test_interrupt_ends_an_import_that_waits_for_input(cli, redis_url, tmp_path):
    """One Ctrl-C is enough, even while nothing comes from standard input."""
    process = Process(
        [sys.executable, "-m", "authsidecar", "token", "import", "-"],
        env={"AUTHSIDECAR_REDIS__URL": redis_url, "AUTHSIDECAR_DATA_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        process.stdin.write(lines(*(line(number) for number in range(1, BATCH + 2))))
        process.stdin.flush()
        asyncio.run(_until_idle(redis_url))  # one batch is in, the next one waits
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert b"Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert len(stored(cli)) == BATCH


async def _until_idle(url: str) -> None:
    """Until a second has passed since the one other client said something, its tokens written."""
    await _until_some(url)
    async with asyncio.timeout(30), Redis.from_url(url) as client:
        while not await _idle(client):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)


async def _idle(client: Redis) -> bool:
    return any(int(one["idle"]) >= 1 for one in await client.client_list())


async def _until_some(url: str) -> None:
    async with asyncio.timeout(30), Redis.from_url(url) as client:
        while not await client.scard("authsidecar:user:7:tokens"):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.002)


def test_member_gone_while_importing_leaves_no_token(redis_url):
    """A batch is looked at again after it is written."""

    async def scenario(registry):
        await _world(registry)
        put = registry.put_tokens

        async def removed_meanwhile(tokens):
            await registry.set_member(TeamId(3), UserId(8), Role.MEMBER)
            await put(tokens)

        registry.put_tokens = removed_meanwhile
        content = lines(line(1), line(2, user=8, permissions=["write"]), line(3, user=8))
        bad: dict[int, str] = {}
        report = await import_tokens(registry, io.BytesIO(content), refused=bad.__setitem__)
        assert (report.imported, report.refused) == (2, 1)
        assert "write may only be held" in bad[2]
        assert [t.id async for t in registry.tokens()] == [1, 3]

    asyncio.run(with_registry(redis_url, scenario))


@pytest.mark.slow
@pytest.mark.alone
def test_hundred_thousand_lines_in_a_minute_with_bounded_memory(cli, redis_url, tmp_path):
    """A whole installation is imported in under a minute and under 150 MB."""
    file = tmp_path / "tokens.jsonl"
    with file.open("wb") as out:
        for number in range(1, 100_001):
            out.write(lines(line(number, user=7 + number % 3)))
    environ = {"AUTHSIDECAR_REDIS__URL": redis_url, "AUTHSIDECAR_DATA_DIR": str(tmp_path)}
    # The peak of its own address space: wait4 counts the copy of pytest before exec along.
    program = (
        "import atexit, pathlib, sys; from authsidecar.cli import main\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = pathlib.Path(sys.argv.pop(1))\n"
        "atexit.register(lambda: peak.write_text(status.read_text()))\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "peak")]
    report = tmp_path / "report.json"
    start = time.monotonic()
    with report.open("wb") as out:
        subprocess.run(
            [*command, "token", "import", str(file), "--json"], env=environ, stdout=out, check=True
        )
    assert time.monotonic() - start < 60
    assert json.loads(report.read_text())["imported"] == 100_000
    status = (tmp_path / "peak").read_text()
    peak_kib = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))
    assert peak_kib < 150 * 1024


def test_rotate_shows_the_new_secret_once_and_keeps_all_else(cli, redis_url):
    """The same id, name and permissions; the old secret's end is told."""
    create(cli, "read", "deploy")
    before = cli("token", "show", 1, "--json").json
    made = cli("token", "rotate", 1, "--overlap", "2h", "--json").json
    assert list(made) == ["id", "token", "old_valid_until"]
    assert re.fullmatch(r"1\|[A-Za-z0-9]{40}", made["token"])
    left = datetime.fromisoformat(made["old_valid_until"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < left <= timedelta(hours=2)
    assert cli("token", "show", 1, "--json").json == before
    quiet = cli("token", "rotate", 1, "--overlap", "0s", "--quiet")
    assert re.fullmatch(r"1\|[A-Za-z0-9]{40}\n", quiet.out)
    assert quiet.out.strip() != made["token"]


@pytest.mark.parametrize("overlap", ["", "h", "24", "-1h", "1w", "91d", "1.5h", "\u0665h"])
def test_an_overlap_that_is_none_is_wrong_usage(cli, overlap):
    """Said in one line, and nothing is rotated."""
    create(cli, "read")
    result = cli("token", "rotate", 1, "--overlap", overlap)
    assert (result.code, result.out) == (2, "")
    assert "30m, 24h or 7d" in result.err


def test_disable_and_enable_are_shown(cli):
    """By list and show; a token that is not there is said to be missing."""
    create(cli, "read")
    assert cli("token", "disable", 1, "--json").json == {"id": 1, "disabled": True}
    assert [item["disabled"] for item in stored(cli)] == [True]
    assert "disabled" in cli("token", "list").out
    assert "  disabled     yes" in cli("token", "show", 1).out
    assert cli("token", "enable", 1).out == "token 1 enabled\n"
    assert [item["disabled"] for item in stored(cli)] == [False]
    for word in ("disable", "enable", "rotate"):
        assert cli("token", word, 9).err.startswith("authsidecar: there is no token 9")
