"""The management API against a real sidecar: what it takes, gives, and refuses."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.asyncio import Redis

from authsidecar.decision.model import Limit, UserId
from authsidecar.decision.restrictions import _PARTS
from authsidecar.serving.manage import models
from authsidecar.serving.manage.openapi import BASE, OPERATIONS, statuses
from authsidecar.store.keys import Keys
from tests.support import seed
from tests.support.cli import invoke
from tests.support.manage import PROBLEM, Api, key
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import Answer, start_sidecar
from tests.support.world import OWNER, READ, ROOT, populate

PLANT = "S3CR3Tplant0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"), port=0)
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(server: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    sidecar = start_sidecar(tmp_path_factory.mktemp("sidecar"), server.url)
    yield Api(sidecar, server.url, key(server.url, "read"), key(server.url, "write"))
    sidecar.stop()


def right(answer: Answer, status: int = 200) -> dict:
    assert answer.status == status, answer.body
    assert answer.header("Cache-Control") == "no-store"
    return answer.json


def refused(answer: Answer, status: int) -> str:
    """The detail of a problem, which has the shape of RFC 9457."""
    assert answer.status == status, answer.body
    assert answer.header("Content-Type") == PROBLEM
    assert {"type", "title", "status", "detail"} <= set(answer.json)
    assert answer.json["status"] == status
    assert "\n" not in answer.json["detail"]
    return answer.json["detail"]


def samples() -> Iterator[tuple[str, str, str]]:
    values = {"user": "1", "team": "0", "token": "10", "id": "1", "scope": "user"}
    values |= {"record": "1-0", "decision": "ab"}
    for one in OPERATIONS:
        yield one.method, one.path.format(**values), one.scope.value


@pytest.mark.parametrize(("method", "path", "scope"), list(samples()))
def test_nothing_without_a_key_and_no_write_with_a_read_key(
    api: Api, method: str, path: str, scope: str
) -> None:
    """Before anything else is looked at: not even whether it is there."""
    assert "management key" in refused(api.ask(method, path, key=None), 401)
    if scope == "write":
        assert "may only read" in refused(api.ask(method, path, {}, key=api.reading), 403)


def test_what_is_no_operation(api: Api) -> None:
    """401 without a key, else 404; 405 with Allow where the path has other methods."""
    for path in ("", "/", "/none", "/users/1/2", "/openapi.json/x", "/%2e%2e/healthz"):
        refused(api.ask("GET", path, key=None), 401)
        refused(api.ask("GET", path), 404)
    answer = api.ask("POST", "/users/1", {})
    assert "DELETE, GET" in refused(answer, 405)
    assert answer.header("Allow") == "DELETE, GET"
    assert api.ask("PUT", "/openapi.json").header("Allow") == "GET"


def test_users_teams_and_members(api: Api) -> None:
    """Made, read, changed, listed and removed; the words are the command line's."""
    user = right(api.ask("POST", "/users", {"name": "Ada", "email": "ada@example.com"}), 201)
    assert right(api.ask("GET", f"/users/{user['id']}")) == user
    team = right(api.ask("POST", "/teams", {"name": "web", "id": 700}), 201)
    assert team == {"id": 700, "name": "web", "mcp_enabled": True}
    taken = api.ask("POST", "/teams", {"name": "web", "id": 700})
    assert refused(taken, 409) == "the id 700 is taken; choose another, or leave --id out"
    off = right(api.ask("PATCH", "/teams/700", {"mcp_enabled": False}))
    assert off["mcp_enabled"] is False
    member = f"/teams/700/members/{user['id']}"
    assert "not in team 700" in refused(api.ask("GET", member), 404)
    placed = right(api.ask("PUT", member, {"role": "owner"}))
    assert placed == {"team": 700, "user": user["id"], "role": "owner", "warnings": []}
    listed = api.all("/teams/700/members")
    assert listed == [{"team": 700, "user": user["id"], "role": "owner"}]
    token = {"name": "ci job", "user": user["id"], "team": 700, "expires": None}
    made = right(api.ask("POST", "/tokens", token | {"permissions": ["deploy"]}), 201)
    warned = right(api.ask("PUT", member, {"role": "member"}))
    assert "1 token of user" in warned["warnings"][0]
    gone = right(api.ask("DELETE", member))
    assert gone == {"removed_tokens": 1, "warnings": []}
    refused(api.ask("GET", f"/tokens/{made['id']}"), 404)
    assert right(api.ask("DELETE", "/teams/700"))["removed_tokens"] == 0
    assert right(api.ask("DELETE", f"/users/{user['id']}"))["removed_tokens"] == 0
    absent = refused(api.ask("DELETE", f"/users/{user['id']}"), 404)
    shown = invoke("user", "remove", user["id"], url=api.url)
    assert shown.err == f"authsidecar: {absent}\n"


async def test_a_token_is_shown_once_and_works(api: Api) -> None:
    """Through the authz listener, until it is revoked; its rules are those of the CLI."""
    body = {"name": "ci job", "user": OWNER, "team": 0, "permissions": ["read"], "expires": 30}
    made = right(api.ask("POST", "/tokens", body), 201)
    plain = made.pop("token")
    assert plain.startswith(f"{made['id']}|")
    shown = right(api.ask("GET", f"/tokens/{made['id']}"))
    assert {k: shown[k] for k in made} == made
    assert "token" not in shown
    asked = api.sidecar.ask("GET", "/api/v1/teams", authorization=f"Bearer {plain}")
    assert asked.status == 200
    revoked = right(api.ask("DELETE", f"/tokens/{made['id']}"))
    assert revoked == {"id": made["id"], "revoked": True, "warnings": []}
    assert api.sidecar.ask("GET", "/api/v1/teams", authorization=f"Bearer {plain}").status == 401
    alone = refused(api.ask("POST", "/tokens", body | {"permissions": ["root", "read"]}), 422)
    assert "root stands alone" in alone
    none = api.ask("POST", "/tokens", body | {"permissions": ["all"], "expires": 31, "x": 1})
    assert refused(none, 422).startswith("permissions.0: ")
    assert {one["field"] for one in none.json["errors"]} == {"permissions.0", "expires", "x"}


def test_pages_hold_everything_once(api: Api) -> None:
    """Small pages and large ones, of users, tokens of one, of a team, and of all."""
    users = {one["id"] for one in api.all("/users", 1)}
    assert users == {one["id"] for one in api.all("/users", 200)} >= {1, 3, 4}
    for path in (
        "/tokens",
        f"/tokens?user={OWNER}",
        "/tokens?team=0",
        f"/tokens?user={OWNER}&team=5",
    ):
        small = [one["id"] for one in api.all(path, 1)]
        large = [one["id"] for one in api.all(path, 200)]
        assert sorted(small) == sorted(large), path
        assert len(set(small)) == len(small) > 0
    assert {one["team"] for one in api.all(f"/tokens?user={OWNER}&team=5")} == {5}
    refused(api.ask("GET", "/tokens?user=99999"), 404)


@pytest.mark.parametrize("cursor", ["x", "WzFd", "bnVsbA", "WzEsMSwxXQ==", "WyIxIiwyXQ=="])
def test_a_cursor_that_no_page_gave(api: Api, cursor: str) -> None:
    """422, whichever list; what is not even of its letters is 400."""
    for path in ("/users", "/tokens", "/audit", "/teams/0/members"):
        assert "cursor" in refused(api.ask("GET", f"{path}?cursor={cursor}"), 422)
    assert "cursor" in refused(api.ask("GET", "/users?cursor=%00"), 400)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=1&limit=2", "x=1"])
def test_a_query_that_is_not_the_operations(api: Api, query: str) -> None:
    """400, which names the part."""
    assert query[0] in refused(api.ask("GET", f"/users?{query}"), 400)


def test_bodies_that_are_none(api: Api) -> None:
    """No JSON, another type, too large, deep, not an object."""
    refused(api.ask("POST", "/users", raw=b"{"), 400)
    refused(api.ask("POST", "/users", raw=b"\xff"), 400)
    refused(api.ask("POST", "/users", raw=b"[" * 50_000), 400)
    refused(api.ask("POST", "/users", raw=b"[]"), 422)
    refused(api.ask("POST", "/users", raw=b""), 400)
    refused(api.ask("POST", "/users", raw=b"{}", headers={"Content-Type": "text/plain"}), 415)
    refused(api.ask("POST", "/users", raw=b'{"name": "' + b"x" * 200_000 + b'"}'), 413)
    answer = api.ask("POST", "/explain", {"method": "GET", "target": "/", "token": PLANT * 40})
    refused(answer, 422)
    assert PLANT not in answer.body.decode()


def test_settings_and_the_allowlist(api: Api) -> None:
    """Changed in part; a list that locks out is refused in the words of the CLI."""
    before = right(api.ask("GET", "/settings"))
    assert before["allowlist"] == {"text": "", "everyone": True, "entries": []}
    changed = right(api.ask("PATCH", "/settings", {"mcp_enabled": False}))
    assert (changed["mcp_enabled"], changed["api_enabled"]) == (False, before["api_enabled"])
    narrow = {"allowlist": "192.0.2.0/24", "my_ip": "198.51.100.1"}
    assert "lock you out" in refused(api.ask("PATCH", "/settings", narrow), 422)
    assert "nothing was saved" in refused(api.ask("PATCH", "/settings", {"allowlist": "x"}), 422)
    assert "my_ip" in refused(api.ask("PATCH", "/settings", narrow | {"my_ip": "x"}), 422)
    saved = right(api.ask("PATCH", "/settings", narrow | {"my_ip": "192.0.2.7"}))
    assert saved["allowlist"]["entries"] == ["192.0.2.0/24"]
    everyone = right(api.ask("PATCH", "/settings", {"allowlist": "", "mcp_enabled": True}))
    assert everyone["allowlist"]["everyone"]


def test_etags_keep_two_writers_apart(api: Api) -> None:
    """412 for who has seen an older one, and for what is gone; * means that it is there."""
    tag = api.ask("GET", "/settings").header("ETag")
    assert tag
    assert api.ask("GET", "/settings").header("ETag") == tag
    off = {"mcp_enabled": False}
    assert api.ask("PATCH", "/settings", off, headers={"If-Match": tag}).status == 200
    late = api.ask("PATCH", "/settings", {"mcp_enabled": True}, headers={"If-Match": tag})
    assert "read it again" in refused(late, 412)
    both = f'"other", {api.ask("GET", "/settings").header("ETag")}'
    on = {"mcp_enabled": True}
    assert api.ask("PATCH", "/settings", on, headers={"If-Match": both}).status == 200
    refused(api.ask("DELETE", "/teams/999", headers={"If-Match": "*"}), 412)
    refused(
        api.ask("PUT", "/teams/0/members/4", {"role": "member"}, headers={"If-Match": "*"}), 412
    )


def test_of_many_writers_with_one_etag_one_passes(api: Api) -> None:
    """Whatever they change, and at the same moment: the others are told 412."""
    for number in range(3):
        answers = []
        for path, body in (
            ("/settings", {"mcp_enabled": number % 2 == 0, "force": True}),
            (
                "/restrictions/user/1",
                {"note": f"{number}", "permissions": ["read"], "force": True},
            ),
            ("/limits/user/1", {"limit": 5 + number}),
        ):
            tag = api.ask("GET", path).header("ETag")
            method = "PATCH" if path == "/settings" else "PUT"
            headers = {"If-Match": tag or ""}
            with ThreadPoolExecutor(8) as pool:
                asked = [
                    pool.submit(api.ask, method, path, body, headers=headers) for _ in range(8)
                ]
                answers.append(sorted(one.result().status for one in asked))
        assert answers[1] == answers[2] == [200] + [412] * 7
        # Who finds that it is already as wanted has changed nothing.
        assert answers[0].count(200) in ({1, 8} if number == 0 else {1})
    for path in ("/restrictions/user/1", "/limits/user/1"):
        headers = {"If-Match": api.ask("GET", path).header("ETag") or ""}
        assert api.ask("DELETE", path, headers=headers).status == 200
        refused(api.ask("DELETE", path, headers=headers), 412)


def test_idempotency_keys(api: Api) -> None:
    """A repeat creates nothing more and shows no secret; another body is refused; many at once."""
    body = {"name": "twice", "user": OWNER, "team": 0, "permissions": ["read"], "expires": None}
    headers = {"Idempotency-Key": "one"}
    first = right(api.ask("POST", "/tokens", body, headers=headers), 201)
    again = right(api.ask("POST", "/tokens", body, headers=headers), 201)
    assert again == first | {"token": None}
    other = api.ask("POST", "/tokens", body | {"name": "other"}, headers=headers)
    assert "take a new one" in refused(other, 422)
    refused(api.ask("POST", "/tokens", body, headers={"Idempotency-Key": "x" * 256}), 400)
    broken = {"Idempotency-Key": "broken"}
    refused(api.ask("POST", "/tokens", body | {"team": 99}, headers=broken), 422)
    assert api.ask("POST", "/tokens", body, headers=broken).status == 201
    with ThreadPoolExecutor(8) as pool:
        many = {"Idempotency-Key": "many"}
        user = {"name": "Eve", "email": "eve@example.com"}
        answers = list(pool.map(lambda _: api.ask("POST", "/users", user, headers=many), range(16)))
    assert {one.status for one in answers} <= {201, 409}
    assert len({one.json["id"] for one in answers if one.status == 201}) == 1
    (created,) = {one.json["id"] for one in answers if one.status == 201}
    assert api.ask("DELETE", f"/users/{created}").status in {200, 204}
    assert "is gone" in refused(api.ask("POST", "/users", user, headers=many), 409)
    with redis.Redis.from_url(api.url) as client:
        kept = b"".join(client.get(name) or b"" for name in client.scan_iter("*idempotency*"))
    assert first["token"].partition("|")[2].encode() not in kept


async def test_limits_with_live_usage(api: Api) -> None:
    """Overrides, what is used of them, and when the next unit is free."""
    async with Redis.from_url(api.url) as client:
        registry = seed.registry(client)
        await seed.user(registry, 50, t0="owner")
        await registry.put_tokens([seed.token(500, user=50, team=0)])
    plain = right(api.ask("GET", "/limits/user/50"))
    assert (plain["source"], plain["limit"], plain["used"]) == ("configuration", 200, 0)
    given = right(api.ask("PUT", "/limits/user/50", {"limit": 5, "window_seconds": 600}))
    assert (given["source"], given["remaining"], given["free_at"]) == ("override", 5, None)
    for _ in range(3):
        answer = api.sidecar.ask("GET", "/api/v1/teams", authorization=seed.bearer(500))
        assert answer.status == 200
    used = right(api.ask("GET", "/limits/user/50"))
    assert (used["used"], used["remaining"]) == (3, 2)
    assert used["free_at"] is not None
    listed = api.all("/limits?scope=user", 1)
    assert [one["id"] for one in listed] == [50]
    assert right(api.ask("POST", "/limits/user/50/reset"))["used"] == 0
    assert right(api.ask("DELETE", "/limits/user/50"))["source"] == "configuration"
    assert right(api.ask("GET", "/limits/token/500"))["source"] == "off"
    assert right(api.ask("PUT", "/limits/token/500", {"limit": 9}))["window_seconds"] == 60
    assert [one["id"] for one in api.all("/limits?scope=token", 2)] == [500]
    for scope in ("user", "team", "token"):
        assert f"there is no {scope} 9999" in refused(api.ask("GET", f"/limits/{scope}/9999"), 404)
    refused(api.ask("GET", "/limits/key/1"), 404)
    refused(api.ask("PUT", "/limits/user/50", {"limit": 0}), 422)


async def test_usage_is_what_the_window_holds(redis_client: Redis) -> None:
    """Found by halving: as counted one by one, at each edge."""
    registry = seed.registry(redis_client)
    await seed.user(registry, 1)
    from authsidecar.decision.ratelimit import charges

    counted = charges.of_user(UserId(1), Limit(1))
    now = await registry.now()
    for ages in (
        [],
        [5000],
        [100_000],
        [90_000, 61_000, 50_000, 40_000, 0],
        list(range(70_000, 0, -999)),
    ):
        await redis_client.delete(Keys().counter(counted))
        if ages:
            await redis_client.rpush(Keys().counter(counted), *(now - age for age in ages))
        used, oldest = await registry.usage(counted, 60_000)
        inside = [age for age in ages if age < 60_000]
        assert abs(used - len(inside)) <= sum(1 for age in inside if age > 55_000), ages
        assert (oldest is None) == (used == 0)


def test_restrictions(api: Api) -> None:
    """Set, read, refused where they widen, and taken back."""
    where = f"/restrictions/token/{READ}"
    nothing = right(api.ask("GET", where))
    assert (nothing["restriction"], nothing["damaged"]) == (None, False)
    given = {"from": ["192.0.2.0/24"], "uses": 5, "note": "office"}
    held = right(api.ask("PUT", where, given))["restriction"]
    assert {name: value for name, value in held.items() if value is not None} == given
    assert right(api.ask("GET", where))["uses_spent"] == 0
    assert right(api.ask("GET", f"/tokens/{READ}"))["restricted"]
    wider = refused(api.ask("PUT", where, {"from": ["192.0.0.0/16"], "uses": 5}), 422)
    assert "can't widen" in wider
    refused(api.ask("PUT", where, {"sources": ["192.0.2.0/24"]}), 422)
    refused(api.ask("PUT", where, {}), 422)
    assert right(api.ask("DELETE", where))["restriction"] is None
    refused(api.ask("PUT", "/restrictions/team/999", {"uses": 1}), 404)


def test_explain(api: Api) -> None:
    """The same outcome as the command line's, and the token is nowhere."""
    question = {"method": "POST", "target": "/api/v1/deploy", "client_ip": "192.0.2.1"}
    token = f"{READ}|{seed.secret_of(READ)}"
    found = right(api.ask("POST", "/explain", question | {"token": token}, key=api.reading))
    shown = invoke(
        *("explain", "POST", "/api/v1/deploy", "--token-file", "-", "--client-ip", "192.0.2.1"),
        "--json",
        url=api.url,
        stdin=token.encode(),
    ).json
    assert {name: found[name] for name in shown} == shown
    assert found["code"] == "permission_missing"
    assert right(api.ask("POST", "/explain", question))["code"] == "token_missing"
    refused(api.ask("POST", "/explain", question | {"client_ip": "x"}), 422)


def test_status_warnings_keys(api: Api) -> None:
    """What a page of the state of things needs."""
    status = right(api.ask("GET", "/status", key=api.reading))
    assert (status["ready"], status["missing"], status["owned_by"]) == (True, {}, None)
    assert status["pid"] > 0
    assert isinstance(right(api.ask("GET", "/warnings"))["items"], list)
    keys = right(api.ask("GET", "/keys"))["items"]
    assert {"read", "write"} == {one["scope"] for one in keys}
    for shown in (api.reading, api.writing):
        assert shown.rpartition("_")[2] not in json.dumps(keys)


def test_each_change_is_in_the_audit_with_its_key(api: Api) -> None:
    """Who and from where; page by page, the newest first."""
    team = right(api.ask("POST", "/teams", {"name": "audited"}), 201)["id"]
    right(api.ask("DELETE", f"/teams/{team}"))
    newest = right(api.ask("GET", "/audit?limit=2"))["items"]
    assert [(one["action"], one["target"]) for one in newest] == [
        ("team.remove", f"team {team}"),
        ("team.add", f"team {team}"),
    ]
    assert newest[0]["via"] == "api"
    assert newest[0]["actor"].startswith("key ")
    assert newest[0]["place"] == "127.0.0.1"
    assert right(api.ask("GET", f"/audit/{newest[0]['id']}")) == newest[0]
    refused(api.ask("GET", "/audit/1-0"), 404)
    refused(api.ask("GET", "/audit/x"), 404)
    whole = api.all("/audit", 7)
    assert [one["id"] for one in whole] == sorted(
        (one["id"] for one in whole), key=lambda i: tuple(map(int, i.split("-"))), reverse=True
    )


def test_no_secret_is_in_the_audit_or_the_log(api: Api) -> None:
    """Of tokens and keys that were made, shown, used and revoked; nor a digest."""
    body = {
        "name": f"x 12|{PLANT}",
        "user": OWNER,
        "team": 0,
        "permissions": ["read"],
        "expires": 7,
    }
    made = right(api.ask("POST", "/tokens", body), 201)
    spare = key(api.url, "write", f"Bearer {PLANT}")
    right(api.ask("DELETE", f"/tokens/{made['id']}", key=spare))
    api.ask("GET", "/users", key=f"{spare[:-1]}x")
    api.ask("POST", "/explain", {"method": "GET", "target": f"/?{PLANT}", "token": f"1|{PLANT}"})
    with redis.Redis.from_url(api.url) as client:
        records = repr(client.xrange(Keys().audit))
        digests = [client.hget(name, "sha256") for name in client.scan_iter("*management-key:*")]
    told = records + api.sidecar.log
    for secret in (PLANT, made["token"].partition("|")[2], spare.rpartition("_")[2]):
        assert secret not in told
    for digest in digests:
        assert digest.hex() not in told


async def test_what_a_sync_owns_is_read_only(api: Api) -> None:
    """409 with the reason; limits and restrictions stay ours."""
    async with Redis.from_url(api.url) as client:
        await client.hset(Keys().sync_status, "owner", "coolify")
        try:
            for one in OPERATIONS:
                if not one.owned:
                    continue
                path = one.path.format(user="1", team="0", token=str(ROOT))
                bodies = {
                    "addUser": {"name": "n", "email": "e@example.com"},
                    "addTeam": {"name": "n"},
                    "changeTeam": {"mcp_enabled": True},
                    "setMember": {"role": "owner"},
                    "createToken": {
                        "name": "new",
                        "user": OWNER,
                        "team": 0,
                        "permissions": ["read"],
                        "expires": None,
                    },
                    "changeSettings": {"api_enabled": True},
                }
                why = refused(api.ask(one.method, path, bodies.get(one.name)), 409)
                assert "Coolify owns" in why
            assert api.ask("PUT", f"/limits/token/{ROOT}", {"limit": 7}).status == 200
            assert right(api.ask("GET", "/status"))["owned_by"] == "coolify"
        finally:
            await client.delete(Keys().sync_status)


def test_a_restriction_has_the_parts_that_there_are() -> None:
    """A new part of a restriction is a field of the API, too."""
    fields = models.Restriction.model_fields.items()
    assert {one.alias or name for name, one in fields} == set(_PARTS)


def test_every_refusal_has_a_place_in_the_document() -> None:
    """Each operation names 401, 429 and 503; a write 403; a path 404."""
    for one in OPERATIONS:
        found = statuses(one)
        assert {400, 401, 429, 503} <= set(found)
        assert ("{" in one.path) <= (404 in found)
        assert (one.method == "GET") <= (403 not in found)
    assert len({one.name for one in OPERATIONS}) == len(OPERATIONS)
    assert BASE == "/manage/v1"


async def test_a_large_list_holds_up_nobody(redis_client: Redis, tmp_path, redis_url: str) -> None:
    """20,000 users and tokens: pages of all of them, and no decision waits for one of them."""
    registry = seed.registry(redis_client)
    await registry.set_instance(api_enabled=True)
    await seed.user(registry, 1, t0="owner")
    await registry.put_tokens([seed.token(1, user=1, team=0)])
    async with redis_client.pipeline(transaction=False) as pipe:
        for number in range(2, 20_001):
            pipe.hset(Keys().user(UserId(number)), mapping={"name": "n", "email": "e"})
            pipe.sadd(Keys().users, number)
        await pipe.execute()
    sidecar = start_sidecar(tmp_path, redis_url)
    api = Api(sidecar, redis_url, "", await asyncio.to_thread(key, redis_url, "write"))
    slowest = 0.0

    def walk() -> list[int]:
        return [one["id"] for one in api.all("/users", 200)]

    walking = asyncio.create_task(asyncio.to_thread(walk))
    while not walking.done():
        began = time.perf_counter()
        answer = await asyncio.to_thread(sidecar.ask, "GET", "/api/v1/health", client="192.0.2.44")
        slowest = max(slowest, time.perf_counter() - began)
        assert answer.status == 200
        await asyncio.sleep(0.005)
    found = await walking
    assert set(found) == set(range(1, 20_001))
    assert slowest < 0.5
    assert sidecar.stop() == 0
