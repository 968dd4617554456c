"""What a route names: by parameters of its path, by keys of its query, and by keys of a body.

The data is `resources.tsv`, a row for each template of every shipped release line. A parameter of
kind `-` lies within what stands before it, where Coolify looks for it, or is the team's. A key of
a body names what must lie inside a restriction, or with `-` what is the team's; one that is not
there, and looks as if it named something, is refused.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final, NamedTuple

from authsidecar.decision.model import ResourceKind
from authsidecar.decision.routes.table import is_parameter

COLUMNS: Final = ("path", "parameters", "query", "body")

WITHIN: Final = "-"
"""The kind of a parameter that names nothing by itself."""

DEPLOYABLE: Final = frozenset(
    {ResourceKind.APPLICATION, ResourceKind.DATABASE, ResourceKind.SERVICE}
)
"""What `deploy` takes by its query."""

_NOUNS: Final = {
    "servers": ResourceKind.SERVER,
    "projects": ResourceKind.PROJECT,
    "applications": ResourceKind.APPLICATION,
    "databases": ResourceKind.DATABASE,
    "services": ResourceKind.SERVICE,
}
"""What is named by the parameter behind these, on a template that the data does not have."""


class Parameter(NamedTuple):
    """One parameter of a path.

    Attributes:
        segment: where it stands in the path split at its slashes, which begins with an empty one.
        name: as the template spells it, and as a key of the input would replace it.
        kind: what it names, or None.
    """

    segment: int
    name: str
    kind: ResourceKind | None


class Naming(NamedTuple):
    """What the requests of one route name.

    Attributes:
        parameters: of the path, in order.
        deploys: whether the input's `uuid` and `tag` name what is to be deployed.
        body: the kinds of what keys of a body name; of what is the team's, none.
        known: False for a template that the data does not have: the kinds are a guess.
    """

    parameters: tuple[Parameter, ...] = ()
    deploys: bool = False
    body: Mapping[str, frozenset[ResourceKind]] = MappingProxyType({})
    known: bool = True

    @property
    def judged(self) -> bool:
        """Whether it is known what is named, and there is anything that the sync follows."""
        return self.known and (self.deploys or any(one.kind is not None for one in self.parameters))

    @property
    def creates(self) -> bool:
        """Whether its path names nothing, and a body says where in the tree something is made."""
        return bool(self.body) and not self.judged


@cache
def naming(template: str) -> Naming:
    """What a template names."""
    row = rows().get(template)
    if row is None:
        return _guess(template)
    kinds = dict(part.split("=") for part in row["parameters"].split(" ") if part != WITHIN)
    found = tuple(
        Parameter(at, name, None if kinds[name] == WITHIN else ResourceKind(kinds[name]))
        for at, name in _parameters(template)
    )
    body = dict(part.split("=") for part in row["body"].split(" ") if part != WITHIN)
    named = {key: _kinds(text) for key, text in body.items()}
    return Naming(found, deploys=row["query"] != WITHIN, body=MappingProxyType(named))


def _kinds(text: str) -> frozenset[ResourceKind]:
    return frozenset(map(ResourceKind, text.split(","))) if text != WITHIN else frozenset()


@cache
def rows() -> Mapping[str, Mapping[str, str]]:
    """The data by template."""
    text = files("authsidecar.decision.routes").joinpath("resources.tsv").read_text("ascii")
    head, *lines = (tuple(line.split("\t")) for line in text.splitlines())
    assert head == COLUMNS  # noqa: S101  # a test holds the whole file
    return {line[0]: dict(zip(COLUMNS, line, strict=True)) for line in lines}


def _guess(template: str) -> Naming:
    """The first parameter, if it stands behind a noun: so far an operator's own row is judged."""
    found = _parameters(template)
    parameters = [Parameter(at, name, None) for at, name in found]
    if parameters:
        at = parameters[0].segment
        parameters[0] = parameters[0]._replace(kind=_NOUNS.get(template.split("/")[at - 1]))
    return Naming(tuple(parameters), known=False)


def _parameters(template: str) -> list[tuple[int, str]]:
    segments = enumerate(template.split("/"))
    return [(at, segment[1:-1]) for at, segment in segments if is_parameter(segment)]
