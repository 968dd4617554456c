"""Which of Coolify's resources a path names: its controllers look for it in the caller's team."""

from typing import Final, NamedTuple

from authsidecar.decision.model import TeamId
from authsidecar.decision.routes import Route

NOUNS: Final = {
    "servers": "Server",
    "projects": "Project",
    "applications": "Application",
    "databases": "Database",
    "services": "Service",
}
"""What has a team, by the segment in front of its uuid, in the words of Coolify's 404."""

LONGEST_UUID: Final = 255
"""The columns are varchar(255): a longer text is nobody's uuid."""


class Resource(NamedTuple):
    """One server, project, application, database or service.

    Attributes:
        noun: one of NOUNS' words.
        uuid: as the path spells it; uuids differ by letter case.
        team: whose it is, or None as long as that is not known.
    """

    noun: str
    uuid: str
    team: TeamId | None = None


def named(route: Route, path: str) -> Resource | None:
    """The resource that a path names, or None: the route's first parameter, behind a noun.

    What follows the first parameter lies within that resource, where Coolify looks for it.

    >>> from authsidecar.decision.routes import Guard
    >>> route = Route("GET", "/api/v1/servers/{uuid}/domains", Guard.ORDINARY)
    >>> named(route, "/api/v1/servers/abc/domains")
    Resource(noun='Server', uuid='abc', team=None)
    """
    before, parameter, _ = route.template.partition("/{")
    noun = NOUNS.get(before.rpartition("/")[2])
    if noun is None or not parameter:
        return None
    uuid = path[len(before) + 1 :].partition("/")[0]
    return Resource(noun, uuid) if len(uuid) <= LONGEST_UUID else None
