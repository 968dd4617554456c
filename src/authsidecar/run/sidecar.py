"""One process of the sidecar, from settings to listeners and back: what `serve` runs."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web
from redis.asyncio import Redis

from authsidecar import __version__
from authsidecar.config import Settings
from authsidecar.coolify.source import SourceError
from authsidecar.coolify.status import exported
from authsidecar.coolify.sync import following
from authsidecar.decision.authorize import StoreError
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.expiry.rounds import NoDriverError, WarningOptions, warning
from authsidecar.observe.background import Background
from authsidecar.observe.log import Bridge, Log
from authsidecar.observe.metrics import Telemetry
from authsidecar.run import descriptors
from authsidecar.run.beside import answering
from authsidecar.run.errors import StartError
from authsidecar.run.life import Life, StoppedError, log_ignored_signals
from authsidecar.run.managed import management, management_tls, reload_result
from authsidecar.run.notify_socket import NotifySocket
from authsidecar.run.parts import (
    apply,
    authz_server,
    canary_alarms,
    canary_used,
    decision_store,
    fleet_counters,
    made_telemetry,
    receipt_writer,
    told_limits,
)
from authsidecar.run.readiness import Readiness, missing
from authsidecar.run.redis_at_start import (
    connected_client,
)
from authsidecar.run.redis_awaited import RedisAwaited
from authsidecar.run.reload import Load, RunningConfig
from authsidecar.run.reload_on_signal import ReloadsOnSignal
from authsidecar.run.terms import terms
from authsidecar.run.tracing import tracing
from authsidecar.serving.accepting import Acceptor
from authsidecar.serving.authz import AuthzServer
from authsidecar.serving.listeners import BACKLOG, Listeners
from authsidecar.serving.management import bounded
from authsidecar.serving.servers import ListenerConnections, choose
from authsidecar.store.audit import Trail
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import last_uses
from authsidecar.store.registry import Registry

GRACE_S: Final = 10.0
"""How long a stop waits for requests in flight, in seconds."""

DRAIN_S: Final = 0.2
"""How long a stop goes on answering connections that are open, each answer closing its own, in
seconds: a proxy may have sent a request before it could know."""

LONGEST_LINE: Final = 32 * 1024
"""Bytes of the longest request line of the management listener."""

HANDSHAKE_S: Final = 5.0
"""How long a TLS handshake with the management listener may take, in seconds."""

SKEW_WARNING_MS: Final = 1000
"""From this difference on, the clocks of Redis and this machine are worth a warning."""


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
    registry, telemetry = made_telemetry(first, log)
    pace = AddressPace(first.lookups_per_second)
    background = Background(log, registry)
    keys = Keys(settings.redis.prefix)
    synced = settings.sync.source is not None
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(telemetry.kept(partial(background.keep, "metrics")))
        client = await stack.enter_async_context(connected_client(settings, log, background))
        decisions = decision_store(settings, log, client, telemetry, pace)
        stack.push_async_callback(decisions.close)
        telemetry.watch(lambda: decisions.connections)
        await stack.enter_async_context(
            background.running("audit", partial(Trail(client, keys).keep_logging, log))
        )
        uses = await stack.enter_async_context(last_uses(client, keys, log, background))
        alarms = canary_alarms(settings, client, log)
        await stack.enter_async_context(background.running("canaries", alarms.run))
        receipts = await stack.enter_async_context(
            receipt_writer(settings, first, client, registry, background)
        )
        authz = authz_server(
            *(settings, log, client, telemetry),
            terms=first,
            uses=uses,
            canary_used=partial(canary_used, telemetry, alarms),
            receipts=receipts,
            traces=await stack.enter_async_context(tracing(settings, log)),
        )
        await stack.enter_async_context(
            fleet_counters(
                *(settings, client, decisions, telemetry),
                config=lambda: (life.terms or first).digest,
                registry=registry,
                background=background,
            )
        )
        life.on_change(
            partial(apply, authz=authz, telemetry=telemetry, pace=pace, log=log, receipts=receipts)
        )
        beside = await stack.enter_async_context(AsyncExitStack())
        await beside.enter_async_context(
            exported(client, keys, registry, background, expected=synced)
        )
        app = management(
            *(settings, client, decisions, lambda: life.terms or first),
            reload=partial(reload_result, life),
            ask=await stack.enter_async_context(answering(settings)),
            missing=partial(missing, life, Readiness(decisions)),
            registry=registry,
            telemetry=telemetry,
            background=background,
            log=log,
        )
        tls = management_tls(settings)
        connections = authz.connections(
            told_limits(settings, log, open_files), choose(settings.listen.server)
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

        start = RedisAwaited(settings, log, life, client)
        ready = await start.tried()
        if ready:
            await begin()
        alone = settings.listen.workers == 1
        await _serve_on(stack, listeners, connections, app, managed, tls=tls, alone=alone)
        life.answering()
        if not ready:
            await start.waited()
            await begin()
        yield authz


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


async def _warm(decisions: DecisionStore, log: Log) -> None:
    """Learn Redis's clock; a slow first answer is no reason not to start."""
    try:
        await decisions.ping()
    except StoreError:
        return
    skew = round(decisions.clock_offset_ms)
    if abs(skew) > SKEW_WARNING_MS:
        log.event("warning", "clock_skew", milliseconds=skew, followed="Redis's clock")


async def _serve_on(
    stack: AsyncExitStack,
    listeners: Listeners,
    connections: ListenerConnections,
    app: web.Application,
    managed: Callable[[web.Server], Callable[[], asyncio.Protocol]],
    *,
    tls: ssl.SSLContext | None,
    alone: bool,
) -> None:
    """Answer on the open sockets; when the stack closes, the authz listener ends first.

    Workers leave connections to each other that come at the same time: `alone` is false.
    """
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
        await loop.create_server(
            Acceptor(connections, one, connections.room) if alone else connections,
            sock=one.dup(),
            backlog=BACKLOG,
        )
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
