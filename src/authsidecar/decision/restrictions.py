"""What narrows a token: how a restriction is read and written, and what it refuses.

A restriction is kept beside the token, and may stand beside its user and its team as a ceiling.
Each of them only refuses: whatever passes would pass without it, too. One that can't be read
refuses everything.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from authsidecar.decision.addresses import parse_network
from authsidecar.decision.model import (
    DAMAGED,
    METHODS,
    UNREADABLE_LIMIT,
    Address,
    Hours,
    Kind,
    Limit,
    Permission,
    Place,
    Reason,
    ResourceKind,
    Restriction,
)
from authsidecar.decision.permissions import satisfies
from authsidecar.decision.resources import LONGEST_NAME, MOST_NAMED, Names, Places, found
from authsidecar.decision.routes import Guard, Route
from authsidecar.decision.routes.naming import naming
from authsidecar.times import UnixMs, parse_rfc3339, rfc3339

TOKEN_RESTRICTED: Final = Reason(
    "token_restricted", Kind.FORBIDDEN, 403, "This token is restricted."
)

LONGEST_NOTE: Final = 500
"""Characters of the longest note."""

MOST_ENTRIES: Final = 300
"""How many routes, networks or hours one restriction lists at the most: a whole route table."""

LARGEST_RATE: Final = 100_000
LARGEST_BUDGET: Final = 1_000_000_000
LONGEST_WINDOW_MS: Final = 86_400_000

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_UUID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_DAY_MINUTES: Final = 24 * 60
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RATE: Final = re.compile(r"([0-9]{1,6})/([0-9]{0,5})([smhd]?)")
_TIME: Final = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")


class RestrictionError(ValueError):
    """What is written is no restriction: in one line, which part and why."""


# ------------------------------------------------------------------------------ what it refuses


def refusal(restriction: Restriction, route: Route, client: Address) -> str | None:
    """Why it refuses this route or this address at any time, or None.

    MCP's one route reaches whatever the backend's tools may do, by the token's own permissions:
    where these are narrowed, it is refused unless it is named itself.
    """
    if (unread := _unread(restriction)) is not None:
        return unread
    routes = restriction.routes
    if routes is not None and not _names(routes, route):
        return f"does not name {route.method} {route.template}"
    if restriction.to_resources and not naming(route.template).judged and routes is None:
        return f"can't tell what {route.method} {route.template} touches; --route names it"
    held = restriction.permissions
    if held is not None:
        if route.guard is Guard.MCP and routes is None:
            return "narrows the permissions, which MCP does not look at; --route names it"
        if route.sufficient and not any(satisfies(held, one) for one in route.sufficient):
            wanted = " or ".join(route.sufficient)
            return f"leaves {' '.join(sorted(held))}, the route needs {wanted}"
    return elsewhere(restriction, client)


def _unread(restriction: Restriction) -> str | None:
    """Why it refuses everything, if it could not be read, or None."""
    if restriction is DAMAGED:
        return "cannot be read, so it admits nothing"
    if restriction is UNREADABLE_LIMIT:
        return "is a limit that cannot be read, so it admits nothing"
    return None


def elsewhere(restriction: Restriction, client: Address) -> str | None:
    """Why it refuses everything from this address, or None."""
    if restriction.networks and not any(client in network for network in restriction.networks):
        return f"does not admit {client}"
    return None


class Refused(NamedTuple):
    """Why what a request names is refused.

    Attributes:
        why: what follows "the token's restriction".
        noun: what Coolify would call what it does not find; None: it is no matter of finding.
        advice: what the client is told to do instead.
    """

    why: str
    noun: str | None = None
    advice: str = ""


HIDDEN_BODY: Final = (
    "This token is restricted to resources, and a body could name another one: send the request "
    "without a body and without this Content-Type; what it needs may stand in the query."
)


def outside(restriction: Restriction, route: Route, names: Names, places: Places) -> Refused | None:
    """Why what a request names is not all known to lie inside, or None.

    Of a path the innermost resource counts, and what is around it must be: a part of a service is
    the service's. A route that names nothing is `refusal`'s to judge.

    Args:
        restriction: any.
        route: that serves the request.
        names: what it names.
        places: what is known of that.
    """
    what = naming(route.template)
    creates = what.creates and route.method == "POST"
    if not restriction.to_resources or not (what.judged or (creates and names.held)):
        return None
    if (hidden := _hidden(restriction, route, names)) is not None:
        return hidden
    around = () if what.deploys else names.resources[:-1]
    for one in names.resources[len(around) :]:
        place = found(one, places)
        if place is None:
            return Refused(f"does not know {one.noun} {one.text}")
        if not _inside(restriction, one.text, place):
            return Refused(f"has not {one.noun} {one.text} within it", one.noun)
        for outer in around:
            project = ResourceKind.PROJECT in outer.kinds
            if outer.text != (place.project if project else place.within):
                return Refused(f"knows {one.text} elsewhere than in {outer.text}", one.noun)
    return _outside_by_body(restriction, names, places)


def _outside_by_body(restriction: Restriction, names: Names, places: Places) -> Refused | None:
    """Why what a body names is not all known to lie inside; nothing that it says is told."""
    for one in names.more:
        place = found(one, places)
        if place is None:
            return Refused(f"does not know the {one.noun} that the body names")
        if not _inside(restriction, one.text, place):
            return Refused(f"has not the {one.noun} that the body names within it", one.noun)
    return None


def _hidden(restriction: Restriction, route: Route, names: Names) -> Refused | None:
    """Why it can't be seen what is named, wherever that would lie, or None."""
    if names.body:
        return Refused("does not admit a body that can't be seen", advice=HIDDEN_BODY)
    if names.unclear is not None:
        return Refused(f"can't tell what is named: {names.unclear}", advice=f"{names.unclear}.")
    if not names.resources and not names.more and not names.tags:
        return Refused(f"can't tell what {route.method} {route.template} touches: no uuid is given")
    if len(names.keys) > MOST_NAMED:
        return Refused(f"admits {MOST_NAMED} resources at once")
    for tag in names.tags:
        if tag not in restriction.tags:
            return Refused("does not name a tag that is to be deployed")
    return None


def _inside(restriction: Restriction, text: str, place: Place) -> bool:
    """Whether what has this uuid lies in one of these projects or environments, or is listed."""
    if place.project and place.project in restriction.projects:
        return True
    environments = (place.environment, place.environment_name)
    if any(name and f"{place.project}/{name}" in restriction.environments for name in environments):
        return True
    if place.kind in {ResourceKind.PROJECT, ResourceKind.ENVIRONMENT}:
        return False
    return text in restriction.resources or (
        bool(place.within) and place.within in restriction.resources
    )


def refusal_of_all(restriction: Restriction, client: Address, now: UnixMs | None) -> str | None:
    """Why it refuses this address at this time, whatever the route, or None."""
    why = _unread(restriction) or elsewhere(restriction, client)
    return refusal_now(restriction, now) if why is None and now is not None else why


def refusal_now(restriction: Restriction, now: UnixMs) -> str | None:
    """Why it refuses everything at this time, or None."""
    if restriction.not_before is not None and now < restriction.not_before:
        return f"begins {rfc3339(restriction.not_before)}"
    if restriction.until is not None and now > restriction.until:
        return f"ended {rfc3339(restriction.until)}"
    if restriction.hours and not _within_minute(restriction.hours, now // 60_000):
        return f"admits {', '.join(map(hours_text, restriction.hours))}"
    return None


def depends_on_time(restriction: Restriction) -> bool:
    """Whether the same request may be refused at one time and admitted at another."""
    return (
        restriction.not_before is not None
        or restriction.until is not None
        or bool(restriction.hours)
    )


def within(hours: Hours, now: UnixMs) -> bool:
    """Whether the clocks of the place show one of these hours.

    The clocks decide: an hour that they skip admits nothing that day, one that they show twice is
    admitted twice.
    """
    local = datetime.fromtimestamp(now / 1000, UTC).astimezone(hours.zone)
    day, minute = local.weekday(), local.hour * 60 + local.minute
    if hours.start < hours.end:
        return day in hours.days and hours.start <= minute < hours.end
    begun_today = day in hours.days and minute >= hours.start
    return begun_today or ((day - 1) % 7 in hours.days and minute < hours.end)


@lru_cache(maxsize=4096)
def _within_minute(hours: tuple[Hours, ...], minute: int) -> bool:
    """Whether any of these hours holds in this minute: zones differ by whole minutes."""
    return any(within(one, UnixMs(minute * 60_000)) for one in hours)


def narrowed(
    held: frozenset[Permission], restrictions: Mapping[str, Restriction]
) -> frozenset[Permission]:
    """The permissions that are left: what the token has, and what each restriction leaves of it.

    >>> sorted(narrowed(frozenset({Permission.ROOT}), {
    ...     "token": Restriction(permissions=frozenset({Permission.READ}))
    ... }))
    [<Permission.READ: 'read'>]
    """
    for restriction in restrictions.values():
        left = restriction.permissions
        if left is not None:
            held = frozenset(p for p in held | left if satisfies(held, p) and satisfies(left, p))
    return held


def _names(routes: frozenset[str], route: Route) -> bool:
    return _is_named(f"{route.method} {route.template}", routes)


# ------------------------------------------------------------------------- how it is written


def write(restriction: Restriction) -> str:
    """The text that `read` reads."""
    return json.dumps(as_mapping(restriction), separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=4096)
def read(text: bytes) -> Restriction:
    """The restriction that was written; DAMAGED if that can't be read."""
    try:
        return parse(json.loads(text))
    except (ValueError, RecursionError):
        return DAMAGED


def as_mapping(restriction: Restriction) -> dict[str, Any]:
    """A restriction as files and --json have it: only what it limits."""
    one = restriction
    parts: dict[str, Any] = {
        "permissions": None if one.permissions is None else sorted(one.permissions),
        "routes": None if one.routes is None else sorted(one.routes),
        "projects": sorted(one.projects) or None,
        "environments": sorted(one.environments) or None,
        "resources": sorted(one.resources) or None,
        "tags": sorted(one.tags) or None,
        "from": [str(network) for network in one.networks] or None,
        "rate": None if one.rate is None else rate_text(one.rate),
        "uses": one.uses,
        "not_before": None if one.not_before is None else rfc3339(one.not_before),
        "until": None if one.until is None else rfc3339(one.until),
        "hours": [hours_text(hours) for hours in one.hours] or None,
        "note": one.note or None,
    }
    return {name: value for name, value in parts.items() if value is not None}


def parse(given: object) -> Restriction:
    """The restriction that a file, Redis or the command line spells.

    Args:
        given: a mapping with any of the names that `as_mapping` gives; at least one that limits.

    Raises:
        RestrictionError: names the part, and says what is wrong with it.
    """
    if not isinstance(given, Mapping):
        raise RestrictionError("a restriction is a mapping, such as {permissions: [read]}")
    if unknown := sorted(str(name) for name in given if name not in _PARTS):
        raise RestrictionError(f"{unknown[0]!a} is none of {', '.join(_PARTS)}")
    parts: dict[str, Any] = {}
    for name, value in given.items():
        field, convert = _PARTS[name]
        try:
            parts[field] = convert(value)
        except ValueError as error:
            raise RestrictionError(f"{name}: {error}") from None
    made = Restriction(**parts)
    if made == Restriction(note=made.note):
        raise RestrictionError("it limits nothing")
    start, end = made.not_before, made.until
    if start is not None and end is not None and end < start:
        raise RestrictionError("until: it is before not_before")
    return made


def _permissions(value: object) -> frozenset[Permission]:
    return frozenset(_permission(text) for text in _texts(value))


def _permission(text: str) -> Permission:
    known = [p.value for p in Permission if p is not Permission.LEGACY_ROOT]
    if text not in known:
        raise ValueError(f"{text!a} is none of {', '.join(known)}")
    return Permission(text)


def _routes(value: object) -> frozenset[str]:
    return frozenset(_route(text) for text in _texts(value))


def _route(text: str) -> str:
    method, blank, template = text.partition(" ")
    if not blank or not template.startswith("/") or " " in template:
        raise ValueError(f"{text!a} is no METHOD and template, such as 'GET /api/v1/servers'")
    if method != "*" and method not in METHODS - {"HEAD", "OPTIONS"}:
        raise ValueError(f"{method!a} is no method of a route; GET serves HEAD, too")
    return text


def _uuids(value: object) -> frozenset[str]:
    return frozenset(_uuid(text) for text in _texts(value))


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError(f"{text!a} is no uuid")
    return text


def _environments(value: object) -> frozenset[str]:
    for text in _texts(value):
        project, slash, name = text.partition("/")
        if not slash or not _UUID.fullmatch(project) or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"{text!a} is no PROJECT/NAME, with the uuid of a project")
        _printable(name)
    return frozenset(_texts(value))


def _tags(value: object) -> frozenset[str]:
    for text in _texts(value):
        if not text.strip() or text != text.strip() or "," in text or len(text) > LONGEST_NAME:
            raise ValueError(f"{text!a} is no name of a tag")
        _printable(text)
    return frozenset(_texts(value))


def _printable(text: str) -> None:
    if not text.isprintable():
        raise ValueError(f"{text!a} holds a control character")


def _networks(value: object) -> tuple[Any, ...]:
    found = []
    for text in _texts(value):
        try:
            found.append(parse_network(text))
        except ValueError as error:
            raise ValueError(f"{text!a}: {error}") from None
    return tuple(sorted(set(found), key=lambda one: (one.version, one)))


def _hours(value: object) -> tuple[Hours, ...]:
    return tuple(dict.fromkeys(parse_hours(text) for text in _texts(value)))


def _time(value: object) -> UnixMs:
    if not isinstance(value, str):
        raise ValueError("it is no text with a time such as 2027-01-31T12:00:00Z")  # noqa: TRY004
    return parse_rfc3339(value)


def _rate(value: object) -> Limit:
    return parse_rate(value if isinstance(value, str) else "")


def _uses(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_BUDGET:
        raise ValueError(f"it is no whole number from 1 to {LARGEST_BUDGET}")
    return value


def _note(value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NOTE:
        raise ValueError(f"it is no text of at most {LONGEST_NOTE} characters")
    if not value.isprintable():
        raise ValueError("it holds a control character")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("it is no list of texts")
    if not value:
        raise ValueError("an empty list would admit nothing")
    if len(value) > MOST_ENTRIES:
        raise ValueError(f"it has more than {MOST_ENTRIES} entries")
    return value


_PARTS: Final[Mapping[str, tuple[str, Callable[[object], Any]]]] = {
    "permissions": ("permissions", _permissions),
    "routes": ("routes", _routes),
    "projects": ("projects", _uuids),
    "environments": ("environments", _environments),
    "resources": ("resources", _uuids),
    "tags": ("tags", _tags),
    "from": ("networks", _networks),
    "rate": ("rate", _rate),
    "uses": ("uses", _uses),
    "not_before": ("not_before", _time),
    "until": ("until", _time),
    "hours": ("hours", _hours),
    "note": ("note", _note),
}
"""What may be written, with its field here and how it is read."""


def parse_rate(text: str) -> Limit:
    """The limit that `N/WINDOW` spells; a window is seconds, or a number with s, m, h or d.

    Raises:
        ValueError: what is wrong with it.

    >>> parse_rate("10/1m")
    Limit(requests=10, window_ms=60000)
    """
    found = _RATE.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        raise ValueError(f"{text!a} is not N/WINDOW, such as 10/60s or 100/1h")
    limit = Limit(int(found[1]), int(found[2] or 1) * _UNITS_MS[found[3] or "s"])
    if not 1 <= limit.requests <= LARGEST_RATE:
        raise ValueError(f"{limit.requests} is not 1 to {LARGEST_RATE} requests")
    if not 1 <= limit.window_ms <= LONGEST_WINDOW_MS:
        raise ValueError("its window is not one second to one day")
    return limit


def rate_text(limit: Limit) -> str:
    """The text that `parse_rate` reads."""
    return f"{limit.requests}/{limit.window_ms // 1000}s"


@lru_cache(maxsize=256)
def parse_hours(text: str) -> Hours:
    """The hours that `DAYS HH:MM-HH:MM ZONE` spells.

    Args:
        text: days as `Mon-Fri` or `Mon,Wed`, a time of the day that may end on the next one, and
            the name of a zone of the tz database.

    Raises:
        ValueError: what is wrong with it.

    >>> hours_text(parse_hours("Sat,Sun 22:00-06:00 Europe/Berlin"))
    'Sat,Sun 22:00-06:00 Europe/Berlin'
    """
    parts = text.split(" ")
    times = _TIME.fullmatch(parts[1]) if len(parts) == 3 else None
    if times is None:
        raise ValueError(f"{text!a} is not such as Mon-Fri 08:00-18:00 Europe/Berlin")
    days = _days(parts[0])
    start = int(times[1]) * 60 + int(times[2])
    end = int(times[3]) * 60 + int(times[4])
    if max(int(times[2]), int(times[4])) > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError(f"{parts[1]!a} is no time of the day, 00:00-24:00 at the most")
    if start == end or not end:
        raise ValueError(f"{parts[1]!a}: the whole day is 00:00-24:00, until midnight is 24:00")
    try:
        zone = ZoneInfo(parts[2])
    except (ValueError, OSError, KeyError):
        raise ValueError(f"{parts[2]!a} is no time zone, such as Europe/Berlin or UTC") from None
    return Hours(days, start, end, zone)


def hours_text(hours: Hours) -> str:
    """The text that `parse_hours` reads."""
    days = ",".join(DAYS[day] for day in sorted(hours.days))
    start, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in (hours.start, hours.end))
    return f"{days} {start}-{end} {hours.zone.key}"


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!a} is no day or span of days: {', '.join(DAYS)}, Mon-Fri")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found.update((start + i) % 7 for i in range((end - start) % 7 + 1))
    return frozenset(found)


# -------------------------------------------------------------------------- whether it is wider


def widened(old: Restriction, new: Restriction, places: Places | None = None) -> str | None:
    """In which part a restriction would admit what the one before did not, or None.

    Hours are compared as they are written.

    Args:
        old: what is there.
        new: what is to be there.
        places: where the resources lie that the new one names.
    """
    return next((part for part, wider in _wider(old, new, places or {}) if wider), None)


def _wider(old: Restriction, new: Restriction, places: Places) -> Iterable[tuple[str, bool]]:
    if old is DAMAGED:
        return
    yield (
        "permissions",
        old.permissions is not None
        and (
            new.permissions is None
            or not all(satisfies(old.permissions, one) for one in new.permissions)
        ),
    )
    yield (
        "routes",
        old.routes is not None
        and (new.routes is None or not all(_is_named(route, old.routes) for route in new.routes)),
    )
    if old.to_resources:
        yield "resources", not new.to_resources
        yield "projects", not new.projects <= old.projects
        within = old.projects
        beyond = {one for one in new.environments if one.partition("/")[0] not in within}
        yield "environments", not beyond <= old.environments
        yield "resources", not all(_covered(old, uuid, places) for uuid in new.resources)
        yield "tags", not new.tags <= old.tags
    yield (
        "from",
        bool(old.networks)
        and (
            not new.networks
            or not all(
                any(_is_within(one, other) for other in old.networks) for one in new.networks
            )
        ),
    )
    yield (
        "not_before",
        old.not_before is not None and (new.not_before is None or new.not_before < old.not_before),
    )
    yield "until", old.until is not None and (new.until is None or new.until > old.until)
    yield "hours", bool(old.hours) and not (new.hours and set(new.hours) <= set(old.hours))
    yield (
        "rate",
        old.rate is not None
        and (
            new.rate is None
            or new.rate.requests > old.rate.requests
            or new.rate.window_ms < old.rate.window_ms
        ),
    )
    yield "uses", old.uses is not None and (new.uses is None or new.uses > old.uses)


def _covered(old: Restriction, uuid: str, places: Places) -> bool:
    """Whether a resource is one of these, or known to lie within them."""
    place = places.get(uuid)
    return uuid in old.resources or (place is not None and _inside(old, uuid, place))


def _is_named(route: str, routes: frozenset[str]) -> bool:
    return route in routes or f"* {route.partition(' ')[2]}" in routes


def _is_within(one: Any, other: Any) -> bool:
    return bool(one.version == other.version and one.subnet_of(other))
