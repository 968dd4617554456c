"""Redis at the start: a client, seen to answer; else one line that says what to change."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import redis.exceptions
from redis.asyncio import Redis

from authsidecar.config import Settings
from authsidecar.observe.background import Background, describe_error
from authsidecar.observe.log import Log
from authsidecar.run.errors import AwayError, StartError
from authsidecar.run.redis import connection
from authsidecar.store.cluster import Cluster, configurations
from authsidecar.store.connect import connected, endpoints
from authsidecar.store.embedded import EmbeddedRedisError
from authsidecar.store.keys import Keys
from authsidecar.store.schema import NewerSchemaError, migrate, read_schema
from authsidecar.store.trips import kind_of

START_BUDGET_MS: Final = 2000
"""How long Redis may take to answer at start, in milliseconds."""


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator["Redis"]:
    """A client of the Redis that the settings name, seen to answer.

    Raises:
        StartError: it cannot be reached; says which and why.
    """
    async with connected_client(settings) as client:
        await see_answer(client, settings)
        await refuse_newer(client, settings)
        yield client


@asynccontextmanager
async def connected_client(
    settings: Settings, log: Log | None = None, background: Background | None = None
) -> AsyncIterator["Redis"]:
    """A client.

    Args:
        settings: the configuration.
        log: if given, an embedded server that ends is started again, and this is told of it.
        background: keeps going what the client does beside commands.
    """
    try:
        log_event = log.event if log else None
        keep = None if background is None else partial(background.keep, "sentinel")
        async with connected(connection(settings), log_event, keep) as client:
            if isinstance(client, Cluster) and background is not None:
                client.look_failed = partial(_look_failed, background)
            yield client
    except EmbeddedRedisError as error:
        raise StartError(str(error)) from None


async def refuse_newer(client: "Redis", settings: Settings) -> None:
    """Return if this program knows the layout of what is in Redis.

    Raises:
        StartError: a newer one has written it.
    """
    await _known(settings, read_schema(client, Keys(settings.redis.prefix)))


async def bring_forward(client: "Redis", settings: Settings) -> None:
    """Bring what is in Redis to the layout of this program.

    Raises:
        StartError: a newer one has written it.
    """
    await _known(settings, migrate(client, Keys(settings.redis.prefix)))


async def _known(settings: Settings, looking: Coroutine[Any, Any, int]) -> None:
    try:
        await looking
    except NewerSchemaError as error:
        raise StartError(f"redis.prefix: {settings.redis.prefix}: {error}") from None


def _look_failed(background: Background, error: BaseException | None) -> None:
    if error is None:
        background.well("cluster")
    else:
        background.failed("cluster", describe_error(error))


async def see_answer(client: "Redis", settings: Settings) -> None:
    """Return once Redis has answered.

    Raises:
        AwayError: it did not, and may soon.
        StartError: it will not, until somebody changes something.
    """
    name = without_secret(settings.redis.url)
    try:
        async with asyncio.timeout(START_BUDGET_MS / 1000):
            await client.time()
    except redis.exceptions.NoPermissionError as error:
        raise StartError(f"redis.username: has too few rights on {name} ({error})") from None
    except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
        if kind_of(error) == "auth":
            raise StartError(
                f"redis.url: {name} refuses the login; check redis.username and redis.password"
            ) from None
        plain = settings.redis.tls and await _speaks_plainly(settings)
        raise _away(settings, error, plain=plain) from None


async def _speaks_plainly(settings: Settings) -> bool:
    """Whether a Redis answers without TLS where TLS is configured: it waits for ever then."""
    host, port = endpoints(settings.redis.url)[0]
    with suppress(OSError):
        async with asyncio.timeout(START_BUDGET_MS / 1000):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.read(1)) in {b"+", b"-"}
            finally:
                writer.close()
    return False


def _away(settings: Settings, error: Exception, *, plain: bool) -> StartError:
    """What it means that Redis did not answer; some of it no waiting mends."""
    name, why = without_secret(settings.redis.url), str(error)
    if plain:
        scheme = name.partition("://")[0].replace("rediss", "redis")
        return StartError(
            f"redis.url: {name} does not speak TLS; without it the url begins with {scheme}://"
        )
    if isinstance(error, TimeoutError | redis.exceptions.TimeoutError):
        return AwayError(
            f"redis.url: {name} does not answer (no answer in time); is it running?", "timeout"
        )
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return StartError(
            f"redis.url: {name} shows a certificate that is not trusted ({why}); check "
            "redis.tls_ca_file and the host's name"
        )
    hint = "is it running?"
    strange = isinstance(error, redis.exceptions.InvalidResponse) or "closed by server" in why
    if strange and not settings.redis.tls:
        hint = "is it Redis, and does it expect TLS (rediss://)?"
    return AwayError(f"redis.url: {name} does not answer ({why}); {hint}", kind_of(error))


def without_secret(url: str) -> str:
    """A URL without its user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


async def preflight(settings: Settings) -> None:
    """See that Redis can be used if it is there, before workers are started.

    Raises:
        StartError: it cannot.
    """
    try:
        async with store(settings):
            pass
    except AwayError:
        if settings.redis.wait_at_start_seconds == 0:
            raise


async def check_eviction(client: "Redis", settings: Settings, log: Log) -> None:
    """Warn of a Redis that may throw keys away when it is full."""
    try:
        found = await configurations(client, "maxmemory*")
    except redis.exceptions.RedisError:
        log.event("warning", "eviction_policy_unknown", hint="CONFIG GET is not allowed")
        return
    policy = next(filter(None, map(_evicting, found)), None)
    if policy is None:
        return
    problem = (
        f"redis: maxmemory-policy is {policy}, which can drop tokens when memory is short; "
        "set it to noeviction (or redis.eviction_policy: warn)"
    )
    if settings.redis.eviction_policy == "refuse":
        raise StartError(problem)
    log.event("warning", "eviction_policy", policy=policy)


def _evicting(configuration: Mapping[object, object]) -> str | None:
    """The policy by which a server may drop keys, or None."""
    texts = {_str(name): _str(value) for name, value in configuration.items()}
    policy = texts.get("maxmemory-policy", "noeviction")
    return None if policy == "noeviction" or texts.get("maxmemory", "0") == "0" else policy


def _str(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
