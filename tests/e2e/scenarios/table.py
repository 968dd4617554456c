"""What a row of the scenario table is made of."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from authsidecar.decision.model import Proxy
from tests.support import world as at
from tests.support.lab import Lab


@dataclass(frozen=True, slots=True)
class Refused:
    """The sidecar's own words, whole, and the backend has seen nothing."""

    status: int
    code: str
    message: str | None = None
    missing: str | None = None
    realm: str = "coolify"

    def __str__(self) -> str:
        return f"{self.status} `{self.code}`"


@dataclass(frozen=True, slots=True)
class ByProxy:
    """The proxy refuses by itself; JSON with a code where it can."""

    status: int
    code: str | None = None

    def __str__(self) -> str:
        words = f" `{self.code}`" if self.code else ", no JSON"
        return f"{self.status}{words} (the proxy's own)"


@dataclass(frozen=True, slots=True)
class Runs:
    """The backend has run this route, for this token (None: for nobody)."""

    route: str
    token: int | None = at.READ
    status: int = 200
    counted: bool = True

    def __str__(self) -> str:
        return f"{self.status}, runs `{self.route}`"


Sees = Refused | ByProxy | Runs
Given = Callable[[Lab], Awaitable[int | None]]
"""Prepares the state; the token that it returns is the one that asks."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row.

    Attributes:
        name: unique.
        proves: checks (C), pitfalls (P) and bypasses (B) that it stands for, by number.
        sees: what the client sees through every proxy that `but` does not name.
        method, target, lines, token, body: what it asks.
        given: prepares the state.
        but: the differences.
    """

    name: str
    proves: str
    sees: Sees
    method: str = "GET"
    target: str = "/api/v1/teams"
    lines: tuple[str, ...] = ()
    token: int | None = None
    body: bytes = b""
    given: Given | None = None
    but: Mapping[Proxy, Sees] = field(default_factory=dict)

    def through(self, proxy: Proxy) -> Sees:
        return self.but.get(proxy, self.sees)


def permission(name: str) -> Refused:
    return Refused(403, "permission_missing", f"Missing required permissions: {name}", name)


UNAUTHENTICATED = "Unauthenticated."
AMBIGUOUS = Refused(400, "ambiguous_target")
OWN_AMBIGUOUS = ByProxy(400, "ambiguous_target")
UNREADABLE = ByProxy(400, "request_unreadable")
OWN_400 = ByProxy(400)
TEAMS = Runs("GET /api/v1/teams")
