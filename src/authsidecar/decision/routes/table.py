"""A route table in memory: rows in order, and the row that a method and path reach."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from authsidecar.decision.model import Kind, Permission, Reason

ROUTE_UNKNOWN: Final = Reason("route_unknown", Kind.NOT_FOUND, 404, "Not found.")
"""No row, no access."""

FRONT_CONTROLLER: Final = "/index.php"
"""Symfony cuts it off, so `/index.php/api/v1/teams` would be routed as `/api/v1/teams`: no path
that begins with it, in any case, has a route."""


class Guard(StrEnum):
    """Which checks stand before a route; closed, so that the policy can match on all of it."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    ORDINARY = "ordinary"
    """Token, rate limit, team, role, API switch, allowlist, permission."""
    SWITCH = "switch"
    """The enable and disable routes: as ordinary, but neither API switch nor allowlist, and
    the instance team."""
    MCP = "mcp"
    """`POST /mcp`: token, rate limit, team, role, allowlist, the two MCP switches."""
    PUBLIC = "public"
    """No token; a bucket per client address."""
    WRONG_METHOD = "wrong-method"
    """The path exists, this method never works: 405."""
    CLOSED = "closed"
    """The operator closed a route that the backend has: 404, as if there were no row."""
    ABSENT = "absent"
    """The backend has no such route: 404; nothing has to be kept from reaching it."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One row.

    Attributes:
        method: upper case; a GET row answers HEAD too.
        template: `/api/v1/servers/{uuid}`; a parameter is one whole, non-empty segment.
        guard: the checks that stand before it.
        permission: what the token must hold; None for public and MCP rows.
        alternatives: permissions each of which suffices as well.
        bucket: the rate-limit scope of a public row; None for all others.
    """

    method: str
    template: str
    guard: Guard
    permission: Permission | None = None
    bucket: str | None = None
    alternatives: tuple[Permission, ...] = ()

    @property
    def sufficient(self) -> tuple[Permission, ...]:
        """The permissions each of which is enough; none for public and MCP rows."""
        return () if self.permission is None else (self.permission, *self.alternatives)

    @property
    def segments(self) -> tuple[str, ...]:
        """The template's segments; `/mcp` has one."""
        return tuple(self.template.split("/")[1:])


def is_parameter(segment: str) -> bool:
    """Whether a template's segment stands for any text."""
    return segment.startswith("{") and segment.endswith("}")


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    order: int = -1


class RouteTable:
    """Finds the first row, in order, that a method and a canonical path match.

    A look-up walks the path's segments, so its cost does not grow with the number of rows.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        """Index the rows; an earlier row wins over a later one that matches too."""
        self._routes = tuple(routes)
        self._roots: dict[str, _Node] = {}
        self._deepest = max((len(route.segments) for route in self._routes), default=0)
        for order, route in enumerate(self._routes):
            node = self._roots.setdefault(route.method, _Node())
            for segment in route.segments:
                if is_parameter(segment):
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
                else:
                    node = node.literals.setdefault(segment, _Node())
            if node.order < 0:
                node.order = order

    def __iter__(self) -> Iterator[Route]:
        """The rows in matching order."""
        return iter(self._routes)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._routes)

    def find(self, method: str, path: str) -> Route | None:
        """The row that serves this request, or None: no row, no access.

        Args:
            method: upper case; HEAD goes by the GET row.
            path: canonical: decoded once, no empty or dot segments, no trailing slash.
        """
        root = self._roots.get("GET" if method == "HEAD" else method)
        if root is None or path.count("/") > self._deepest:
            return None
        order = _first(root, path.split("/"), 1)
        return None if order < 0 else self._routes[order]


def _first(node: _Node, segments: list[str], at: int) -> int:
    """The lowest order below `node` that matches `segments[at:]`, or -1."""
    if at == len(segments):
        return node.order
    literal = node.literals.get(segments[at])
    found = -1 if literal is None else _first(literal, segments, at + 1)
    if node.parameter is not None and segments[at]:
        other = _first(node.parameter, segments, at + 1)
        if other >= 0 and (found < 0 or other < found):
            return other
    return found
