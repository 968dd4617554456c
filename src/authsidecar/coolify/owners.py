"""Which team owns what in Coolify's tables, and where it lies, as far as they are there.

Pure. A server and a project name their team; environments lie in a project, whatever is deployed in
an environment, parts in a service, deployments in an application. What cannot be read is not known:
team isolation leaves it to Coolify, a restriction to resources refuses it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from authsidecar.decision.model import ResourceKind

TEAMED: Final = {"servers": ResourceKind.SERVER, "projects": ResourceKind.PROJECT}
"""Tables whose rows name their team."""

PLACED: Final = {
    "applications": ResourceKind.APPLICATION,
    "services": ResourceKind.SERVICE,
    **dict.fromkeys(
        (
            "standalone_postgresqls",
            "standalone_redis",
            "standalone_mongodbs",
            "standalone_mysqls",
            "standalone_mariadbs",
            "standalone_keydbs",
            "standalone_dragonflies",
            "standalone_clickhouses",
        ),
        ResourceKind.DATABASE,
    ),
}
"""Tables whose rows name their environment."""

PARTS: Final = {
    "service_applications": ResourceKind.SERVICE_APPLICATION,
    "service_databases": ResourceKind.SERVICE_DATABASE,
}
"""Tables whose rows name their service."""

DEPLOYMENTS: Final = "application_deployment_queues"
"""Its rows name their application, and are never removed by themselves."""

NEWEST: Final = 1000
"""How many deployments are followed, the newest: what a round costs must not grow with time."""

NEEDS: Final = {
    "servers": ("uuid", "team_id"),
    "projects": ("uuid", "team_id", "id"),
    **dict.fromkeys(PLACED, ("uuid", "environment_id")),
    "environments": ("id", "project_id"),
    **dict.fromkeys(PARTS, ("uuid", "service_id")),
    DEPLOYMENTS: ("id", "deployment_uuid", "application_id"),
}
"""The columns without which nothing is read of a table."""

MORE: Final = {"environments": ("uuid", "name"), "services": ("id",), "applications": ("id",)}
"""The columns without which less is known: environments by themselves, parts, deployments."""

DELETED: Final = "deleted_at"
"""Set in a row that is on its way out: Coolify finds it no more, so it is nobody's."""

Columns = Collection[tuple[str, str]]
"""Which columns of which tables are there and may be read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How owners are read from the tables that there are.

    Attributes:
        source: what stands after FROM: `o`, with the columns `uuid` and `team_id`.
        missing: the tables and columns without which some owners are not known.
    """

    source: str
    missing: tuple[str, ...]


COLUMNS: Final = ("uuid", "team_id", "kind", "project", "environment", "environment_name", "within")
"""What is read of each resource; kind is empty where two tables have the uuid, in one team."""

NOTHING: Final = Reading(
    "(SELECT ''::text AS uuid, 0::bigint AS team_id, "
    + ", ".join(f"''::text AS {name}" for name in COLUMNS[2:])
    + " WHERE false) o",
    (),
)
"""How no owner is read."""


def reading(there: Columns) -> Reading:
    """How all owners are read that can be."""
    parts = [_teamed(name, there) for name in TEAMED if _has(there, name)]
    if _has(there, "environments") and _has(there, "projects"):
        parts += _environments(there)
        parts += [_placed(name, there) for name in PLACED if _has(there, name)]
        if _has(there, "services") and ("services", "id") in there:
            parts += [_part(name, there) for name in PARTS if _has(there, name)]
        if _has(there, "applications") and ("applications", "id") in there:
            parts += [_deployments(there)] if _has(there, DEPLOYMENTS) else []
    missing = tuple(_missing(there))
    if not parts:
        return Reading(NOTHING.source, missing)
    # A uuid is unique in its table alone: one that two teams have in two tables is nobody's, and
    # of one that a team has twice it is not known where it lies.
    known = ", ".join(
        f"CASE WHEN count(*) = 1 THEN min({name}) ELSE '' END AS {name}" for name in COLUMNS[2:]
    )
    source = (
        f"(SELECT uuid, min(team_id) AS team_id, {known} "  # noqa: S608  # nothing of it is input
        f"FROM ({' UNION ALL '.join(parts)}) a ({', '.join(COLUMNS)}) "
        "WHERE uuid IS NOT NULL GROUP BY uuid HAVING min(team_id) = max(team_id)) o"
    )
    return Reading(source, missing)


def _teamed(name: str, there: Columns) -> str:
    kind = TEAMED[name]
    project = "r.uuid::text" if kind is ResourceKind.PROJECT else "''"
    return (
        f"SELECT r.uuid::text, r.team_id, '{kind}', {project}, '', '', '' "  # noqa: S608
        f"FROM {name} r{_where(_alive(name, there))}"
    )


def _environments(there: Columns) -> Iterator[str]:
    """An environment by its uuid, and by its name within its project, as Coolify looks for it."""
    for column, key in (("uuid", "e.uuid::text"), ("name", "p.uuid::text || '/' || e.name")):
        if ("environments", column) in there:
            yield _below(ResourceKind.ENVIRONMENT, key, "environments e", there)


def _placed(name: str, there: Columns) -> str:
    environment = f"{name} r JOIN environments e ON e.id = r.environment_id"
    return _below(PLACED[name], "r.uuid::text", environment, there, alive=_alive(name, there))


def _part(name: str, there: Columns) -> str:
    service = (
        f"{name} r JOIN services s ON s.id = r.service_id "
        "JOIN environments e ON e.id = s.environment_id"
    )
    alive = (*_alive(name, there), *_alive("services", there, "s"))
    return _below(PARTS[name], "r.uuid::text", service, there, within="s.uuid::text", alive=alive)


def _deployments(there: Columns) -> str:
    newest = (
        f"(SELECT deployment_uuid, application_id FROM {DEPLOYMENTS} "  # noqa: S608
        f"ORDER BY id DESC LIMIT {NEWEST}) r JOIN applications s "
        "ON s.id::text = r.application_id::text JOIN environments e ON e.id = s.environment_id"
    )
    alive = _alive("applications", there, "s")
    key = "r.deployment_uuid::text"
    return _below(ResourceKind.DEPLOYMENT, key, newest, there, within="s.uuid::text", alive=alive)


def _below(
    kind: ResourceKind,
    key: str,
    environment: str,
    there: Columns,
    *,
    within: str = "''",
    alive: tuple[str, ...] = (),
) -> str:
    """What lies in an environment `e` of a project."""
    uuid, name = (
        f"coalesce(e.{column}::text, '')" if ("environments", column) in there else "''"
        for column in MORE["environments"]
    )
    return (
        f"SELECT {key}, p.team_id, '{kind}', p.uuid::text, {uuid}, {name}, {within} "  # noqa: S608
        f"FROM {environment} JOIN projects p ON p.id = e.project_id{_where(alive)}"
    )


def _alive(name: str, there: Columns, row: str = "r") -> tuple[str, ...]:
    return (f"{row}.{DELETED} IS NULL",) if (name, DELETED) in there else ()


def _where(conditions: tuple[str, ...]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _has(there: Columns, table: str) -> bool:
    return all((table, column) in there for column in NEEDS[table])


def _missing(there: Columns) -> Iterator[str]:
    """What is not there: whole tables by their name, single columns as `table.column`."""
    for table, needed in NEEDS.items():
        columns = (*needed, *MORE.get(table, ()))
        lacking = [column for column in columns if (table, column) not in there]
        if len(lacking) == len(columns):
            yield table
        else:
            yield from (f"{table}.{column}" for column in lacking)
