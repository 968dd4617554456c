"""What is kept of a decision so that it can be looked up: its receipt, and how that is written.

A receipt holds ids, the route's template, the uuids of the path, the address, the counters, and
what was known of the token and the instance: all that the decision was made from. It never holds
a secret, a query, a body or the value of a header.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple

from authsidecar.decision import restrictions
from authsidecar.decision.authorize import Outcome
from authsidecar.decision.checks import ADDRESS_NOT_ALLOWED, API_DISABLED
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Limit,
    Proxy,
    Quota,
    TokenRecord,
)
from authsidecar.decision.policy import Instance
from authsidecar.decision.routes import RouteTable
from authsidecar.decision.routes.table import is_parameter
from authsidecar.times import UnixMs

HIDDEN: Final = "*"
"""Stands for a segment of a path that is neither a word of the route table nor an id."""

LONGEST_PATH: Final = 24
"""Segments of the longest path that is kept."""

_ID: Final = re.compile(
    r"[a-z0-9]{24}|[0-9]{1,19}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
)
"""How Coolify spells what it names: a cuid2, a plain number, or a UUID."""

_SHORT_ID: Final = re.compile(r"[a-z0-9]{6,36}")
"""What may be one where a route has a uuid."""

_JSON: Final = json.JSONEncoder(separators=(",", ":"))

_REQUEST_ID: Final = re.compile(r"[0-9A-Fa-f-]{16,64}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """One decision as it was made.

    Attributes:
        id: the decision's id, as answers and log lines have it.
        at: when, by Redis's clock.
        proxy: the endpoint that was asked; None if it could not be told.
        outcome: what was decided.
        code: the reason code; None if it was allowed.
        status: towards the client; 200 stands for whatever the backend answered.
        detail: what was needed and found by what refused it.
        reported: it was refused, and passed since `enforcement` is `report`.
        weight: for how many decisions like it this one stands; 1 if all such were kept.
        release: the sidecar's version.
        config: the digest of its configuration.
        method: None if the request could not be read.
        route: the template that was reached.
        path: as it was judged; `*` in it is a segment that is not kept.
        client: the address that was judged.
        peer: who called; only of a request that could not be read.
        request_id: the proxy's own id of the request.
        preflight: a CORS preflight.
        claimed: the token's id as the client gave it, whether or not the secret was right.
        token: the same where the secret was right.
        user: the token's owner.
        team: the token's team.
        role: the owner's role in it; None: no member.
        permissions: what the token held.
        expires_at: when it expires.
        team_mcp: the team's MCP switch.
        limits: overrides at run time, by scope.
        restrictions: what narrowed it, by holder, as files have it; without notes.
        counters: those that were charged, or that refused it.
        api_enabled: the API switch; None if it was not looked at.
        mcp_enabled: the instance's MCP switch; the same.
        address_allowed: whether the allowlist admitted the address; the same.
        isolated: the team of a resource in the path was looked at.
    """

    id: str
    at: UnixMs
    proxy: str | None
    outcome: Literal["allow", "deny"]
    code: str | None
    status: int
    detail: str | None
    reported: bool = False
    weight: float = 1
    release: str = ""
    config: str = ""
    method: str | None = None
    route: str | None = None
    path: str | None = None
    client: str | None = None
    peer: str | None = None
    request_id: str | None = None
    preflight: bool = False
    claimed: int | None = None
    token: int | None = None
    user: int | None = None
    team: int | None = None
    role: str | None = None
    permissions: tuple[str, ...] = ()
    expires_at: UnixMs | None = None
    team_mcp: bool = True
    limits: Mapping[str, Limit] = field(default_factory=dict)
    restrictions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counters: tuple[Quota, ...] = ()
    api_enabled: bool | None = None
    mcp_enabled: bool | None = None
    address_allowed: bool | None = None
    isolated: bool = False

    @property
    def address(self) -> str | None:
        """The client's address, or who called where there is none."""
        return self.client or self.peer


class Decided(NamedTuple):
    """A decision as it is taken note of: values that were there already.

    Attributes:
        id: the decision's id.
        proxy: the endpoint that was asked.
        access: what was asked, or why it could not be read.
        outcome: what was decided.
        peer: who called.
        instance: the state that was held when it was decided.
        weight: for how many it stands.
    """

    id: str
    proxy: Proxy | None
    access: AccessRequest | Deny
    outcome: Outcome
    peer: str
    instance: Instance | None
    weight: float


class MadeUnder(NamedTuple):
    """What all receipts of a process have in common.

    Attributes:
        release: the sidecar's version.
        config: the digest of its configuration.
        words: the words that its route tables spell out.
        report_only: what is refused passes all the same.
        isolated: resources that are known to be another team's are refused.
    """

    release: str
    config: str
    words: Collection[str]
    report_only: bool
    isolated: bool = False


def words(*tables: RouteTable) -> frozenset[str]:
    """The segments that these tables spell out, which can be no secret."""
    return frozenset(
        segment
        for table in tables
        for route in table
        for segment in route.segments
        if not is_parameter(segment)
    )


def shown_path(path: str, known: Collection[str], template: str | None = None) -> str | None:
    """A path without what may be anything: words of the route table and ids stay.

    Args:
        path: as it was judged.
        known: the words of the route table.
        template: the route that was reached; None: none.

    >>> shown_path("/api/v1/projects/my-secret", {"api", "v1", "projects"})
    '/api/v1/projects/*'
    """
    parts = path.split("/", LONGEST_PATH)
    if len(parts) > LONGEST_PATH:
        return None
    places = [] if template is None else template.split("/")
    if len(places) != len(parts):
        places = [""] * len(parts)
    return "/".join(
        part if not part or part in known or _is_id(part, place) else HIDDEN
        for part, place in zip(parts, places, strict=True)
    )


def _is_id(part: str, place: str) -> bool:
    """Whether a segment names something of Coolify's; old uuids are as short as 7 characters."""
    if place.endswith("uuid}") and _SHORT_ID.fullmatch(part):
        return True
    return _ID.fullmatch(part) is not None


def receipt(decided: Decided, origin: MadeUnder) -> Receipt:
    """What is kept of a decision."""
    access, outcome, record = decided.access, decided.outcome, decided.outcome.record
    verdict = outcome.verdict
    if isinstance(access, Deny) and isinstance(verdict, Allow):
        verdict = access
    deny = verdict if isinstance(verdict, Deny) else None
    return Receipt(
        id=decided.id,
        at=outcome.now,
        proxy=None if decided.proxy is None else decided.proxy.value,
        outcome="allow" if deny is None else "deny",
        code=None if deny is None else deny.reason.code,
        status=200 if deny is None else deny.reason.status,
        detail=None if deny is None else deny.detail,
        reported=origin.report_only and deny is not None and isinstance(access, AccessRequest),
        weight=decided.weight,
        release=origin.release,
        config=origin.config,
        isolated=origin.isolated,
        counters=outcome.quotas,
        **(
            {"peer": decided.peer or None}
            if isinstance(access, Deny)
            else _of_request(access, outcome, origin)
        ),
        **({} if record is None else _of_token(record)),
        **({} if decided.instance is None else _of_instance(decided.instance, access, deny)),
    )


def _of_request(access: AccessRequest, outcome: Outcome, origin: MadeUnder) -> dict[str, Any]:
    request_id = access.request_id
    return {
        "method": access.method,
        "route": outcome.route,
        "path": shown_path(access.path, origin.words, outcome.route),
        "client": str(access.client),
        "preflight": access.preflight,
        "request_id": request_id if request_id and _REQUEST_ID.fullmatch(request_id) else None,
        "claimed": (
            access.credential.token_id if isinstance(access.credential, Credential) else None
        ),
    }


def _of_token(record: TokenRecord) -> dict[str, Any]:
    return {
        "token": record.token,
        "user": record.user,
        "team": record.team,
        "role": record.role,
        "permissions": tuple(sorted(record.permissions)),
        "expires_at": record.expires_at,
        "team_mcp": record.team_mcp,
        "limits": record.limits,
        "restrictions": {
            holder: {k: v for k, v in restrictions.as_mapping(one).items() if k != "note"}
            for holder, one in record.restrictions.items()
        },
    }


def _of_instance(
    instance: Instance, access: AccessRequest | Deny, deny: Deny | None
) -> dict[str, Any]:
    """The switches, and the allowlist's word on this address: in the end, the verdict's."""
    if isinstance(access, Deny):
        return {}
    code = None if deny is None else deny.reason.code
    admitted = instance.allowlist.admits(access.client) and code != ADDRESS_NOT_ALLOWED.code
    return {
        "api_enabled": instance.api_enabled and code != API_DISABLED.code,
        "mcp_enabled": instance.mcp_enabled,
        "address_allowed": admitted,
    }


# ---------------------------------------------------------------------------- how it is written


def write(one: Receipt) -> bytes:
    """The text that `read` reads: JSON without what says nothing."""
    return _JSON.encode(as_mapping(one)).encode()


def as_mapping(one: Receipt) -> dict[str, Any]:
    """A receipt as Redis and --json have it: only what is known, and differs from the default."""
    found: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(one, name)
        if value != default:
            found[name] = value
    if one.permissions:
        found["permissions"] = list(one.permissions)
    if one.limits:
        found["limits"] = {scope: list(limit) for scope, limit in one.limits.items()}
    if one.counters:
        found["counters"] = [
            {
                "scope": quota.scope,
                "limit": quota.limit.requests,
                "window_ms": quota.limit.window_ms,
                "remaining": quota.remaining,
                "reset_at": quota.reset_at,
            }
            for quota in one.counters
        ]
    return found


_REQUIRED: Final = ("id", "at", "outcome", "status")

_DEFAULTS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("id", "at", "proxy", "outcome", "code", "status", "detail")),
    **{
        one.name: one.default_factory() if callable(one.default_factory) else one.default
        for one in fields(Receipt)
        if one.name not in {"id", "at", "proxy", "outcome", "code", "status", "detail"}
    },
}


def read(text: bytes) -> Receipt | None:
    """The receipt that was written; None if it can't be read, by this version at least."""
    try:
        found = json.loads(text)
        if any(name not in found for name in _REQUIRED):
            return None
        given = {name: found[name] for name in _DEFAULTS if name in found}
        if "permissions" in given:
            given["permissions"] = tuple(given["permissions"])
        if "limits" in given:
            given["limits"] = {scope: Limit(*one) for scope, one in given["limits"].items()}
        if "counters" in given:
            given["counters"] = tuple(
                [
                    Quota(
                        one["scope"],
                        Limit(one["limit"], one["window_ms"]),
                        one["remaining"],
                        one["reset_at"],
                    )
                    for one in given["counters"]
                ]
            )
        return Receipt(**{"proxy": None, "code": None, "detail": None, **given})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
