"""Every route, permission and role, with the API on and off, against an oracle of its own.

The oracle is written from the decisions and the data alone and imports nothing of the program:
what it expects, a real process must answer over HTTP.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import UserId
from authsidecar.decision.routes.loading import TABLES
from tests.support import seed
from tests.support.sidecar import Answer, start_sidecar
from tests.support.wire import ask_all, subrequest

pytestmark = pytest.mark.any_python

DATA = Path(__file__).parents[1] / "data"
RELEASES = sorted(set(TABLES.values()))
"""Those that have a table of their own."""
LEAST_ROWS = 140

PERMISSIONS = ("read", "read:sensitive", "write", "write:sensitive", "deploy", "root", "*")
ROLES = ("owner", "admin", "member", None)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CLIENT = "198.51.100.7"
LIMIT = 100_000

SWITCHES = {
    "/api/v1/enable": "enable the API",
    "/api/v1/disable": "disable the API",
    "/api/v1/mcp/enable": "enable the MCP server",
    "/api/v1/mcp/disable": "disable the MCP server",
}
PUBLIC = {
    ("GET", "/api/health"),
    ("GET", "/api/v1/health"),
    ("POST", "/api/feedback"),
    ("POST", "/api/v1/sentinel/push"),
}


@dataclass(frozen=True)
class Row:
    method: str
    path: str
    ability: str

    @property
    def filled(self) -> str:
        """The path with plausible text in place of its parameters."""
        return re.sub(r"\{(\w+)\}", lambda m: f"k0sw{len(m[1])}cgkswo8ow0g4o{m[1][0]}", self.path)

    def matches(self, method: str, path: str) -> bool:
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(self.path))
        return method == self.method and re.fullmatch(pattern, path) is not None


@dataclass(frozen=True)
class Caller:
    """A token with one permission, of a user with one role in its team, or none."""

    token: int
    user: int
    team: int
    permission: str
    role: str | None


@dataclass(frozen=True)
class Expected:
    """What the client sees; `message` None where the words are our own."""

    status: int
    code: str | None = None
    message: str | None = None
    missing: tuple[str, ...] = ()
    identity: Caller | None = None


def rows(release: str) -> list[Row]:
    header, *lines = (DATA / f"coolify-routes-{release}.tsv").read_text("ascii").splitlines()
    assert header.split("\t")[:4] == ["order", "method", "path", "ability"]
    return [Row(*line.split("\t")[1:4]) for line in lines]


def callers(team: int, first: int) -> list[Caller]:
    """Every permission times every role, with token ids from `first` on."""
    return [
        Caller(first + number, 10 * team + 1 + ROLES.index(role), team, permission, role)
        for number, (permission, role) in enumerate(product(PERMISSIONS, ROLES))
    ]


def oracle(row: Row | None, caller: Caller, *, api_enabled: bool) -> Expected:
    """What decisions.md says about one request from an allowed address with room left."""
    if row is None:
        return Expected(404, "route_unknown", "Not found.")
    if row.path == "/mcp" and row.method != "POST":
        return Expected(405, "method_not_allowed")
    if (row.method, row.path) in PUBLIC:
        return Expected(200)
    if caller.role is None:
        return Expected(401, "not_team_member", "Invalid token.")
    if caller.permission != "read" and caller.role not in {"owner", "admin"}:
        return Expected(403, "team_role_required", "Missing required team role.")
    if row.path == "/mcp":
        return Expected(200, identity=caller)
    switch = SWITCHES.get(row.path)
    if switch is None and not api_enabled:
        return Expected(403, "api_disabled", "API is disabled.")
    needed = "root" if switch else row.ability
    enough = {needed, "root", "*"} | ({"read:sensitive"} if needed == "read" else set())
    if caller.permission not in enough:
        message = f"Missing required permissions: {needed}"
        return Expected(403, "permission_missing", message, (needed,))
    if switch and caller.team != 0:
        return Expected(403, "instance_team_required", f"You are not allowed to {switch}.")
    return Expected(200, identity=caller)


def seen(answer: Answer, expected: Expected) -> Expected:
    """The answer in the oracle's words; what the oracle leaves open is taken from it."""
    if answer.status == 200:
        assert answer.body == b""
        return Expected(200, identity=identity(answer))
    body = answer.json
    return Expected(
        answer.status,
        body["code"],
        None if expected.message is None else body["message"],
        tuple(body.get("missing_permissions", ())),
    )


def identity(answer: Answer) -> Caller | None:
    """Who the backend is told of, after a look at what every 200 must carry."""
    user, team, role, token, permissions = (
        answer.header(f"X-Auth-{name}")
        for name in ("User-Id", "Team-Id", "Team-Role", "Token-Id", "Permissions")
    )
    sensitive = answer.header("X-Auth-Read-Sensitive")
    assert answer.header("X-Auth-Client-Ip") == CLIENT
    assert re.fullmatch(r"[0-9A-Za-z_-]{8,64}", answer.header("X-Auth-Decision-Id") or "")
    assert answer.header("Cache-Control") == "no-store"
    if user == "none":
        assert (team, role, token, permissions) == ("none",) * 4
        assert sensitive == "false"
        return None
    assert (
        sensitive
        == str(
            permissions in {"root", "*", "read:sensitive"} and role in {"owner", "admin"}
        ).lower()
    )
    assert answer.header("X-RateLimit-Limit") == str(LIMIT)
    assert None not in {user, team, role, token, permissions}
    return Caller(int(token or 0), int(user or 0), int(team or 0), permissions or "", role)


@dataclass(frozen=True)
class Case:
    release: str
    method: str
    path: str
    caller: Caller
    api_enabled: bool
    expected: Expected


def first_match(table: list[Row], method: str, path: str) -> Row | None:
    """The row that serves a request; HEAD goes by the GET row."""
    wanted = "GET" if method == "HEAD" else method
    return next((row for row in table if row.matches(wanted, path)), None)


def matrix(release: str, who: list[Caller], *, api_enabled: bool) -> Iterator[Case]:
    """Every row of the data, times every caller."""
    table = rows(release)
    for row in table:
        served = first_match(table, row.method, row.filled)
        for caller in who:
            expected = oracle(served, caller, api_enabled=api_enabled)
            yield Case(release, row.method, row.filled, caller, api_enabled, expected)


def beside(release: str, who: list[Caller], *, api_enabled: bool) -> Iterator[Case]:
    """Every other method of every path, and HEAD beside GET: nothing more is served."""
    table = rows(release)
    for path, method in product(dict.fromkeys(r.filled for r in table), (*METHODS, "HEAD")):
        if any(row.filled == path and row.method == method for row in table):
            continue
        served = first_match(table, method, path)
        for caller in who:
            expected = oracle(served, caller, api_enabled=api_enabled)
            yield Case(release, method, path, caller, api_enabled, expected)


async def judge(port: int, cases: list[Case]) -> list[tuple[Case, Expected]]:
    """The cases that were answered otherwise, with what was seen."""
    requests = (
        subrequest(c.method, c.path, authorization=seed.bearer(c.caller.token), client=CLIENT)
        for c in cases
    )
    answers = await ask_all(port, requests)
    pairs = [(c, seen(a, c.expected)) for c, a in zip(cases, answers, strict=True)]
    return [(case, found) for case, found in pairs if found != case.expected]


INSTANCE_TEAM = callers(team=0, first=100)
OTHER_TEAM = callers(team=5, first=200)


async def fill(client: Redis) -> None:
    registry = seed.registry(client)
    for caller in (*INSTANCE_TEAM, *OTHER_TEAM):
        roles = {f"t{caller.team}": caller.role} if caller.role else {}
        if await registry.user(UserId(caller.user)) is None:
            await seed.user(registry, caller.user, **roles)
        made = seed.token(
            caller.token, user=caller.user, team=caller.team, permissions=(caller.permission,)
        )
        await registry.put_tokens([made])


@pytest.mark.parametrize("release", RELEASES)
async def test_every_route_permission_and_role_is_decided_as_written(
    release: str, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Rows x 7 permissions x 4 roles x API on and off, and whatever stands beside the rows."""
    await fill(redis_client)
    registry = seed.registry(redis_client)
    settings: dict[str, Any] = dict.fromkeys(
        ("USER", "UNKNOWN", "FAILED", "HEALTH", "FEEDBACK"), str(LIMIT)
    )
    sidecar = start_sidecar(
        tmp_path,
        redis_url,
        COOLIFY__ROUTES=release,
        LOG__DECISIONS="none",
        **{f"LIMITS__{name}": value for name, value in settings.items()},
    )
    roots = [c for c in INSTANCE_TEAM if c.permission in {"root", "read"} and c.role == "owner"]
    counted = 0
    try:
        for api_enabled in (True, False):
            await registry.set_instance(api_enabled=api_enabled, mcp_enabled=True)
            cases = list(matrix(release, INSTANCE_TEAM, api_enabled=api_enabled))
            counted += len(cases)
            cases += beside(release, roots, api_enabled=api_enabled)
            cases += (
                case
                for case in matrix(release, OTHER_TEAM, api_enabled=api_enabled)
                if case.path in SWITCHES
            )
            assert await judge(sidecar.port, cases) == []
    finally:
        sidecar.stop()
    different = len(set(map(repr, rows(release))))
    assert different > LEAST_ROWS
    assert counted == different * 7 * 4 * 2


async def test_a_wrong_expectation_would_be_noticed(
    redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Each planted error in what is expected, and no other case, is reported."""
    await fill(redis_client)
    await seed.registry(redis_client).set_instance(api_enabled=True, mcp_enabled=True)
    sidecar = start_sidecar(tmp_path, redis_url, LIMITS__USER=str(LIMIT), LOG__DECISIONS="none")
    who = [c for c in INSTANCE_TEAM if c.permission in {"read", "write"} and c.role == "owner"]
    cases = [c for c in matrix("4.3", who, api_enabled=True) if c.path.startswith("/api/v1/team")]
    allowed = next(i for i, c in enumerate(cases) if c.expected.status == 200)
    denied = next(i for i, c in enumerate(cases) if c.expected.status == 403)
    stranger = replace(cases[allowed].caller, user=99)
    planted = {
        allowed: replace(cases[allowed].expected, identity=stranger),
        denied: replace(cases[denied].expected, missing=("deploy",)),
    }
    wrong = [
        replace(case, expected=planted[i]) if i in planted else case for i, case in enumerate(cases)
    ]
    found = await judge(sidecar.port, wrong)
    right = await judge(sidecar.port, cases)
    sidecar.stop()
    assert [case for case, _ in found] == [wrong[i] for i in sorted(planted)]
    assert right == []


def test_the_oracle_knows_every_outcome() -> None:
    """The matrix is no row of equal answers: all outcomes of the checks occur in it."""
    outcomes = {
        (case.expected.status, case.expected.code)
        for release, who, api_enabled in product(
            RELEASES, (INSTANCE_TEAM, OTHER_TEAM), (True, False)
        )
        for case in matrix(release, who, api_enabled=api_enabled)
    }
    assert outcomes == {
        (200, None),
        (401, "not_team_member"),
        (403, "team_role_required"),
        (403, "api_disabled"),
        (403, "permission_missing"),
        (403, "instance_team_required"),
        (405, "method_not_allowed"),
    }
