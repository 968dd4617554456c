"""Which of Coolify's tables name an owner, and what is said of those that are not there."""

import pytest

from authsidecar.coolify import entities
from authsidecar.coolify.owners import (
    COLUMNS,
    DELETED,
    DEPLOYMENTS,
    MORE,
    NEEDS,
    NOTHING,
    PARTS,
    PLACED,
    reading,
)
from authsidecar.coolify.rows import owner
from authsidecar.coolify.source import BUCKET
from authsidecar.decision.model import Place, ResourceKind, TeamId
from authsidecar.store.bulk import Owner
from authsidecar.store.keys import OWNER_BUCKETS

ALL = {(table, column) for table, columns in NEEDS.items() for column in columns} | {
    (table, column) for table, columns in MORE.items() for column in columns
}


def without(table: str, *columns: str) -> set[tuple[str, str]]:
    """All columns but these of one table; without any, but the whole table."""
    return {(t, c) for t, c in ALL if t != table or (columns and c not in columns)}


def test_all_tables_are_read_where_all_are_there() -> None:
    """Each once, and nothing is missing."""
    found = reading(ALL)

    assert found.missing == ()
    for table in NEEDS.keys() - {"environments", DEPLOYMENTS}:
        assert found.source.count(f"FROM {table} r") == 1
    assert found.source.count(f"FROM {DEPLOYMENTS}") == 1
    assert found.source.count("FROM environments e") == 2


def test_without_any_table_nothing_is_read() -> None:
    """A database that names no owner is no failure: every table is said to be missing."""
    found = reading(set())

    assert found.source == NOTHING.source
    assert set(found.missing) == set(NEEDS)


@pytest.mark.parametrize("table", [*sorted(PLACED.keys() - {"applications", "services"}), *PARTS])
def test_a_table_that_is_missing_is_left_out_and_named(table: str) -> None:
    """An older Coolify has fewer kinds of databases; the others are read."""
    found = reading(without(table))

    assert found.missing == (table,)
    assert f"FROM {table} r" not in found.source
    assert found.source.count(" UNION ALL ") == reading(ALL).source.count(" UNION ALL ") - 1


@pytest.mark.parametrize(
    ("table", "column"), [("environments", "project_id"), ("projects", "team_id")]
)
def test_without_the_way_to_a_team_only_servers_and_projects_are_read(
    table: str, column: str
) -> None:
    """A column that is not granted is named, and what needs it is not guessed."""
    found = reading(without(table, column))

    assert found.missing == (f"{table}.{column}",)
    assert "environments" not in found.source
    assert "FROM servers r" in found.source


def test_a_column_that_is_not_granted_is_named_with_its_table() -> None:
    """So that the operator can grant it."""
    assert reading(without("applications", "environment_id")).missing == (
        "applications.environment_id",
    )


def test_deleted_rows_are_left_out_where_the_column_is_there() -> None:
    """Servers and whatever is deployed are deleted softly; projects are not."""
    found = reading(ALL | {("servers", DELETED), ("applications", DELETED)})

    assert found.source.count("r.deleted_at IS NULL") == 2
    assert found.source.count("s.deleted_at IS NULL") == 1  # of the deployments' applications


@pytest.mark.parametrize(
    ("table", "column", "gone"),
    [
        ("environments", "uuid", ["e.uuid"]),
        ("environments", "name", ["e.name"]),
        ("services", "id", [*PARTS]),
        ("applications", "id", [DEPLOYMENTS]),
        ("services", "uuid", ["services r", *PARTS]),
    ],
)
def test_without_a_column_less_is_known(table: str, column: str, gone: list[str]) -> None:
    """An older release, or a grant that is missing: what does not need it is read all the same."""
    found = reading(without(table, column))

    assert found.missing == (f"{table}.{column}",)
    assert not [text for text in gone if text in found.source]
    assert "FROM standalone_redis r" in found.source


def row(**columns: object) -> dict[str, object]:
    return {**dict.fromkeys(COLUMNS, ""), **columns}


def test_a_row_says_where_something_lies() -> None:
    """Or whose it is alone, where a team has the uuid in two tables."""
    full = row(uuid="x", team_id=1, kind="service-database", project="p", within="s")
    place = Place(TeamId(1), ResourceKind.SERVICE_DATABASE, "p", "", "", "s")
    assert owner(full).fact == Owner("x", place)
    assert owner(row(uuid="x", team_id=1)).fact == Owner("x", Place(TeamId(1)))


def test_a_resource_of_an_impossible_team_is_nobodys() -> None:
    """A negative id is no team's."""
    assert owner(row(uuid="x", team_id=-1)).fact is None
    assert owner(row(uuid="x", team_id=0)).fact == Owner("x", Place(TeamId(0)))


def test_every_uuid_has_its_bucket() -> None:
    """The buckets of the sync are the hashes in Redis, whatever the uuid is made of."""
    for uuid in ("", "a", "bo8s4k4g0kw4kgsg8wk8wcow", "0b7c1f4e-1d1e-4a4b-9b0a-0f2f5d6f7a8b", "ü"):
        assert entities.OWNERS.place({"uuid": uuid}) // BUCKET in range(OWNER_BUCKETS)
        assert entities.OWNERS.place({"uuid": uuid}) == entities.OWNERS.bucketed(uuid)
