"""What is legal but unwise, said at start and by `check-config`."""

import os
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from urllib.parse import urlsplit

from authsidecar.config.sections import Settings
from authsidecar.config.values import ListenAddress, Network, redis_hosts


def warnings(settings: Settings) -> tuple[str, ...]:
    """Say what an operator may regret; each line names the setting first, never a secret."""
    return tuple(
        line
        for advise in (_exposure, _trust, _redis, _limits, _processes, _log, _mail, _sync)
        for line in advise(settings)
    )


def _exposure(settings: Settings) -> Iterator[str]:
    if settings.enforcement == "report":
        yield "enforcement: report lets every request pass; nothing is protected"
    if settings.coolify.outside == "pass":
        yield "coolify.outside: pass lets everything outside /api and /mcp through, unchecked"
    if settings.redis.public_without_redis:
        yield "redis.public_without_redis: public routes are not limited while Redis is away"
    if settings.api.enabled_at_first_start:
        yield "api.enabled_at_first_start: a new installation is open at once (Coolify's is not)"
    management = settings.management
    if not _is_local(management.endpoint):
        seen = "readiness is" if management.metrics_key else "metrics and readiness are"
        clear = "" if management.tls_cert_file else ", and management keys are sent in the clear"
        yield f"management.address: {seen} readable from other machines{clear}"
    if settings.listen.unix_socket is not None and settings.listen.mode & 0o002:
        yield "listen.unix_socket_mode: every user of this machine can ask, and is trusted"


def _is_local(endpoint: ListenAddress) -> bool:
    return endpoint.host is not None and _is_loopback(endpoint.host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _is_everywhere(endpoint: ListenAddress) -> bool:
    try:
        return endpoint.host is None or ip_address(endpoint.host).is_unspecified
    except ValueError:
        return False


def _trust(settings: Settings) -> Iterator[str]:
    endpoint = settings.listen.endpoint
    beyond = [peer for peer in settings.peer_networks if not peer.is_loopback]
    if endpoint is not None and _is_everywhere(endpoint) and beyond:
        yield (
            "listen.address: all interfaces, and trusted_peers beyond loopback: whoever in these "
            "networks reaches the port can say which client asked"
        )
    for key, networks in (
        ("trusted_peers", settings.peer_networks),
        ("trusted_hops", settings.hop_networks),
    ):
        for network in networks:
            if _is_large(network):
                yield f"{key}: {network} is very large; name the proxies' own networks"
    if not settings.trusted_peers and settings.listen.unix_socket is None:
        yield "trusted_peers: is empty and there is no unix socket: every request gets 403"


def _is_large(network: Network) -> bool:
    return network.prefixlen < (8 if isinstance(network, IPv4Network) else 32)


def _redis(settings: Settings) -> Iterator[str]:
    redis = settings.redis
    if not redis.tls and not all(_is_loopback(host) for host in redis_hosts(redis.url)):
        yield "redis.url: the connection to another machine is not encrypted (rediss:// is)"
    if redis.eviction_policy == "warn":
        yield "redis.eviction_policy: a Redis that evicts keys can forget tokens and counters"
    if redis.budget_ms > 1000:
        yield "redis.budget_ms: a slow Redis holds every request for more than a second"
    if redis.cache_records == 0:
        yield "redis.cache_records: the cache is off, so every request reads its token's record"
    if redis.url == "embedded" and redis.wait_replicas:
        yield "redis.wait_replicas: the embedded Redis has no replicas to wait for"
    if redis.cluster and (settings.limits.team or settings.limits.address):
        yield (
            "limits: on a Redis Cluster team and address are charged after user and token; "
            "a refusal by them can leave the first charged"
        )


def _limits(settings: Settings) -> Iterator[str]:
    limits = settings.limits
    if limits.user is None:
        yield "limits.user: is off, so a user's requests are not limited"
    if limits.failed is None:
        yield "limits.failed: is off, so tokens can be guessed at any pace"
    elif limits.failed.limit > 1000:
        yield "limits.failed: above 1000, guessing tokens is hardly slowed down"
    if limits.unknown is None:
        yield "limits.unknown: is off, so paths can be probed at any pace"


def _processes(settings: Settings) -> Iterator[str]:
    workers, processors = settings.listen.workers, len(os.sched_getaffinity(0))
    if workers > processors:
        yield f"listen.workers: {workers} workers share {processors} processors"
    if workers > 1 and settings.redis.url == "embedded":
        yield (
            "listen.workers: all workers share the embedded Redis of this machine; "
            "for several machines set redis.url"
        )


def _log(settings: Settings) -> Iterator[str]:
    if settings.log.decisions == "none":
        yield "log.decisions: none leaves no trace of who was let in"


def _mail(settings: Settings) -> Iterator[str]:
    mail = settings.mail
    if mail.host is not None and mail.tls == "none" and not _is_loopback(mail.host):
        yield "mail.tls: none sends the mail, and a password, in the clear"
    if mail.webhook_url is not None:
        url = urlsplit(mail.webhook_url)
        if url.scheme == "http" and not _is_loopback(url.hostname or ""):
            yield "mail.webhook_url: http:// sends token names in the clear"
        if mail.webhook_secret is None:
            yield "mail.webhook_secret: is not set, so the receiver can't check who sent it"
    elif mail.webhook_secret is not None:
        yield "mail.webhook_secret: has no effect without mail.webhook_url"


def _sync(settings: Settings) -> Iterator[str]:
    sync = settings.sync
    if sync.allow_empty:
        yield "sync.allow_empty: an empty table in Coolify's database removes every token here"
    if sync.source is None and (sync.instant or sync.url is not None):
        yield "sync.source: is null, so sync.dsn and sync.instant have no effect in `serve`"
