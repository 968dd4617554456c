"""What an admitted request has used: its route, and what it named, as texts that can be kept.

A text for a name says kinds and uuids: `=application/abc`, `=project/p/environment/prod`,
`=deploy/abc`, `=tag/blue`. Where it can't be told what was named, a text says why not.
"""

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Final, NamedTuple

from authsidecar.decision.model import ResourceKind
from authsidecar.decision.resources import MOST_NAMED, Named, Names, named
from authsidecar.decision.routes import Guard, Route
from authsidecar.decision.routes.naming import DEPLOYABLE, naming, rows

LONGEST: Final = 160
"""Characters of the longest text that is kept."""

ANYTHING: Final = "*"
"""The text of any use."""

NAME: Final = "="
"""How the text of a name begins."""

UNSURE: Final = "?"
"""How the text begins that says what could not be told, or was not kept."""

BODY: Final = "?body"
QUERY: Final = "?query"
UNKNOWN: Final = "?unknown"
MORE_ROUTES: Final = "?routes"
MORE_NAMES: Final = "?names"

_DEPLOY: Final = "deploy"
_TAG: Final = "tag"
_DEPLOYMENT: Final = f"{NAME}{ResourceKind.DEPLOYMENT.value}/"

_MEMOISED: Final = 256
"""Characters of the longest path and of the longest target that are remembered."""


class Used(NamedTuple):
    """What one request has used.

    Attributes:
        route: method and template, as a restriction names it.
        names: a text for each resource that it named; empty on routes that name nothing.
    """

    route: str
    names: tuple[str, ...] = ()


def used(method: str, template: str, path: str, target: bytes, *, body: bool = False) -> Used:
    """What an admitted request has used.

    Args:
        method: of the request; HEAD is served by GET.
        template: of the route that served it.
        path: canonical and decoded.
        target: path and query as they are sent.
        body: whether its Content-Type makes a body input.

    >>> used("HEAD", "/api/v1/servers/{uuid}/domains", "/api/v1/servers/abc/domains", b"/")
    Used(route='GET /api/v1/servers/{uuid}/domains', names=('=server/abc',))
    """
    text, kinds = _of_path(method, template)
    if kinds is not None and not body and b"?" not in target:  # as nearly always
        if not kinds:
            return Used(text)
        segments = path.split("/")
        name = NAME + "/".join([f"{kind}/{segments[at]}" for at, kind in kinds])
        if len(name) <= LONGEST and name.isprintable():
            return Used(text, (name,))
    if len(path) <= _MEMOISED and len(target) <= _MEMOISED:
        return _remembered(method, template, path, target, body)
    return _used(method, template, path, target, body)


@cache
def _of_path(method: str, template: str) -> tuple[str, tuple[tuple[int, str], ...] | None]:
    """A route as it is kept, and which segments of a path name what; None: its input does."""
    what = naming(template)
    verb = "GET" if method == "HEAD" else method
    text = f"{verb} {template}"
    if what.deploys or (what.creates and verb == "POST"):
        return text, None
    found = [(one.segment, one.kind.value) for one in what.parameters if one.kind is not None]
    return text, tuple(found) if what.judged else ()


def unnamed(method: str, template: str) -> Used:
    """The same without what it named."""
    return Used(_of_path(method, template)[0])


def _used(method: str, template: str, path: str, target: bytes, body: bool) -> Used:
    route = Route("GET" if method == "HEAD" else method, template, Guard.ORDINARY)
    text = f"{route.method} {template}"
    what = naming(template)
    if body or (what.creates and route.method == "POST"):  # which says where by its input
        return Used(text, (BODY,))
    if not what.judged:
        return Used(text)
    names = named(route, path, target)
    found = [_text(names.resources)] if names.resources and not what.deploys else []
    if what.deploys:
        found += [f"{NAME}{_DEPLOY}/{one.text}" for one in names.resources]
        found += [f"{NAME}{_TAG}/{tag}" for tag in names.tags]
    sure = found and names.unclear is None and len(names.keys) <= MOST_NAMED
    if not sure or not all(len(one) <= LONGEST and one.isprintable() for one in found):
        return Used(text, (QUERY,))
    return Used(text, tuple(found))


_remembered = lru_cache(maxsize=4096)(_used)


def _text(resources: tuple[Named, ...]) -> str:
    """What a path names, from the outside in; no segment of a path has a slash."""
    return NAME + "/".join(f"{_kind(one).value}/{one.text}" for one in resources)


def _kind(one: Named) -> ResourceKind:
    return next(iter(one.kinds))


def deployment(text: str) -> str | None:
    """The uuid of the deployment that a text names, or None."""
    return text.removeprefix(_DEPLOYMENT) if text.startswith(_DEPLOYMENT) else None


def application(uuid: str) -> str:
    """The text that names an application."""
    return f"{NAME}{ResourceKind.APPLICATION.value}/{uuid}"


def names_of(text: str) -> tuple[Route, Names] | None:
    """What a text names, with a route that names such; None if it can't be read.

    >>> names_of("=server/abc")[1].resources[0].text
    'abc'
    """
    first, _, rest = text.removeprefix(NAME).partition("/")
    if first == _TAG:
        return _route("/api/v1/deploy"), Names(tags=(rest,))
    if first == _DEPLOY:
        one = Named(DEPLOYABLE, rest)
        return _route("/api/v1/deploy"), Names((one,), keys=one.keys)
    words = text.removeprefix(NAME).split("/")
    template = _templates().get(tuple(words[::2]))
    if template is None or len(words) % 2:
        return None
    found: list[Named] = []
    for kind, said in zip(words[::2], words[1::2], strict=True):
        project = found[0].text if kind == ResourceKind.ENVIRONMENT.value and found else None
        found.append(Named(frozenset({ResourceKind(kind)}), said, project))
    keys = tuple(dict.fromkeys(key for one in found for key in one.keys))
    return _route(template), Names(tuple(found), keys=keys)


def _route(template: str) -> Route:
    return Route("GET", template, Guard.ORDINARY)


@cache
def _templates() -> Mapping[tuple[str, ...], str]:
    """A template for each row of kinds that a path can name."""
    found: dict[tuple[str, ...], str] = {}
    for template in rows():
        what = naming(template)
        kinds = tuple(one.kind.value for one in what.parameters if one.kind is not None)
        if kinds:
            found.setdefault(kinds, template)
    return found
