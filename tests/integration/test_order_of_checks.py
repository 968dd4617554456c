"""Which answer wins, and what every answer looks like: decisions.md, asked over HTTP."""

import asyncio
import importlib
import json
import pkgutil
import re
import socket as socketlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import authsidecar
from authsidecar.decision.model import Limit, Reason, Restriction, TeamId, TokenId
from authsidecar.store.keys import Keys, owner_bucket
from tests.support import broken
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import Answer, SidecarProcess, get, start_sidecar
from tests.support.wire import Wire, ask, subrequest
from tests.support.world import (
    DEPLOY,
    EXPIRED,
    NOTHING,
    OWNER,
    READ,
    READ_OF_MEMBER,
    ROOT,
    ROOT_OF_LONER,
    ROOT_OF_MEMBER,
    ROOT_OF_OTHER_TEAM,
    WRITE,
    World,
    address,
    populate,
    world_of,
)

pytestmark = pytest.mark.any_python

ENABLE = "/api/v1/enable"
HERE = "192.0.2.1"
ELSEWHERE = "203.0.113.66"
WRONG = "Bearer 11|not-the-secret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def sidecar(server: RedisProcess, tmp_path_factory: pytest.TempPathFactory):
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        LIMITS__USER="100000",
        LIMITS__FAILED="3",
        LIMITS__UNKNOWN="3",
        LIMITS__HEALTH="4",
        LIMITS__FEEDBACK="2",
        SYNC__TEAM_ISOLATION="true",
    )
    yield sidecar
    assert sidecar.stop() == 0
    assert '"defect"' not in sidecar.log


@pytest.fixture(scope="module")
def passing(server: RedisProcess, tmp_path_factory: pytest.TempPathFactory):
    """A sidecar that passes what is outside of the API, behind a CDN, and its unix socket."""
    directory = tmp_path_factory.mktemp("passing")
    sidecar = start_sidecar(
        directory,
        server.url,
        COOLIFY__OUTSIDE="pass",
        TRUSTED_HOPS="203.0.113.0/24,2001:db8:cd::/48",
        COOLIFY__INSTANCE_TEAM="5",
    )
    yield sidecar
    assert sidecar.stop() == 0
    assert '"defect"' not in sidecar.log


@pytest.fixture
async def world(sidecar: SidecarProcess, server: RedisProcess) -> AsyncIterator[World]:
    async with world_of(sidecar, server) as world:
        yield world


@pytest.fixture
async def other(passing: SidecarProcess, server: RedisProcess) -> AsyncIterator[World]:
    async with world_of(passing, server) as world:
        yield world


def refused(
    answer: Answer, status: int, code: str, message: str | None = None, *, realm: str = "coolify"
) -> Answer:
    """The answer, after a look at everything that a refusal of this status and code promises."""
    body = answer.json
    assert (answer.status, body["code"]) == (status, code)
    assert message is None or body["message"] == message
    assert body["message"]
    known = {"message", "code", "decision_id", "missing_permissions", "docs", "limit_name"}
    assert set(body) <= known
    assert ("limit_name" in body) == (status == 429)
    assert ("missing_permissions" in body) == (code == "permission_missing")
    assert ("docs" in body) == (code == "route_unknown")
    assert re.fullmatch(r"[0-9A-Za-z_-]{8,64}", body["decision_id"])
    assert answer.body.isascii()
    assert b"\n" not in answer.body
    assert len(answer.body) < 4096
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Cache-Control") == "no-store"
    tail = "" if code == "token_missing" and realm != "mcp" else ', error="invalid_token"'
    challenge = f'Bearer realm="{realm}"{tail}' if status == 401 else None
    assert answer.header("WWW-Authenticate") == challenge
    retry = answer.header("Retry-After")
    assert (retry is not None) == (status in {429, 503})
    assert retry is None or int(retry) >= 1
    assert (answer.header("X-RateLimit-Reset") is not None) == (status == 429)
    limits = {"X-RateLimit-Limit", "X-RateLimit-Remaining", "RateLimit", "RateLimit-Policy"}
    assert sum(answer.header(name) is not None for name in limits) in {0, 4}
    assert not any(name.startswith("X-Auth-") for name, _ in answer.headers)
    return answer


def allowed(answer: Answer) -> Answer:
    """The answer, after a look at everything that every 200 promises."""
    assert answer.status == 200, answer.body
    identity = [(name, value) for name, value in answer.headers if name.startswith("X-Auth-")]
    assert sorted(name for name, _ in identity) == [
        "X-Auth-Client-Ip",
        "X-Auth-Decision-Id",
        "X-Auth-Permissions",
        "X-Auth-Read-Sensitive",
        "X-Auth-Team-Id",
        "X-Auth-Team-Role",
        "X-Auth-Token-Id",
        "X-Auth-User-Id",
    ]
    assert all(re.fullmatch(r"[ -+\--~]+", value) for _, value in identity)
    assert sum(len(name) + len(value) + 4 for name, value in identity) < 4096
    assert answer.header("Cache-Control") == "no-store"
    assert answer.body == b""
    return answer


# One request for each code. Each is also the proof that a refusal of that code is complete.

Refusal = Callable[[World], Awaitable[Answer]]


async def rate_limited(world: World) -> Answer:
    return await world.ask(token=await world.exhausted())


async def token_disabled(world: World) -> Answer:
    """A token that an operator has disabled."""
    number = await world.newcomer()
    assert await world.registry.disable_token(TokenId(number), disabled=True)
    return await world.ask(token=number, client=address())


async def api_disabled(world: World) -> Answer:
    await world.registry.set_instance(api_enabled=False)
    return await world.ask(token=READ)


async def address_not_allowed(world: World) -> Answer:
    await world.registry.set_instance(allowlist=HERE)
    return await world.ask(token=READ, client=ELSEWHERE)


async def mcp_disabled(world: World) -> Answer:
    await world.registry.set_instance(mcp_enabled=False)
    return await world.ask("POST", "/mcp", token=READ)


async def team_mcp_disabled(world: World) -> Answer:
    await world.registry.set_team_mcp(TeamId(0), enabled=False)
    return await world.ask("POST", "/mcp", token=READ)


async def resource_not_found(world: World) -> Answer:
    key = Keys().owners(owner_bucket("theirs"))
    await world.client.hset(key, "theirs", 5)
    return await world.ask(uri="/api/v1/servers/theirs", token=READ)


async def token_restricted(world: World) -> Answer:
    only = Restriction(routes=frozenset({"GET /api/v1/projects"}))
    await world.registry.set_restriction("token", READ, only)
    try:
        return await world.ask(token=READ)
    finally:
        await world.registry.set_restriction("token", READ, None)


async def long_header(world: World) -> Answer:
    return await world.ask(headers=[("X-Long", "x" * 40_000)])


async def unreadable(world: World) -> Answer:
    return (await ask(world.sidecar.port, b"GET /authz/traefik HTTP/1.1\r\nno colon\r\n\r\n"))[0]


REFUSALS: dict[str, tuple[int, str | None, Refusal]] = {
    "headers_too_large": (431, None, long_header),
    "request_unreadable": (400, None, unreadable),
    "forwarded_header_invalid": (400, None, lambda w: w.ask(uri=None)),
    "reserved_header": (400, None, lambda w: w.ask(headers=[("X_Auth_User_Id", "0")])),
    "method_not_allowed": (405, None, lambda w: w.ask("TRACE")),
    "ambiguous_target": (400, None, lambda w: w.ask(uri="/api//v1/teams")),
    "method_override": (400, None, lambda w: w.ask(uri="/api/v1/teams?_method=DELETE")),
    "target_too_long": (414, None, lambda w: w.ask(uri="/api/" + "x" * 16_400)),
    "client_address_invalid": (400, None, lambda w: w.ask(client="somewhere")),
    "route_unknown": (404, "Not found.", lambda w: w.ask(uri="/api/v1/x", client=address())),
    "token_missing": (401, "Unauthenticated.", lambda w: w.ask(client=address())),
    "token_malformed": (
        401,
        "Unauthenticated.",
        lambda w: w.ask(authorization="Basic Zm9v", client=address()),
    ),
    "token_prefix_missing": (
        401,
        "Unauthenticated.",
        lambda w: w.ask(authorization="Bearer onlysecret", client=address()),
    ),
    "authorization_ambiguous": (
        401,
        "Unauthenticated.",
        lambda w: w.ask(authorization="Bearer 1|a, Bearer 1|b", client=address()),
    ),
    "token_unknown": (
        401,
        "Unauthenticated.",
        lambda w: w.ask(authorization=WRONG, client=address()),
    ),
    "token_disabled": (401, "Unauthenticated.", token_disabled),
    "token_expired": (
        401,
        "Unauthenticated.",
        lambda w: w.ask(token=EXPIRED, client=address()),
    ),
    "rate_limited": (429, "Too Many Attempts.", rate_limited),
    "not_team_member": (401, "Invalid token.", lambda w: w.ask(token=ROOT_OF_LONER)),
    "team_role_required": (
        403,
        "Missing required team role.",
        lambda w: w.ask(token=ROOT_OF_MEMBER),
    ),
    "api_disabled": (403, "API is disabled.", api_disabled),
    "address_not_allowed": (
        403,
        "You are not allowed to access the API.",
        address_not_allowed,
    ),
    "permission_missing": (
        403,
        "Missing required permissions: write",
        lambda w: w.ask("POST", "/api/v1/projects", token=READ),
    ),
    "token_restricted": (403, "This token is restricted.", token_restricted),
    "instance_team_required": (
        403,
        "You are not allowed to enable the API.",
        lambda w: w.ask("POST", ENABLE, token=ROOT_OF_OTHER_TEAM),
    ),
    "resource_not_found": (404, "Server not found.", resource_not_found),
    "mcp_disabled": (404, "Not found.", mcp_disabled),
    "team_mcp_disabled": (403, "MCP server is disabled for this team.", team_mcp_disabled),
}
ELSEWHERE_TESTED = {
    "untrusted_peer": "test_only_trusted_peers_may_ask",
    "store_unavailable": "test_without_redis_nobody_is_let_in_on_a_guess",
    "request_timeout": "test_half_a_request_is_told_that_it_is_late",
    "internal_error": "test_a_decision_that_fails_is_a_refusal_of_its_own",
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_every_reason_has_its_status_words_and_headers(code: str, world: World) -> None:
    """Pitfall 24: callers can tell why; each code comes with all that its row promises."""
    status, message, refusal = REFUSALS[code]
    refused(await refusal(world), status, code, message)


def test_no_reason_is_without_a_test() -> None:
    """Pitfall 24: a code that the program can say is one that this file has seen it say."""
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(authsidecar.__path__, "authsidecar.")
        if "__main__" not in found.name and ".demo" not in found.name
    ]
    reasons = {
        value.code
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Reason)
    }
    assert reasons == {*REFUSALS, *ELSEWHERE_TESTED}
    assert all(name in globals() for name in ELSEWHERE_TESTED.values())


# The order: each pair fails two neighbouring rows, and the earlier one answers.


async def test_a_request_that_cannot_be_read_is_no_unknown_route(world: World) -> None:
    """Row 0 before row 1: an ambiguous target, a bad method or a bad header is said first."""
    unknown = "/api/v1//nothing"
    refused(await world.ask(uri=unknown), 400, "ambiguous_target")
    refused(await world.ask("PURGE", "/api/v1/nothing"), 405, "method_not_allowed")
    override = [("X-HTTP-Method-Override", "PUT")]
    refused(await world.ask(uri="/api/v1/no", headers=override), 400, "method_override")


async def test_an_unknown_route_is_said_before_the_token_is_looked_at(world: World) -> None:
    """Row 1 before row 2: no token, a wrong token and a good one get the same 404."""
    for authorization in (None, WRONG, bearer(ROOT)):
        answer = await world.ask(
            uri="/api/v1/nothing", authorization=authorization, client=address()
        )
        refused(answer, 404, "route_unknown", "Not found.")


async def test_a_wrong_secret_is_said_before_the_users_limit(world: World) -> None:
    """Row 2 before row 3: a stranger learns nothing about the counter of somebody else."""
    number = await world.exhausted()
    answer = await world.ask(authorization=f"Bearer {number}|wrong", client=address())
    refused(answer, 401, "token_unknown")
    refused(await world.ask(token=number), 429, "rate_limited")


async def test_the_limit_is_said_before_a_lost_membership(world: World) -> None:
    """Row 3 before row 4: who has no request left gets 429, member or not."""
    number = await world.exhausted(role=None)
    refused(await world.ask(token=number), 429, "rate_limited")


async def test_a_lost_membership_is_said_before_the_role(world: World) -> None:
    """Row 4 before row 5: a root token of a user without a team is an invalid token."""
    refused(await world.ask(token=ROOT_OF_LONER), 401, "not_team_member", "Invalid token.")


async def test_the_role_is_said_before_the_switch(world: World) -> None:
    """Row 5 before row 6: a member's root token is refused for the role, API on or off."""
    await world.registry.set_instance(api_enabled=False)
    refused(await world.ask(token=ROOT_OF_MEMBER), 403, "team_role_required")


async def test_the_switch_is_said_before_the_allowlist(world: World) -> None:
    """Row 6 before row 7: while the API is off, nobody learns who is on the list."""
    await world.registry.set_instance(api_enabled=False, allowlist=HERE)
    refused(await world.ask(token=READ, client=ELSEWHERE), 403, "api_disabled")


async def test_the_allowlist_is_said_before_the_permission(world: World) -> None:
    """Row 7 before row 8: from a foreign address the missing permission is not named."""
    await world.registry.set_instance(allowlist=HERE)
    answer = await world.ask("POST", "/api/v1/projects", token=READ, client=ELSEWHERE)
    refused(answer, 403, "address_not_allowed")


async def test_the_permission_is_said_before_the_instance_team(world: World) -> None:
    """Row 8 before row 9: a write token of another team misses root in the first place."""
    writer = await world.newcomer(permissions=("write",), team=5)
    answer = refused(await world.ask("POST", ENABLE, token=writer), 403, "permission_missing")
    assert answer.json["missing_permissions"] == ["root"]


async def test_rows_four_to_nine_are_counted(world: World) -> None:
    """Counted after authentication, whatever the answer of the later checks."""
    number = await world.newcomer(permissions=("deploy",))
    await world.registry.set_limit("user", number, Limit(3, 3_600_000))
    first = refused(await world.ask(token=number), 403, "permission_missing")
    assert first.header("X-RateLimit-Remaining") == "2"
    await world.registry.set_instance(api_enabled=False)
    second = refused(await world.ask(token=number), 403, "api_disabled")
    assert second.header("X-RateLimit-Remaining") == "1"
    third = refused(await world.ask("POST", ENABLE, token=number), 403, "permission_missing")
    assert third.header("X-RateLimit-Remaining") == "0"
    refused(await world.ask(token=number), 429, "rate_limited")
    for token in (ROOT_OF_LONER, ROOT_OF_MEMBER):
        assert (await world.ask(token=token)).header("RateLimit-Policy") == '"user";q=100000;w=60'


# Permissions


async def test_a_token_without_permissions_is_denied(world: World) -> None:
    """Extra pitfall: nothing is not everything; an empty list of permissions opens no route."""
    answer = refused(await world.ask(token=NOTHING), 403, "permission_missing")
    assert answer.json["missing_permissions"] == ["read"]


async def test_a_token_without_permissions_still_names_its_user(world: World) -> None:
    """Where no permission is needed (MCP), the empty set is said as `none`, never as nothing."""
    answer = allowed(await world.ask("POST", "/mcp", token=NOTHING))
    assert answer.header("X-Auth-Permissions") == "none"
    assert answer.header("X-Auth-User-Id") == str(OWNER)


async def test_nothing_but_root_and_read_sensitive_includes_another(world: World) -> None:
    """A deploy or write token does not read."""
    for token in (DEPLOY, WRITE):
        refused(await world.ask(token=token), 403, "permission_missing")
    allowed(await world.ask(token=ROOT))


# The forwarded headers


@pytest.mark.parametrize("name", ["method", "uri", "client"])
@pytest.mark.parametrize("value", [None, ""])
async def test_a_missing_or_empty_forwarded_header_is_an_error(
    name: str, value: str | None, world: World
) -> None:
    """Pitfall 4: absent X-Forwarded-Method, -Uri or -For is 400, never a default."""
    answer = await world.ask(token=ROOT, **{name: value})
    assert answer.status == 400
    assert answer.json["code"] in {"forwarded_header_invalid", "client_address_invalid"}


@pytest.mark.parametrize(
    ("name", "value"), [("X-Forwarded-Method", "GET"), ("x-forwarded-uri", "/api/v1/teams")]
)
async def test_a_repeated_forwarded_header_is_an_error(name: str, value: str, world: World) -> None:
    """Pitfall 4: two values are 400 even if they are equal; no choice is made."""
    answer = await world.ask(token=ROOT, headers=[(name, value)])
    refused(answer, 400, "forwarded_header_invalid")


async def test_several_lines_of_forwarded_for_are_one_list(world: World) -> None:
    """X-Forwarded-For lines are joined in order: the last line's last address is the client."""
    await world.registry.set_instance(allowlist=HERE)
    more = [("X-Forwarded-For", f"198.51.100.1, {HERE}")]
    answer = allowed(await world.ask(token=READ, client=ELSEWHERE, headers=more))
    assert answer.header("X-Auth-Client-Ip") == HERE
    more = [("X-Forwarded-For", ELSEWHERE)]
    refused(await world.ask(token=READ, headers=more), 403, "address_not_allowed")


@pytest.mark.parametrize(
    "noise",
    [
        ("X-Original-Uri", "/api/health"),
        ("X-Original-Url", "/api/health"),
        ("X-Original-Method", "GET"),
        ("X-Rewrite-Url", "/api/health"),
        ("X-Real-Ip", HERE),
        ("Forwarded", f"for={HERE};proto=https"),
        ("X-Client-Ip", HERE),
        ("CF-Connecting-Ip", HERE),
        ("X-Forwarded-Prefix", "/api/health?"),
        ("X-Forwarded-Host", "localhost"),
        ("X-Forwarded-Port", "4190"),
        ("X-Forwarded-Proto", "https"),
        ("User-Agent", "kube-probe/1.30"),
        ("User-Agent", ""),
        ("Cookie", "coolify_session=1; remember_web=1"),
        ("X-Api-Key", "10|secret-of-token-10"),
        ("Proxy-Authorization", "Bearer 10|secret-of-token-10"),
        ("Accept", "text/html"),
        ("Connection", "X-Forwarded-Uri, X-Forwarded-For, Authorization"),
    ],
)
async def test_other_headers_decide_nothing(noise: tuple[str, str], world: World) -> None:
    """Pitfalls 4, 6, 8, 9: no other place for the same fact is looked at, nor User-Agent."""
    await world.registry.set_instance(allowlist=HERE)
    answer = await world.ask(token=READ, client=ELSEWHERE, headers=[noise])
    refused(answer, 403, "address_not_allowed")
    answer = await world.ask("DELETE", "/api/v1/nothing", client=address(), headers=[noise])
    refused(answer, 404, "route_unknown")
    refused(await world.ask(client=address(), headers=[noise]), 401, "token_missing")


@pytest.mark.parametrize(
    "query",
    ["", "?", "?uri=/api/health", "?X-Forwarded-Uri=/api/health&token=10|x", "?_method=GET"],
)
async def test_the_subrequests_own_query_decides_nothing(query: str, world: World) -> None:
    """Pitfall 4: no option is taken from the line that asks."""
    line = f"GET /authz/caddy{query} HTTP/1.1"
    refused(
        await world.ask("POST", "/api/v1/projects", token=READ, line=line),
        403,
        "permission_missing",
    )
    allowed(await world.ask(token=READ, line=line))


async def test_host_decides_nothing(world: World) -> None:
    """The subrequest's Host is the client's to write; an HTTP/1.0 request without one is fine."""
    lines = (
        "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: /api/v1/teams\r\nX-Forwarded-For: 192.0.2.1"
    )
    for host in ("Host: /api/health", "Host: localhost:4190", "X-None: 0"):
        head = f"GET /authz/traefik HTTP/1.0\r\n{host}\r\n{lines}\r\n"
        request = f"{head}Authorization: {bearer(READ)}\r\n\r\n".encode()
        allowed((await ask(world.sidecar.port, request))[0])


async def test_an_unknown_endpoint_is_not_found(world: World) -> None:
    """Only the five endpoints answer; neighbours of their names do not."""
    for path in (
        "/",
        "/authz",
        "/authz/",
        "/authz/Traefik",
        "/authz/traefik/x",
        "/authz/envoyx",
        "/healthz",
        "/metrics",
        "//authz/traefik",
        "/authz%2Ftraefik",
    ):
        answer = await world.ask(token=ROOT, line=f"GET {path} HTTP/1.1")
        refused(answer, 404, "route_unknown")


# Targets


async def test_public_routes_are_exact_paths(world: World) -> None:
    """Pitfall 5: neither a query nor a fragment nor a suffix makes a path public."""
    client = address()
    for uri in ("/api/v1/teams?x=/api/health", "/api/v1/teams?/api/health", "/api/v1/teams?"):
        refused(await world.ask(uri=uri, client=client), 401, "token_missing")
    for uri in ("/api/v1/teams#/api/health", "/api/health#x", "/api/v1/teams?a#/api/health"):
        refused(await world.ask(uri=uri), 400, "ambiguous_target")
    client = address()
    for uri in ("/api/health/x", "/api/healthz", "/API/health"):
        refused(await world.ask(uri=uri, client=client), 404, "route_unknown")
    allowed(await world.ask(uri="/api/health?x=1", client=client))


@pytest.mark.parametrize("agent", ["ELB-HealthChecker/2.0", "GoogleHC/1.0", "kube-probe/1.30", ""])
async def test_no_user_agent_is_a_health_check(agent: str, world: World) -> None:
    """Pitfall 6: health is a path of its own; what the client calls itself opens nothing."""
    answer = await world.ask(client=address(), headers=[("User-Agent", agent)])
    refused(answer, 401, "token_missing")


@pytest.mark.parametrize(
    "uri",
    [
        "/index.php",
        "/index.php/api/v1/teams",
        "/INDEX.PHP/api/v1/teams",
        "/Index.php/mcp",
        "/index.phpapi/v1/teams",
        "/index.phpmcp",
        "/%69ndex.php/api/v1/teams",
        "/index%2Ephp/api/v1/teams",
        "/index.php%2Fapi/v1/teams",
        "/index.php//api",
        "/index.php?x=1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_the_front_controller_is_never_found(
    uri: str, method: str, world: World, other: World
) -> None:
    """A path that begins with /index.php is 404 in any case, preflight or not, deny or pass."""
    preflight = [("Origin", "https://x.test"), ("Access-Control-Request-Method", "GET")]
    for where in (world, other):
        answer = await where.ask(method, uri, token=ROOT, client=address())
        refused(answer, 404, "route_unknown", "Not found.")
        answer = await where.ask(method, uri, client=address(), headers=preflight)
        refused(answer, 404, "route_unknown", "Not found.")


@pytest.mark.parametrize(
    "key",
    [
        "_method",
        "%5fmethod",
        "%5Fmethod",
        ".method",
        "%2emethod",
        "%20_method",
        "+_method",
        "_method%00",
        "_method%00x",
        "_method[]",
        "_method%5B%5D",
        "_method[x]",
    ],
)
async def test_a_query_key_that_php_reads_as_method_is_refused(key: str, world: World) -> None:
    """A POST is never turned into another method behind the sidecar's back."""
    for query in (f"{key}=DELETE", f"a=1&{key}=DELETE", f"{key}", f"a=1;{key}=put"):
        answer = await world.ask("POST", f"/api/v1/projects?{query}", token=ROOT)
        refused(answer, 400, "method_override")


async def test_a_query_that_only_mentions_a_method_is_fine(world: World) -> None:
    """Other keys and values pass."""
    for query in ("method=DELETE", "x=_method", "my_method=1", "_methods=1", "a[_method]=1"):
        allowed(await world.ask("POST", f"/api/v1/projects?{query}", token=ROOT))


@pytest.mark.parametrize(
    "name",
    [
        "X-HTTP-Method-Override",
        "x-http-method-override",
        "X_HTTP_Method_Override",
        "x.http.method.override",
        "X-HTTP_Method.Override",
    ],
)
@pytest.mark.parametrize("value", ["DELETE", "", "0", "get"])
async def test_a_method_override_header_is_refused(name: str, value: str, world: World) -> None:
    """In any spelling and with any value, also on a GET."""
    answer = await world.ask(token=ROOT, headers=[(name, value)])
    refused(answer, 400, "method_override")


@pytest.mark.parametrize(
    "method",
    ["get", "Get", "FOO", "TRACE", "CONNECT", "PURGE", "GET ,POST", "GET,POST", "QUERY", "*"],
)
async def test_any_other_method_is_not_allowed(method: str, world: World) -> None:
    """Exactly one method, in upper case, of seven; Allow names them."""
    answer = refused(await world.ask(method, token=ROOT), 405, "method_not_allowed")
    assert answer.header("Allow") == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


async def test_head_needs_what_get_needs(world: World) -> None:
    """HEAD goes by the GET row, allowed and refused."""
    allowed(await world.ask("HEAD", token=READ))
    refused(await world.ask("HEAD", token=WRITE), 403, "permission_missing")


# Reserved headers


@pytest.mark.parametrize(
    "name",
    [
        "X_Auth_User_Id",
        "X.Auth.User.Id",
        "X-Auth_Team-Id",
        "x_auth_permissions",
        "X-Auth.Anything",
        "X_Forwarded_For",
        "X.Forwarded.Uri",
        "X-Forwarded_Method",
        "x_forwarded_proto",
        "X_Authz_Request_Id",
        "X-Forwarded.Prefix",
    ],
)
async def test_another_spelling_of_a_reserved_header_is_refused(name: str, world: World) -> None:
    """Pitfalls 1 and 9: what PHP folds into our headers is 400 where the sidecar sees it."""
    answer = await world.ask(token=ROOT, headers=[(name, "0")])
    refused(answer, 400, "reserved_header")


@pytest.mark.parametrize("name", ["x-auth-user-id", "X-AUTH-TEAM-ID", "X-Auth-Read-Sensitive"])
async def test_letter_case_alone_is_no_other_spelling(name: str, world: World) -> None:
    """A client's own x-auth-user-id is overwritten by the answer, not refused."""
    answer = allowed(await world.ask(token=READ, headers=[(name, "77")]))
    assert answer.header(name) != "77"


async def test_folding_names_of_others_are_nobodys_business(world: World) -> None:
    """Underscores and dots are refused only in our own families."""
    headers = [("X_Custom", "1"), ("x.y.z", "1"), ("X_Authentication", "1"), ("X_Forward", "1")]
    allowed(await world.ask(token=READ, headers=headers))


# Who may ask, and who is asking


async def from_a_named_socket(path: str, own: str, request: bytes) -> Answer:
    """Ask on a unix socket from one that has a name itself."""
    with socketlib.socket(socketlib.AF_UNIX) as client:
        client.bind(own)
        client.connect(path)
        client.sendall(request)
        reader, writer = await asyncio.open_unix_connection(sock=client)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    start, *lines = head[:-4].decode().split("\r\n")
    headers = tuple((n, v.strip()) for n, _, v in (line.partition(":") for line in lines))
    return Answer(int(start.split(" ")[1]), headers, b"")


async def test_only_trusted_peers_may_ask(
    world: World, server: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pitfall 3: a peer outside of trusted_peers gets 403 before anything; the socket may ask."""
    directory = tmp_path_factory.mktemp("strict")
    socket = str(directory / "authz.sock")
    strict = start_sidecar(
        directory, server.url, TRUSTED_PEERS="10.20.0.0/16", LISTEN__UNIX_SOCKET=socket
    )
    try:
        asking = World(strict, world.client)
        refused(await asking.ask(token=ROOT), 403, "untrusted_peer")
        refused(await asking.ask("TRACE", uri=None), 403, "untrusted_peer")
        nginx = await asking.ask(token=ROOT, proxy="nginx")
        assert (nginx.status, nginx.header("X-Authz-Status")) == (403, "403")
        allowed((await ask(socket, subrequest(authorization=bearer(ROOT))))[0])
        named = str(directory / "client.sock")
        allowed(await from_a_named_socket(socket, named, subrequest(authorization=bearer(ROOT))))
    finally:
        assert strict.stop() == 0


async def test_hops_are_skipped_from_the_right_and_gain_no_right(other: World) -> None:
    """Pitfall 10: the client is the rightmost address that is no trusted hop."""
    cases = {
        "198.51.100.1, 203.0.113.9": "198.51.100.1",
        "6.6.6.6, 198.51.100.1, 203.0.113.9,203.0.113.8": "198.51.100.1",
        "203.0.113.7, 203.0.113.8": "203.0.113.7",
        "junk, 198.51.100.1, 203.0.113.9": "198.51.100.1",
        "198.51.100.1, 2001:db8:cd::1": "198.51.100.1",
        "198.51.100.1, 10.0.0.1": "10.0.0.1",
        "::ffff:198.51.100.1": "198.51.100.1",
        "198.51.100.1, ::ffff:203.0.113.9": "198.51.100.1",
        "2001:DB8:0:0::5": "2001:db8::5",
    }
    for given, expected in cases.items():
        answer = allowed(await other.ask(token=READ, client=given))
        assert answer.header("X-Auth-Client-Ip") == expected
    for given in ("junk, 203.0.113.9", "198.51.100.1, junk", "198.51.100.1,,203.0.113.9", ","):
        refused(await other.ask(token=READ, client=given), 400, "client_address_invalid")


@pytest.mark.parametrize(
    ("entry", "client"),
    [
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:10.0.0.0/104", "10.1.2.3"),
        ("2001:DB8:0:0:0::1", "2001:db8::1"),
        ("2001:db8::1", "2001:0DB8::0001"),
    ],
)
async def test_mapped_and_long_spellings_of_an_address_match(
    entry: str, client: str, world: World
) -> None:
    """Pitfall 11: both sides are unmapped and canonical before they are compared."""
    await world.registry.set_instance(allowlist=entry)
    allowed(await world.ask(token=READ, client=client))


@pytest.mark.parametrize("client", ["fe80::1%eth0", "010.0.0.1", "10.0.0.01", "10.1", "0x0a000001"])
async def test_an_odd_spelling_of_an_address_is_refused(client: str, world: World) -> None:
    """Pitfall 11: zone ids and leading zeros are no addresses."""
    refused(await world.ask(token=READ, client=client), 400, "client_address_invalid")


@pytest.mark.parametrize("text", ["10.0.0.0/abc", "10.0.0.0/", "0.0.0.0/abc", "10.0.0.0//8", "*"])
async def test_a_broken_mask_admits_nobody(text: str, world: World) -> None:
    """Pitfall 12: what PHP reads as /0 is skipped, never widened."""
    await world.registry.set_instance(allowlist=text)
    answer = await world.ask(token=READ, client=ELSEWHERE)
    refused(answer, 403, "address_not_allowed")
    assert "success" not in answer.json


# Tokens


async def test_two_authorization_headers_are_no_choice(world: World) -> None:
    """Pitfall 13: good and good, good and bad, empty and good: all 401, none is taken."""
    good, bad = bearer(READ), WRONG
    for first, second in ((good, good), (good, bad), (bad, good), ("", good), (good, "")):
        answer = await world.ask(
            authorization=first, headers=[("Authorization", second)], client=address()
        )
        refused(answer, 401, "authorization_ambiguous")


@pytest.mark.parametrize("byte", [b"\xff", b"\xe9", b"\x80", b"\xc3\x28", "²".encode()])
async def test_a_byte_that_is_not_utf8_is_a_401(byte: bytes, world: World) -> None:
    """Extra pitfall: one odd byte anywhere in the token is a plain refusal, never a 500."""
    for value in (
        b"Bearer 11|" + byte,
        b"Bearer " + byte + b"11|x",
        byte + b"Bearer 11|x",
        b"Bearer 11|secret-of-token-11" + byte,
    ):
        answer = await world.ask(authorization=value, client=address())
        assert answer.status == 401
        assert answer.json["code"] in {"token_unknown", "token_malformed", "token_prefix_missing"}


@pytest.mark.parametrize(
    "number",
    [
        "011",
        "+11",
        "-11",
        " 11",
        "11 ",
        "1_1",
        "0",
        "",
        "٣",
        "²",
        "0x0b",
        "11.0",
        "9223372036854775808",
        "1" * 5000,
        "1" * 20,
    ],
)
async def test_an_odd_id_is_malformed(number: str, world: World) -> None:
    """Extra pitfall: an id is ASCII digits without a leading zero, and a bigint."""
    answer = await world.ask(
        authorization=f"Bearer {number}|{'secret-of-token-11'}", client=address()
    )
    refused(answer, 401, "token_malformed")


async def test_the_largest_id_is_only_unknown(world: World) -> None:
    """9223372036854775807 is a number like any other."""
    answer = await world.ask(authorization="Bearer 9223372036854775807|x", client=address())
    refused(answer, 401, "token_unknown")


async def test_the_scheme_may_be_in_any_case(world: World) -> None:
    """`bearer`, `BEARER`: one space, then ID|SECRET."""
    for scheme in ("bearer", "BEARER", "bEaReR"):
        allowed(await world.ask(authorization=f"{scheme} 11|secret-of-token-11"))
    for scheme in ("Bearer ", "Bearer\t", "Token", "XBearer"):
        answer = await world.ask(authorization=f"{scheme} 11|secret-of-token-11", client=address())
        refused(answer, 401, "token_malformed")


async def test_unknown_id_and_wrong_secret_are_one_answer(world: World) -> None:
    """Nobody learns which ids there are."""
    answers = [
        await world.ask(authorization=f"Bearer {number}|x", client=address())
        for number in (READ, 987654)
    ]
    texts = [re.sub(rb'"decision_id": "[^"]+"', b"", answer.body) for answer in answers]
    assert texts[0] == texts[1]
    names = [[n for n, _ in answer.headers] for answer in answers]
    assert names[0] == names[1]


# Switches, MCP, public routes


@pytest.mark.parametrize("path", ["enable", "disable", "mcp/enable", "mcp/disable"])
async def test_the_switches_work_while_off_and_from_anywhere(path: str, world: World) -> None:
    """Root of the instance team; neither the API switch nor the allowlist stand before them."""
    await world.registry.set_instance(api_enabled=False, mcp_enabled=False, allowlist=HERE)
    uri = f"/api/v1/{path}"
    allowed(await world.ask("POST", uri, token=ROOT, client=ELSEWHERE))
    refused(await world.ask("POST", uri, token=WRITE), 403, "permission_missing")
    refused(await world.ask("POST", uri, token=ROOT_OF_MEMBER), 403, "team_role_required")
    what = "API" if "mcp" not in path else "MCP server"
    message = f"You are not allowed to {path.rpartition('/')[2]} the {what}."
    answer = await world.ask("POST", uri, token=ROOT_OF_OTHER_TEAM)
    refused(answer, 403, "instance_team_required", message)


def direct(method: str, path: str, token: int | None, *headers: tuple[str, str], **how) -> bytes:
    """A client's own request to the switch, routed to the sidecar by the operator."""
    return subrequest(
        None,
        None,
        authorization=None if token is None else bearer(token),
        line=f"{method} {path} HTTP/1.1",
        headers=headers,
        **how,
    )


async def test_the_switch_is_served_where_it_is_routed_here(world: World) -> None:
    """The whole check, then the switch, answered as Coolify does; the next request sees it."""
    for path, message, status in (
        ("/api/v1/disable", "API disabled.", 403),
        ("/api/v1/enable", "API enabled.", 200),
    ):
        (answer,) = await ask(world.sidecar.port, direct("POST", path, ROOT))
        assert (answer.status, answer.json) == (200, {"message": message})
        assert answer.header("Content-Type") == "application/json"
        assert answer.header("Cache-Control") == "no-store"
        assert answer.header("X-RateLimit-Limit") == "100000"
        assert not any(name.startswith("X-Auth-") for name, _ in answer.headers)
        assert (await world.ask(token=READ)).status == status


async def test_a_refused_switch_changes_nothing(world: World) -> None:
    """Each check that stands before the forwarded route stands before the served one."""
    path = "/api/v1/disable"
    spoofed = [("X-Forwarded-Method", "GET"), ("X-Forwarded-Uri", "/api/health")]
    cases = [
        (direct("POST", path, None, client=address()), 401, "token_missing"),
        (direct("POST", path, None, *spoofed, client=address()), 401, "token_missing"),
        (direct("POST", path, EXPIRED, client=address()), 401, "token_expired"),
        (direct("POST", path, await world.exhausted()), 429, "rate_limited"),
        (direct("POST", path, ROOT_OF_LONER), 401, "not_team_member"),
        (direct("POST", path, ROOT_OF_MEMBER), 403, "team_role_required"),
        (direct("POST", path, WRITE), 403, "permission_missing"),
        (direct("POST", path, ROOT_OF_OTHER_TEAM), 403, "instance_team_required"),
        (direct("GET", path, ROOT), 405, "method_not_allowed"),
        (direct("DELETE", path, ROOT), 405, "method_not_allowed"),
        (direct("POST", path, ROOT, client=None), 400, "forwarded_header_invalid"),
        (direct("POST", path, ROOT, ("X-HTTP-Method-Override", "GET")), 400, "method_override"),
        (direct("POST", path, ROOT, ("X_Auth_Team_Id", "0")), 400, "reserved_header"),
        (direct("POST", f"{path}?_method=GET", ROOT), 404, "route_unknown"),
        (direct("POST", "/api/v1/mcp/disable", ROOT), 404, "route_unknown"),
    ]
    for request, status, code in cases:
        refused((await ask(world.sidecar.port, request))[0], status, code)
    allowed(await world.ask(token=READ))


async def test_a_client_cannot_mark_its_own_switch_as_a_repeat(world: World) -> None:
    """Without a proxy in between, X-Authz-Request-Id is ignored: every request is counted."""
    number = await world.newcomer(permissions=("root",))
    await world.registry.set_limit("user", number, Limit(2, 3_600_000))
    request = direct("POST", ENABLE, number, ("X-Authz-Request-Id", "again"))
    answers = await ask(world.sidecar.port, request, request, request)
    assert [answer.status for answer in answers] == [200, 200, 429]


async def test_the_instance_team_can_be_another(other: World) -> None:
    """With instance_team 5, team 0 is a team like any other."""
    allowed(await other.ask("POST", ENABLE, token=ROOT_OF_OTHER_TEAM))
    refused(await other.ask("POST", ENABLE, token=ROOT), 403, "instance_team_required")


async def test_mcp_needs_a_token_a_role_and_an_address(world: World) -> None:
    """POST /mcp: as an API route, but neither API switch nor a permission."""
    for path in ("/mcp", "/mcp/"):
        answer = await world.ask("POST", path, client=address())
        refused(answer, 401, "token_missing", realm="mcp")
    answer = await world.ask("POST", "/mcp", authorization="Bearer 1", client=address())
    refused(answer, 401, "token_prefix_missing", realm="mcp")
    answer = await world.ask("POST", "/mcp", token=ROOT_OF_LONER)
    refused(answer, 401, "not_team_member", realm="mcp")
    refused(await world.ask("POST", "/mcp", token=ROOT_OF_MEMBER), 403, "team_role_required")
    allowed(await world.ask("POST", "/mcp", token=READ_OF_MEMBER))
    await world.registry.set_instance(api_enabled=False, allowlist=HERE)
    allowed(await world.ask("POST", "/mcp/", token=DEPLOY))
    answer = await world.ask("POST", "/mcp", token=DEPLOY, client=ELSEWHERE)
    refused(answer, 403, "address_not_allowed")
    number = await world.exhausted()
    refused(await world.ask("POST", "/mcp", token=number), 429, "rate_limited")


async def test_mcp_switched_off_is_not_found_before_the_token(world: World) -> None:
    """The instance's switch hides the route; the team's is said after the allowlist."""
    await world.registry.set_team_mcp(TeamId(0), enabled=False)
    refused(await world.ask("POST", "/mcp", token=READ), 403, "team_mcp_disabled")
    allowed(await world.ask("POST", "/mcp", token=ROOT_OF_OTHER_TEAM))
    await world.registry.set_instance(allowlist=HERE)
    answer = await world.ask("POST", "/mcp", token=READ, client=ELSEWHERE)
    refused(answer, 403, "address_not_allowed")
    await world.registry.set_instance(mcp_enabled=False)
    for authorization in (None, WRONG, bearer(READ)):
        answer = await world.ask("POST", "/mcp", authorization=authorization, client=address())
        refused(answer, 404, "mcp_disabled")


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
async def test_mcp_takes_post_only(method: str, world: World) -> None:
    """GET and DELETE /mcp are 405 with Allow: POST; other methods have no route."""
    answer = refused(await world.ask(method, "/mcp"), 405, "method_not_allowed")
    assert answer.header("Allow") == "POST"
    refused(await world.ask("PUT", "/mcp", client=address()), 404, "route_unknown")


async def test_public_routes_have_buckets_of_their_own(world: World) -> None:
    """Health paths share one, feedback has another, sentinel none; the user's is not touched."""
    client = address()
    for uri in ("/api/health", "/api/v1/health") * 2:
        answer = allowed(await world.ask(uri=uri, token=READ, client=client))
        assert answer.header("X-RateLimit-Limit") == "4"
        assert answer.header("X-Auth-User-Id") == "none"
    for uri in ("/api/health", "/api/v1/health"):
        refused(await world.ask(uri=uri, client=client), 429, "rate_limited")
    for _ in range(2):
        allowed(await world.ask("POST", "/api/feedback", client=client))
    refused(await world.ask("POST", "/api/feedback", client=client), 429, "rate_limited")
    for _ in range(6):
        answer = allowed(await world.ask("POST", "/api/v1/sentinel/push", client=client))
        assert answer.header("X-RateLimit-Limit") is None
    allowed(await world.ask(token=READ, client=client))
    refused(await world.ask(uri="/api/v1/nothing", client=client), 404, "route_unknown")
    refused(await world.ask(client=client), 401, "token_missing")


async def test_public_routes_need_neither_switch_nor_allowlist(world: World) -> None:
    """Nor a good token: health is health."""
    await world.registry.set_instance(api_enabled=False, allowlist=HERE)
    client = address()
    allowed(await world.ask(uri="/api/health", client=client))
    allowed(await world.ask(uri="/api/health", client=client, authorization="Bearer rubbish"))


async def test_unknown_routes_become_429_past_their_bucket(world: World) -> None:
    """After 3 (200 unless configured) the 404 says nothing more."""
    client = address()
    for remaining in ("2", "1", "0"):
        answer = refused(await world.ask(uri="/api/v1/no", client=client), 404, "route_unknown")
        assert answer.header("X-RateLimit-Remaining") == remaining
    answer = refused(await world.ask(uri="/api/v1/no", client=client), 429, "rate_limited")
    assert answer.header("X-RateLimit-Remaining") == "0"


async def test_failed_authentications_become_429_and_good_tokens_pass(world: World) -> None:
    """Pitfall 33: 401s are charged to the address, not to the user whose id was tried."""
    client, number = address(), await world.newcomer()
    before = allowed(await world.ask(token=number, client=client))
    for kind in (None, f"Bearer {number}|wrong", "Basic x"):
        assert (await world.ask(authorization=kind, client=client)).status == 401
    wrong = f"Bearer {number}|wrong"
    refused(await world.ask(authorization=wrong, client=client), 429, "rate_limited")
    refused(await world.ask(client=client), 429, "rate_limited")
    after = allowed(await world.ask(token=number, client=client))
    left = [int(a.header("X-RateLimit-Remaining") or -1) for a in (before, after)]
    assert left[0] - left[1] == 1


async def test_an_ipv6_client_is_its_64(world: World) -> None:
    """Pitfall 32: another address of the same /64 shares the bucket, the next /64 does not."""
    for host in ("::1", "::ffff:1", "1:2:3:4"):
        uri = f"2001:db8:77:1{'' if host.startswith(':') else ':'}{host}"
        refused(await world.ask(client=uri), 401, "token_missing")
    refused(await world.ask(client="2001:db8:77:1::abcd"), 429, "rate_limited")
    refused(await world.ask(client="2001:db8:77:2::abcd"), 401, "token_missing")


# Preflight, outside


PREFLIGHT = [("Origin", "https://app.test"), ("Access-Control-Request-Method", "DELETE")]


async def test_a_preflight_passes_without_identity_and_uncounted(world: World) -> None:
    """Pitfall 16: OPTIONS with both headers and no Authorization."""
    client = address()
    for _ in range(6):
        answer = allowed(
            await world.ask("OPTIONS", "/api/v1/teams", client=client, headers=PREFLIGHT)
        )
        assert answer.header("X-Auth-User-Id") == "none"
        assert answer.header("X-RateLimit-Limit") is None
    await world.registry.set_instance(api_enabled=False, mcp_enabled=False, allowlist=HERE)
    for path in ("/api/v1/teams", "/mcp"):
        answer = allowed(await world.ask("OPTIONS", path, client=client, headers=PREFLIGHT))
        assert answer.header("X-Auth-User-Id") == "none"


async def test_what_only_resembles_a_preflight_is_judged(world: World) -> None:
    """Without one of the headers, with a token, or with another method, it is a request."""
    client = address()
    for headers in ([], PREFLIGHT[:1], PREFLIGHT[1:]):
        answer = await world.ask("OPTIONS", client=client, headers=headers)
        refused(answer, 404, "route_unknown")
    answer = await world.ask("OPTIONS", token=READ, client=address(), headers=PREFLIGHT)
    refused(answer, 404, "route_unknown")
    refused(await world.ask("DELETE", client=address(), headers=PREFLIGHT), 404, "route_unknown")
    refused(await world.ask("GET", client=address(), headers=PREFLIGHT), 401, "token_missing")
    refused(await world.ask("OPTIONS", "/x//y", headers=PREFLIGHT), 400, "ambiguous_target")


async def test_outside_of_the_api_is_denied_or_passed_as_configured(
    world: World, other: World
) -> None:
    """Denied unless configured; `pass` knows no identity and keeps the canonicaliser's rules."""
    for uri in ("/", "/dashboard", "/login?next=/api", "/API/v1/teams", "/apix"):
        refused(await world.ask(uri=uri, token=ROOT, client=address()), 404, "route_unknown")
        answer = allowed(await other.ask(uri=uri, token=ROOT, client=address()))
        assert answer.header("X-Auth-User-Id") == "none"
    for uri in ("/x//y", "/../api/v1/teams", "/x%2fy", "/x;y", "/x%00", "http://h/api", "x", "*"):
        refused(await other.ask(uri=uri, token=ROOT), 400, "ambiguous_target")
    refused(await other.ask(uri="/api", token=ROOT, client=address()), 404, "route_unknown")
    refused(await other.ask(uri="/x?_method=PUT"), 400, "method_override")


# Dialects


async def test_nginx_only_ever_sees_200_401_and_403(world: World) -> None:
    """Pitfall 14: the real status, body and headers travel beside a status that nginx knows."""
    client = address()
    cases = [
        (await world.ask("TRACE", proxy="nginx"), 405),
        (await world.ask(uri="/x//", proxy="nginx"), 400),
        (await world.ask(uri="/api/" + "x" * 17_000, proxy="nginx"), 414),
        (await world.ask(uri="/api/v1/no", client=client, proxy="nginx"), 404),
        (await world.ask(client=client, proxy="nginx"), 401),
        (await world.ask(token=WRITE, proxy="nginx"), 403),
        (await world.ask(token=await world.exhausted(), proxy="nginx"), 429),
    ]
    for answer, status in cases:
        assert answer.status == (status if status in {401, 403} else 403)
        assert answer.header("X-Authz-Status") == str(status)
        body = answer.header("X-Authz-Body") or ""
        assert json.loads(body) == answer.json
        assert (answer.header("Retry-After") is not None) == (status == 429)
        assert (answer.header("RateLimit") is not None) == (status in {404, 401, 403, 429})
        assert (answer.header("WWW-Authenticate") is not None) == (status == 401)
    answer = allowed(await world.ask(token=READ, proxy="nginx"))
    assert answer.header("X-Authz-Status") is None


@pytest.mark.parametrize("proxy", ["traefik", "caddy", "haproxy"])
async def test_the_other_proxies_get_the_native_answer(proxy: str, world: World) -> None:
    """200 or the denial as the client shall see it."""
    allowed(await world.ask(token=READ, proxy=proxy))
    refused(await world.ask(client=address(), proxy=proxy), 401, "token_missing")
    refused(await world.ask(uri="/api/v1/no", client=address(), proxy=proxy), 404, "route_unknown")
    answer = refused(await world.ask("TRACE", proxy=proxy), 405, "method_not_allowed")
    assert answer.header("X-Authz-Status") is None


async def test_envoys_own_request_line_is_the_clients(world: World) -> None:
    """Method and path follow the prefix; X-Forwarded-Uri and -Method are not looked at."""

    async def envoy(line: str, **how) -> Answer:
        return await world.ask(None, None, line=f"{line} HTTP/1.1", proxy="envoy", **how)

    allowed(await envoy("GET /authz/envoy/api/v1/teams", token=READ))
    allowed(await envoy("GET /authz/envoy/api/v1/teams?page=2", token=READ))
    refused(await envoy("POST /authz/envoy/api/v1/projects", token=READ), 403, "permission_missing")
    refused(
        await envoy("DELETE /authz/envoy/api/v1/teams", token=ROOT, client=address()),
        404,
        "route_unknown",
    )
    refused(await envoy("GET /authz/envoy", token=ROOT, client=address()), 404, "route_unknown")
    refused(await envoy("GET /authz/envoy?x", token=ROOT), 400, "ambiguous_target")
    refused(await envoy("GET /authz/envoy//api/v1/teams", token=ROOT), 400, "ambiguous_target")
    refused(
        await envoy("GET /authz/envoy/api/v1/%2e%2e/teams", token=ROOT), 400, "ambiguous_target"
    )
    refused(
        await envoy("GET /authz/envoy/api/v1/teams?_method=PUT", token=ROOT), 400, "method_override"
    )
    refused(await envoy("TRACE /authz/envoy/api/v1/teams", token=ROOT), 405, "method_not_allowed")
    refused(await envoy("FOO /authz/envoy/api/v1/teams", token=ROOT), 405, "method_not_allowed")
    spoofed = [
        ("X-Forwarded-Uri", "/api/health"),
        ("X-Forwarded-Uri", "/"),
        ("X-Forwarded-Method", "GET"),
    ]
    answer = await envoy("POST /authz/envoy/api/v1/projects", token=READ, headers=spoofed)
    refused(answer, 403, "permission_missing")
    refused(
        await envoy("GET /authz/envoy/api/v1/teams", token=READ, client=None),
        400,
        "forwarded_header_invalid",
    )


async def test_envoys_empty_post_keeps_the_connection(world: World) -> None:
    """Envoy asks with `content-length: 0`; that declares no body."""
    post = subrequest(
        None,
        None,
        authorization=bearer(WRITE),
        line="POST /authz/envoy/api/v1/projects HTTP/1.1",
        headers=[("Content-Length", "0")],
    )
    async with Wire(world.sidecar.port) as wire:
        for _ in range(3):
            allowed(await wire.ask(post))


# The rate-limit headers


async def test_the_ratelimit_fields_follow_draft_10(world: World) -> None:
    """Limit and Remaining of the tightest counter, policies and state of each."""
    number = await world.newcomer()
    await world.registry.set_limit("user", number, Limit(5, 60_000))
    await world.registry.set_limit("token", number, Limit(2, 30_000))
    answer = allowed(await world.ask(token=number))
    assert answer.header("X-RateLimit-Limit") == "2"
    assert answer.header("X-RateLimit-Remaining") == "1"
    assert answer.header("RateLimit-Policy") == '"token";q=2;w=30, "user";q=5;w=60'
    assert answer.header("RateLimit") == '"token";r=1;t=30, "user";r=4;t=60'
    allowed(await world.ask(token=number))
    answer = refused(await world.ask(token=number), 429, "rate_limited")
    assert answer.header("X-RateLimit-Remaining") == "0"
    assert int(answer.header("Retry-After") or 0) in {29, 30}
    assert (answer.header("RateLimit") or "").startswith('"token";r=0;t=')
    assert '"user";r=3' in (answer.header("RateLimit") or "")


async def test_what_is_not_charged_says_nothing_of_limits(world: World) -> None:
    """Row 0 and the 405 of /mcp cost nothing."""
    for answer in (await world.ask("TRACE"), await world.ask("GET", "/mcp")):
        assert answer.header("X-RateLimit-Limit") is None


async def test_without_redis_nobody_is_let_in_on_a_guess(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Pitfall 35: 503 with Retry-After for what needs a token; row 0 is still judged."""
    server = start_redis(tmp_path_factory.mktemp("doomed"))
    sidecar = start_sidecar(tmp_path_factory.mktemp("alone"), server.url)
    async with world_of(sidecar, server) as world:
        number = 10
        await world.registry.add_team("t", TeamId(0))
        known = await world.ask(token=number, client=address())
        assert known.status == 401
        server.kill()
        refused(await world.ask(token=number), 503, "store_unavailable")
        refused(await world.ask(), 503, "store_unavailable")
        refused(await world.ask(uri="/api/health"), 503, "store_unavailable")
        refused(await world.ask("TRACE"), 405, "method_not_allowed")
        allowed(await world.ask("OPTIONS", headers=PREFLIGHT))
        nginx = await world.ask(proxy="nginx")
        assert (nginx.status, nginx.header("X-Authz-Status")) == (403, "503")
        server.start()
        refused(await world.ask(token=number), 401, "token_unknown")
    assert sidecar.stop() == 0
    server.stop()


@pytest.mark.parametrize("path", [broken.RAISES, broken.RAISES_LATER, broken.CANCELLED])
async def test_a_decision_that_fails_is_a_refusal_of_its_own(
    path: str, server: RedisProcess, tmp_path: Path
) -> None:
    """Raised at once or after waiting: 503 that is not Redis's, and the next one passes."""
    sidecar = start_sidecar(tmp_path, server.url, program=("-P", str(Path(broken.__file__))))
    async with world_of(sidecar, server), Wire(sidecar.port) as wire:
        for proxy in ("traefik", "nginx"):
            answer = await wire.ask(subrequest(uri=path, authorization=bearer(READ), proxy=proxy))
            if proxy == "nginx":
                assert (answer.status, answer.header("X-Authz-Status")) == (403, "503")
            else:
                refused(answer, 503, "internal_error", "The sidecar failed to decide.")
            following = await wire.ask(subrequest(authorization=bearer(READ), proxy=proxy))
            assert following.status == 200
        metrics = get(sidecar.management_port, "/metrics", {}).body.decode()
    assert 'proxy="traefik",reason="internal_error"} 1.0' in metrics
    assert 'reason="store_unavailable"' not in metrics
    assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log


async def test_half_a_request_is_told_that_it_is_late(server: RedisProcess, tmp_path: Path) -> None:
    """Its deadline is a setting."""
    sidecar = start_sidecar(tmp_path, server.url, LISTEN__REQUEST_TIMEOUT_SECONDS="0.2")
    async with Wire(sidecar.port) as wire:
        wire.send(subrequest()[:40])
        refused(await wire.answer(), 408, "request_timeout", "The request took too long to arrive.")
        assert await wire.ended()
    assert sidecar.stop() == 0
