"""One process of the sidecar, from settings to listeners and back: what `serve` runs."""

import asyncio
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final

import redis.exceptions
from aiohttp import web
from prometheus_client import CollectorRegistry, disable_created_metrics
from redis.asyncio import Redis

from authsidecar import __version__
from authsidecar.config import Settings
from authsidecar.coolify.source import SourceError
from authsidecar.coolify.status import exported, read_owner
from authsidecar.coolify.sync import following
from authsidecar.decision.authorize import UNSYNCED, StoreError
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.decision.routes import RELEASES, coolify
from authsidecar.expiry.canaries import CanaryAlarms
from authsidecar.expiry.notice import HOUR_MS
from authsidecar.expiry.rounds import NoDriverError, WarningOptions, WarningResult, warning
from authsidecar.observe.background import Background
from authsidecar.observe.canary import CanaryUse
from authsidecar.observe.log import Bridge, Log
from authsidecar.observe.metrics import Telemetry
from authsidecar.observe.once import Once
from authsidecar.observe.receipts import MadeUnder, words
from authsidecar.observe.traces import Sampler
from authsidecar.run import descriptors
from authsidecar.run.beside import answering
from authsidecar.run.errors import AwayError, StartError
from authsidecar.run.life import Life, StoppedError, log_ignored_signals
from authsidecar.run.managed import management, management_tls, reload_result
from authsidecar.run.notify_socket import NotifySocket
from authsidecar.run.redis_at_start import (
    bring_forward,
    check_eviction,
    connected_client,
    see_answer,
    without_secret,
)
from authsidecar.run.reload import Load, Reloaded, ReloadError, RunningConfig, reload_and_tell
from authsidecar.run.terms import Terms, terms
from authsidecar.run.tracing import tracing
from authsidecar.serving.authz import AuthzServer
from authsidecar.serving.connection_limits import MAX_CONNECTIONS, ConnectionLimits
from authsidecar.serving.listeners import BACKLOG, Listeners
from authsidecar.serving.management import bounded
from authsidecar.serving.servers import ListenerConnections, choose
from authsidecar.serving.untrusted_peers import MAX_UNTRUSTED
from authsidecar.serving.witness import Witness
from authsidecar.store.absent import AbsentStore
from authsidecar.store.audit import Origin, Trail
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.fleet import FleetWriter, counted
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import LastUses, last_uses
from authsidecar.store.receipts import ReceiptOptions, ReceiptWriter, written
from authsidecar.store.registry import Registry
from authsidecar.store.trips import KINDS, kind_of
from authsidecar.tasks import end

GRACE_S: Final = 10.0
"""How long a stop waits for requests in flight, in seconds."""

DRAIN_S: Final = 0.2
"""How long a stop goes on answering connections that are open, each answer closing its own, in
seconds: a proxy may have sent a request before it could know."""

LONGEST_LINE: Final = 32 * 1024
"""Bytes of the longest request line of the management listener."""

HANDSHAKE_S: Final = 5.0
"""How long a TLS handshake with the management listener may take, in seconds."""

READY_AGE_S: Final = 1.0
"""For how long `/readyz` repeats an answer, in seconds."""

WAITING_S: Final = 0.5
"""The time between two tries while Redis is away at start, in seconds."""

WAITING_LOGGED_S: Final = 30.0
"""The time between two lines about it, in seconds."""

SKEW_WARNING_MS: Final = 1000
"""From this difference on, the clocks of Redis and this machine are worth a warning."""


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


async def serve(
    settings: Settings,
    log: Log,
    listeners: Listeners,
    *,
    manager: NotifySocket,
    load: Load,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run until SIGTERM or SIGINT; then finish what is in flight.

    On SIGHUP the configuration is read again.

    Args:
        settings: the configuration.
        load: reads it again.
        log: where lines go.
        listeners: the open sockets.
        manager: told when it answers, that it lives, and when it stops.
        started: called once requests are answered.

    Raises:
        StartError: Redis or a file cannot be used.
    """
    life = Life()
    reloads = ReloadsOnSignal(load, RunningConfig.of(settings), log, manager, life)
    life.answering = reloads.begin
    life.end_on(signal.SIGTERM, quick=(signal.SIGINT,))
    log_ignored_signals(log, but=[signal.SIGHUP])
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
    await reloads.close()
    beat.cancel()
    log.event("info", "stopped")
    log.flush()


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
    first = life.terms or terms(settings)
    registry, telemetry = _telemetry(first, log)
    pace = AddressPace(first.lookups_per_second)
    background = Background(log, registry)
    keys = Keys(settings.redis.prefix)
    synced = settings.sync.source is not None
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(telemetry.kept(partial(background.keep, "metrics")))
        client = await stack.enter_async_context(connected_client(settings, log, background))
        decisions = _decision_store(settings, log, client, telemetry, pace)
        stack.push_async_callback(decisions.close)
        telemetry.watch(lambda: decisions.connections)
        await stack.enter_async_context(
            background.running("audit", partial(Trail(client, keys).keep_logging, log))
        )
        uses = await stack.enter_async_context(last_uses(client, keys, log, background))
        alarms = _alarms(settings, client, log)
        await stack.enter_async_context(background.running("canaries", alarms.run))
        receipts = await stack.enter_async_context(
            _receipts(settings, first, client, registry, background)
        )
        authz = _authz_server(
            *(settings, log, client, telemetry),
            terms=first,
            uses=uses,
            canary_used=partial(_canary_used, telemetry, alarms),
            receipts=receipts,
            traces=await stack.enter_async_context(tracing(settings, log)),
        )
        await stack.enter_async_context(
            _fleet(
                *(settings, client, decisions, telemetry),
                config=lambda: (life.terms or first).digest,
                registry=registry,
                background=background,
            )
        )
        life.on_change(
            partial(_apply, authz=authz, telemetry=telemetry, pace=pace, log=log, receipts=receipts)
        )
        beside = await stack.enter_async_context(AsyncExitStack())
        await beside.enter_async_context(
            exported(client, keys, registry, background, expected=synced)
        )
        app = management(
            *(settings, client, decisions, lambda: life.terms or first),
            reload=partial(reload_result, life),
            ask=await stack.enter_async_context(answering(settings)),
            missing=partial(_missing, life, _Readiness(decisions)),
            registry=registry,
            telemetry=telemetry,
            background=background,
            log=log,
        )
        tls = management_tls(settings)
        connections = authz.connections(
            _told_limits(settings, log, open_files), choose(settings.listen.server)
        )
        managed = partial(
            bounded,
            most=descriptors.for_management(open_files),
            dropped=telemetry.connection_dropped,
        )
        life.connections = connections

        async def begin() -> None:
            await _warm(decisions, log)
            await _follow(beside, settings, client, log, background)
            trials = Registry(client, keys).trials
            await beside.enter_async_context(
                background.running("trials", lambda: trials.keep_rolling_back(log))
            )
            await beside.enter_async_context(_warning(settings, client, log, telemetry, background))
            authz.use(decisions)
            life.missing = {}

        start = _Start(settings, log, life, client)
        if await start.tried():
            await begin()
            await _serve_on(stack, listeners, connections, app, managed, tls=tls)
            life.answering()
        else:
            await _serve_on(stack, listeners, connections, app, managed, tls=tls)
            life.answering()
            await start.waited()
            await begin()
        yield authz


def _telemetry(terms: Terms, log: Log) -> tuple[CollectorRegistry, Telemetry]:
    """The metrics, and where they are collected."""
    # A second series for each, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    telemetry = Telemetry(
        registry,
        log,
        terms.log_decisions,
        kinds=[kind for kind in KINDS if kind != "open"],  # of a trip that was not made
        results=WarningResult,
    )
    telemetry.follow(terms.digest, terms.log_decisions)
    return registry, telemetry


def _decision_store(
    settings: Settings, log: Log, client: "Redis", telemetry: Telemetry, pace: AddressPace
) -> DecisionStore:
    """What decisions are made from; an unreadable value is logged once."""
    odd = Once(log, "unreadable_value")
    return DecisionStore(
        client,
        Keys(settings.redis.prefix),
        budget_ms=settings.redis.budget_ms,
        cache_records=settings.redis.cache_records,
        cache_max_age_s=settings.redis.cache_max_age_seconds,
        pace=pace,
        synced=settings.sync.source is not None,
        observe=telemetry.trip,
        looked_up=telemetry.looked_up,
        unreadable=lambda key, field: odd.warn(key=key, field=field),
    )


def _authz_server(
    settings: Settings,
    log: Log,
    client: "Redis",
    telemetry: Telemetry,
    *,
    terms: Terms,
    uses: LastUses,
    canary_used: Callable[[CanaryUse], None],
    receipts: ReceiptWriter | None,
    traces: Sampler | None,
) -> AuthzServer:
    """What answers subrequests; until it is given a store, with 503."""
    keys = Keys(settings.redis.prefix)
    report_only = terms.report_only
    return AuthzServer(
        rules=terms.rules,
        store=AbsentStore(),
        telemetry=telemetry,
        log=log,
        trusted_peers=terms.trusted_peers,
        trusted_hops=terms.trusted_hops,
        report_only=report_only,
        uses=uses,
        receipts=receipts,
        traces=traces,
        canary_used=canary_used,
        expiry_ms=terms.expiry_ms,
        memo_entries=settings.listen.memo_entries,
        witness=Witness(
            *(client, keys),
            budget_ms=settings.redis.budget_ms,
            log=log,
            report_only=report_only,
            forwarded=terms.rules.forwarded_bodies,
        ),
        switch=partial(_switch, client, keys),
    )


def _told_limits(settings: Settings, log: Log, open_files: int) -> ConnectionLimits:
    """The limits of connections; a warning if they are less than what was set."""
    limits = connection_limits(settings, open_files)
    if limits.connections < (settings.listen.max_connections or 0):
        log.event(
            "warning",
            "connections_limited",
            connections=limits.connections,
            open_files=open_files,
            hint="listen.max_connections is more than the limit of open files leaves",
        )
    return limits


def _apply(
    terms: Terms,
    *,
    authz: AuthzServer,
    telemetry: Telemetry,
    pace: AddressPace,
    log: Log,
    receipts: ReceiptWriter | None,
) -> None:
    """Decide the next request by these terms."""
    if receipts is not None:
        receipts.made_under = _made_under(terms)
    authz.apply(
        terms.rules,
        trusted_peers=terms.trusted_peers,
        trusted_hops=terms.trusted_hops,
        report_only=terms.report_only,
        expiry_ms=terms.expiry_ms,
    )
    pace.set_rate(terms.lookups_per_second)
    telemetry.follow(terms.digest, terms.log_decisions)
    log.set_level(terms.log_level)


class ReloadsOnSignal:
    """Reads the configuration again on each SIGHUP, one after the other, in a thread."""

    def __init__(
        self, load: Load, config: RunningConfig, log: Log, manager: NotifySocket, life: Life
    ) -> None:
        """A signal that comes before `begin` is not lost."""
        self._load = load
        self._config = config
        self._log = log
        self._manager = manager
        self._life = life
        self._asked = asyncio.Event()
        self._one = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        life.change(config.terms)
        life.reload = self.now
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)

    def begin(self) -> None:
        """Tell the manager that it answers; read the configuration at each signal from now on."""
        self._manager.ready()
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Read nothing any more."""
        await end([] if self._reading is None else [self._reading])

    async def now(self) -> Reloaded:
        """Read it now.

        Raises:
            ReloadError: it can't be used; nothing has changed.
        """
        async with self._one:
            self._manager.reloading()
            try:
                found = await asyncio.to_thread(
                    reload_and_tell, self._load, self._config, self._log
                )
                self._config = found.config
                self._life.change(found.config.terms)
            finally:
                self._manager.ready()
            return found

    async def _read(self) -> None:
        while await self._asked.wait():
            self._asked.clear()
            with suppress(ReloadError):  # it is in the log
                await self.now()


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
            await see_answer(client, settings)
            await bring_forward(client, settings)
            await check_eviction(client, settings, self._log)
            await Registry(client, Keys(settings.redis.prefix)).first_start(
                api_enabled=settings.api.enabled_at_first_start
            )
        except AwayError as error:
            self._away = error
        except redis.exceptions.NoPermissionError as error:
            name = without_secret(settings.redis.url)
            raise StartError(f"redis.username: has too few rights on {name} ({error})") from None
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            problem = f"redis.url: {without_secret(settings.redis.url)} can't be used ({error})"
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
        options = WarningOptions.of(settings)
    except NoDriverError as error:
        raise StartError(str(error)) from None
    keys = Keys(settings.redis.prefix)
    return warning(options, client, keys, log, telemetry.warned, background=background)


def _canary_used(telemetry: Telemetry, alarms: CanaryAlarms, use: CanaryUse) -> None:
    """Count it, and tell the operator."""
    telemetry.canary_used()
    alarms.used(use)


def _alarms(settings: Settings, client: "Redis", log: Log) -> CanaryAlarms:
    try:
        channels = WarningOptions.of(settings).channels
    except NoDriverError as error:
        raise StartError(str(error)) from None
    return CanaryAlarms(
        channels,
        settings.mail.operator,
        client,
        Keys(settings.redis.prefix),
        log=log,
        ipv6_prefix=settings.limits.ipv6_prefix,
    )


@asynccontextmanager
async def _receipts(
    settings: Settings,
    terms: Terms,
    client: "Redis",
    registry: CollectorRegistry,
    background: Background,
) -> AsyncIterator[ReceiptWriter | None]:
    """What keeps receipts, if they are to be kept."""
    section = settings.receipts
    if not section.enabled:
        yield None
        return
    options = ReceiptOptions(
        share=section.share,
        max_entries=section.max_entries,
        max_age_ms=section.max_age_hours * HOUR_MS,
        max_per_second=section.max_per_second,
    )
    keys = Keys(settings.redis.prefix)
    receipts = ReceiptWriter(client, keys, options, _made_under(terms), registry)
    async with written(receipts, background):
        yield receipts


@asynccontextmanager
async def _fleet(
    settings: Settings,
    client: "Redis",
    decisions: DecisionStore,
    telemetry: Telemetry,
    *,
    config: Callable[[], str],
    registry: CollectorRegistry,
    background: Background,
) -> AsyncIterator[None]:
    """Count for the whole fleet, if that is wanted."""
    if not settings.management.fleet_counters:
        yield
        return
    fleet = FleetWriter(
        client,
        Keys(settings.redis.prefix),
        telemetry.sums,
        version=__version__,
        config=config,
        now=decisions.now,
        registry=registry,
    )
    async with counted(fleet, background):
        yield


def _made_under(terms: Terms) -> MadeUnder:
    """What the receipts that are made under these terms have in common."""
    policy = terms.rules.policy
    return MadeUnder(
        release=__version__,
        config=terms.digest,
        words=words(policy.routes, *map(coolify, RELEASES)),
        report_only=terms.report_only,
        isolated=policy.team_isolation,
    )


async def _switch(client: "Redis", keys: Keys, enabled: bool, origin: Origin) -> None:
    try:
        if await read_owner(client, keys) is not None:
            raise StoreError("other", "the API is switched in Coolify, which is followed")
        await Registry(client, keys, origin).set_instance(api_enabled=enabled)
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
    connections: ListenerConnections,
    app: web.Application,
    managed: Callable[[web.Server], Callable[[], asyncio.Protocol]],
    *,
    tls: ssl.SSLContext | None,
) -> None:
    """Answer on the open sockets; when the stack closes, the authz listener ends first."""
    # Copies: what is served is closed at the end, and workers share the originals.
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=GRACE_S, max_line_size=LONGEST_LINE
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None  # noqa: S101  # it is set up
    manage = managed(runner.server)
    loop = asyncio.get_running_loop()
    for one in listeners.management:
        managing = await loop.create_server(
            manage,
            sock=one.dup(),
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
        )
        stack.callback(managing.close)
    servers = [
        await loop.create_server(connections, sock=one.dup(), backlog=BACKLOG)
        for one in listeners.authz
    ]
    stack.push_async_callback(_drain, servers, connections, shared=listeners.shared)


async def _drain(
    servers: list[asyncio.Server], connections: ListenerConnections, *, shared: bool
) -> None:
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
