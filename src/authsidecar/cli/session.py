"""From the global options to the settings and an open registry, with every failure in one line."""

import contextlib
import functools
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

from authsidecar.admin.refusal import OWNED, Refusal, absent
from authsidecar.cli import streams
from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import Options, given
from authsidecar.cli.output import Output

if TYPE_CHECKING:  # --help must not wait for redis and pydantic
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis

    from authsidecar.config import Settings
    from authsidecar.store.audit import Origin
    from authsidecar.store.registry import Registry

P = ParamSpec("P")
T = TypeVar("T")

WAIT_SLICE_MS: Final = 500
"""Milliseconds of one WAIT: less than the connection's own patience with an answer."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with.

    Attributes:
        out: where it writes.
        settings: the configuration.
        client: the Redis that the settings name, seen to answer.
        registry: users, teams, tokens and settings in it.
    """

    out: Output
    settings: "Settings"
    client: "Redis"
    registry: "Registry"

    async def until_replicated(self) -> None:
        """Wait for the replicas that a revocation waits for; warn if they are late.

        WAIT counts for what its own connection wrote: a command sends one thing after the other,
        so the pool hands it the connection that it has just given back.
        """
        section = self.settings.redis
        wanted, left = section.wait_replicas, section.wait_timeout_ms
        found = 0
        while found < wanted and left > 0:
            found = await self.client.wait(wanted, min(left, WAIT_SLICE_MS))
            left -= WAIT_SLICE_MS
        if found < wanted:
            self.out.warn(
                f"only {found} of {wanted} replicas have confirmed it within "
                f"{section.wait_timeout_ms} ms; a failover now could undo it"
            )


def operator() -> "Origin":
    """Who types this command, for the audit: the user, the machine, where SSH comes from."""
    import pwd
    import socket

    from authsidecar.store.audit import Origin, Via

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not have a name
        name = f"uid {os.getuid()}"
    if sudo := os.environ.get("SUDO_USER"):
        name = f"{sudo} as {name}"
    words = (os.environ.get("SSH_CLIENT") or os.environ.get("SSH_CONNECTION") or "").split()
    host = socket.gethostname()
    return Origin(name[:255], Via.CLI, f"{host} from {words[0][:45]}" if words else host)


def load_settings(options: Options) -> "Settings":
    """The configuration that --config and the environment name.

    Raises:
        MisconfiguredError: it cannot be used.
    """
    from authsidecar.config import ConfigError, load

    try:
        return load(options.config, os.environ)
    except ConfigError as error:
        raise MisconfiguredError(*error.problems) from None


Coroutine = Callable[Concatenate[Session, P], Awaitable[None]]


def on_registry(command: Coroutine[P]) -> Callable[P, None]:
    """Make a click callback of a coroutine that works on a Redis that was seen to answer."""

    def connect(settings: "Settings") -> "AbstractAsyncContextManager[Redis]":
        from authsidecar.run.redis_at_start import store

        return store(settings)

    return _callback(_rolling_back(command), connect)


def _rolling_back(command: Coroutine[P]) -> Coroutine[P]:
    """Have a command end the trials of settings that nobody has confirmed in time."""

    @functools.wraps(command)
    async def run(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> None:
        from redis.exceptions import RedisError

        over = []
        with contextlib.suppress(RedisError):  # who may not write leaves it to others
            over = await session.registry.trials.roll_back()
        for trial in over:
            session.out.warn(f"nobody has confirmed {trial.setting}: it is as it was before")
        await command(session, *args, **kwargs)

    return run


def changing(command: Coroutine[P]) -> Coroutine[P]:
    """Have a command say that it has run, if it can't write its result."""

    @functools.wraps(command)
    async def run(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with streams.done():
            await command(session, *args, **kwargs)

    return run


def on_own_registry(command: Coroutine[P]) -> Callable[P, None]:
    """The same for a command that changes what a sync would own: refused while there is one."""

    @functools.wraps(command)
    async def unless_synced(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> None:
        from authsidecar.coolify.status import read_owner
        from authsidecar.store.keys import Keys

        if await read_owner(session.client, Keys(session.settings.redis.prefix)) is not None:
            raise RefusedError(OWNED)
        await changing(command)(session, *args, **kwargs)

    return on_registry(unless_synced)


def on_silent_registry(command: Coroutine[P]) -> Callable[P, None]:
    """Make a click callback of a coroutine that can tell itself if Redis does not answer."""

    def connect(settings: "Settings") -> "AbstractAsyncContextManager[Redis]":
        from authsidecar.run.redis import connection
        from authsidecar.store.connect import connected

        return connected(connection(settings))

    return _callback(command, connect)


def _callback(
    command: Coroutine[P],
    connect: "Callable[[Settings], AbstractAsyncContextManager[Redis]]",
) -> Callable[P, None]:
    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        options = given()
        settings = load_settings(options)

        async def with_session() -> None:
            from authsidecar.store.keys import Keys
            from authsidecar.store.registry import Registry

            async with connect(settings) as client:
                registry = Registry(client, Keys(settings.redis.prefix), operator())
                await command(Session(Output(options), settings, client, registry), *args, **kwargs)

        _run(with_session)

    return run


def _run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; what Redis does to it is said in one line."""
    import asyncio

    from redis.exceptions import OutOfMemoryError, RedisError

    from authsidecar.decision.authorize import StoreError
    from authsidecar.run.errors import StartError
    from authsidecar.store.embedded import EmbeddedRedisError

    async def main() -> None:
        await work()

    try:
        asyncio.run(main())
    except (StartError, EmbeddedRedisError) as error:
        raise RefusedError(str(error)) from None
    except OutOfMemoryError:
        raise RefusedError(
            "Redis is full: it has no room for more (maxmemory); make room or raise maxmemory, "
            "and repeat the command"
        ) from None
    except (RedisError, StoreError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise RefusedError(
            f"Redis failed under way ({why}); the command may be done in part: look, and repeat it"
        ) from None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let one Ctrl-C end a blocking read within a command.

    asyncio's own handler only cancels the task, which a blocking read never lets run. Anywhere
    else that handler is right: an exception out of the event loop's own code can hang it.
    """
    import asyncio

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise KeyboardInterrupt
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def done(answer: T | Refusal) -> T:
    """The answer of a use case that did what it was asked.

    Raises:
        RefusedError: it did not.
    """
    if isinstance(answer, Refusal):
        raise RefusedError(answer.why)
    return answer


def present(answer: T | None, noun: str, number: int) -> T:
    """The answer about something that is there.

    Raises:
        RefusedError: it is not.
    """
    if answer is None:
        raise RefusedError(absent(noun, number))
    return answer
