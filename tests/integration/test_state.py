"""All state in a file, and in another Redis by it: what was decided there is decided here."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.admin.refusal import Refusal
from authsidecar.admin.state_export import Exported, export_state
from authsidecar.admin.state_import import StateReport, import_state
from authsidecar.decision.authorize import authorize
from authsidecar.decision.model import Limit, Role, TeamId, TokenId, UserId
from authsidecar.decision.restrictions import read as restriction
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.kinds import kind_of
from authsidecar.store.loading import Loader
from tests.support.cli import invoke, measured
from tests.support.coolify import contents
from tests.support.decisions import code, credential, request, rules
from tests.support.redis import start_redis
from tests.support.seed import registry, secret_of, token, user

KEYS = Keys()
FOREVER = 4_000_000_000_000


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Redis]:
    """Another server."""
    server = start_redis(tmp_path / "other")
    async with Redis.from_url(server.url) as client:
        yield client
    server.stop()


@pytest.fixture
async def source(redis_client: Redis) -> Redis:
    """A bit of everything that there can be."""
    state = registry(redis_client)
    await state.set_instance(api_enabled=True, mcp_enabled=True, allowlist="192.0.2.0/24")
    await state.trials.begin("allowlist", "192.0.2.0/25", 3_600_000)
    await user(state, 1, t0="owner", t3="admin")
    await user(state, 2, t3="member")
    await state.set_team_mcp(TeamId(3), enabled=False)
    await state.put_tokens(
        [
            token(1, user=1, team=0, permissions=("root",)),
            token(2, user=1, team=3, expires_at=FOREVER),
            token(67, user=2, team=3),
        ]
    )
    await state.set_limit("token", 1, Limit(5, 1000))
    await state.set_limit("user", 2, Limit(6, 1000))
    await state.set_limit("team", 3, Limit(7, 1000))
    narrow = restriction(b'{"permissions": ["read"], "uses": 3}')
    await state.set_restriction("token", 67, narrow)
    await state.set_restriction("user", 1, restriction(b'{"permissions": ["read"]}'))
    await redis_client.hset(KEYS.owners(7), mapping={"uuid-of-a": 3, "uuid-of-b": 0})
    await redis_client.set(KEYS.warning("2:1:24:mail"), b"sent", pxat=FOREVER)
    await redis_client.set(KEYS.warning("2:1:24:webhook"), b"whoever", px=60_000)
    await redis_client.rpush(KEYS.prefix + "rate:{u:1}:user", *range(1200))
    await redis_client.pexpire(KEYS.prefix + "rate:{u:1}:user", 60_000)
    await redis_client.xadd(KEYS.prefix + "audit", {"action": "a", "after": "b"}, id="5-1")
    await redis_client.xadd(KEYS.prefix + "audit", {"action": "b"}, id="6-1")
    await redis_client.hset(KEYS.prefix + "management-key:1", mapping={"sha256": b"\xff" * 32})
    await redis_client.sadd(KEYS.prefix + "management-keys", 1)
    return redis_client


async def written(client: Redis, **options: Any) -> tuple[list[str], Exported]:
    lines: list[str] = []
    report = await export_state(client, KEYS, lines.append, **options)
    return lines, report


def a_file(lines: list[str]) -> io.BytesIO:
    return io.BytesIO("".join(f"{line}\n" for line in lines).encode())


async def brought(client: Redis, lines: list[str], *, merge: bool = False) -> StateReport:
    report = await import_state(client, KEYS, a_file(lines), merge=merge)
    assert isinstance(report, StateReport), report
    return report


async def moved(client: Redis) -> dict[bytes, Any]:
    """All that is to be the same after a move."""
    return {
        key: value
        for key, value in (await contents(client)).items()
        if (kind := kind_of(key.decode().removeprefix(KEYS.prefix))) is None
        or kind.role != "passing"
    }


async def test_everything_is_there_after_a_move(source: Redis, other: Redis) -> None:
    """Values, indexes, and when Redis removes what expires; not who is about to send a warning."""
    lines, exported = await written(source, counters=True)
    report = await brought(other, lines)
    assert (report.whole, report.kept, report.refused, report.unknown) == (True, 0, 0, 0)
    await source.delete(KEYS.warning("2:1:24:webhook"))
    assert await moved(other) == await moved(source)
    assert exported.unknown_count == 0
    for key in await other.keys("*"):
        if kind_of(key.decode().removeprefix(KEYS.prefix)).role != "passing":
            there, here = await source.pttl(key), await other.pttl(key)
            assert (there < 0) == (here < 0), key
            assert abs(there - here) < 5000, key


async def test_counters_are_left_but_budgets_are_not(source: Redis, other: Redis) -> None:
    """What was used of a budget is state: without it, nothing would be left of it."""
    lines, _ = await written(source)
    await brought(other, lines)
    assert not await other.exists(KEYS.prefix + "rate:{u:1}:user")
    assert await registry(other).used(TokenId(67), UserId(2)) == 0


async def test_tokens_are_admitted_only_by_the_imported_allowlist(source: Redis) -> None:
    """The settings are the first lines: no token is there before them."""
    lines, _ = await written(source)
    assert json.loads(lines[1])["key"] == "instance"


async def test_a_merge_adds_and_names_what_it_leaves(source: Redis, other: Redis) -> None:
    """Nothing that is there is changed; a second time there is nothing to do."""
    lines, _ = await written(source)
    state = registry(other)
    await state.set_instance(api_enabled=False)
    await user(state, 1, t3="member")
    await state.put_tokens([token(67, user=1, team=3, secret="another")])
    await state.add_user("one more", "more@example.test", UserId(9))
    before = await state.token(TokenId(67))
    assert isinstance(await import_state(other, KEYS, a_file(lines), merge=False), Refusal)
    report = await brought(other, lines, merge=True)
    assert set(report.kept_keys) == {"instance", "user:1", "token:67", "team:3:members", "team:3"}
    assert await state.token(TokenId(67)) == before
    assert 67 not in await state.token_ids_of(UserId(2))
    assert await state.member(TeamId(3), UserId(1)) is Role.MEMBER
    assert await state.member(TeamId(3), UserId(2)) is Role.MEMBER
    found = await state.instance()
    assert (found.api_enabled, found.allowlist.text) == (False, "192.0.2.0/25")
    assert await state.user(UserId(9)) is not None
    again = await brought(other, lines, merge=True)
    assert (again.added, again.kept) == (0, report.kept)


async def test_what_is_cached_is_stale_after_a_merge(source: Redis, other: Redis) -> None:
    """A member of a team that the file brings is one for the very next request."""
    lines, _ = await written(source)
    state = registry(other)
    await state.add_user("user 2", "user2@example.test", UserId(2))
    await state.put_tokens([token(67, user=2, team=3)])
    loader = Loader(other, KEYS)
    held, _ = await loader.record(credential(67))
    assert held is not None
    assert held.role is None
    instance, _ = await loader.instance()
    await brought(other, lines, merge=True)
    assert await other.get(KEYS.user_nonce(UserId(2))) != held.nonce
    assert await other.get(KEYS.instance_nonce) != instance.nonce
    now, _ = await loader.record(credential(67))
    assert now is not None
    assert now.role is Role.MEMBER


async def test_keys_that_are_not_known_are_named(source: Redis, other: Redis) -> None:
    """By an export of what a newer release has written, and by an import of its file."""
    await source.set(KEYS.prefix + "novelty:1", "?")
    await source.delete(KEYS.owners(7))
    await source.set(KEYS.owners(7), "no hash")
    lines, exported = await written(source)
    assert sorted(exported.unknown) == ["'novelty:1'", "'owners:7'"]
    assert json.loads(lines[-1])["end"]["unknown"] == 2
    lines.insert(3, json.dumps({"key": "novelty:1", "string": "?"}))
    report = await brought(other, lines)
    assert report.unknown == 1
    assert report.problems == [(4, "the key 'novelty:1' is not known")]
    assert not report.whole
    assert not await other.exists(KEYS.prefix + "novelty:1")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is no JSON object"),
        ("[1]", "is no JSON object"),
        ("{}", "has no key"),
        ('{"key": 5}', "has no key"),
        ('{"key": "token:5"}', "has no hash"),
        ('{"key": "token:5", "string": "a"}', "has no hash"),
        ('{"key": "token:5", "hash": {}}', "has a hash without fields"),
        ('{"key": "token:5", "hash": {"sha256": 5}}', "neither text nor hex"),
        ('{"key": "token:5", "hash": {"sha256": {"hex": "zz"}}}', "neither text nor hex"),
        ('{"key": "token:5", "hash": {"a": "b"}, "expires_at": "soon"}', "expires_at"),
        ('{"key": "token:5", "hash": {"a": "b"}, "expires_at": true}', "expires_at"),
        ('{"key": "audit", "stream": [["5-1"]]}', "no pair"),
        ('{"key": "rate:{u:1}:user", "list": []}', "has a list without entries"),
        ('{"key": "nonce:instance", "string": "a"}', "is not known"),
        ('{"key": "token:5\\n", "hash": {"a": "b"}}', "is not known"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_of_it_is_imported(
    source: Redis, other: Redis, line: str, why: str
) -> None:
    """All others are."""
    lines, _ = await written(source)
    report = await brought(other, [*lines[:4], line, *lines[4:]])
    assert report.refused + report.unknown == 1
    [(number, said)] = report.problems
    assert (number, why in said) == (5, True)
    assert not await other.exists(KEYS.token(TokenId(5)))
    assert len(await registry(other).users()) == 2


@pytest.mark.parametrize(
    "head",
    [
        "",
        "nonsense",
        '{"id": 5, "sha256": "a"}',
        '{"authsidecar_state": 2, "schema": 1}',
        '{"authsidecar_state": 1, "schema": 999}',
        '{"authsidecar_state": 1, "schema": "1"}',
    ],
)
async def test_a_file_of_another_kind_is_refused(other: Redis, head: str) -> None:
    """Before anything is written."""
    assert isinstance(await import_state(other, KEYS, a_file([head]), merge=True), Refusal)
    assert await other.keys("*") == []


async def test_a_file_that_is_cut_off_is_said_to_be(source: Redis, other: Redis) -> None:
    """Its lines are imported, and the rest can be brought later."""
    lines, _ = await written(source)
    assert not (await brought(other, lines[:5])).whole
    assert (await brought(other, lines, merge=True)).whole
    assert len(await registry(other).users()) == 2


def test_the_commands_move_state_to_another_prefix(
    source: Redis, redis_url: str, tmp_path: Path
) -> None:
    """A second one in the same Redis; what went wrong is one line and exit code 1."""
    file = tmp_path / "state.jsonl"
    exported = invoke("state", "export", "--counters", url=redis_url)
    assert (exported.code, exported.err) == (0, "19 keys written\n")
    file.write_text(exported.out)
    other = {"REDIS__PREFIX": "other:"}
    done = invoke("state", "import", file, "--json", url=redis_url, **other)
    assert (done.code, done.json["added"], done.json["kept"]) == (0, 19, 0)
    assert invoke("token", "list", "--json", url=redis_url, **other).json["items"][0]["id"] == 1
    refused = invoke("state", "import", file, url=redis_url, **other)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "--merge" in refused.err
    stdin = exported.out.encode()
    merged = invoke("state", "import", "-", "--merge", stdin=stdin, url=redis_url, **other)
    assert (merged.code, merged.out[:8]) == (0, "0 added,")
    short = stdin[: stdin.rindex(b"\n", 0, -1)]
    cut = invoke("state", "import", "-", "--merge", stdin=short, url=redis_url, **other)
    assert (cut.code, "does not end as it should" in cut.err) == (1, True)


def test_a_state_that_coolify_owns_is_not_overwritten(
    source: Redis, redis_url: str, tmp_path: Path
) -> None:
    """The next round of the sync would undo it."""
    file = tmp_path / "state.jsonl"
    file.write_text(invoke("state", "export", url=redis_url).out)
    asyncio.run(_own(redis_url))
    refused = invoke("state", "import", file, "--merge", url=redis_url)
    assert (refused.code, "Coolify owns" in refused.err) == (1, True)


async def _own(url: str) -> None:
    async with Redis.from_url(url) as client:
        await client.hset(KEYS.sync_status, "owner", "coolify")


TOKENS = 100_000

FILL = """
for user = 1, 500 do
  redis.call('HSET', 'authsidecar:user:' .. user, 'name', 'u', 'email', 'e')
  redis.call('SADD', 'authsidecar:users', user)
  redis.call('HSET', 'authsidecar:team:3:members', user, 'member')
end
redis.call('HSET', 'authsidecar:team:3', 'name', 'core', 'mcp_enabled', 1)
redis.call('SADD', 'authsidecar:teams', 3)
redis.call('HSET', 'authsidecar:instance', 'api_enabled', 1)
for token = 1, tonumber(ARGV[1]) do
  local key, user = 'authsidecar:token:' .. token, token % 520 + 1
  redis.call('HSET', key, 'sha256', string.rep('x', 32), 'name', 'token ' .. token, 'user', user,
    'team', 3, 'permissions', token % 3 == 0 and 'deploy read' or 'read', 'created_at', 0)
  if token % 7 == 0 then redis.call('HSET', key, 'expires_at', 5) end
  redis.call('SADD', 'authsidecar:user:' .. user .. ':tokens', token)
end
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_hundred_thousand_tokens_move(
    redis_client: Redis, redis_url: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Memory is that of a batch; a thousand of them are judged alike on both servers."""
    server, file = start_redis(tmp_path / "other"), tmp_path / "state.jsonl"
    export, bring = ("state", "export"), ("state", "import", "-")
    nothing = measured(*export, url=redis_url, home=tmp_path, reads=None, writes=file)
    await redis_client.eval(FILL, 0, TOKENS)
    sample = range(1, TOKENS, TOKENS // 1000)
    async with redis_client.pipeline(transaction=False) as pipe:
        for number in sample:
            if number % 11:
                digest = sha256(secret_of(number).encode()).digest()
                pipe.hset(KEYS.token(TokenId(number)), "sha256", digest)
        await pipe.execute()
    out = measured(*export, url=redis_url, home=tmp_path, reads=None, writes=file)
    said = tmp_path / "said"
    back = measured(*bring, url=server.url, home=tmp_path, reads=file, writes=said)
    more = (max(out.most_bytes, back.most_bytes) - nothing.most_bytes) / 1e6
    tell(
        f"state: {TOKENS} tokens written in {out.cpu_s:.1f} s of CPU, brought in by "
        f"{back.cpu_s:.1f} s, {more:.1f} MB more memory than nothing"
    )
    assert (out.code, back.code) == (0, 0)
    assert file.stat().st_size > 10_000_000
    assert more < 30
    async with Redis.from_url(server.url) as other:
        there = await judged(redis_client, sample)
        assert await judged(other, sample) == there
    assert {outcome for _, outcome in there} == ALL_OUTCOMES
    server.stop()


ALL_OUTCOMES = {"allow", "token_unknown", "token_expired", "not_team_member", "team_role_required"}


async def judged(client: Redis, tokens: Iterable[int]) -> list[tuple[int, str]]:
    """What becomes of each, by the very core that the server runs."""
    store = DecisionStore(client, KEYS, budget_ms=5000)
    found = [
        (number, code(await authorize(request(number), rules({}), store))) for number in tokens
    ]
    await store.close()
    return found
