"""The parts of the sidecar, each made from the settings."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import redis.exceptions
from prometheus_client import CollectorRegistry, disable_created_metrics
from redis.asyncio import Redis

from authsidecar import __version__
from authsidecar.config import Settings
from authsidecar.coolify.status import read_owner
from authsidecar.decision.authorize import StoreError
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.decision.routes import RELEASES, coolify
from authsidecar.expiry.canaries import CanaryAlarms
from authsidecar.expiry.notice import HOUR_MS
from authsidecar.expiry.rounds import NoDriverError, WarningOptions, WarningResult
from authsidecar.observe.background import Background
from authsidecar.observe.canary import CanaryUse
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import Telemetry
from authsidecar.observe.once import Once
from authsidecar.observe.receipts import MadeUnder, words
from authsidecar.observe.traces import Sampler
from authsidecar.run import descriptors
from authsidecar.run.errors import StartError
from authsidecar.run.terms import Terms
from authsidecar.serving.authz import AuthzServer
from authsidecar.serving.connection_limits import MAX_CONNECTIONS, ConnectionLimits
from authsidecar.serving.untrusted_peers import MAX_UNTRUSTED
from authsidecar.serving.witness import Witness
from authsidecar.store.absent import AbsentStore
from authsidecar.store.audit import Origin
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.fleet import FleetWriter, counted
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import LastUses
from authsidecar.store.receipts import ReceiptOptions, ReceiptWriter, written
from authsidecar.store.registry import Registry
from authsidecar.store.trips import KINDS


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


def told_limits(settings: Settings, log: Log, open_files: int) -> ConnectionLimits:
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


def logger(settings: Settings) -> Log:
    """Where lines go, from the settings."""
    terminal = sys.stderr is not None and sys.stderr.isatty()  # None: closed before the start
    return Log(
        json_lines=settings.log.format == "json"
        or (settings.log.format == "auto" and not terminal),
        level=settings.log.level,
        colours=terminal,
    )


def made_telemetry(terms: Terms, log: Log) -> tuple[CollectorRegistry, Telemetry]:
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


def decision_store(
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


def authz_server(
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


def apply(
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
        receipts.made_under = made_under(terms)
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


def made_under(terms: Terms) -> MadeUnder:
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


def canary_used(telemetry: Telemetry, alarms: CanaryAlarms, use: CanaryUse) -> None:
    """Count it, and tell the operator."""
    telemetry.canary_used()
    alarms.used(use)


def canary_alarms(settings: Settings, client: "Redis", log: Log) -> CanaryAlarms:
    """What tells the operator of a canary token's use.

    Raises:
        StartError: a channel's driver is not installed.
    """
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
async def receipt_writer(
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
    receipts = ReceiptWriter(client, keys, options, made_under(terms), registry)
    async with written(receipts, background):
        yield receipts


@asynccontextmanager
async def fleet_counters(
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
