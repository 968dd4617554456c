"""A state file brought into Redis: into an empty prefix, or beside what is there.

What is there wins: a key that differs is left and named. So an import that was interrupted is done
again with `merge`, and nothing that somebody changed meanwhile is undone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from redis.asyncio import Redis

from authsidecar.admin.refusal import Refusal
from authsidecar.admin.state_lines import (
    END,
    FORMAT,
    HEAD,
    LONGEST_LINE,
    Line,
    StateLineError,
    UnknownKeyError,
    parse,
    read,
)
from authsidecar.decision.model import TeamId, TokenId, UserId
from authsidecar.store import records
from authsidecar.store.changes import Changes
from authsidecar.store.keys import Keys
from authsidecar.store.kinds import kind_of
from authsidecar.store.scan import Scan
from authsidecar.store.schema import SCHEMA, migrate

BATCH: Final = 500
"""StateLines that are looked at and written together."""

NAMED: Final = 100
"""How many keys that were left are named; all are counted."""


class StateLines(Protocol):
    """A binary file, as far as an import reads it."""

    def readline(self, size: int, /) -> bytes:
        """Read up to the end of the line, or `size` bytes; nothing at the end of the file."""


@dataclass(slots=True)
class StateReport:
    """How an import went, in keys or parts of them.

    Attributes:
        added: what was not there.
        unchanged: what was there just so.
        kept: what is there, and is another in the file; it was left.
        refused: lines that are wrong.
        unknown: lines of keys that this release does not know.
        kept_keys: the names of some of what was kept.
        problems: what is wrong with some of the lines, by number.
        whole: whether the file has its last line, which says how many there are.
    """

    added: int = 0
    unchanged: int = 0
    kept: int = 0
    refused: int = 0
    unknown: int = 0
    kept_keys: list[str] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    whole: bool = False


async def import_state(
    client: "Redis",
    keys: Keys,
    file: StateLines,
    *,
    merge: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> StateReport | Refusal:
    """Bring a file's state into Redis; nothing is done if the file or the place is wrong.

    Args:
        client: redis-py's asyncio client, decode_responses off.
        keys: the key names.
        file: JSON lines.
        merge: also where there is state.
        progress: told now and then how many lines are done.

    Raises:
        NewerSchemaError: what is in Redis was written by a newer program.
    """
    if (problem := _head(file.readline(LONGEST_LINE + 1))) is not None:
        return Refusal(f"{problem}; nothing was imported")
    if not merge and (found := await _occupied(client, keys)) is not None:
        return Refusal(
            f"there is state already ({found}); use --merge, another redis.prefix or an empty "
            "Redis; nothing was imported"
        )
    await migrate(client, keys)
    return await _Import(client, keys, merge=merge).run(file, progress)


def _head(line: bytes) -> str | None:
    """What is wrong with a first line, or None."""
    try:
        head = parse(line)
    except StateLineError:
        head = {}
    if HEAD not in head:
        return "this is no file of `authsidecar state export`"
    schema = head.get("schema")
    if head[HEAD] != FORMAT or type(schema) is not int or schema > SCHEMA:
        return (
            f"the file was written by release {head.get('release')!a}, and has a newer form "
            "than this release knows; import it with that one, or a newer one"
        )
    return None


async def _occupied(client: "Redis", keys: Keys) -> str | None:
    """A key of state that is there, but for the switch that a first start sets; or None."""
    anyway: Any = client
    if set(await anyway.hkeys(keys.instance)) - {b"api_enabled"}:
        return "instance"
    scan = Scan()
    while True:
        for name in await scan.some(client, keys.prefix):
            kind = kind_of(name)
            if kind is not None and kind.role == "state" and name != "instance":
                return name
        if scan.complete:
            return None


class _Import:
    def __init__(self, client: "Redis", keys: Keys, *, merge: bool) -> None:
        self._client: Any = client
        self._keys = keys
        self._merge = merge
        self._changes = Changes(client, keys)
        self._report = StateReport()
        self._leaving: str | None = None

    async def run(self, file: StateLines, progress: Callable[[int], None]) -> StateReport:
        batch: list[Line] = []
        number, read_lines, said = 1, 0, None
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            try:
                data = parse(line)
                if END in data:
                    said = data[END].get("lines") if isinstance(data[END], dict) else None
                    continue
                read_lines += 1
                batch.append(read(data))
            except StateLineError as error:
                self._report.refused += 1
                self._problem(number, str(error))
                if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
            except UnknownKeyError as error:
                self._report.unknown += 1
                self._problem(number, f"the key {error} is not known")
            if len(batch) == BATCH:
                await self._bring(batch)
                batch = []
                progress(number)
        await self._bring(batch)
        progress(number)
        self._report.whole = said == read_lines
        return self._report

    def _problem(self, number: int, what: str) -> None:
        if len(self._report.problems) < NAMED:
            self._report.problems.append((number, what))

    async def _bring(self, batch: list[Line]) -> None:
        """Write what is not there, then renew the nonces of whomever it concerns."""
        index = _Index(self._keys)
        async with self._client.pipeline(transaction=False) as pipe:
            for line in batch:
                self._look(pipe, line)
            found = await pipe.execute() if batch else []
        instance = False
        async with self._client.pipeline(transaction=False) as pipe:
            writes = 0
            for line, old in zip(batch, found, strict=True):
                value = self._new(line, old)
                if value is not None:
                    writes += 1
                    instance = instance or line.kind.name == "instance"
                    self._put(pipe, line, value)
                    index.add(line, value)
            if writes:
                index.put(pipe)
                await pipe.execute()
        users = index.owners
        for team in index.new_teams:  # one that is new may have members already
            members = await self._client.hkeys(self._keys.team_members(team))
            users |= {UserId(int(user)) for user in members if user.isdigit()}
        async with self._client.pipeline(transaction=False) as pipe:
            self._changes.renew(pipe, users)
            if instance:
                self._changes.renew_instance(pipe)
            if users or instance:
                await pipe.execute()

    def _look(self, pipe: Any, line: Line) -> None:
        key = self._keys.prefix + line.name
        match line.kind.type:
            case "hash":
                pipe.hgetall(key)
            case "fields":
                pipe.hmget(key, list(line.value))
            case "string":
                pipe.get(key)
            case "list":
                pipe.lrange(key, 0, len(line.value) - 1)
            case "stream":
                pipe.xrange(key, line.value[0][0], "+", count=len(line.value))

    def _new(self, line: Line, old: Any) -> Any:
        """What is to be written of a line, or None; counts what becomes of it."""
        if line.kind.type == "fields":
            return self._new_fields(line, dict(zip(line.value, old, strict=True)))
        if line.kind.type == "list":
            return self._new_part(line, old)
        if line.kind.name == "last id":
            there = (records.number(line.value) or 0) <= (records.number(old) or 0)
        else:
            there = bool(old)
            if old and old != line.value:
                self._kept(line.name)
                return None
        self._report.unchanged += there
        self._report.added += not there
        return None if there else line.value

    def _new_fields(self, line: Line, there: Mapping[bytes, Any]) -> Any:
        if line.kind.name == "instance" and not self._merge:
            there = {}  # a first start has set the switch
        missing = {name: value for name, value in line.value.items() if there.get(name) is None}
        if any(there.get(name) not in {None, value} for name, value in line.value.items()):
            self._kept(line.name)
        elif not missing:
            self._report.unchanged += 1
        self._report.added += bool(missing)
        return missing or None

    def _new_part(self, line: Line, old: list[bytes]) -> Any:
        """The same of a part of a list, whose parts follow one another."""
        if line.first:
            self._leaving = line.name if old else None
            if old == line.value:
                self._report.unchanged += 1
            elif old:
                self._kept(line.name)
        if self._leaving == line.name:
            return None
        self._report.added += line.first
        return line.value

    def _kept(self, name: str) -> None:
        self._report.kept += 1
        if len(self._report.kept_keys) < NAMED:
            self._report.kept_keys.append(ascii(name[:100])[1:-1])

    def _put(self, pipe: Any, line: Line, value: Any) -> None:
        key = self._keys.prefix + line.name
        match line.kind.type:
            case "hash" | "fields":
                pipe.hset(key, mapping=value)
            case "string":
                pipe.set(key, value)
            case "list":
                if line.first:
                    pipe.delete(key)
                pipe.rpush(key, *value)
            case "stream":
                for number, entry in value:
                    pipe.xadd(key, entry, id=number)
        if line.expires_at is not None:
            pipe.pexpireat(key, line.expires_at)


class _Index:
    """The indexes that follow from what is written, and whose records it concerns.

    Attributes:
        owners: users whose records it concerns.
        new_teams: teams that were not there.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._sets: dict[str, list[int]] = {}
        self._expiring: dict[str, int] = {}
        self.owners: set[UserId] = set()
        self.new_teams: set[TeamId] = set()

    def add(self, line: Line, value: Any) -> None:
        """Take note of a line that is written."""
        match line.kind.name:
            case "token":
                self._add_token(TokenId(_number(line)), value)
            case "user":
                self.owners.add(user := UserId(_number(line)))
                self._list(self._keys.users, user)
            case "team":
                self.new_teams.add(team := TeamId(_number(line)))
                self._list(self._keys.teams, team)
            case "members":
                for user in [UserId(int(one)) for one in value if records.number(one) is not None]:
                    self.owners.add(user)
                    self._list(self._keys.user_teams(user), _number(line))
            case "management key":
                self._list(self._keys.management_keys, _number(line))
            case _:
                pass

    def put(self, pipe: Any) -> None:
        """Write them: each with all that was added to it."""
        for key, members in self._sets.items():
            pipe.sadd(key, *members)
        if self._expiring:
            pipe.zadd(self._keys.expiring, self._expiring)

    def _list(self, key: str, number: int) -> None:
        self._sets.setdefault(key, []).append(number)

    def _add_token(self, token: TokenId, value: Mapping[bytes, bytes]) -> None:
        user, team, expires_at = (
            records.number(value.get(name)) for name in (b"user", b"team", b"expires_at")
        )
        if user is not None:
            self.owners.add(UserId(user))
            self._list(self._keys.user_tokens(UserId(user)), token)
        if team is not None:
            self._list(self._keys.team_tokens(TeamId(team)), token)
        if expires_at is not None:
            self._expiring[str(token)] = expires_at


def _number(line: Line) -> int:
    """The id in a key's name."""
    found = line.kind.pattern.fullmatch(line.name)
    assert found is not None  # noqa: S101  # it is of this kind
    return int(found[1])
