"""Route tables from text: Coolify's own, and the operator's rows in front of them."""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from authsidecar.model import METHODS, Permission
from authsidecar.routes.table import Guard, Route, RouteTable, is_parameter

RELEASES: Final = ("4.0", "4.1", "4.3")
"""The Coolify release lines whose routes are known."""

SWITCHES: Final = frozenset(
    {"/api/v1/enable", "/api/v1/disable", "/api/v1/mcp/enable", "/api/v1/mcp/disable"}
)
"""Need `root` and the instance team, whatever the data says (decisions: Permissions and routes)."""

PUBLIC: Final = {
    ("GET", "/api/health"): "health",
    ("GET", "/api/v1/health"): "health",
    ("POST", "/api/feedback"): "feedback",
    ("POST", "/api/v1/sentinel/push"): "sentinel",
}
"""The only rows without a token, and the bucket that each is counted in."""

EXTRA_COLUMNS: Final = "method, path and permission (a permission, `public` or `deny`)"
_GRANTABLE: Final = tuple(p for p in Permission if p is not Permission.LEGACY_ROOT)


class RouteError(ValueError):
    """A route table that must not be used; says the row and what is wrong with it."""


class _Row(NamedTuple):
    order: str
    method: str
    path: str
    ability: str
    auth: str
    team_member: str
    api_enabled_and_allowlist: str
    sensitive_flag: str
    throttle: str
    mcp_checks: str


@cache
def coolify(release: str) -> RouteTable:
    """The routes of a Coolify release line, in Coolify's matching order.

    Args:
        release: one of RELEASES.

    Raises:
        RouteError: the release is not known.
    """
    if release not in RELEASES:
        raise RouteError(f"no routes for Coolify {release!r}; known: {', '.join(RELEASES)}")
    text = files("authsidecar.routes").joinpath(f"coolify-{release}.tsv").read_text("ascii")
    header, *lines = text.splitlines()
    if tuple(header.split("\t")) != _Row._fields:
        raise RouteError(f"coolify-{release}.tsv: unexpected columns")
    return _checked(_coolify_route(_Row(*line.split("\t"))) for line in lines)


def extra(text: str, base: RouteTable) -> RouteTable:
    """Put the operator's rows in front of a table: they add routes, override or close them.

    Args:
        text: one row a line, `METHOD PATH PERMISSION` separated by blanks or tabs; PERMISSION is
            a permission, `public` (counted in the bucket of unknown routes) or `deny`. Empty
            lines and lines that begin with `#` are skipped.
        base: the rows that follow.

    Raises:
        RouteError: names the line and what is wrong with it.
    """
    rows = [
        _extra_route(number, line.split())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return _checked([*rows, *base])


def _coolify_route(row: _Row) -> Route:
    method, path = row.method, row.path
    if path in SWITCHES:
        return Route(method, path, Guard.SWITCH, Permission.ROOT)
    if path == "/mcp":
        return Route(method, path, Guard.MCP if method == "POST" else Guard.WRONG_METHOD)
    if bucket := PUBLIC.get((method, path)):
        return Route(method, path, Guard.PUBLIC, bucket=bucket)
    if row.auth != "sanctum" or row.ability == "-":
        raise RouteError(f"{method} {path}: a row without a token that is not named as public")
    return Route(method, path, Guard.ORDINARY, Permission(row.ability))


def _extra_route(number: int, fields: list[str]) -> Route:
    if len(fields) != 3:
        raise RouteError(f"line {number}: expected {EXTRA_COLUMNS}, found {len(fields)} words")
    method, path, permission = fields
    if method not in METHODS - {"HEAD"}:
        raise RouteError(
            f"line {number}: {method!r} is not a method; one of "
            f"{', '.join(sorted(METHODS - {'HEAD'}))} (HEAD goes by the GET row)"
        )
    segments = path.split("/")
    if segments[0] or not all(
        s and (is_parameter(s) or not set("{}?#*%\\;") & set(s)) and s not in {".", ".."}
        for s in segments[1:]
    ):
        raise RouteError(
            f"line {number}: {path!r} is not a path template such as /api/v1/servers/{{uuid}}: "
            "it starts with one slash, ends without one, and a parameter is a whole segment"
        )
    if permission == "public":
        return Route(method, path, Guard.PUBLIC, bucket="unknown")
    if permission == "deny":
        return Route(method, path, Guard.CLOSED)
    if permission not in _GRANTABLE:
        raise RouteError(
            f"line {number}: {permission!r} is not a permission; one of "
            f"{', '.join(_GRANTABLE)}, public, deny"
        )
    return Route(method, path, Guard.ORDINARY, Permission(permission))


def _checked(routes: Iterable[Route]) -> RouteTable:
    """Refuse a table in which a method override in a POST body gains anything.

    The body is invisible to a forward-auth check, and Laravel lets it turn a POST into a PUT,
    PATCH or DELETE of the same path (coolify-semantics section 9).
    """
    rows = tuple(routes)
    table = RouteTable(rows)
    by_length: dict[int, list[Route]] = {}
    for row in rows:
        if row.method in {"PUT", "PATCH", "DELETE"}:
            by_length.setdefault(len(row.segments), []).append(row)
    for post in rows:
        if post.method != "POST" or post.guard is Guard.CLOSED:
            continue
        for other in by_length.get(len(post.segments), ()):
            if _overlap(post.segments, other.segments) and not _at_least(post, other):
                raise RouteError(
                    f"POST {post.template} is weaker than {other.method} {other.template}: "
                    "a method override in the body would reach it"
                )
    return table


def _overlap(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether one path can match both templates."""
    return all(x == y or is_parameter(x) or is_parameter(y) for x, y in zip(a, b, strict=True))


def _at_least(post: Route, other: Route) -> bool:
    """Whether whoever may call `post` may call `other` as well."""
    if other.guard in {Guard.PUBLIC, Guard.CLOSED, Guard.WRONG_METHOD}:
        return True
    if post.guard is not other.guard:
        return False
    return post.permission in {other.permission, Permission.ROOT} or (
        post.permission is Permission.READ_SENSITIVE and other.permission is Permission.READ
    )
