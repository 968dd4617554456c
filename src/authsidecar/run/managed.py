"""What the management listener of one process answers, from its parts."""

import ssl
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from authsidecar import __version__
from authsidecar.admin.keys import prove_key
from authsidecar.admin.questions import Ask
from authsidecar.admin.what_if import RoutesNow
from authsidecar.config import Settings
from authsidecar.coolify.status import read_owner, readiness
from authsidecar.observe.background import Background
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import Telemetry, collected
from authsidecar.run.errors import StartError
from authsidecar.run.life import Life
from authsidecar.run.reload import ReloadError
from authsidecar.run.terms import Terms
from authsidecar.serving.console import add_console
from authsidecar.serving.listeners import server_tls
from authsidecar.serving.manage.access import Access
from authsidecar.serving.manage.api import add_to
from authsidecar.serving.manage.operations import ReloadResult, Sidecar
from authsidecar.serving.management import application
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.management_keys import ManagementKeys


def management(
    settings: Settings,
    client: "Redis",
    decisions: DecisionStore,
    in_force: Callable[[], Terms],
    *,
    reload: Callable[[], Awaitable[ReloadResult]],
    ask: Ask,
    missing: Callable[[], Awaitable[dict[str, str]]],
    registry: CollectorRegistry,
    telemetry: Telemetry,
    background: Background,
    log: Log,
) -> web.Application:
    """What the management listener answers.

    Args:
        settings: what the process was started with.
        client: redis-py's asyncio client.
        decisions: the hot path's store.
        in_force: tells what requests are decided by now.
        reload: reads the configuration again.
        ask: has questions to all receipts answered.
        missing: tells what keeps the process from deciding.
        registry: where its metrics are.
        telemetry: told whether it is ready.
        background: what fails beside requests.
        log: told of defects.
    """
    keys, synced = Keys(settings.redis.prefix), settings.sync.source is not None
    access = Access(partial(prove_key, ManagementKeys(client, keys)))
    app = application(
        lambda: collected(registry),
        missing,
        lambda: readiness(client, keys, expected=synced),
        lambda: background.failing,
        telemetry.record_ready,
        config_digest=lambda: in_force().digest,
        metrics_access=access if settings.management.metrics_key else None,
    )
    sidecar = Sidecar(
        client=client,
        keys=keys,
        decisions=decisions,
        rules=lambda: in_force().rules,
        routes=lambda: RoutesNow(in_force().release, in_force().extra_routes),
        peers=lambda: in_force().trusted_peers,
        hops=lambda: in_force().trusted_hops,
        ask=ask,
        reload=reload,
        replicas=(settings.redis.wait_replicas, settings.redis.wait_timeout_ms),
        owner=partial(read_owner, client, keys),
        missing=missing,
        sync=partial(readiness, client, keys, expected=synced),
        background=lambda: background.failing,
        warnings=lambda: in_force().warnings,
        version=__version__,
    )
    add_to(app, sidecar, access, log)
    if settings.management.console:
        add_console(app, sidecar, access, log, settings.management.console_hosts)
    return app


async def reload_result(life: Life) -> ReloadResult:
    """Read the configuration again, and tell what came of it."""
    if life.reload is None:
        return ReloadResult("", problems=("this process has no configuration to read again",))
    try:
        found = await life.reload()
    except ReloadError as error:
        return ReloadResult("", problems=error.problems)
    return ReloadResult(found.config.terms.digest, found.changed, found.left)


def management_tls(settings: Settings) -> ssl.SSLContext | None:
    """The listener's certificate, if it has one.

    Raises:
        StartError: it can't be used.
    """
    section = settings.management
    if section.tls_cert_file is None or section.tls_key_file is None:
        return None
    try:
        return server_tls(section.tls_cert_file, section.tls_key_file)
    except (OSError, ValueError) as error:
        raise StartError(f"management.tls_cert_file: can't be used ({error})") from None
