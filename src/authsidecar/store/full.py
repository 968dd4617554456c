"""Changes that are made although Redis is full.

With `maxmemory` reached and nothing that it may evict, Redis refuses whatever could need room;
Redis 6.2 and 7.0 refuse every command in a MULTI, deletions too. Taking rights away can't wait for
room: such a change is then made by a script, which Redis lets write once it has deleted
(change.lua). Redis 6.2 to 8 agree in that; the flag `allow-oom` came with 7, and says no more.
"""

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

from redis import exceptions
from redis.asyncio.client import Pipeline

SET_IN_FULL: Final = (
    "if ARGV[3] == 'NX' and redis.call('EXISTS', KEYS[1]) == 1 then return false end "
    "redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"
)
"""SET with PX, and NX if it is the third argument, on a full Redis too: for short-lived keys."""


def single(command: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """A command of several keys as commands of one each."""
    if command[0] in {"DEL", "EXISTS"}:
        return [(command[0], key) for key in command[1:]]
    return [command]


def beside(key: str, name: str) -> str:
    """Another key in the same slot, which begins alike."""
    tagged = 0 <= key.find("{") < key.find("}") - 1
    return f"{key}:{name}" if tagged else f"{key}:{name}:{{{key}}}"


def as_script(
    commands: Sequence[tuple[Any, ...]], seen: Sequence[tuple[str, str]] = ()
) -> tuple[Any, ...]:
    """The EVAL that does the same as these commands in a MULTI.

    Args:
        commands: at least one, each with one key.
        seen: keys that must be as they were read, and what `fingerprint` says of them.
    """
    keys = [beside(str(commands[0][1]), "full"), *(key for key, _ in seen)]
    args: list[Any] = [len(seen), *(found for _, found in seen)]
    for name, key, *words in commands:
        keys.append(key)
        args += [name, len(words), *words]
    script = files("authsidecar.store").joinpath("change.lua").read_text("ascii")
    return ("EVAL", script, len(keys), *keys, *args)


def fingerprint(dump: bytes | None) -> str:
    """What change.lua makes of a key's DUMP."""
    return "" if dump is None else sha1(dump).hexdigest()  # noqa: S324  # as Redis's sha1hex


class FullPipeline(Pipeline):
    """redis-py's transactional pipeline, whose change is made on a full Redis too.

    What is watched is kept as a fingerprint: the WATCH itself ends with the MULTI that was refused.
    """

    def __init__(self, client: Any) -> None:
        """Nothing is sent yet."""
        super().__init__(client.connection_pool, client.response_callbacks, True, None)
        self._client = client
        self._seen: list[tuple[str, str]] = []

    async def watch(self, *names: Any) -> None:  # type: ignore[override]  # sync and async mixed
        """Watch the values of keys."""
        await super().watch(*names)
        self._seen = [(key, fingerprint(await self.dump(key))) for key in names]

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Make the change; where it was made as a script, an answer for each key of each command.

        Raises:
            WatchError: a watched key is not as it was; nothing was done.
        """
        commands = [one for args, _ in self.command_stack for one in single(args)]
        try:
            answers: list[Any] = await super().execute(raise_on_error)
        except exceptions.OutOfMemoryError:
            made = await self._client.execute_command(*as_script(commands, self._seen))
            if made is None:
                raise exceptions.WatchError("a watched key changed") from None
            return list(made)
        return answers
