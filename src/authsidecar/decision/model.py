"""The values that every other module speaks in; no rule lives here.

Frozen and slotted: a value that was judged cannot change afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple, NewType, NoReturn
from zoneinfo import ZoneInfo

from authsidecar.times import UnixMs

TokenId = NewType("TokenId", int)
UserId = NewType("UserId", int)
TeamId = NewType("TeamId", int)


Address = IPv4Address | IPv6Address
"""A client address; IPv4-mapped IPv6 is already unmapped."""


class Permission(StrEnum):
    """The seven permissions that a token can hold (api-authorization: Permissions)."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    READ = "read"
    READ_SENSITIVE = "read:sensitive"
    WRITE = "write"
    WRITE_SENSITIVE = "write:sensitive"
    DEPLOY = "deploy"
    ROOT = "root"
    LEGACY_ROOT = "*"


class Role(StrEnum):
    """A user's role in a team; any other text of Coolify's is a member."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


class ResourceKind(StrEnum):
    """What of Coolify's has a uuid that the sync follows, from the outside in."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    PROJECT = "project"
    ENVIRONMENT = "environment"
    SERVER = "server"
    APPLICATION = "application"
    DATABASE = "database"
    SERVICE = "service"
    SERVICE_APPLICATION = "service-application"
    SERVICE_DATABASE = "service-database"
    DEPLOYMENT = "deployment"


class Place(NamedTuple):
    """Where one resource lies in Coolify's tree, as far as that is known.

    Attributes:
        team: whose it is.
        kind: what it is; None if only its team is known.
        project: the uuid of its project, its own of a project; empty where there is none.
        environment: the same of its environment; older releases have none.
        environment_name: what its environment is called.
        within: the uuid of the service that it is a part of, or the application that it deploys.
    """

    team: TeamId
    kind: ResourceKind | None = None
    project: str = ""
    environment: str = ""
    environment_name: str = ""
    within: str = ""


class Proxy(StrEnum):
    """Who asks: the proxies that the sidecar has an endpoint for, and `direct`."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    TRAEFIK = "traefik"
    NGINX = "nginx"
    CADDY = "caddy"
    HAPROXY = "haproxy"
    ENVOY = "envoy"
    DIRECT = "direct"
    """A client's own request that a proxy routed here: the API switch."""


class Kind(StrEnum):
    """What sort of refusal it is; closed, so that shells can match on all of it."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    MALFORMED = "malformed"
    NOT_FOUND = "not_found"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"


class Reason(NamedTuple):
    """Why a request is refused: a stable code, declared beside the check that uses it.

    Attributes:
        code: snake_case, documented in docs/reference/reason-codes.md.
        kind: the closed family that the code belongs to.
        status: the HTTP status towards the client, 400 to 503.
        message: Coolify's own words where Coolify has any.
    """

    code: str
    kind: Kind
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Deny:
    """A refusal. Not usable as a boolean: an object is true, and `if verdict` would fail open.

    Attributes:
        reason: what is said to the client.
        detail: what was needed and found, for logs and `explain`; never a secret.
        missing: the permissions that were missing, for the reason permission_missing.
        allowed: the methods that are taken here, for the reason method_not_allowed; empty: all
            of METHODS.
        advice: what the client is told beside the message: how to ask instead.
    """

    reason: Reason
    detail: str = ""
    missing: tuple[Permission, ...] = ()
    allowed: tuple[str, ...] = ()
    advice: str = ""

    def __bool__(self) -> NoReturn:
        """Refuse to be a condition."""
        raise TypeError("match on Allow | Deny instead")


class Credential(NamedTuple):
    """What is left of `Bearer ID|SECRET` after parsing: the secret itself is gone.

    Attributes:
        token_id: 1 to 9223372036854775807.
        digest: the 32 bytes of SHA-256 over the secret's bytes.
    """

    token_id: TokenId
    digest: bytes

    def __repr__(self) -> str:
        """The id alone."""
        return f"Credential(token_id={self.token_id})"


class Principal(NamedTuple):
    """Who is calling, as the backend is told.

    Attributes:
        user: the token's owner.
        team: the token's team.
        role: the owner's role in that team.
        token: the token's id.
        permissions: what the token holds.
    """

    user: UserId
    team: TeamId
    role: Role
    token: TokenId
    permissions: frozenset[Permission]


@dataclass(frozen=True, slots=True)
class Allow:
    """An admission; `principal` is None where the request needs no identity."""

    principal: Principal | None
    read_sensitive: bool = False

    def __bool__(self) -> NoReturn:
        """Refuse to be a condition."""
        raise TypeError("match on Allow | Deny instead")


Verdict = Allow | Deny


class AccessRequest(NamedTuple):
    """One client request as a proxy's subrequest describes it, canonical and parsed.

    Attributes:
        proxy: the endpoint that was asked.
        method: upper case, one of METHODS.
        path: decoded once, no trailing slash, starts with "/".
        target: the request target as the proxy gave it, query included; only ever compared.
        client: the address that was judged.
        credential: the parsed token, or the 401 refusal that its text earned.
        preflight: a CORS preflight (OPTIONS, Origin, Access-Control-Request-Method, no token).
        request_id: the proxy's own id of the client request, or None where it cannot set one.
        body: whether its Content-Type makes PHP or Laravel read a body as input.
        user_agent: what the client calls itself, where the proxy shows it; only ever digested.
    """

    proxy: Proxy
    method: str
    path: str
    target: bytes
    client: Address
    credential: Credential | Deny
    preflight: bool = False
    request_id: str | None = None
    body: bool = False
    user_agent: bytes = b""


METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Limit(NamedTuple):
    """At most `requests` in any `window_ms` milliseconds; both above 0."""

    requests: int
    window_ms: int = 60_000


class Hours(NamedTuple):
    """When a week's requests are admitted, by the clocks of one place.

    Attributes:
        days: 0 is Monday; the days on which it begins.
        start: minutes after midnight, 0 to 1439.
        end: minutes after midnight, 1 to 1440; at or before `start` it is the next day's.
        zone: whose clocks.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: ZoneInfo


@dataclass(frozen=True, slots=True)
class Restriction:
    """What a token may do at the most; None or nothing: no limit of that kind.

    Attributes:
        permissions: no others than these.
        routes: `GET /api/v1/servers`, with the template of the table; `*` is any method.
        networks: from where.
        not_before: the first millisecond.
        until: the last millisecond.
        hours: in any of these.
        projects: the uuids of the projects within which it may name something.
        environments: the same of environments, each `PROJECT/NAME` or `PROJECT/UUID`.
        resources: the uuids of the servers, applications, databases and services that it may
            name; the three add up.
        tags: which tags it may deploy, whatever has them.
        rate: a counter of its own.
        uses: how many requests in all.
        note: why, and for whom.
    """

    permissions: frozenset[Permission] | None = None
    routes: frozenset[str] | None = None
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    not_before: UnixMs | None = None
    until: UnixMs | None = None
    hours: tuple[Hours, ...] = ()
    projects: frozenset[str] = frozenset()
    environments: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    rate: Limit | None = None
    uses: int | None = None
    note: str = ""

    @property
    def to_resources(self) -> bool:
        """Whether it narrows what a request may name."""
        return bool(self.projects or self.environments or self.resources or self.tags)


DAMAGED: Final = Restriction(routes=frozenset())
"""Stands for a restriction that could not be read: it admits nothing."""

UNREADABLE_LIMIT: Final = Restriction(routes=frozenset(), note="limit")
"""Stands among the restrictions for a limit that could not be read: it admits nothing, since the
configured one may admit more than that one did."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenRecord:
    """All that Redis knows about a token and its owner, read in one trip.

    Attributes:
        token: the token's id.
        digest: the 32 bytes of SHA-256 over the secret.
        name: what its owner calls it.
        user: its owner.
        team: its team, or None where Coolify's own text is not a plain number.
        permissions: what it holds.
        expires_at: the last millisecond at which it is valid, or None.
        role: the owner's role in the team; None if user, team or membership is gone.
        team_mcp: the team's MCP switch.
        limits: run-time overrides by scope ("token", "user", "team").
        restrictions: what narrows it, by the same scopes.
        disabled: whether it is refused until it is enabled again.
        rotated_until: until when this secret, which a newer one has replaced, is valid; None: it
            is the token's own. `expires_at` is no later.
        nonce: the random value that proves, in Redis, that this record is still current.
    """

    token: TokenId
    digest: bytes = field(repr=False)
    name: str
    user: UserId
    team: TeamId | None
    permissions: frozenset[Permission]
    expires_at: UnixMs | None
    role: Role | None
    team_mcp: bool = True
    limits: Mapping[str, Limit] = field(default_factory=dict)
    restrictions: Mapping[str, Restriction] = field(default_factory=dict)
    disabled: bool = False
    rotated_until: UnixMs | None = None
    nonce: bytes = b""


class Quota(NamedTuple):
    """One counter after a request: `retry_at` is the first instant that admits again.

    Attributes:
        scope: which bucket it is ("user", "failed", ...).
        limit: what the counter admits in its window.
        remaining: what it would still admit now.
        reset_at: when the oldest admission leaves the window (the retry instant if refused).
    """

    scope: str
    limit: Limit
    remaining: int
    reset_at: UnixMs
