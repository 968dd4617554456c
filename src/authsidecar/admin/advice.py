"""What a token could be narrowed to: what it holds, against what it was used for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from shlex import quote
from typing import Any, Final

from authsidecar.admin.restrictions import GUARDED
from authsidecar.decision.model import (
    DAMAGED,
    Permission,
    ResourceKind,
    Restriction,
    TokenId,
)
from authsidecar.decision.permissions import satisfies
from authsidecar.decision.resources import Names, Places, found
from authsidecar.decision.restrictions import (
    RestrictionError,
    as_mapping,
    narrowed,
    outside,
    parse,
    refusal,
    widened,
)
from authsidecar.decision.routes import Guard, Route, RouteTable
from authsidecar.decision.usage import (
    BODY,
    MORE_NAMES,
    MORE_ROUTES,
    NAME,
    QUERY,
    UNKNOWN,
    names_of,
)
from authsidecar.store.entities import Token
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from authsidecar.store.usage import DAY_MS, Days, Usage, usage_of, usage_since
from authsidecar.times import UnixMs

DAYS: Final = 90
"""How many days are looked at where nobody says otherwise, today included."""

_OPTIONS: Final = {
    "permissions": "permission",
    "routes": "route",
    "projects": "project",
    "environments": "environment",
    "resources": "resource",
    "tags": "tag",
    "not_before": "not-before",
}
"""The options of `token restrict` that are not called as the part is."""

_UNSURE: Final = {
    MORE_ROUTES: "no routes are proposed: it used more than are kept",
    MORE_NAMES: "no resources are proposed: it named more than are kept",
    BODY: "no resources are proposed: it sent bodies, which could name another one",
    QUERY: "no resources are proposed: a query or a path could name another one",
    UNKNOWN: "no resources are proposed: it named deployments that the sync does not know",
}

_ANYWHERE: Final = ip_address("192.0.2.1")


@dataclass(frozen=True, slots=True)
class Observed:
    """Something that a token has used.

    Attributes:
        what: a route as a restriction names it, or a resource: its kind and its uuid.
        days: when.
    """

    what: str
    days: Days


@dataclass(frozen=True, slots=True)
class TokenAdvice:
    """What is known of a token's use, and what follows.

    Attributes:
        token: its id.
        since: from which day it is known.
        today: the day until which it is.
        used: when it was used, or None: not within that time.
        unused: permissions that it holds and no route that it used asks for.
        routes: that it used within that time.
        names: the resources and tags that it named.
        proposal: what would have refused nothing of that, or None: nothing narrower would.
        notes: why a part of it is not narrower.
    """

    token: TokenId
    since: int
    today: int
    used: Days | None
    unused: tuple[Permission, ...] = ()
    routes: tuple[Observed, ...] = ()
    names: tuple[Observed, ...] = ()
    proposal: Restriction | None = None
    notes: tuple[str, ...] = ()

    @property
    def days_without_use(self) -> int:
        """Days since it was used last, or that are known and without any use."""
        return self.today - (self.since - 1 if self.used is None else self.used.last)

    @property
    def command(self) -> str | None:
        """What to type, or None: nothing."""
        return None if self.proposal is None else command(self.token, self.proposal)


def command(token: TokenId, restriction: Restriction) -> str:
    """The command that narrows a token so.

    >>> command(TokenId(67), parse({"routes": ["POST /api/v1/deploy"], "rate": "10/1h"}))
    "authsidecar token restrict 67 --route 'POST /api/v1/deploy' --rate 10/3600s"
    """
    words = ["authsidecar", "token", "restrict", str(token)]
    for part, value in as_mapping(restriction).items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{_OPTIONS.get(part, part)}", quote(str(one))]
    return " ".join(words)


def advise(
    table: RouteTable,
    token: Token,
    old: Restriction | None,
    usage: Usage,
    places: Places,
    *,
    known_since: UnixMs,
    now: UnixMs,
    days: int,
) -> TokenAdvice:
    """What a token could be narrowed to.

    Args:
        table: the routes.
        token: what it holds.
        old: what narrows it, or None.
        usage: for what it was used.
        places: where the resources lie that it named, by `named_keys`.
        known_since: since when uses are noted.
        now: the time.
        days: how many days are looked at, today included.
    """
    today = now // DAY_MS
    since = max(known_since // DAY_MS, token.created_at // DAY_MS, today - days + 1)
    recent = Usage(
        usage.days if usage.days is not None and usage.days.last >= since else None,
        *(_since(since, part) for part in (usage.routes, usage.names, usage.unsure)),
    )
    rows = {f"{row.method} {row.template}": row for row in table if row.guard in GUARDED}
    served = [rows[text] for text in sorted(recent.routes) if text in rows]
    unused = () if MORE_ROUTES in recent.unsure else _unused(token.permissions, served)
    known = TokenAdvice(
        token.id, since, today, recent.days, unused, _seen(recent.routes), _seen(recent.names)
    )
    if old is DAMAGED or recent.days is None:
        return known
    proposal, notes = _proposed(served, token.permissions, old, recent, places)
    return replace(known, proposal=proposal, notes=tuple(notes))


def named_keys(usage: Usage) -> tuple[str, ...]:
    """By what it is found where the resources lie that a token named."""
    read = [names_of(text) for text in usage.names]
    return tuple(dict.fromkeys(key for one in read if one is not None for key in one[1].keys))


async def advise_on(
    registry: Registry,
    client: Any,
    keys: Keys,
    table: RouteTable,
    tokens: Iterable[Token],
    *,
    days: int,
) -> list[TokenAdvice]:
    """What these tokens could be narrowed to.

    Args:
        registry: where they are.
        client: redis-py's asyncio client.
        keys: the key names.
        table: the routes.
        tokens: in the order of the answers.
        days: how many days are looked at, today included.
    """
    asked, now = list(tokens), await registry.now()
    known_since = await usage_since(client, keys)
    ids = [one.id for one in asked]
    uses = await usage_of(client, keys, ids)
    old = await registry.restrictions("token", ids)
    wanted = tuple(dict.fromkeys(key for one in uses.values() for key in named_keys(one)))
    places = await registry.places(wanted)
    return [
        advise(
            *(table, one, old.get(one.id), uses.get(one.id, Usage()), places),
            known_since=now if known_since is None else known_since,
            now=now,
            days=days,
        )
        for one in asked
    ]


def _since(day: int, found: Mapping[str, Days]) -> dict[str, Days]:
    return {what: days for what, days in found.items() if days.last >= day}


def _seen(found: Mapping[str, Days]) -> tuple[Observed, ...]:
    return tuple(Observed(what.removeprefix(NAME), days) for what, days in sorted(found.items()))


def _unused(held: frozenset[Permission], served: Iterable[Route]) -> tuple[Permission, ...]:
    """What is held and no route asks for; MCP's tools may use any."""
    asked = {one for route in served for one in route.sufficient}
    if any(route.guard is Guard.MCP for route in served):
        return ()
    return tuple(sorted(p for p in held if p not in asked and not _brings(p, held, asked)))


def _brings(p: Permission, held: frozenset[Permission], asked: set[Permission]) -> bool:
    """Whether read:sensitive is what a route for read was used by."""
    reads = p is Permission.READ_SENSITIVE and Permission.READ not in held
    return reads and Permission.READ in asked


def _needed(held: frozenset[Permission], served: Iterable[Route]) -> frozenset[Permission]:
    """The least permissions that all these routes are served with; none: that can't be told.

    MCP's tools go by the token's own permissions, and no route says by which.
    """
    if any(route.guard is Guard.MCP for route in served):
        return frozenset()
    chosen: set[Permission] = set()
    for route in sorted(served, key=lambda one: len(one.sufficient)):
        if route.sufficient and not any(satisfies(chosen, one) for one in route.sufficient):
            chosen.update([one for one in route.sufficient if satisfies(held, one)][:1])
    return frozenset(chosen)


def _proposed(
    served: list[Route],
    held: frozenset[Permission],
    old: Restriction | None,
    usage: Usage,
    places: Places,
) -> tuple[Restriction | None, list[str]]:
    """A restriction that would have refused none of this, and why it is not narrower."""
    before = old or Restriction()
    notes = [_UNSURE[what] for what in sorted(usage.unsure) if what in _UNSURE]
    there = replace(before, networks=())
    served = [one for one in served if refusal(there, one, _ANYWHERE) is None]
    if MORE_ROUTES in usage.unsure or not served:
        return None, notes
    new = replace(before, routes=frozenset(f"{one.method} {one.template}" for one in served))
    if needed := _needed(narrowed(held, {"token": before}), served):
        new = replace(new, permissions=needed)
    if usage.names and not set(usage.unsure) - {MORE_ROUTES}:
        narrower, why = _to_resources(before, new, usage.names, places)
        if why is not None:
            notes.append(f"no resources are proposed: {why}")
        new = narrower or new
    try:
        same = parse(as_mapping(new)) == before
    except RestrictionError as error:
        return None, [*notes, str(error)]
    return (None if same or widened(before, new, places) else new), notes


def _to_resources(
    before: Restriction, new: Restriction, names: Iterable[str], places: Places
) -> tuple[Restriction | None, str | None]:
    """The same, narrowed to these resources; or why it can't be."""
    read = [(text, names_of(text)) for text in sorted(names)]
    if unread := [text for text, one in read if one is None]:
        return None, f"{unread[0]} can't be read"
    # What the restriction that is there refuses was used before it was.
    asked = [one for _, one in read if one and outside(before, *one, places) is None]
    if not asked:
        return None, None
    narrower = replace(
        new,
        projects=frozenset(),
        environments=frozenset(),
        resources=frozenset(),
        tags=frozenset(tag for _, named in asked for tag in named.tags),
    )
    for _, named in asked:
        narrower = _with(narrower, named)
    narrower = _without_needless(narrower, lambda one: _refused(one, asked, places) is None)
    why = _refused(narrower, asked, places)
    if why is None and (part := widened(before, narrower, places)) is not None:
        why = f"{part} would be wider than the restriction that is there"
    return (narrower, None) if why is None else (None, why)


def _with(restriction: Restriction, named: Names) -> Restriction:
    """The same with what a request has named: of a path, the innermost."""
    for one in named.resources[-1:]:
        match one.kinds:
            case kinds if kinds == {ResourceKind.PROJECT}:
                return replace(restriction, projects=restriction.projects | {one.text})
            case kinds if kinds == {ResourceKind.ENVIRONMENT}:
                text = f"{one.project}/{one.text}"
                return replace(restriction, environments=restriction.environments | {text})
            case _:
                return replace(restriction, resources=restriction.resources | {one.text})
    return restriction


def _without_needless(
    restriction: Restriction, suffices: Callable[[Restriction], bool]
) -> Restriction:
    """The same without resources and environments that lie within others of it."""
    for part in ("resources", "environments"):
        for one in sorted(getattr(restriction, part)):
            smaller = replace(restriction, **{part: getattr(restriction, part) - {one}})
            if smaller.to_resources and suffices(smaller):
                restriction = smaller
    return restriction


def _refused(
    restriction: Restriction, asked: Iterable[tuple[Route, Names]], places: Places
) -> str | None:
    """Why it would have refused any of this, or None."""
    for route, named in asked:
        unknown = [one for one in named.resources if found(one, places) is None]
        if unknown:
            return f"the sync does not know {unknown[0].noun} {unknown[0].text}"
        if (why := outside(restriction, route, named, places)) is not None:
            return f"it {why.why}"
    return None
