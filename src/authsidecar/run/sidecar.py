"""One process of the sidecar, from settings to listeners and back: what `serve` runs."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import redis.exceptions
from aiohttp import web
from prometheus_client import CollectorRegistry, disable_created_metrics
from redis.asyncio import Redis

from authsidecar import __version__
from authsidecar.config import Settings
from authsidecar.coolify.source import SourceError
from authsidecar.coolify.status import exported, read_owner, readiness
from authsidecar.coolify.sync import following
from authsidecar.decision.addresses import Networks
from authsidecar.decision.authorize import UNSYNCED, Rules, StoreError
from authsidecar.decision.model import TeamId
from authsidecar.decision.policy import Policy
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.decision.routes import RouteError, RouteTable, coolify, extra
from authsidecar.expiry.notice import HOUR_MS
from authsidecar.expiry.rounds import NoDriverError, Options, Result, warning
from authsidecar.observe.background import Background, describe_error
from authsidecar.observe.log import Bridge, Log
from authsidecar.observe.metrics import Telemetry, collected
from authsidecar.observe.once import Once
from authsidecar.run import descriptors
from authsidecar.run.life import Life, StoppedError, log_ignored_signals
from authsidecar.run.notify_socket import NotifySocket
from authsidecar.run.redis import connection
from authsidecar.serving.authz import AuthzServer
from authsidecar.serving.connection_limits import MAX_CONNECTIONS, ConnectionLimits
from authsidecar.serving.listeners import BACKLOG, Listeners
from authsidecar.serving.management import application, bounded
from authsidecar.serving.servers import Connections, choose
from authsidecar.serving.untrusted_peers import MAX_UNTRUSTED
from authsidecar.serving.witness import Witness
from authsidecar.store.absent import AbsentStore
from authsidecar.store.cluster import Cluster, configurations
from authsidecar.store.connect import connected, endpoints
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.embedded import EmbeddedRedisError
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import last_uses
from authsidecar.store.registry import Registry
from authsidecar.store.trips import KINDS, kind_of

GRACE_S: Final = 10.0
"""How long a stop waits for requests in flight, in seconds."""

DRAIN_S: Final = 0.2
"""How long a stop goes on answering connections that are open, each answer closing its own, in
seconds: a proxy may have sent a request before it could know."""

READY_AGE_S: Final = 1.0
"""For how long `/readyz` repeats an answer, in seconds."""

START_BUDGET_MS: Final = 2000
"""How long Redis may take to answer at start, in milliseconds."""

WAITING_S: Final = 0.5
"""The time between two tries while Redis is away at start, in seconds."""

WAITING_LOGGED_S: Final = 30.0
"""The time between two lines about it, in seconds."""

SKEW_WARNING_MS: Final = 1000
"""From this difference on, the clocks of Redis and this machine are worth a warning."""


class StartError(Exception):
    """The sidecar cannot start; one line that says what to change."""


def routes(settings: Settings) -> RouteTable:
    """The route table that the settings choose.

    Raises:
        StartError: the operator's own rows cannot be used.
    """
    table = coolify(settings.coolify.routes)
    path = settings.coolify.extra_routes
    if path is None:
        return table
    try:
        return extra(Path(path).read_text("utf-8"), table)
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"coolify.extra_routes: cannot read {path}: {error}") from None
    except RouteError as error:
        raise StartError(f"coolify.extra_routes: {path}: {error}") from None


def rules(settings: Settings) -> Rules:
    """What decisions depend on, from the settings.

    Raises:
        StartError: the operator's own routes cannot be used.
    """
    return Rules(
        policy=Policy(
            routes=routes(settings),
            pass_outside=settings.coolify.outside == "pass",
            instance_team=TeamId(settings.coolify.instance_team),
            team_isolation=settings.sync.team_isolation,
        ),
        limits=settings.limits.as_limits(),
        ipv6_prefix=settings.limits.ipv6_prefix,
        public_without_store=settings.redis.public_without_redis,
    )


def connection_limits(settings: Settings, open_files: int) -> ConnectionLimits:
    """How many connections proxies may have, from the settings.

    Args:
        settings: the configuration.
        open_files: how many files this process may have open.
    """
    section = settings.listen
    left, strangers = descriptors.for_authz(open_files, settings.redis.max_connections)
    most = min(section.max_connections or MAX_CONNECTIONS, left)
    return ConnectionLimits(
        connections=most,
        per_peer=min(section.max_connections_per_peer or most - most // 4, most),
        strangers=min(MAX_UNTRUSTED, strangers),
        first_byte_s=section.first_byte_timeout_seconds,
        request_s=section.request_timeout_seconds,
        body_bytes=section.max_body_bytes,
    )


def logger(settings: Settings) -> Log:
    """Where lines go, from the settings."""
    terminal = sys.stderr is not None and sys.stderr.isatty()  # None: closed before the start
    return Log(
        json_lines=settings.log.format == "json"
        or (settings.log.format == "auto" and not terminal),
        level=settings.log.level,
        colours=terminal,
    )


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator["Redis"]:
    """A client of the Redis that the settings name, seen to answer.

    Raises:
        StartError: it cannot be reached; says which and why.
    """
    async with _connected(settings) as client:
        await _answers(client, settings)
        yield client


@asynccontextmanager
async def _connected(
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


def _look_failed(background: Background, error: BaseException | None) -> None:
    if error is None:
        background.well("cluster")
    else:
        background.failed("cluster", describe_error(error))


class AwayError(StartError):
    """Redis does not answer, or not as it should; it may soon.

    Attributes:
        kind: the closed kind of what went wrong.
    """

    def __init__(self, problem: str, kind: str) -> None:
        super().__init__(problem)
        self.kind = kind


async def _answers(client: "Redis", settings: Settings) -> None:
    name = _without_secret(settings.redis.url)
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
    name, why = _without_secret(settings.redis.url), str(error)
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


def _without_secret(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


async def serve(
    settings: Settings,
    log: Log,
    listeners: Listeners,
    *,
    manager: NotifySocket,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run until SIGTERM or SIGINT; then finish what is in flight.

    Args:
        settings: the configuration.
        log: where lines go.
        listeners: the open sockets.
        manager: told when it answers, that it lives, and when it stops.
        started: called once requests are answered.

    Raises:
        StartError: Redis or a file cannot be used.
    """
    life = Life(manager.ready)
    life.end_on(signal.SIGTERM, quick=(signal.SIGINT,))
    log_ignored_signals(log)
    beat = asyncio.create_task(manager.keep_alive())
    try:
        async with running(settings, log, listeners, life):
            server = choose(settings.listen.server)
            log.event(
                "info", "listening", version=__version__, server=server, **listeners.addresses()
            )
            started()
            await life.until_end()
            delay = settings.shutdown.delay_seconds
            manager.stopping(delay + GRACE_S)
            log.event("info", "stopping", delay_seconds=delay, grace_seconds=GRACE_S)
            listeners.give_way()
            await life.leave(delay)
            listeners.close()  # what the runners close is a copy: nobody may wait on this one
    except StoppedError:
        pass
    beat.cancel()
    log.event("info", "stopped")
    log.flush()


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


@asynccontextmanager
async def running(
    settings: Settings, log: Log, listeners: Listeners, life: Life | None = None
) -> AsyncIterator[AuthzServer]:
    """The sidecar answering on open sockets, until the context ends.

    While Redis is away at the start, it answers already: that it is alive, that it is not ready,
    and 503 to every subrequest.

    Args:
        settings: the configuration.
        log: where lines go.
        listeners: the open sockets.
        life: when to end, and why it is not ready.

    Raises:
        StartError: Redis or a file cannot be used.
        StoppedError: it was to end before Redis was there.
    """
    life = life or Life()
    _quiet_libraries(log)
    open_files = descriptors.raise_limit()
    decided_by = rules(settings)
    # A second series for each, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    telemetry = Telemetry(
        registry := CollectorRegistry(),
        log,
        settings.log.decisions,
        kinds=[kind for kind in KINDS if kind != "open"],  # of a trip that was not made
        results=Result,
    )
    background = Background(log, registry)
    keys = Keys(settings.redis.prefix)
    synced = settings.sync.source is not None
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(telemetry.kept(partial(background.keep, "metrics")))
        client = await stack.enter_async_context(_connected(settings, log, background))
        odd = Once(log, "unreadable_value")
        decisions = DecisionStore(
            client,
            keys,
            budget_ms=settings.redis.budget_ms,
            cache_records=settings.redis.cache_records,
            cache_max_age_s=settings.redis.cache_max_age_seconds,
            pace=AddressPace(settings.limits.lookups_per_second),
            synced=synced,
            observe=telemetry.trip,
            looked_up=telemetry.looked_up,
            unreadable=lambda key, field: odd.warn(key=key, field=field),
        )
        stack.push_async_callback(decisions.close)
        telemetry.watch(lambda: decisions.connections)
        uses = await stack.enter_async_context(last_uses(client, keys, log, background))
        authz = AuthzServer(
            rules=decided_by,
            store=AbsentStore(),
            telemetry=telemetry,
            log=log,
            trusted_peers=Networks.of(settings.peer_networks),
            trusted_hops=Networks.of(settings.hop_networks),
            report_only=settings.enforcement == "report",
            uses=uses,
            expiry_ms=settings.mail.expiry_header_hours * HOUR_MS,
            witness=Witness(
                client,
                keys,
                budget_ms=settings.redis.budget_ms,
                log=log,
                report_only=settings.enforcement == "report",
            ),
            switch=partial(_switch, client, keys),
        )
        beside = await stack.enter_async_context(AsyncExitStack())
        await beside.enter_async_context(
            exported(client, keys, registry, background, expected=synced)
        )
        app = application(
            lambda: collected(registry),
            partial(_missing, life, _Readiness(decisions)),
            lambda: readiness(client, keys, expected=synced),
            lambda: background.failing,
            telemetry.record_ready,
        )
        limits = connection_limits(settings, open_files)
        if limits.connections < (settings.listen.max_connections or 0):
            log.event(
                "warning",
                "connections_limited",
                connections=limits.connections,
                open_files=open_files,
                hint="listen.max_connections is more than the limit of open files leaves",
            )
        connections = authz.connections(limits, choose(settings.listen.server))
        managed = partial(
            bounded,
            most=descriptors.for_management(open_files),
            dropped=telemetry.connection_dropped,
        )
        life.connections = connections

        async def begin() -> None:
            await _warm(decisions, log)
            await _follow(beside, settings, client, log, background)
            await beside.enter_async_context(_warning(settings, client, log, telemetry, background))
            authz.use(decisions)
            life.missing = {}

        start = _Start(settings, log, life, client)
        if await start.tried():
            await begin()
            await _serve_on(stack, listeners, connections, app, managed)
            life.answering()
        else:
            await _serve_on(stack, listeners, connections, app, managed)
            life.answering()
            await start.waited()
            await begin()
        yield authz


class _Start:
    """What Redis is needed for before anything is decided; tried until it is there."""

    def __init__(self, settings: Settings, log: Log, life: Life, client: "Redis") -> None:
        self._settings = settings
        self._log = log
        self._life = life
        self._client = client
        self._away: AwayError | None = None

    async def tried(self) -> bool:
        """Whether it is there and was made ready.

        Raises:
            StartError: it can't be used, and waiting would not help.
        """
        settings, client = self._settings, self._client
        try:
            await _answers(client, settings)
            await _check_eviction(client, settings, self._log)
            await Registry(client, Keys(settings.redis.prefix)).first_start(
                api_enabled=settings.api.enabled_at_first_start
            )
        except AwayError as error:
            self._away = error
        except redis.exceptions.NoPermissionError as error:
            name = _without_secret(settings.redis.url)
            raise StartError(f"redis.username: has too few rights on {name} ({error})") from None
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            problem = f"redis.url: {_without_secret(settings.redis.url)} can't be used ({error})"
            self._away = AwayError(problem, kind_of(error))
        else:
            return True
        if settings.redis.wait_at_start_seconds == 0:
            raise self._away
        self._life.missing = {"redis": self._away.kind}
        return False

    async def waited(self) -> None:
        """Try until it is there; say so now and then.

        Raises:
            StartError: it can't be used, or it was away for too long.
            StoppedError: the process is to end.
        """
        patience = self._settings.redis.wait_at_start_seconds
        since = time.monotonic()
        logged_at = float("-inf")
        while self._away is not None:
            now = time.monotonic()
            if patience is not None and now - since >= patience:
                raise self._away
            if now - logged_at >= WAITING_LOGGED_S:
                self._log.event("warning", "waiting_for_redis", problem=str(self._away))
                logged_at = now
            if await self._life.until_end(WAITING_S):
                raise StoppedError
            if await self.tried():
                self._log.event("info", "redis_is_there", seconds=round(now - since, 1))
                return


async def _follow(
    stack: AsyncExitStack,
    settings: Settings,
    client: "Redis",
    log: Log,
    background: Background,
) -> None:
    try:
        await stack.enter_async_context(following(settings, client, log, background))
    except SourceError as error:
        raise StartError(f"sync.source: {error}") from None


def _warning(
    settings: Settings,
    client: "Redis",
    log: Log,
    telemetry: Telemetry,
    background: Background,
) -> AbstractAsyncContextManager[None]:
    try:
        options = Options.of(settings)
    except NoDriverError as error:
        raise StartError(str(error)) from None
    keys = Keys(settings.redis.prefix)
    return warning(options, client, keys, log, telemetry.warned, background=background)


async def _switch(client: "Redis", keys: Keys, enabled: bool) -> None:
    try:
        if await read_owner(client, keys) is not None:
            raise StoreError("other", "the API is switched in Coolify, which is followed")
        await Registry(client, keys).set_instance(api_enabled=enabled)
    except (redis.exceptions.RedisError, OSError):
        raise StoreError("other", "the switch was not set") from None


async def _warm(decisions: DecisionStore, log: Log) -> None:
    """Learn Redis's clock; a slow first answer is no reason not to start."""
    try:
        await decisions.ping()
    except StoreError:
        return
    skew = round(decisions.clock_offset_ms)
    if abs(skew) > SKEW_WARNING_MS:
        log.event("warning", "clock_skew", milliseconds=skew, followed="Redis's clock")


async def _check_eviction(client: "Redis", settings: Settings, log: Log) -> None:
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


class _Readiness:
    """What is missing before requests can be decided, asked of Redis once a second at the most."""

    def __init__(self, decisions: DecisionStore) -> None:
        self._decisions = decisions
        self._asking: asyncio.Task[dict[str, str]] | None = None
        self._asked_at = 0.0

    async def __call__(self) -> dict[str, str]:
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at >= READY_AGE_S):
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, str]:
        try:
            await self._decisions.ready()
        except StoreError as error:
            if error.kind == UNSYNCED:
                return {"sync": "not complete yet"}
            return {"redis": error.kind}
        return {}


async def _missing(life: Life, ready: _Readiness) -> dict[str, str]:
    return life.missing or await ready()


async def _serve_on(
    stack: AsyncExitStack,
    listeners: Listeners,
    connections: Connections,
    app: web.Application,
    managed: Callable[[web.Server], Callable[[], asyncio.Protocol]],
) -> None:
    """Answer on the open sockets; when the stack closes, the authz listener ends first."""
    # Copies: what is served is closed at the end, and workers share the originals.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None  # noqa: S101  # it is set up
    manage = managed(runner.server)
    loop = asyncio.get_running_loop()
    for one in listeners.management:
        managing = await loop.create_server(manage, sock=one.dup(), backlog=BACKLOG)
        stack.callback(managing.close)
    servers = [
        await loop.create_server(connections, sock=one.dup(), backlog=BACKLOG)
        for one in listeners.authz
    ]
    stack.push_async_callback(_drain, servers, connections, shared=listeners.shared)


async def _drain(servers: list[asyncio.Server], connections: Connections, *, shared: bool) -> None:
    """Accept nobody any more, answer the requests that just came in, finish what is in flight."""
    if not shared:
        for server in servers:
            server.close()
    connections.draining = True
    await asyncio.sleep(DRAIN_S)
    for server in servers:
        server.close()
    await connections.end(GRACE_S)


def _quiet_libraries(log: Log) -> None:
    """What libraries log goes through our own log: redacted, a line each, no traceback."""
    import logging  # noqa: PLC0415  # only the edge knows that it exists

    for name in ("aiohttp", "asyncio", "redis"):
        library = logging.getLogger(name)
        library.handlers = [Bridge(log)]
        library.propagate = False
