"""Cases for the policy, each allowed until a test changes one thing."""

from ipaddress import ip_address
from typing import Any

from authsidecar.decision.allowlist import parse
from authsidecar.decision.checks import judge
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Permission,
    Proxy,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.policy import Case, Instance, Judgement, Policy, identify
from authsidecar.decision.routes import Guard, Route, RouteTable
from authsidecar.times import UnixMs

NOW = UnixMs(1_800_000_000_000)
DIGEST = bytes(range(32))
OPEN = Instance(api_enabled=True, allowlist=parse(""), mcp_enabled=True)
READ = Route("GET", "/api/v1/teams", Guard.ORDINARY, Permission.READ)
ENABLE = Route("POST", "/api/v1/enable", Guard.SWITCH, Permission.ROOT)
MCP = Route("POST", "/mcp", Guard.MCP)
POLICY = Policy(RouteTable([READ, ENABLE, MCP]))


def record(*permissions: str, **changed: Any) -> TokenRecord:
    """An owner's token in team 3; `record("read", role=None)`."""
    fields: dict[str, Any] = {
        "token": TokenId(67),
        "digest": DIGEST,
        "name": "ci",
        "user": UserId(7),
        "team": TeamId(3),
        "permissions": frozenset(Permission(p) for p in permissions or ("read",)),
        "expires_at": None,
        "role": Role.OWNER,
    }
    return TokenRecord(**{**fields, **changed})


def request(method: str = "GET", path: str = "/api/v1/teams", **changed: Any) -> AccessRequest:
    """A request with that token's credential."""
    made = AccessRequest(
        proxy=Proxy.TRAEFIK,
        method=method,
        path=path,
        target=path.encode(),
        client=ip_address("192.0.2.1"),
        credential=Credential(TokenId(67), DIGEST),
    )
    return made._replace(**changed)


def judged(
    route: Route = READ,
    held: TokenRecord | None = None,
    *,
    instance: Instance = OPEN,
    policy: Policy = POLICY,
    now: UnixMs = NOW,
    **changed: Any,
) -> Judgement:
    """What is said of a request for this route with this record."""
    asked = request(route.method, route.template, **changed)
    known = identify(asked, route, instance, held or record(), now)
    if isinstance(known, Judgement):
        return known
    return judge(Case(policy, asked.client, route, instance, known))


def code(judgement: Judgement) -> str:
    """`allow`, or the code of the refusal."""
    match judgement.verdict:
        case Allow():
            return "allow"
        case Deny() as deny:
            return deny.reason.code
