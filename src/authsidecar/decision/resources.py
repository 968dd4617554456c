"""Which of Coolify's resources a request names, and whether they lie inside a restriction.

The path is not the whole truth: Coolify's controllers look into the input first, so a key of the
query or of a body replaces the path's parameter of the same name, and `deploy` takes its targets
from there. What PHP would make of a query is read here, and what a body names that a proxy shows;
any other body can't be seen.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from authsidecar.decision.bodies import Body
from authsidecar.decision.model import Place, ResourceKind
from authsidecar.decision.routes import Route
from authsidecar.decision.routes.naming import DEPLOYABLE, Naming, naming

LONGEST_NAME: Final = 255
"""The columns are varchar(255): a longer text is nobody's uuid or name."""

MOST_NAMED: Final = 100
"""How many resources a request may name where that is judged."""

NOUNS: Final = {
    ResourceKind.PROJECT: "Project",
    ResourceKind.ENVIRONMENT: "Environment",
    ResourceKind.SERVER: "Server",
    ResourceKind.APPLICATION: "Application",
    ResourceKind.DATABASE: "Database",
    ResourceKind.SERVICE: "Service",
    ResourceKind.SERVICE_APPLICATION: "Service application",
    ResourceKind.SERVICE_DATABASE: "Service database",
    ResourceKind.DEPLOYMENT: "Deployment",
}
"""The words of Coolify's 404."""

_MEMOISED: Final = 256
"""Characters of the longest path and of the longest target that are remembered."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Text that no step of PHP or Laravel (trimming, nulling, converting) makes another of."""

_NAME: Final = re.compile(r"\S(?:[^\x00-\x1f\x7f]*\S)?")
"""Text of one line without blanks around it: a name that is no uuid."""

# Keys of Coolify's input that name a resource: uuids, ids, and what may be named by its name.
_NAMES_ONE: Final = re.compile(
    r"(?i)uuid|(?:\A|[^a-z])ids?\Z|project|environment|server|destination|tag|github_app|gitlab_app"
)

_HARMLESS: Final = frozenset(
    {
        *("docker_tag", "docker_registry_image_tag", "pull_request_id", "gpu_device_ids"),
        *("is_build_server", "use_build_server"),
        *("server_disk_usage_check_frequency", "server_disk_usage_notification_threshold"),
    }
)
"""Keys that look like such a name and are none: of an image or device, and settings."""

_METHOD: Final = "_method"
"""The key by which Laravel runs another method than the request's."""


class Named(NamedTuple):
    """One resource that a request names.

    Attributes:
        kinds: what it may be.
        text: as it is written; uuids differ by letter case, and an environment may be named by
            its name.
        project: within which project an environment is looked for.
    """

    kinds: frozenset[ResourceKind]
    text: str
    project: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """By what it is found: an environment by its name first, as Coolify does."""
        if self.project is None:
            return (self.text,)
        return environment_key(self.project, self.text), self.text

    @property
    def noun(self) -> str:
        """What Coolify calls it."""
        return NOUNS[next(iter(self.kinds))] if len(self.kinds) == 1 else "Resource"


class Names(NamedTuple):
    """Everything that a request names.

    Attributes:
        resources: by its path, outermost first, or what it deploys.
        others: what a key of its query names in place of the path; for some spellings it is not
            sure that PHP reads them so.
        more: what keys of its body name beside those; none of it is ever told.
        tags: that it deploys.
        unclear: why the query or the body may name something else, or None.
        body: whether a body, which can't be seen, may name something else.
        held: whether what a creation names is looked at, since bodies are shown.
        keys: by what all of it is found.
    """

    resources: tuple[Named, ...] = ()
    others: tuple[Named, ...] = ()
    more: tuple[Named, ...] = ()
    tags: tuple[str, ...] = ()
    unclear: str | None = None
    body: bool = False
    held: bool = False
    keys: tuple[str, ...] = ()


NOTHING: Final = Names()
"""Of a request that names nothing."""


def environment_key(project: str, name: str) -> str:
    """By what an environment is found that is named within its project; no uuid has a slash."""
    return f"{project}/{name}"


def named(route: Route, path: str, target: bytes) -> Names:
    """What a request names by its path and its query.

    Args:
        route: that serves it.
        path: canonical and decoded.
        target: path and query as they are sent.

    >>> from authsidecar.decision.routes import Guard
    >>> route = Route("GET", "/api/v1/servers/{uuid}/domains", Guard.ORDINARY)
    >>> [one.text for one in named(route, "/api/v1/servers/abc/domains", b"").resources]
    ['abc']
    >>> named(route, "/api/v1/servers/abc/domains", b"/?u%75id=d").others[0].text
    'd'
    """
    if len(target) <= _MEMOISED and len(path) <= _MEMOISED:
        return _remembered(route.template, path, target)
    return _named(route.template, path, target)


def with_body(names: Names, route: Route, path: str, body: Body) -> Names:
    """What a request names by its path, its query and its body.

    Which of them Laravel takes does not matter: each must name what is admitted.

    Args:
        names: by its path and its query.
        route: that serves it.
        path: canonical and decoded.
        body: what it says.
    """
    what = naming(route.template)
    said = _of_path(what, path)
    pairs = dict(body.pairs)
    more: list[Named] = []
    tags = list(names.tags)
    unclear = names.unclear or body.fault
    for key, value in pairs.items():
        if key not in said:
            if what.deploys and key == "tag":
                tags += _listed(value)
            elif what.deploys and key == "uuid":
                more += [Named(DEPLOYABLE, text) for text in _listed(value)]
            elif key in what.body:
                more += _of_key(what.body[key], value, pairs.get("project_uuid"))
        unclear = unclear or _fault(what, said, key, value)
    if _may_name(body.inner - _HARMLESS):
        unclear = unclear or "a key inside the body may name another resource"
    around = {one.project for one in more if one.project}  # of an environment that says its own
    found = tuple(
        one
        for one in dict.fromkeys(more)
        if one not in names.resources
        and not (ResourceKind.PROJECT in one.kinds and one.text in around)
    )
    keys = dict.fromkeys((*names.keys, *(key for one in found for key in one.keys)))
    return names._replace(
        more=found, tags=tuple(dict.fromkeys(tags)), unclear=unclear, keys=tuple(keys)
    )


def _fault(what: Naming, said: Mapping[str, str], key: str, value: object) -> str | None:
    """Why a key of a body may name something that it can't be told to name, or None."""
    if key == _METHOD:
        return "the body has a _method, which makes the request another one"
    if key in said:
        same = value == said[key] and _PLAIN.fullmatch(said[key])
        return None if same else f"the body's {key} stands for the path's and says something else"
    if what.deploys and key in {"uuid", "tag"}:
        proper = _PLAIN.fullmatch if key == "uuid" else _NAME.fullmatch
        listed = _listed(value)
        if value is None or (listed and all(map(proper, listed))):
            return None
        return f"the body's {key} is no list with commas between"
    if kinds := what.body.get(key):
        proper = _NAME.fullmatch if kinds == {ResourceKind.ENVIRONMENT} else _PLAIN.fullmatch
        if value is None or (isinstance(value, str) and _is_name(value) and proper(value)):
            return None
        return f"the body's {key} is no name"
    if key in what.body or key in _HARMLESS or not _may_name((key,)):
        return None
    return "a key of the body may name another resource"


def _listed(value: object) -> list[str]:
    return value.split(",") if isinstance(value, str) else []


def _of_key(kinds: frozenset[ResourceKind], value: object, project: object) -> list[Named]:
    """What a key of a body names; an environment is looked for in the project that is named."""
    if not kinds or not isinstance(value, str):
        return []
    within = isinstance(project, str) and kinds == {ResourceKind.ENVIRONMENT}
    return [Named(kinds, value, str(project) if within else None)]


def _named(template: str, path: str, target: bytes) -> Names:
    names = _read(template, path, target.partition(b"?")[2])
    keys = dict.fromkeys(k for one in (*names.resources, *names.others) for k in one.keys)
    return names._replace(keys=tuple(keys)) if keys else names


def _read(template: str, path: str, query: bytes) -> Names:
    what = naming(template)
    said = _of_path(what, path)
    resources = _resources(what, said)
    if any(one.kind and not _is_name(said[one.name]) for one in what.parameters):
        return Names(resources, unclear="a part of the path is too long for a name")
    if not query:
        return Names(resources) if resources else NOTHING
    keys = tuple(_keys(query))
    return _deployed(keys) if what.deploys else _replaced(what, said, resources, keys)


def _deployed(keys: Iterable["_Key"]) -> Names:
    """What `deploy` is to deploy: of equal keys all count, though the last one wins."""
    targets: list[Named] = []
    tags: list[str] = []
    unclear: str | None = None
    for key in keys:
        texts = [text for text in key.value.split(",") if text]
        if key.names & {"uuid", "tag"} and not key.plain:
            unclear = "a key of the query may be read as uuid or tag"
        if "uuid" in key.names:
            targets += [Named(DEPLOYABLE, text) for text in texts if _is_name(text)]
            if not all(map(_PLAIN.fullmatch, texts)):
                unclear = "the query's uuid is no list of uuids with commas between them"
        elif "tag" in key.names:
            tags += texts
            if any(text != text.strip() or not text.isprintable() for text in texts):
                unclear = "the query's tag is no list of tags with commas between them"
        else:
            unclear = unclear or _doubt(key)
    found = tuple(dict.fromkeys(targets))
    return Names(found, tags=tuple(dict.fromkeys(tags)), unclear=unclear)


def _replaced(
    what: Naming, said: Mapping[str, str], resources: tuple[Named, ...], keys: Iterable["_Key"]
) -> Names:
    """What a path names, and what is named where keys of the query stand for its parameters."""
    others: list[Named] = []
    unclear: str | None = None
    for key in keys:
        replaced = key.names & said.keys()
        for name in replaced:
            if not key.plain or key.value != said[name] or not _PLAIN.fullmatch(key.value):
                unclear = f"a key of the query stands for the path's {name} and says something else"
        if replaced:
            others += _resources(what, {**said, **dict.fromkeys(replaced, key.value.strip())})
        else:
            unclear = unclear or _doubt(key)
    more = tuple(one for one in dict.fromkeys(others) if one not in resources)
    return Names(resources, more, unclear=unclear)


def _doubt(key: "_Key") -> str | None:
    """Why a key may name something that nothing else names, or None."""
    if key.names <= _HARMLESS or not _may_name(key.names):
        return None
    return "a key of the query may name another resource"


def _may_name(keys: Iterable[str]) -> bool:
    return any(map(_NAMES_ONE.search, keys))


_remembered = lru_cache(maxsize=4096)(_named)


def _of_path(what: Naming, path: str) -> dict[str, str]:
    """What the path says for each of its parameters."""
    segments = path.split("/")
    return {one.name: segments[one.segment] for one in what.parameters}


def _resources(what: Naming, said: Mapping[str, str]) -> tuple[Named, ...]:
    """What these values of the path's parameters name."""
    found: list[Named] = []
    for one in what.parameters:
        text = said[one.name]
        if one.kind is None or not _is_name(text):
            continue
        project = found[0].text if one.kind is ResourceKind.ENVIRONMENT and found else None
        found.append(Named(frozenset({one.kind}), text, project))
    return tuple(found)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME


class _Key(NamedTuple):
    """One key of a query.

    Attributes:
        names: what PHP may call the variable.
        value: as PHP decodes it.
        plain: whether it is no array, so that there is one reading.
    """

    names: frozenset[str]
    value: str
    plain: bool


def _keys(query: bytes) -> Iterator[_Key]:
    """The keys of a query as PHP reads them.

    `;` separates nothing for PHP, but proxies rewrite it to `&`: both readings count.

    Source: main/php_variables.c: blanks before a name are dropped, a NUL ends it, ` ` and `.`
    become `_`, and `[` begins an index, or becomes `_` if there is no `]`.
    """
    parts = query.split(b"&")
    if b";" in query:
        parts += query.replace(b";", b"&").split(b"&")
    for part in parts:
        if not part:
            continue
        raw, _, value = part.partition(b"=")
        key = _decoded(raw).partition("\0")[0].lstrip(" ")
        base, bracket, _ = key.partition("[")
        names = {_folded(base), _folded(key)} if bracket else {_folded(key)}
        yield _Key(frozenset(names), _decoded(value), plain=not bracket)


def _folded(name: str) -> str:
    return name.translate(_FOLDS)


_FOLDS: Final = str.maketrans(" .[", "___")


def _decoded(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8", "replace")


# ------------------------------------------------------------------------ where it lies

Places = Mapping[str, Place | None]
"""What is known of the resources that a request names, by their keys; None: nothing."""


def found(one: Named, places: Places) -> Place | None:
    """Where a resource lies; None if it is not known, or not one of the kinds that it must be."""
    known = [place for key in one.keys if (place := places.get(key)) is not None]
    known = [place for place in known if place.kind in one.kinds]
    if one.project is not None:
        known = [place for place in known if place.project == one.project]
    return known[0] if len(set(known)) == 1 else None


def owned(one: Named, places: Places) -> Place | None:
    """Where something lies that has this text, whatever it is: whose it is can be told."""
    return next((place for key in one.keys if (place := places.get(key)) is not None), None)
