"""What the backend may run for whom: from the data and decisions.md, nothing of the program.

The stand-in says which route it ran (`authsidecar.demo.laravel`, itself independent of the
sidecar's rules); this says whether the token that was sent may have it.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from authsidecar.demo.backend import Seen, php_spelling
from authsidecar.demo.laravel import body_fields

DATA = Path(__file__).parents[2] / "data" / "coolify-routes-4.3.tsv"

SWITCHES = {f"/api/v1/{path}" for path in ("enable", "disable", "mcp/enable", "mcp/disable")}
PUBLIC = {
    ("GET", "/api/health"),
    ("GET", "/api/v1/health"),
    ("POST", "/api/feedback"),
    ("POST", "/api/v1/sentinel/push"),
}
NOBODY = {
    **dict.fromkeys(("user-id", "team-id", "team-role", "token-id", "permissions"), "none"),
    "read-sensitive": "false",
}


class Row(NamedTuple):
    """One route of Coolify's."""

    method: str
    path: str
    ability: str

    def matches(self, method: str, path: str) -> bool:
        return method == self.method and _pattern(self.path).fullmatch(path) is not None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)))


def _rows() -> tuple[Row, ...]:
    header, *lines = DATA.read_text("ascii").splitlines()
    assert header.split("\t")[1:4] == ["method", "path", "ability"]
    return tuple(Row(*line.split("\t")[1:4]) for line in lines)


ROWS = _rows()


class Caller(NamedTuple):
    """A token with one permission or none; `valid` is false where nobody knows it."""

    token: int
    permission: str | None
    user: int = 1
    team: int = 0
    role: str = "owner"
    valid: bool = True

    @property
    def identity(self) -> dict[str, str]:
        """What the backend must be told of it, after `x-auth-`."""
        sensitive = self.permission in {"root", "*", "read:sensitive"}
        return {
            "user-id": str(self.user),
            "team-id": str(self.team),
            "team-role": self.role,
            "token-id": str(self.token),
            "permissions": self.permission or "none",
            "read-sensitive": "true" if sensitive else "false",
        }

    def may(self, row: Row) -> bool:
        """Whether decisions.md lets this token run this route."""
        if (row.method, row.path) in PUBLIC:
            return True
        if not self.valid:
            return False
        if row.path == "/mcp":
            return row.method == "POST"
        needed = "root" if row.path in SWITCHES else row.ability
        enough = {needed, "root", "*"} | ({"read:sensitive"} if needed == "read" else set())
        return self.permission in enough and (row.path not in SWITCHES or self.team == 0)


CALLERS = (
    Caller(40, "read"),
    Caller(41, "read:sensitive"),
    Caller(42, "write"),
    Caller(43, "write:sensitive"),
    Caller(44, "deploy"),
    Caller(45, "root"),
    Caller(46, "*"),
    Caller(47, None),
    Caller(48, "root", team=5),
    Caller(22, "read", user=3, role="member"),
    Caller(999, "root", valid=False),
)
ANONYMOUS = Caller(0, None, valid=False)


def faults(caller: Caller | None, seen: Seen) -> Iterator[str]:
    """What must not be, about one request that has reached the backend."""
    caller = caller or ANONYMOUS
    told = {php_spelling(name)[7:]: value for name, value in seen.identity().items()}
    if len(told) != len(seen.identity()):
        yield f"an identity header in two spellings: {seen.identity()}"
    told.pop("decision-id", None)
    if told.pop("client-ip", None) in {"6.6.6.6", "evil"}:
        yield "the client chose its own address"
    if any(php_spelling(name) == "x-http-method-override" for name in seen.headers):
        yield "a method override has reached the backend"
    ran = seen.routed and next(
        (
            row
            for row in ROWS
            if (row.method, row.path)
            == ("GET" if seen.routed.method == "HEAD" else seen.routed.method, seen.routed.template)
        ),
        None,
    )
    if not ran or not seen.routed:
        if told not in ({}, NOBODY, caller.identity):
            yield f"nobody has this identity: {told}"
        return
    if not caller.may(ran) and not _is_the_exception(caller, seen):
        yield f"{ran.method} {ran.path} ran for {caller}"
    method = "GET" if seen.method == "HEAD" else seen.method
    judged = next((row for row in ROWS if row.matches(method, seen.routed.path)), None)
    public = judged is not None and (judged.method, judged.path) in PUBLIC
    expected = NOBODY if public else caller.identity
    if told != expected:
        yield f"{ran.method} {ran.path} ran with the identity {told}, not {expected}"


def judged_as(seen: Seen) -> str | None:
    """The template that the request was to be judged by: of the row that Laravel finds for it.

    None where no token is asked for: on public routes, and outside of the API.
    """
    assert seen.routed is not None
    method = "GET" if seen.method == "HEAD" else seen.method
    row = next((row for row in ROWS if row.matches(method, seen.routed.path)), None)
    return None if row is None or (row.method, row.path) in PUBLIC else row.path


def _is_the_exception(caller: Caller, seen: Seen) -> bool:
    """A body has turned a POST that is permitted into the GET of the same path.

    Or `POST /mcp` into `DELETE /mcp`, where Coolify asks for nothing and answers 405 to everybody.
    """
    if seen.method != "POST" or seen.routed is None:
        return False
    harmless = {"GET", "HEAD", "DELETE"} if seen.routed.path == "/mcp" else {"GET", "HEAD"}
    if seen.routed.method not in harmless:
        return False
    if "_method" not in body_fields(seen.headers.get("Content-Type", ""), seen.body):
        return False
    posts = (row for row in ROWS if row.matches("POST", seen.routed.path))
    first = next(posts, None)
    return first is not None and caller.may(first)
