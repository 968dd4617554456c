"""A Redis in memory, as far as reading a record and charging a claim need one."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Self

from authsidecar.decision.model import TeamId, TokenId, UserId
from authsidecar.store.keys import Keys
from tests.support import seed
from tests.support.decisions import credential

USER, TEAM, TOKEN = UserId(7), TeamId(3), TokenId(67)

Value = bytes | str | int | None


class MemoryRedis:
    """Hashes and texts by key; its own connection pool, whose script admits everything.

    Attributes:
        hashes: by key, by field.
        texts: by key.
        answers: what the script says of the next claims, one each; then it admits.
        calls: how many script calls there were.
    """

    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.texts: dict[str, bytes] = {}
        self.answers: list[list[int]] = []
        self.calls = 0
        self.connection_pool = self

    def set_hash(self, key: str, **fields: Value) -> None:
        """Write fields; None removes one."""
        held = self.hashes.setdefault(key, {})
        for name, value in fields.items():
            if value is None:
                held.pop(name, None)
            else:
                held[name] = value if isinstance(value, bytes) else str(value).encode()

    # What redis-py's client does.

    async def hmget(self, key: str, fields: Iterable[str]) -> list[bytes | None]:
        return [self.hashes.get(key, {}).get(field) for field in fields]

    async def hget(self, key: str, field: str) -> bytes | None:
        return self.hashes.get(key, {}).get(field)

    async def hexists(self, key: str, field: str) -> bool:
        return field in self.hashes.get(key, {})

    async def get(self, key: str) -> bytes | None:
        return self.texts.get(key)

    async def set(self, key: str, value: str, *, nx: bool) -> None:
        assert nx
        self.texts.setdefault(key, value.encode())

    async def time(self) -> tuple[int, int]:
        now = time.time()
        return int(now), int(now % 1 * 1_000_000)

    def pipeline(self, *, transaction: bool) -> "_Pipeline":
        assert not transaction
        return _Pipeline(self)

    # What its pool and a connection do.

    is_connected = True

    def make_connection(self) -> Self:
        return self

    def should_reconnect(self) -> bool:
        return False

    async def can_read(self) -> bool:
        return False

    async def disconnect(self, *, nowait: bool) -> None:
        assert nowait

    async def send_packed_command(self, _: bytes) -> None:
        self.calls += 1

    async def read_response(self) -> list[Any]:
        answer = self.answers.pop(0) if self.answers else [1, 0, 199, 60_000, 199, 60_000]
        return [int(time.time() * 1000), answer]


class _Pipeline:
    def __init__(self, redis: MemoryRedis) -> None:
        self._redis = redis
        self._commands: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands.clear()

    def get(self, key: str) -> None:
        self._commands.append(self._redis.get(key))

    def hget(self, key: str, field: str) -> None:
        self._commands.append(self._redis.hget(key, field))

    def hmget(self, key: str, fields: Sequence[str]) -> None:
        self._commands.append(self._redis.hmget(key, fields))

    async def execute(self) -> list[Any]:
        return [await command for command in self._commands]


def world(keys: Keys) -> MemoryRedis:
    """User 7, owner of team 3, with token 67 (read); the API is on."""
    redis = MemoryRedis()
    redis.set_hash(keys.instance, api_enabled=1, mcp_enabled=1)
    redis.set_hash(keys.user(USER), name="ada")
    redis.set_hash(keys.team(TEAM), name="core", mcp_enabled=1)
    redis.set_hash(keys.team_members(TEAM), **{str(USER): "owner"})
    redis.set_hash(
        keys.token(TOKEN),
        sha256=credential(TOKEN).digest,
        name="ci",
        user=USER,
        team=TEAM,
        permissions="read",
    )
    assert seed.secret_of(TOKEN)
    return redis
