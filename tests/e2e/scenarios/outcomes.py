"""Every outcome of the order of checks, with the state that leads to it."""

from authsidecar.decision.model import Limit, Proxy, TeamId
from tests.e2e.scenarios.table import (
    TEAMS,
    UNAUTHENTICATED,
    UNREADABLE,
    ByProxy,
    Refused,
    Runs,
    Scenario,
    permission,
)
from tests.support import world as at
from tests.support.lab import Lab

ENABLE = "/api/v1/enable"


async def exhausted(lab: Lab) -> int:
    return await lab.world.exhausted()


async def api_off(lab: Lab) -> None:
    await lab.world.registry.set_instance(api_enabled=False)


async def address_off(lab: Lab) -> None:
    await lab.world.registry.set_instance(allowlist="198.51.100.0/24")


async def all_off(lab: Lab) -> None:
    await lab.world.registry.set_instance(api_enabled=False, allowlist="198.51.100.0/24")


async def mcp_off(lab: Lab) -> None:
    await lab.world.registry.set_instance(mcp_enabled=False)


async def team_mcp_off(lab: Lab) -> None:
    await lab.world.registry.set_team_mcp(TeamId(0), enabled=False)


async def store_off(lab: Lab) -> None:
    """Redis answers every write with an error, at once."""
    await lab.client.config_set("min-replicas-to-write", 1)


async def overridden(lab: Lab) -> int:
    """A token whose own limit is 1, and used up, in a team whose limit is not."""
    number = await lab.world.newcomer()
    await lab.world.registry.set_limit("token", number, Limit(1, 3_600_000))
    await lab.world.ask(token=number)
    return number


OUTCOMES = (
    Scenario("an admitted request", "allowed; P2; P21", TEAMS, token=at.READ),
    Scenario(
        "an admitted POST",
        "allowed; P20",
        Runs("POST /api/v1/projects", at.WRITE),
        "POST",
        "/api/v1/projects",
        token=at.WRITE,
        body=b'{"name": "x"}',
    ),
    Scenario(
        "the same token a second time, in another letter case",
        "C2",
        TEAMS,
        lines=("authorization: bearer 11|secret-of-token-11",),
    ),
    Scenario(
        "root runs what needs deploy",
        "C8",
        Runs("POST /api/v1/deploy", at.ROOT),
        "POST",
        "/api/v1/deploy",
        token=at.ROOT,
    ),
    Scenario("a public route", "public; P2", Runs("GET /api/health", None), target="/api/health"),
    Scenario(
        "a public route with a token that is wrong",
        "public; P6",
        Runs("GET /api/health", None),
        target="/api/health",
        lines=("Authorization: Bearer 1|wrong", "User-Agent: kube-probe/1.31"),
    ),
    Scenario(
        "a public POST",
        "public",
        Runs("POST /api/feedback", None),
        "POST",
        "/api/feedback",
        body=b"{}",
    ),
    Scenario(
        "an unknown route",
        "C1; P14",
        Refused(404, "route_unknown", "Not found."),
        target="/api/v1/nothing",
        token=at.ROOT,
    ),
    Scenario(
        "a known path with an unknown method",
        "C1",
        Refused(404, "route_unknown", "Not found."),
        "DELETE",
        token=at.ROOT,
    ),
    Scenario(
        "the front controller",
        "C1; B1",
        Refused(404, "route_unknown", "Not found."),
        target="/index.php/api/v1/teams",
        token=at.ROOT,
    ),
    Scenario(
        "a path that only begins with the guarded prefix",
        "C1",
        Refused(404, "route_unknown", "Not found."),
        target="/apix",
        token=at.ROOT,
    ),
    Scenario("no token", "C2", Refused(401, "token_missing", UNAUTHENTICATED)),
    Scenario(
        "another scheme",
        "C2",
        Refused(401, "token_malformed", UNAUTHENTICATED),
        lines=("Authorization: Basic Zm9v",),
    ),
    Scenario(
        "a token without its id",
        "C2",
        Refused(401, "token_prefix_missing", UNAUTHENTICATED),
        lines=("Authorization: Bearer secret",),
    ),
    Scenario(
        "a blank behind the token",
        "C2",
        TEAMS,
        lines=("Authorization: Bearer 11|secret-of-token-11 \t",),
    ),
    Scenario(
        "two tokens in one header",
        "C2; P13",
        Refused(401, "authorization_ambiguous", UNAUTHENTICATED),
        lines=("Authorization: Bearer 11|secret-of-token-11, Bearer 1|x",),
    ),
    Scenario(
        "two Authorization headers",
        "C2; P13",
        Refused(401, "authorization_ambiguous", UNAUTHENTICATED),
        lines=("Authorization: Bearer 1|x", "Authorization: Bearer 11|secret-of-token-11"),
        but={Proxy.NGINX: UNREADABLE},
    ),
    Scenario(
        "a token that nobody has",
        "C2",
        Refused(401, "token_unknown", UNAUTHENTICATED),
        lines=("Authorization: Bearer 999999|secret",),
    ),
    Scenario(
        "a wrong secret",
        "C2",
        Refused(401, "token_unknown", UNAUTHENTICATED),
        lines=("Authorization: Bearer 11|secret",),
    ),
    Scenario(
        "an expired token",
        "C2",
        Refused(401, "token_expired", UNAUTHENTICATED),
        token=at.EXPIRED,
    ),
    Scenario(
        "a user past the limit",
        "C3; P14",
        Refused(429, "rate_limited", "Too Many Attempts."),
        given=exhausted,
    ),
    Scenario(
        "a token past its own limit",
        "C3; P14",
        Refused(429, "rate_limited", "Too Many Attempts."),
        given=overridden,
    ),
    Scenario(
        "no member of the team any more",
        "C4",
        Refused(401, "not_team_member", "Invalid token."),
        token=at.ROOT_OF_LONER,
    ),
    Scenario(
        "more than read in the hands of a member",
        "C5",
        Refused(403, "team_role_required", "Missing required team role."),
        token=at.ROOT_OF_MEMBER,
    ),
    Scenario(
        "the API switched off",
        "C6",
        Refused(403, "api_disabled", "API is disabled."),
        token=at.READ,
        given=api_off,
    ),
    Scenario(
        "an address that is not allowed",
        "C7",
        Refused(403, "address_not_allowed", "You are not allowed to access the API."),
        token=at.READ,
        lines=("X-Forwarded-For: 198.51.100.7", "X-Real-Ip: 198.51.100.7"),
        given=address_off,
    ),
    Scenario("a permission missing", "C8", permission("read"), token=at.WRITE),
    Scenario(
        "nothing held at all",
        "C8",
        permission("write"),
        "POST",
        "/api/v1/projects",
        token=at.NOTHING,
    ),
    Scenario("enable needs root", "C8", permission("root"), "POST", ENABLE, token=at.WRITE),
    Scenario(
        "enable by another team",
        "C9",
        Refused(403, "instance_team_required", "You are not allowed to enable the API."),
        "POST",
        ENABLE,
        token=at.ROOT_OF_OTHER_TEAM,
    ),
    Scenario(
        "enable while the API is off, from an address that is not allowed",
        "C6; C7; C9",
        Runs("POST /api/v1/enable", at.ROOT),
        "POST",
        ENABLE,
        token=at.ROOT,
        given=all_off,
    ),
    Scenario("MCP", "MCP", Runs("POST /mcp"), "POST", "/mcp", token=at.READ, body=b"{}"),
    Scenario(
        "MCP without a token",
        "MCP; C1",
        Refused(401, "token_missing", "Unauthenticated.", realm="mcp"),
        "POST",
        "/mcp",
        body=b"{}",
    ),
    Scenario(
        "MCP switched off for the instance",
        "MCP; P14",
        Refused(404, "mcp_disabled", "Not found."),
        "POST",
        "/mcp",
        token=at.READ,
        given=mcp_off,
    ),
    Scenario(
        "MCP switched off for the team",
        "MCP",
        Refused(403, "team_mcp_disabled", "MCP server is disabled for this team."),
        "POST",
        "/mcp",
        token=at.READ,
        given=team_mcp_off,
    ),
    Scenario(
        "a method that MCP never takes",
        "C0; P14",
        Refused(405, "method_not_allowed"),
        target="/mcp",
        token=at.READ,
    ),
    Scenario(
        "Redis does not do its part",
        "store; P14; P21",
        Refused(503, "store_unavailable"),
        token=at.READ,
        given=store_off,
        but={Proxy.ENVOY: ByProxy(503, "authorization_unavailable")},
    ),
)
