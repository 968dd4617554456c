"""Which team owns what in Coolify's tables, for `sync.team_isolation`, as far as they are there.

Pure. A server and a project name their team; whatever is deployed lies in an environment of a
project. Nothing here is needed to decide: what cannot be read is nobody's that is known, and
Coolify judges it itself.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

TEAMED: Final = ("servers", "projects")
"""Tables whose rows name their team."""

PLACED: Final = (
    "applications",
    "services",
    "standalone_postgresqls",
    "standalone_redis",
    "standalone_mongodbs",
    "standalone_mysqls",
    "standalone_mariadbs",
    "standalone_keydbs",
    "standalone_dragonflies",
    "standalone_clickhouses",
)
"""Tables whose rows name their environment."""

NEEDS: Final = {
    "servers": ("uuid", "team_id"),
    "projects": ("uuid", "team_id", "id"),
    **dict.fromkeys(PLACED, ("uuid", "environment_id")),
    "environments": ("id", "project_id"),
}
"""The columns that are read, by table."""

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


NOTHING: Final = Reading("(SELECT ''::text AS uuid, 0::bigint AS team_id WHERE false) o", ())
"""How no owner is read."""


def reading(there: Columns) -> Reading:
    """How all owners are read that can be."""
    parts = [_teamed(name, there) for name in TEAMED if _has(there, name)]
    if _has(there, "environments") and _has(there, "projects"):
        parts += [_placed(name, there) for name in PLACED if _has(there, name)]
    missing = tuple(_missing(there))
    if not parts:
        return Reading(NOTHING.source, missing)
    # A uuid is unique in its table alone: one that two teams have in two tables is nobody's.
    source = (
        f"(SELECT uuid, min(team_id) AS team_id FROM ({' UNION ALL '.join(parts)}) a "  # noqa: S608  # nothing of it is input
        "WHERE uuid IS NOT NULL GROUP BY uuid HAVING min(team_id) = max(team_id)) o"
    )
    return Reading(source, missing)


def _teamed(name: str, there: Columns) -> str:
    return f"SELECT r.uuid::text AS uuid, r.team_id FROM {name} r{_alive(name, there)}"  # noqa: S608


def _placed(name: str, there: Columns) -> str:
    return (
        f"SELECT r.uuid::text, p.team_id FROM {name} r "  # noqa: S608
        "JOIN environments e ON e.id = r.environment_id "
        f"JOIN projects p ON p.id = e.project_id{_alive(name, there)}"
    )


def _alive(name: str, there: Columns) -> str:
    return f" WHERE r.{DELETED} IS NULL" if (name, DELETED) in there else ""


def _has(there: Columns, table: str) -> bool:
    return all((table, column) in there for column in NEEDS[table])


def _missing(there: Columns) -> Iterator[str]:
    """What is not there: whole tables by their name, single columns as `table.column`."""
    for table, columns in NEEDS.items():
        lacking = [column for column in columns if (table, column) not in there]
        if len(lacking) == len(columns):
            yield table
        else:
            yield from (f"{table}.{column}" for column in lacking)
