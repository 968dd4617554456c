"""`explain`: what is told for each reason, that nothing is consumed, and that it is the truth."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from authsidecar.admin.explain import HINTS, ROWS, explain
from authsidecar.decision.addresses import Networks, parse_address
from authsidecar.decision.authorize import Rules, authorize
from authsidecar.decision.checks import CHECKS
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Deny,
    Limit,
    Permission,
    Proxy,
    Restriction,
    Role,
    TeamId,
    TokenId,
    UserId,
)
from authsidecar.decision.policy import Policy
from authsidecar.decision.proxies.forward_auth import read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.routes import coolify
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.cli import Result, invoke, with_registry

GOLDEN = Path(__file__).parents[1] / "data" / "explain"

TEAMS = "/api/v1/teams"


async def world(registry: Registry) -> None:
    """Owner 1 of teams 0 and 3, member 2 of team 3; a token for each way to be refused."""
    await seed.user(registry, 1, t0="owner", t3="owner")
    await seed.user(registry, 2, t3="member")
    await seed.user(registry, 4)
    await registry.put_tokens(
        [
            seed.token(10, user=1, team=0, permissions=("root",)),
            seed.token(11, user=1, team=3, permissions=("read",)),
            seed.token(12, user=1, team=3, permissions=("read",), expires_at=_yesterday()),
            seed.token(13, user=1, team=3, permissions=("root",)),
            seed.token(20, user=2, team=3, permissions=("deploy",)),
            seed.token(40, user=4, team=3, permissions=("read",)),
        ]
    )
    await registry.set_instance(api_enabled=True, mcp_enabled=True)


def _yesterday() -> int:
    return (int(time.time()) - 24 * 3600) * 1000 + 500


async def api_off(registry: Registry) -> None:
    await registry.set_instance(api_enabled=False)


async def few_addresses(registry: Registry) -> None:
    await registry.set_instance(allowlist="10.0.0.0/8")


async def mcp_off(registry: Registry) -> None:
    await registry.set_instance(mcp_enabled=False)


async def team_mcp_off(registry: Registry) -> None:
    await registry.set_team_mcp(TeamId(3), False)


async def theirs(registry: Registry) -> None:
    """Server `theirs` is another team's."""
    await own(registry, "theirs", 9)


async def ours(registry: Registry) -> None:
    """Server `ours` is team 3's."""
    await own(registry, "ours", 3)


async def own(registry: Registry, uuid: str, team: int) -> None:
    await registry._client.hset(Keys().owners(owner_bucket(uuid)), uuid, team)


async def narrowed(registry: Registry) -> None:
    """Token 11 may do one other thing alone."""
    only = Restriction(routes=frozenset({"GET /api/v1/projects"}))
    await registry.set_restriction("token", 11, only)


async def disabled(registry: Registry) -> None:
    """Token 11 is disabled."""
    await registry.disable_token(TokenId(11), disabled=True)


async def widely(registry: Registry) -> None:
    """Token 11 and its user are narrowed to more than is asked."""
    await registry.set_restriction("token", 11, Restriction(uses=5))
    read_only = Restriction(permissions=frozenset({Permission.READ}))
    await registry.set_restriction("user", 1, read_only)


async def exhausted(registry: Registry) -> None:
    """User 1 has used up what it has."""
    await registry.set_limit("user", 1, Limit(1, 3_600_000))
    store = DecisionStore(registry._client, Keys(), budget_ms=5000)
    access = read(
        Fields(
            [
                (b"Authorization", seed.bearer(11).encode()),
                (b"X-Forwarded-For", b"192.0.2.1"),
            ]
        ),
        Proxy.TRAEFIK,
        Networks(),
        (b"GET", TEAMS.encode()),
    )
    assert isinstance(access, AccessRequest)
    outcome = await authorize(access, Rules(Policy(coolify("4.3")), {}), store)
    assert isinstance(outcome.verdict, Allow)
    await store.close()


@dataclass(frozen=True)
class Case:
    """A request, the world it is made in, and the code that it earns."""

    code: str
    method: str = "GET"
    target: str = TEAMS
    token: str | int | None = 11
    prepare: Callable[[Registry], Awaitable[None]] | None = None
    url: str | None = None
    isolated: bool = False
    more: tuple[str, ...] = ()


CASES = (
    Case("allowed"),
    Case("allowed_public", target="/api/health", token=None),
    Case("allowed_switch", "POST", "/api/v1/enable", 10, api_off),
    Case("allowed_mcp", "POST", "/mcp"),
    Case("untrusted_peer", more=("--peer", "198.51.100.7")),
    Case("reserved_header", more=("--header", "X_Auth_User_Id: 0")),
    Case("ambiguous_target", target="/api//v1/teams"),
    Case("ambiguous_target_relative", target="api/v1/teams"),
    Case("method_override", target=f"{TEAMS}?_method=DELETE"),
    Case("target_too_long", target="/api/v1/" + "x" * 16_384),
    Case("method_not_allowed", "get"),
    Case("method_not_allowed_mcp", "GET", "/mcp"),
    Case("route_unknown", target="/api/v1/nothing"),
    Case("token_missing", token=None),
    Case("token_malformed", token="x|y"),
    Case("token_prefix_missing", token="abcthisisa123dummytoken"),
    Case("authorization_ambiguous", token="11|a, 12|b"),
    Case("token_unknown", token="999|nothing"),
    Case("token_unknown_secret", token="11|wrong"),
    Case("token_disabled", prepare=disabled),
    Case("token_expired", token=12),
    Case("rate_limited", prepare=exhausted),
    Case("not_team_member", token=40),
    Case("team_role_required", token=20),
    Case("api_disabled", prepare=api_off),
    Case("address_not_allowed", prepare=few_addresses),
    Case("permission_missing", "POST", "/api/v1/projects"),
    Case("instance_team_required", "POST", "/api/v1/enable", 13),
    Case("token_restricted", prepare=narrowed),
    Case("allowed_restricted", prepare=widely),
    Case("mcp_disabled", "POST", "/mcp", prepare=mcp_off),
    Case("allowed_ours", target="/api/v1/servers/ours", prepare=ours, isolated=True),
    Case("allowed_unknown", target="/api/v1/servers/new", prepare=theirs, isolated=True),
    Case("allowed_isolated", isolated=True),
    Case("resource_not_found", target="/api/v1/servers/theirs", prepare=theirs, isolated=True),
    Case("team_mcp_disabled", "POST", "/mcp", prepare=team_mcp_off),
    Case("store_unavailable", url="redis://127.0.0.1:1"),
)


def run(case: Case, redis_url: str, *more: str) -> Result:
    """`explain` for this case, in its world."""

    async def build(registry: Registry) -> None:
        await world(registry)
        if case.prepare:
            await case.prepare(registry)

    asyncio.run(with_registry(redis_url, build))
    token = case.token
    if isinstance(token, int):
        token = f"{token}|{seed.secret_of(token)}"
    words = ["explain", case.method, case.target, "--client-ip", "192.0.2.1", *case.more, *more]
    words += ["--token-file", "-"] if token is not None else []
    isolated = str(case.isolated).lower()
    return invoke(
        *words,
        url=case.url or redis_url,
        stdin=f"{token}\n".encode(),
        SYNC__TEAM_ISOLATION=isolated,
    )


def golden(case: Case, result: Result) -> str:
    """All that a person sees, with what depends on the clock left out."""
    text = result.out + result.err
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"again in \d+ s", "again in N s", text)
    return text.replace("x" * 16_384, "xxx")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_explanation_for_people(case, redis_url):
    """For each code the trace is the one that is on file, and the exit code agrees."""
    result = run(case, redis_url)
    file, found = GOLDEN / f"{case.code}.txt", golden(case, result)
    if "TESTS_REWRITE" in os.environ:  # make generate
        file.write_text(found)
    assert found == file.read_text()
    assert result.code == (0 if case.code.startswith("allowed") else 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_explanation_for_scripts(case, redis_url):
    """--json has the same rows in their fixed order, and one line on standard error if refused."""
    result = run(case, redis_url, "--json")
    found = result.json
    assert list(found) == ["outcome", "status", "code", "checks"]
    allowed = case.code.startswith("allowed")
    assert found["outcome"] == ("allow" if allowed else "deny")
    assert (found["status"] == 200) is allowed
    assert found["code"] is None if allowed else case.code.startswith(found["code"])
    assert tuple(check["name"] for check in found["checks"]) == ROWS
    assert {check["result"] for check in found["checks"]} <= {"pass", "fail", "skipped"}
    assert any(check["result"] == "fail" for check in found["checks"]) is not allowed
    assert all(check["detail"] for check in found["checks"])
    text = (GOLDEN / f"{case.code}.txt").read_text()
    for check in found["checks"]:
        mark = {"pass": "ok", "fail": "FAIL", "skipped": "-"}[check["result"]]
        assert re.search(rf"^  {re.escape(mark)} +{check['name']} ", text, re.MULTILINE)
    assert result.err.count("\n") == (0 if allowed else 1)


def test_a_name_of_another_script_is_explained(redis_url):
    """As text, whatever the locale; in its raw spelling it is refused, and that is said."""
    target = "/api/v1/projects/u1/pr%C3%BCfung%231"
    command = [sys.executable, "-m", "authsidecar", "explain", "GET"]
    environ = {**os.environ, "LC_ALL": "C", "AUTHSIDECAR_REDIS__URL": redis_url}
    said = [
        subprocess.run([*command, one], check=False, capture_output=True, env=environ)
        for one in (target, unquote(target).replace("#", "%23"))
    ]
    assert "is read as /api/v1/projects/u1/prüfung#1" in said[0].stdout.decode()
    assert b"ambiguous_target" in said[1].stdout
    assert b"Traceback" not in said[0].stderr + said[1].stderr


def test_every_row_has_its_check():
    """The rows of checks are the policy's own, in its order."""
    names = tuple(check.name for check in CHECKS)
    assert names == ROWS[4:-1] == (
        *("team_member", "team_role", "api_enabled", "address"),
        *("team_mcp", "permission", "restriction", "instance_team", "team_isolation"),
    )  # fmt: skip


def test_every_hint_is_for_a_code_that_is_tested():
    """No hint outlives its code."""
    assert {code for code in HINTS if code not in {case.code for case in CASES}} == set()


def test_secret_is_never_repeated(redis_url):
    """Whatever the token file holds, none of it is printed."""
    for token in ("11|s3cr3t-text", "s3cr3t-text", "11|s3cr3t-text, 12|s3cr3t-text"):
        for how in ((), ("--json",)):
            result = run(Case("", token=token), redis_url, *how)
            assert result.code == 1
            assert "s3cr3t" not in result.out + result.err


def test_token_file_is_read(redis_url, tmp_path):
    """A file with the token, or with the whole header value, serves as well as standard input."""
    asyncio.run(with_registry(redis_url, world))
    file = tmp_path / "token"
    for text in (f"11|{seed.secret_of(11)}\n", seed.bearer(11)):
        file.write_text(text)
        assert invoke("explain", "GET", TEAMS, "--token-file", file, url=redis_url).code == 0
    file.write_text("\n")
    assert invoke("explain", "GET", TEAMS, "--token-file", file, url=redis_url).code == 2


async def _everything(url: str) -> dict[bytes, object]:
    async with Redis.from_url(url) as client:
        found: dict[bytes, object] = {}
        async for key in client.scan_iter():
            if await client.type(key) == b"list":
                found[key] = await client.lrange(key, 0, -1)
            else:
                found[key] = await client.dump(key)
        return found


@pytest.mark.parametrize("token", [11, "999|unknown"])
def test_nothing_is_consumed(redis_url, token):
    """However often it is asked, no counter moves: neither the user's nor the address's."""
    case = Case("", token=token)
    first = run(case, redis_url)
    before = asyncio.run(_everything(redis_url))
    words = ["explain", "GET", TEAMS, "--client-ip", "192.0.2.1", "--token-file", "-"]
    text = f"11|{seed.secret_of(11)}" if token == 11 else token
    for _ in range(3):
        again = invoke(*words, url=redis_url, stdin=text.encode())
        assert (again.code, again.out) == (first.code, first.out)
    assert asyncio.run(_everything(redis_url)) == before
    assert not [key for key in before if b"rate:" in key]


PATHS = (TEAMS, "/api/v1/projects", "/api/v1/enable", "/api/v1/deploy", "/mcp", "/api/health",
         "/api/v1/none", "/api/v1/servers/ours", "/api/v1/servers/theirs", "/other",
         "/index.php/x", "/api/v1/teams?_method=PUT", "/api/v1/projects/u1/pr%C3%BCfung%231",
         "/api/v1/servers/%E6%97%A5%E6%9C%AC")  # fmt: skip
TOKENS = (None, "10", "11", "12", "13", "20", "40", "11|wrong", "999|x", "nothing")


@st.composite
def requests(draw):
    token = draw(st.sampled_from(TOKENS))
    if token is not None and token.isdigit():
        token = f"{token}|{seed.secret_of(int(token))}"
    return {
        "line": (
            draw(
                st.sampled_from([b"GET", b"POST", b"DELETE", b"HEAD", b"PUT", b"OPTIONS", b"get"])
            ),
            draw(st.sampled_from(PATHS)).encode(),
        ),
        "authorization": [] if token is None else [b"Bearer " + token.encode()],
        "client": parse_address(draw(st.sampled_from(["10.1.1.1", "192.0.2.1", "2001:db8::1"]))),
    }


@st.composite
def states(draw):
    return {
        "api_enabled": draw(st.booleans()),
        "mcp_enabled": draw(st.booleans()),
        "allowlist": draw(st.sampled_from(["", "10.0.0.0/8", "2001:db8::/32"])),
        "role": draw(st.sampled_from([*Role, None])),
        "team_mcp": draw(st.booleans()),
        "user_limit": draw(st.sampled_from([1, 2, 200])),
        "failed_limit": draw(st.sampled_from([1, 2])),
        "isolated": draw(st.booleans()),
    }


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=states(), asked=st.lists(requests(), min_size=1, max_size=5))
def test_explain_and_the_server_agree(redis_url, state, asked):
    """Whatever the state and the request, the explanation is what the server then answers."""

    async def scenario() -> None:
        async with Redis.from_url(redis_url) as client:
            await client.flushall()
            registry = seed.registry(client)
            await world(registry)
            await ours(registry)
            await theirs(registry)
            await registry.set_instance(
                **{k: state[k] for k in ("api_enabled", "mcp_enabled", "allowlist")}
            )
            await registry.set_team_mcp(TeamId(3), state["team_mcp"])
            if state["role"] is None:
                await registry.remove_member(TeamId(3), UserId(1))
                await registry.put_tokens([seed.token(11, user=1, team=3)])
            else:
                await registry.set_member(TeamId(3), UserId(1), state["role"])
            rules = Rules(
                Policy(coolify("4.3"), team_isolation=state["isolated"]),
                {
                    "user": Limit(state["user_limit"]),
                    "failed": Limit(state["failed_limit"]),
                    "unknown": Limit(2),
                    "health": Limit(2),
                },
            )
            server = DecisionStore(client, Keys(), budget_ms=5000)
            for request in asked:
                asked_by = DecisionStore(client, Keys(), budget_ms=5000)
                explained = await explain(
                    request["line"],
                    request["authorization"],
                    request["client"],
                    hops=Networks(),
                    rules=rules,
                    store=asked_by,
                    registry=registry,
                )
                headers = [(b"Authorization", value) for value in request["authorization"]]
                headers.append((b"X-Forwarded-For", str(request["client"]).encode()))
                access = read(Fields(headers), Proxy.TRAEFIK, Networks(), request["line"])
                if isinstance(access, Deny):
                    assert explained.verdict == access
                else:
                    outcome = await authorize(access, rules, server)
                    assert _summary(explained.verdict) == _summary(outcome.verdict)
                fails = [row for row in explained.rows if row.result == "fail"]
                assert (not fails) is isinstance(explained.verdict, Allow)
                await asked_by.close()
            await server.close()

    asyncio.run(scenario())


def _summary(verdict):
    if isinstance(verdict, Allow):
        return verdict
    return verdict.reason, verdict.missing


def test_a_token_is_not_taken_as_a_header(redis_url):
    """It would show in the process list; the refusal does not repeat it."""
    result = invoke("explain", "GET", TEAMS, "--header", "Authorization: Bearer 1|x", url=redis_url)
    assert result.code == 2
    assert "--token-file" in result.err
    assert "1|x" not in result.err
