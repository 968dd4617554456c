"""Use cases of restrictions: narrow a token, or all of a user's or team's, and take that back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from authsidecar.admin.refusal import Refusal
from authsidecar.decision.model import (
    DAMAGED,
    Permission,
    ResourceKind,
    Restriction,
    TeamId,
    TokenId,
    UserId,
)
from authsidecar.decision.permissions import satisfies
from authsidecar.decision.resources import Named, Places, found
from authsidecar.decision.restrictions import widened
from authsidecar.decision.routes import Guard, RouteTable
from authsidecar.store.entities import Token
from authsidecar.store.registry import Registry
from authsidecar.times import rfc3339

RESOURCES: Final = frozenset(ResourceKind) - {
    ResourceKind.PROJECT,
    ResourceKind.ENVIRONMENT,
    ResourceKind.DEPLOYMENT,
}
"""What may be named by `--resource`."""

GUARDED: Final = frozenset({Guard.ORDINARY, Guard.SWITCH, Guard.MCP})
"""Routes that a token opens."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A change of one restriction that nothing speaks against.

    Attributes:
        scope: "token", "user" or "team".
        number: its id.
        old: what is there, or None.
        new: what will be there, or None.
        warnings: what is legal but unwise about it, one line each.
    """

    scope: str
    number: int
    old: Restriction | None
    new: Restriction | None
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether anything will be another than it is."""
        return self.old is DAMAGED or self.old != self.new


async def plan(
    registry: Registry,
    routes: RouteTable,
    scope: str,
    number: int,
    new: Restriction | None,
    *,
    force: bool = False,
) -> Planned | Refusal:
    """Look at a change before it is made.

    Args:
        registry: where it will be stored.
        routes: the table whose routes a restriction may name.
        scope: "token", "user" or "team".
        number: its id.
        new: what it is to be narrowed to, or None: not at all.
        force: accept what names nothing that there is, and what is wider than before.
    """
    held = await _holder(registry, scope, number)
    if held is None:
        return Refusal(
            f"there is no {scope} {number}; `authsidecar {scope} list` shows them; "
            "nothing was changed"
        )
    old = await registry.restriction(scope, number)
    if new is None:
        return Planned(scope, number, old, None)
    places = await registry.places(_keys(new))
    if not force and (why := await _objection(registry, routes, held, old, new, places=places)):
        return Refusal(
            f"{scope} {number}: {why}; --force keeps it all the same; nothing was changed"
        )
    return Planned(scope, number, old, new, tuple(_warnings(held, new)))


async def carry_out(registry: Registry, planned: Planned) -> Refusal | None:
    """Make the change; the very next request is judged by it."""
    if await registry.set_restriction(planned.scope, planned.number, planned.new):
        return None
    return Refusal(f"{planned.scope} {planned.number} has just been removed")


async def _holder(registry: Registry, scope: str, number: int) -> object | None:
    match scope:
        case "token":
            return await registry.token(TokenId(number))
        case "user":
            return await registry.user(UserId(number))
        case _:
            return await registry.team(TeamId(number))


async def _objection(
    registry: Registry,
    routes: RouteTable,
    held: object,
    old: Restriction | None,
    new: Restriction,
    *,
    places: Places,
) -> str | None:
    why = _routes_or_permissions(routes, held, new) or _elsewhere(held, new, places)
    if why is not None:
        return why
    if unknown := _unknown(new, places):
        return await _unknown_resource(registry, *unknown[0])
    if old is not None and (part := widened(old, new, places)) is not None:
        return (
            f"a restriction can't widen: {part} would admit more than the one that is there; "
            "`unrestrict` takes that back"
        )
    return None


def _routes_or_permissions(routes: RouteTable, held: object, new: Restriction) -> str | None:
    for route in sorted(new.routes or ()):
        if (why := _unknown_route(routes, route)) is not None:
            return why
    if isinstance(held, Token):
        for permission in sorted(new.permissions or ()):
            if not satisfies(held.permissions, permission):
                has = " ".join(sorted(held.permissions)) or "nothing"
                return f"a restriction can't widen: the token holds {has}, not {permission}"
    return None


def _named(new: Restriction) -> Iterator[tuple[str, Named]]:
    """What a restriction names of Coolify's, each by its option."""
    for uuid in sorted(new.projects):
        yield "--project", Named(frozenset({ResourceKind.PROJECT}), uuid)
    for text in sorted(new.environments):
        project, _, name = text.partition("/")
        yield "--environment", Named(frozenset({ResourceKind.ENVIRONMENT}), name, project)
    for uuid in sorted(new.resources):
        yield "--resource", Named(RESOURCES, uuid)


def _keys(new: Restriction) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for _, one in _named(new) for key in one.keys))


def _unknown(new: Restriction, places: Places) -> list[tuple[str, Named]]:
    return [(option, one) for option, one in _named(new) if found(one, places) is None]


def _elsewhere(held: object, new: Restriction, places: Places) -> str | None:
    """What is another team's than the token's, which Coolify would not find either."""
    if not isinstance(held, Token):
        return None
    for option, one in _named(new):
        place = found(one, places)
        if place is not None and place.team != held.team:
            return f"{option} {one.text} is of team {place.team}, the token of team {held.team}"
    return None


async def _unknown_resource(registry: Registry, option: str, one: Named) -> str:
    known = await registry.located()
    if not known:
        return f"{option} {one.text}: no resource is known; does a sync run, with sync.resources?"
    key = one.keys[0]
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"the sync knows no {key} for {option}{hint}"


def _unknown_route(routes: RouteTable, route: str) -> str | None:
    known = {f"{one.method} {one.template}" for one in routes if one.guard in GUARDED}
    if route.startswith("* "):
        known = {f"* {one.template}" for one in routes if one.guard in GUARDED}
    if route in known:
        return None
    near = get_close_matches(route, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"no table has the route '{route}': {hint}`authsidecar routes list` shows them"


def _warnings(held: object, new: Restriction) -> Iterable[str]:
    if not isinstance(held, Token):
        return
    sensitive = Permission.READ_SENSITIVE
    if (
        new.permissions is not None
        and satisfies(held.permissions, sensitive)
        and not satisfies(new.permissions, sensitive)
    ):
        yield (
            "Coolify goes by the token's own permissions when it hides secrets in an answer: with "
            "this one it still shows them; use a token without read:sensitive and root"
        )
    if held.expires_at is not None and new.until is not None and new.until > held.expires_at:
        yield f"the token itself expires earlier, {rfc3339(held.expires_at)}"
