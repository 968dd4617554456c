"""Route tables from text: Coolify's own, and the operator's rows in front of them."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Final, Literal, NamedTuple, get_args

from authsidecar.decision.model import METHODS, Permission
from authsidecar.decision.routes.table import Guard, Route, RouteTable, is_parameter

Release = Literal["4.0", "4.1", "4.3", "4.4"]
"""A Coolify release line whose routes are known."""

RELEASES: Final[tuple[Release, ...]] = get_args(Release)

TABLES: Final[Mapping[Release, str]] = {"4.0": "4.0", "4.1": "4.1", "4.3": "4.3", "4.4": "4.3"}
"""The table of each. 4.4 has the routes of 4.3, as of its first release candidate."""

WITHIN: Final = {"4.2": "4.3"}
"""Release lines without a table of their own, and the table to use: the stricter of both
neighbours. 4.3 has all rows of 4.1, none that needs less and none that hides one from a stronger
one; 4.1 would let /mcp pass while the team's MCP switch (new in 4.2) is off."""

SWITCHES: Final = frozenset(
    {"/api/v1/enable", "/api/v1/disable", "/api/v1/mcp/enable", "/api/v1/mcp/disable"}
)
"""Need `root` and the instance team, whatever the data says (decisions: Permissions and routes)."""

MCP_PATH: Final = "/mcp"
"""The MCP server's own path, the only one outside /api that is guarded."""

PUBLIC: Final = {
    ("GET", "/api/health"): "health",
    ("GET", "/api/v1/health"): "health",
    ("POST", "/api/feedback"): "feedback",
    ("POST", "/api/v1/sentinel/push"): "sentinel",
}
"""The only rows without a token, and the bucket that each is counted in."""

EXTRA_COLUMNS: Final = (
    "method, path and permission (a permission, several with commas, `public`, `switch`, `deny` "
    "or `absent`)"
)
_SWITCHES: Final = tuple(sorted(SWITCHES))
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


def serves(release: str) -> str:
    """Which table to use for a release line of WITHIN, and why, in a few words."""
    return f"use the table of {WITHIN[release]}, the stricter of its neighbours"


def released(release: str) -> tuple[Row, ...]:
    """The rows of a Coolify release line as they were recorded.

    Raises:
        RouteError: the release is not known.
    """
    known = next((one for one in RELEASES if one == release), None)
    if known is None:
        use = f": {serves(release)}" if release in WITHIN else ""
        raise RouteError(f"no routes for Coolify {release!r}{use}; known: {', '.join(RELEASES)}")
    table = f"coolify-{TABLES[known]}.tsv"
    return rows(files("authsidecar.decision.routes").joinpath(table).read_text("ascii"))


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
        if number > 1 and fields[3] != "-" and not set(fields[3].split(",")) <= set(Permission):
            raise RouteError(f"line {number}: {fields[3]!r} is not a permission")
    return tuple(Row(*fields) for fields in lines[1:])


def tsv(table: Iterable[Row]) -> str:
    """A table in the form that `rows` reads."""
    return "".join("\t".join(fields) + "\n" for fields in (Row._fields, *table))


class Extra(NamedTuple):
    """A table as the operator's own rows.

    Attributes:
        text: what `extra` reads; it ends with what was left out, as comments.
        left_out: what the rows cannot say, one line each.
    """

    text: str
    left_out: tuple[str, ...]


def as_extra(table: Iterable[Row], base: RouteTable) -> Extra:
    """The operator's rows that turn one table into another.

    Rows of `base` that the table lacks become `absent`, but for /mcp: Coolify's routes/api.php
    does not have it, so it stays as it is in `base`. A row without a token or a permission is
    absent as well, unless it is named as public.

    Args:
        table: the rows that are wanted.
        base: the rows that they will stand in front of.

    Raises:
        RouteError: the text would not do what it promises.
    """
    wanted = tuple(table)
    told = [row for row in wanted if row.path != MCP_PATH]
    here = {(row.method, row.path) for row in told}
    lines = [f"{row.method} {row.path} {_word(row)}" for row in told]
    lines += [
        f"{route.method} {route.template} absent"
        for route in base
        if route.template != MCP_PATH and (route.method, route.template) not in here
    ]
    left_out = (*_left_out(told), *_mcp_left_out(wanted, base))
    text = "".join(f"{line}\n" for line in lines)
    result = extra(text, base)
    special = {(m, p) for m, p in here if p in SWITCHES or (m, p) in PUBLIC}
    special |= {(route.method, route.template) for route in base if route.template == MCP_PATH}
    for method, path in sorted(special):
        found = result.find(method, path)
        if found is None or (found.method, found.template) != (method, path):
            raise RouteError(f"a row would hide {method} {path}")
    return Extra(text + "".join(f"# left out: {line}\n" for line in left_out), left_out)


def _word(row: Row) -> str:
    """What stands in the place of the permission of an operator's row."""
    if row.path in SWITCHES:
        return "switch"
    if "-" not in {row.auth, row.ability}:
        return row.ability
    return "public" if (row.method, row.path) in PUBLIC else "absent"


def _left_out(table: Iterable[Row]) -> Iterator[str]:
    """What Coolify says of its rows and an operator's row cannot say."""
    for row in table:
        name = f"{row.method} {row.path}"
        if _word(row) == "absent":
            yield f"{name}: has no token or no permission and is not named as public, so absent"
        elif own := set(row.throttle.split("+")) - {"-", "api", "feedback"}:
            limits = ", ".join(sorted(own))
            yield f"{name}: its own rate limit ({limits}) is left to Coolify"


def _mcp_left_out(table: Iterable[Row], base: RouteTable) -> Iterator[str]:
    """That a release with /mcp stands in front of one without: no operator's row can be it."""
    has_mcp = any(row.path in {MCP_PATH, "/api/v1/mcp/enable"} for row in table)
    if has_mcp and not any(route.template == MCP_PATH for route in base):
        yield "POST /mcp: the base has no such route, so it is refused; take a base of 4.1 or later"


def extra(text: str, base: RouteTable) -> RouteTable:
    """Put the operator's rows in front of a table: they add routes, override or close them.

    Args:
        text: one row a line, `METHOD PATH PERMISSION` separated by blanks or tabs; PERMISSION is
            a permission, several with commas between them (each suffices), `public` (counted in
            the bucket of unknown routes, but for those that are named), `switch` (for the four
            switches), `deny` or `absent`. Empty lines and lines that begin with `#` are skipped.
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
    if path == MCP_PATH:
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
        return Route(method, path, Guard.PUBLIC, bucket=PUBLIC.get((method, path), "unknown"))
    if permission == "switch":
        if path not in SWITCHES:
            raise RouteError(f"line {number}: {path} is no switch; one of {', '.join(_SWITCHES)}")
        return Route(method, path, Guard.SWITCH, Permission.ROOT)
    if permission == "deny":
        return Route(method, path, Guard.CLOSED)
    if permission == "absent":
        return Route(method, path, Guard.ABSENT)
    names = permission.split(",")
    if odd := [name for name in names if name not in _GRANTABLE]:
        raise RouteError(
            f"line {number}: {odd[0]!r} is not a permission; one of "
            f"{', '.join(_GRANTABLE)}, public, switch, deny, absent"
        )
    first, *others = map(Permission, dict.fromkeys(names))
    return Route(method, path, Guard.ORDINARY, first, alternatives=tuple(others))


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
    return all(
        one in {*other.sufficient, Permission.ROOT}
        or (one is Permission.READ_SENSITIVE and Permission.READ in other.sufficient)
        for one in post.sufficient
    )
