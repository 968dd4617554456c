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

EXTRA_COLUMNS: Final = "method, path and permission (a permission, `public`, `deny` or `absent`)"
_GRANTABLE: Final = tuple(p for p in Permission if p is not Permission.LEGACY_ROOT)


class RouteError(ValueError):
    """A route table that must not be used; says the row and what is wrong with it."""


class Row(NamedTuple):
    """One row of a release's data, as text: Coolify's own middleware, `-` for what is not there."""

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

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's segments, as a Route has them."""
        return tuple(self.path.split("/")[1:])


@cache
def coolify(release: str) -> RouteTable:
    """The routes of a Coolify release line, in Coolify's matching order.

    Args:
        release: one of RELEASES.

    Raises:
        RouteError: the release is not known.
    """
    return _checked(_coolify_route(row) for row in released(release))


def released(release: str) -> tuple[Row, ...]:
    """The rows of a Coolify release line as they were recorded.

    Raises:
        RouteError: the release is not known.
    """
    if release not in RELEASES:
        raise RouteError(f"no routes for Coolify {release!r}; known: {', '.join(RELEASES)}")
    return rows(files("authsidecar.routes").joinpath(f"coolify-{release}.tsv").read_text("ascii"))


def rows(text: str) -> tuple[Row, ...]:
    """The rows of a table in the form of `coolify-4.3.tsv`.

    Raises:
        RouteError: names the line that has other columns.
    """
    lines = [tuple(line.split("\t")) for line in text.splitlines()]
    if not lines or lines[0] != Row._fields:
        raise RouteError(f"line 1: expected the columns {' '.join(Row._fields)}")
    for number, fields in enumerate(lines, 1):
        if len(fields) != len(Row._fields):
            raise RouteError(f"line {number}: {len(fields)} columns, expected {len(Row._fields)}")
        if number > 1 and fields[3] not in {"-", *Permission}:
            raise RouteError(f"line {number}: {fields[3]!r} is not a permission")
    return tuple(Row(*fields) for fields in lines[1:])


def tsv(table: Iterable[Row]) -> str:
    """A table in the form that `rows` reads."""
    return "".join("\t".join(fields) + "\n" for fields in (Row._fields, *table))


def as_extra(table: Iterable[Row], base: RouteTable) -> str:
    """The operator's rows that turn one table into another: what `extra` reads.

    Rows of `base` that the table lacks become `absent`. The routes that have rules of their own
    (switches, /mcp, public ones) stay as they are in `base`, whatever the table says; any other
    row without a token or a permission is absent as well.

    Args:
        table: the rows that are wanted.
        base: the rows that they will stand in front of.

    Raises:
        RouteError: the text would not do what it promises.
    """
    wanted = [row for row in table if not _special(row.method, row.path)]
    lines = [
        f"{row.method} {row.path} {'absent' if '-' in {row.auth, row.ability} else row.ability}"
        for row in wanted
    ]
    here = {(row.method, row.path) for row in wanted}
    lines += [
        f"{route.method} {route.template} absent"
        for route in base
        if (route.method, route.template) not in here and not _special(route.method, route.template)
    ]
    text = "".join(f"{line}\n" for line in lines)
    result = extra(text, base)
    for route in base:
        method, path = route.method, route.template
        if _special(method, path) and result.find(method, path) != route:
            raise RouteError(f"a row would hide {method} {path}")
    return text


def _special(method: str, path: str) -> bool:
    return path in SWITCHES or path == "/mcp" or (method, path) in PUBLIC


def extra(text: str, base: RouteTable) -> RouteTable:
    """Put the operator's rows in front of a table: they add routes, override or close them.

    Args:
        text: one row a line, `METHOD PATH PERMISSION` separated by blanks or tabs; PERMISSION is
            a permission, `public` (counted in the bucket of unknown routes) or `deny`. Empty
            lines and lines that begin with `#` are skipped.
        base: the rows that follow.

    Raises:
        RouteError: names every bad line and what is wrong with it.
    """
    rows: list[Route] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rows.append(_extra_route(number, line.split()))
            except RouteError as error:
                problems.append(str(error))
    if problems:
        raise RouteError("; ".join(problems))
    return _checked([*rows, *base])


def _coolify_route(row: Row) -> Route:
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
    if permission == "absent":
        return Route(method, path, Guard.ABSENT)
    if permission not in _GRANTABLE:
        raise RouteError(
            f"line {number}: {permission!r} is not a permission; one of "
            f"{', '.join(_GRANTABLE)}, public, deny, absent"
        )
    return Route(method, path, Guard.ORDINARY, Permission(permission))


def _checked(routes: Iterable[Route]) -> RouteTable:
    """Refuse a table in which a method override in a POST body gains anything.

    The body is invisible to a forward-auth check, and Laravel lets it turn a POST into a PUT,
    PATCH or DELETE of the same path (coolify-semantics section 9).
    """
    table = RouteTable(routes)
    # A row that an earlier one hides whole is never reached.
    rows = [row for row in table if table.find(row.method, row.template) is row]
    by_length: dict[int, list[Route]] = {}
    for row in rows:
        if row.method in {"PUT", "PATCH", "DELETE"}:
            by_length.setdefault(len(row.segments), []).append(row)
    for post in rows:
        if post.method != "POST" or post.guard in {Guard.CLOSED, Guard.ABSENT}:
            continue
        for other in by_length.get(len(post.segments), ()):
            if overlap(post.segments, other.segments) and not _at_least(post, other):
                raise RouteError(
                    f"POST {post.template} is weaker than {other.method} {other.template}: "
                    "a method override in the body would reach it"
                )
    return table


def overlap(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether one path can match both templates."""
    return len(a) == len(b) and all(
        x == y or is_parameter(x) or is_parameter(y) for x, y in zip(a, b, strict=True)
    )


def _at_least(post: Route, other: Route) -> bool:
    """Whether whoever may call `post` may call `other` as well."""
    if other.guard in {Guard.PUBLIC, Guard.ABSENT, Guard.WRONG_METHOD}:
        return True
    if post.guard is not other.guard:
        return False
    return post.permission in {other.permission, Permission.ROOT} or (
        post.permission is Permission.READ_SENSITIVE and other.permission is Permission.READ
    )
