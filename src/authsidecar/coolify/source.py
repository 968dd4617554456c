"""What is read from Coolify's PostgreSQL: only columns that decisions need, never a secret's.

Changes are found by content: PostgreSQL computes a digest for each bucket of 256 ids over
exactly these columns, so last_used_at and updated_at, which every request moves, cost nothing.
"""

import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from authsidecar import extras
from authsidecar.coolify import owners

if TYPE_CHECKING:
    import asyncpg

BUCKET: Final = 256
"""How many ids share a digest."""

CHANNEL: Final = "authsidecar_changed"
"""What the triggers of instant mode notify; the function and the triggers have that name too."""

_BIGINT: Final = 2**63 - 1

UNREADABLE: Final = "the DSN cannot be read: what is special in a URL is written %2F and so on"

PROBE: Final = "authsidecar_probe"
"""Begins the name of the channel on which a listener notifies itself."""

CONNECT_S: Final = 5.0
"""How long a connection may take, in seconds."""

QUICK_S: Final = 2.0
"""How long a query may take that reads next to nothing, in seconds."""

ROWS_S: Final = (2.5, 10.0)
"""The same for the rows of some buckets: ten times what they took last on this connection, but
within these bounds; the upper one as long as nobody knows."""

DIGESTS_S: Final = (5.0, 60.0)
"""The same for the digests of a table."""

HEAR_S: Final = 2.0
"""How long a notification may take, in seconds."""

HEARING_S: Final = 5.0
"""The time between two proofs that notifications arrive, in seconds."""

LOCK_MS: Final = 1500
"""How long a migration may keep us waiting before that is an outage, in milliseconds."""

_LOCAL: Final = f"SET LOCAL lock_timeout = {LOCK_MS}"

_KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 2),
    (socket.TCP_KEEPINTVL, 1),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 5000),
)
"""A host that is gone is noticed after five seconds, in seconds and milliseconds."""


class SourceError(Exception):
    """Coolify's database cannot be read; one line that never holds a secret."""


class SchemaError(SourceError):
    """A table or column that decisions need is missing, or not granted to our role."""


@dataclass(frozen=True, slots=True)
class Table:
    """One of Coolify's tables as it is read.

    Attributes:
        name: its name in PostgreSQL.
        columns: our name and the SQL expression of each value.
        source: what stands after FROM, or OWNED for what the view makes of it.
        id: the expression whose buckets have a digest.
        order: the order within a bucket; total, so that equal rows give equal digests.
        needs: the columns without which nothing can be decided.
    """

    name: str
    columns: Mapping[str, str]
    source: str
    id: str
    order: str
    needs: tuple[str, ...]

    def digests(self, absent: Mapping[str, str]) -> str:
        """The query for the digest of every bucket."""
        values = ", ".join(self._expressions(absent).values())
        return (
            f"SELECT {self.id} / {BUCKET} AS bucket, "  # noqa: S608  # nothing of it is input
            f"md5(string_agg(ROW({values})::text, '' ORDER BY {self.order})) AS digest "
            f"FROM {absent.get(self.source, self.source)} GROUP BY 1"
        )

    def rows(self, absent: Mapping[str, str]) -> str:
        """The query for the rows of some buckets: $1 their numbers, $2 and $3 the ids' bounds."""
        values = ", ".join(f"{sql} AS {name}" for name, sql in self._expressions(absent).items())
        return (
            f"SELECT {values} FROM {absent.get(self.source, self.source)} "  # noqa: S608  # the same
            f"WHERE {self.id} / {BUCKET} = ANY($1::bigint[]) AND {self.id} BETWEEN $2 AND $3"
        )

    def row(self, absent: Mapping[str, str]) -> str:
        """The query for the row of id 0."""
        values = ", ".join(f"{sql} AS {name}" for name, sql in self._expressions(absent).items())
        return f"SELECT {values} FROM {self.source} WHERE {self.id} = 0"  # noqa: S608

    def _expressions(self, absent: Mapping[str, str]) -> Mapping[str, str]:
        return {name: absent.get(sql, sql) for name, sql in self.columns.items()}


def _seconds(column: str) -> str:
    """A timestamp in UTC as seconds since 1970; what is infinite is negative."""
    return (
        f"CASE WHEN isfinite({column}) THEN extract(epoch FROM {column})::bigint "
        f"WHEN {column} IS NOT NULL THEN -1 END"
    )


TOKENS: Final = Table(
    name="personal_access_tokens",
    columns={
        "id": "t.id",
        "owner_type": "t.tokenable_type",
        "user_id": "t.tokenable_id",
        "owned": "(u.id IS NOT NULL)",
        "name": "t.name",
        "sha256": "t.token",
        "team_id": "t.team_id::text",
        "abilities": "t.abilities::text",
        "expires_at": _seconds("t.expires_at"),
        "created_at": _seconds("t.created_at"),
    },
    source="personal_access_tokens t LEFT JOIN users u ON u.id = t.tokenable_id",
    id="t.id",
    order="t.id",
    needs=(
        *("id", "tokenable_type", "tokenable_id", "name", "token", "team_id", "abilities"),
        *("expires_at", "created_at"),
    ),
)
USERS: Final = Table(
    name="users",
    columns={"id": "u.id", "name": "u.name", "email": "u.email"},
    source="users u",
    id="u.id",
    order="u.id",
    needs=("id", "name", "email"),
)
TEAMS: Final = Table(
    name="teams",
    columns={"id": "t.id", "name": "t.name", "mcp_enabled": "t.is_mcp_server_enabled"},
    source="teams t",
    id="t.id",
    order="t.id",
    needs=("id", "name"),
)
MEMBERS: Final = Table(
    name="team_user",
    columns={
        "team_id": "m.team_id",
        "user_id": "m.user_id",
        "role": "m.role",
        "joined": "(t.id IS NOT NULL AND u.id IS NOT NULL)",
    },
    source="team_user m LEFT JOIN teams t ON t.id = m.team_id "
    "LEFT JOIN users u ON u.id = m.user_id",
    id="m.user_id",
    order="m.team_id, m.role",
    needs=("team_id", "user_id", "role"),
)
_SETTINGS: Final = Table(
    name="instance_settings",
    columns={
        "api_enabled": "s.is_api_enabled",
        "allowed_ips": "s.allowed_ips",
        "mcp_enabled": "s.is_mcp_server_enabled",
    },
    source="instance_settings s",
    id="s.id",
    order="s.id",
    needs=("id", "is_api_enabled", "allowed_ips"),
)
OWNED: Final = "owners o"
"""Stands for whatever tables name the owner of a resource; see owners.py."""

OWNERS: Final = Table(
    name="owners",
    columns={name: f"o.{name}" for name in owners.COLUMNS},
    source=OWNED,
    # As store.keys.owner_bucket: a uuid has no number, and Redis spreads them in the same way.
    id=f"(get_byte(sha256(convert_to(o.uuid, 'UTF8')), 0) * {BUCKET})::bigint",
    order="o.uuid",
    needs=(),
)
TABLES: Final = (TOKENS, USERS, TEAMS, MEMBERS, _SETTINGS)

LATER: Final = {
    ("teams", "is_mcp_server_enabled"): ("t.is_mcp_server_enabled", "true"),
    ("instance_settings", "is_mcp_server_enabled"): ("s.is_mcp_server_enabled", "false"),
}
"""Columns that an older Coolify lacks: the expression, and the value that it then has."""

# Column privileges count: what our role may not read is as good as missing.
_COLUMNS: Final = """
SELECT c.relname AS table, a.attname AS column,
  c.oid::text || '/' || coalesce(pg_relation_filenode(c.oid), 0) AS file
FROM unnest($1::text[]) AS wanted(name)
JOIN pg_class c ON c.oid = to_regclass(wanted.name)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE has_column_privilege(c.oid, a.attnum, 'SELECT')
"""

_TRIGGERS: Final = """
SELECT c.relname AS table FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE t.tgname = $1 AND t.tgenabled <> 'D' AND pg_table_is_visible(c.oid)
"""

# Every write takes a transaction id, so equal snapshots of one server see equal rows. In recovery
# the list of running transactions is not exact; and a server that was promoted or restored gives
# the same ids to other transactions, perhaps behind the same pooler.
_SNAPSHOT: Final = """
SELECT CASE WHEN pg_is_in_recovery() THEN NULL
  ELSE pg_current_snapshot()::text || ' since ' || pg_postmaster_start_time()::text END
"""


def patience(bounds: tuple[float, float], last_s: float | None) -> float:
    """How long a query may take that took this long last time, in seconds.

    >>> patience((2.5, 10.0), None), patience((2.5, 10.0), 0.01), patience((2.5, 10.0), 0.5)
    (10.0, 2.5, 5.0)
    """
    least, most = bounds
    return most if last_s is None else min(most, max(least, 10 * last_s))


@dataclass(slots=True)
class Longest:
    """The longest that one of a kind of queries took, in seconds; None if that is not known."""

    digests_s: float | None = None
    rows_s: float | None = None


@dataclass(slots=True)
class View:
    """The database at one instant.

    Attributes:
        pg_snapshot: names what is visible; None where that cannot be known.
        tokens_file: names the table of tokens and the file that holds its rows: deleting rows
            keeps it, emptying, dropping or restoring the table does not.
        absent: what stands for expressions that are not in this database.
        unowned: the tables and columns without which some owners are not known.
        last: the longest of its queries last time.
        longest: the same of this time.
    """

    connection: Any = field(repr=False)
    pg_snapshot: str | None
    tokens_file: str
    absent: Mapping[str, str]
    unowned: tuple[str, ...] = ()
    last: Longest = field(default_factory=Longest)
    longest: Longest = field(default_factory=Longest)

    async def digests(self, table: Table) -> Mapping[int, str]:
        """The digest of every bucket that has rows."""
        start = time.monotonic()
        rows = await self.connection.fetch(
            table.digests(self.absent), timeout=patience(DIGESTS_S, self.last.digests_s)
        )
        took = time.monotonic() - start
        self.longest.digests_s = max(self.longest.digests_s or 0.0, took)
        return {row["bucket"]: row["digest"] for row in rows}

    async def rows(self, table: Table, buckets: Sequence[int]) -> list[Mapping[str, Any]]:
        """All rows of some buckets."""
        # The division truncates: bucket 0 reaches below zero.
        low = max((min(buckets) - 1) * BUCKET, -_BIGINT)
        high = min((max(buckets) + 1) * BUCKET, _BIGINT)
        start = time.monotonic()
        found: list[Mapping[str, Any]] = await self.connection.fetch(
            table.rows(self.absent),
            *(list(buckets), low, high),
            timeout=patience(ROWS_S, self.last.rows_s),
        )
        self.longest.rows_s = max(self.longest.rows_s or 0.0, time.monotonic() - start)
        return found

    async def settings(self) -> Mapping[str, Any] | None:
        """The row of the instance's settings, or None."""
        row: Mapping[str, Any] | None = await self.connection.fetchrow(_SETTINGS.row(self.absent))
        return row


class Source:
    """One connection to Coolify's PostgreSQL that only reads.

    Every query is in a transaction: a pooler between may give each transaction another connection
    of its own to the server, and asyncpg needs two trips for a query.
    """

    def __init__(self, connection: "asyncpg.Connection[Any]", listener: "Listener | None") -> None:
        self._connection: Any = connection
        self._last = Longest()
        self._listener = listener

    async def pg_snapshot(self) -> str | None:
        """Name what is visible now: as long as it stays the same, no row has changed."""
        async with self._reading():
            return await self._pg_snapshot()

    async def hears(self) -> bool:
        """Whether notifications arrive, as far as is known; without a listener none are to.

        Raises:
            SourceError: they did arrive, and do not any more.
        """
        return self._listener is None or await self._listener.hears(self._connection)

    async def without_triggers(self) -> tuple[str, ...]:
        """The tables whose changes nobody would notify us of."""
        async with self._reading():
            rows = await self._connection.fetch(_TRIGGERS, CHANNEL)
        there = {row["table"] for row in rows}
        return tuple(table.name for table in TABLES if table.name not in there)

    @asynccontextmanager
    async def view(self, *, owned: bool = False) -> AsyncIterator[View]:
        """The database at one instant.

        Args:
            owned: whether the owners of resources are read, or there are none.

        Raises:
            SchemaError: a table or column that decisions need is missing or not granted.
        """
        async with self._reading(isolation="repeatable_read"):
            # Not as a parameter of the connection: a pooler does not take it.
            await self._connection.execute(_LOCAL)
            pg_snapshot = await self._pg_snapshot()
            names = [*(table.name for table in TABLES), *(owners.NEEDS if owned else ())]
            rows = await self._connection.fetch(_COLUMNS, names)
            there = {(row["table"], row["column"]) for row in rows}
            for table in TABLES:
                for column in table.needs:
                    if (table.name, column) not in there:
                        raise SchemaError(f"{table.name}.{column} is missing, or not granted")
            absent = {sql: value for column, (sql, value) in LATER.items() if column not in there}
            tokens_file = next(row["file"] for row in rows if row["table"] == TOKENS.name)
            whose = owners.reading(there) if owned else owners.NOTHING
            absent[OWNED] = whose.source
            view = View(
                self._connection, pg_snapshot, tokens_file, absent, whose.missing, self._last
            )
            yield view
            self._last = Longest(
                view.longest.digests_s or self._last.digests_s,
                view.longest.rows_s or self._last.rows_s,
            )

    @asynccontextmanager
    async def _reading(self, isolation: str | None = None) -> AsyncIterator[None]:
        transaction = self._connection.transaction(isolation=isolation, readonly=True)
        await transaction.start()
        try:
            yield
        except TimeoutError:
            self._connection.terminate()  # it is silent, and so it would be to a ROLLBACK
            raise
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()

    async def _pg_snapshot(self) -> str | None:
        name: str | None = await self._connection.fetchval(_SNAPSHOT)
        return name


class Listener:
    """A connection that is notified; it is proved now and then that it still is."""

    def __init__(self, connection: Any, changed: Callable[[], None]) -> None:
        self._connection = connection
        self._changed = changed
        self._probe = f"{PROBE}_{secrets.token_hex(6)}"
        self._asked_at: float | None = None
        self._heard_at: float | None = None

    async def listen(self) -> None:
        """Be notified from now on."""
        self._connection.add_termination_listener(lambda _: self._changed())
        await self._connection.add_listener(CHANNEL, lambda *_: self._changed())
        await self._connection.add_listener(self._probe, lambda *_: self._hear())

    async def hears(self, other: Any) -> bool:
        """Whether notifications arrive, as far as is known; waits for none.

        Args:
            other: the connection that notifies: a pooler that lends out connections would have its
                notifications arrive anywhere but here.

        Raises:
            SourceError: they did arrive, and do not any more.
        """
        now = time.monotonic()
        if self._asked_at is None or (self._heard() and now > self._asked_at + HEARING_S):
            self._asked_at = now
            await other.execute(f"NOTIFY {self._probe}")
        if self._heard() or now < self._asked_at + HEAR_S:
            return True
        if self._heard_at is not None:
            raise SourceError("the connection that is notified is silent")
        if now > self._asked_at + HEARING_S:
            self._asked_at = None  # once more
        return False

    def _hear(self) -> None:
        self._heard_at = time.monotonic()

    def _heard(self) -> bool:
        """Whether the last one has arrived."""
        asked, heard = self._asked_at, self._heard_at
        return asked is not None and heard is not None and heard >= asked


@asynccontextmanager
async def connected(dsn: str, changed: Callable[[], None] | None = None) -> AsyncIterator[Source]:
    """A connection that only reads, and another that listens if `changed` is given.

    Args:
        dsn: where the database is.
        changed: called at each notification of the triggers, and when listening ends.

    Raises:
        SourceError: the database does not answer, refuses us, or breaks off.
    """
    library = driver()
    # Which failures mean the database: whatever asyncpg says, and the network beneath it.
    failures = (library.PostgresError, library.InterfaceError, OSError, TimeoutError)
    connections: list[Any] = []
    try:
        for _ in range(1 if changed is None else 2):
            connections.append(await _connect(library, dsn))  # noqa: PERF401  # `finally` needs each
        listener = None
        if changed is not None:
            listener = Listener(connections[1], changed)
            await listener.listen()
        yield Source(connections[0], listener)
    except failures as error:
        raise SourceError(one_line(error)) from None
    finally:
        for connection in connections:
            await _close(connection, failures)


def driver() -> Any:
    """Asyncpg, or what to do without it.

    Raises:
        SourceError: it is not installed.
    """
    try:
        import asyncpg  # noqa: PLC0415  # the extra `coolify`
    except ImportError:
        raise SourceError(
            f"asyncpg is missing; install the extra: {extras.command('coolify')}"
        ) from None
    return asyncpg


def one_line(error: BaseException) -> str:
    """What a failure says, in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


async def _close(connection: Any, failures: tuple[type[BaseException], ...]) -> None:
    try:
        await connection.close(timeout=1)
    except failures:
        connection.terminate()


async def _connect(library: Any, dsn: str) -> Any:
    settings = {"application_name": "authsidecar", "timezone": "UTC"}
    # Every transaction of ours is read-only by itself; this is a second lock on the same door.
    for more in ({"default_transaction_read_only": "on"}, {}):
        try:
            connection = await library.connect(
                dsn,
                timeout=CONNECT_S,
                command_timeout=QUICK_S,
                # A pooler may give each transaction another connection: none keeps statements.
                statement_cache_size=0,
                server_settings={**settings, **more},
            )
        except library.ProtocolViolationError as error:
            if not more or "startup parameter" not in str(error):
                raise
            continue  # a pooler, which knows only some parameters
        except (ValueError, LookupError):  # its text may hold a piece of the password
            raise SourceError(UNREADABLE) from None
        _watch(connection)
        return connection
    raise AssertionError("the second try has returned or raised")


def _watch(connection: Any) -> None:
    """Have the kernel end a connection whose other end is silent."""
    transport = getattr(connection, "_transport", None)
    found = None if transport is None else transport.get_extra_info("socket")
    if found is None or found.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        found.setsockopt(socket.IPPROTO_TCP, option, value)
