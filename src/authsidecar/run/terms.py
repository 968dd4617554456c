"""What of the configuration can change while a process runs, and what it is known by."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from authsidecar.config import Settings, values_of, warnings
from authsidecar.decision.addresses import Networks
from authsidecar.decision.authorize import Rules
from authsidecar.expiry.notice import HOUR_MS
from authsidecar.observe.log import Level
from authsidecar.run.rules import extra_routes, rules

DIGEST_CHARACTERS: Final = 16
"""Hexadecimal characters of a configuration's digest."""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Everything that decides requests and that a reload can change; no secret is in it.

    Attributes:
        digest: names the configuration that they are from.
        release: the release line of Coolify whose routes are used.
        extra_routes: the text of the operator's own routes, or None.
        rules: what decisions depend on.
        trusted_peers: networks that may ask, beside the unix socket.
        trusted_hops: networks that are skipped in X-Forwarded-For.
        report_only: what would have been refused passes.
        expiry_ms: how long before its expiry a token is said to expire, in milliseconds.
        lookups_per_second: what an address that sends bad tokens may still look up.
        log_level: the least severe level that is written.
        log_decisions: which decisions get a line.
        warnings: what is unwise about the configuration, a line each.
    """

    digest: str
    release: str
    extra_routes: str | None
    rules: Rules
    trusted_peers: Networks
    trusted_hops: Networks
    report_only: bool
    expiry_ms: int
    lookups_per_second: int
    log_level: Level
    log_decisions: Literal["all", "denied", "none"]
    warnings: tuple[str, ...]


def terms(settings: Settings) -> Terms:
    """The terms of a configuration; the file of the operator's own routes is read for them.

    Raises:
        StartError: that file cannot be used.
    """
    text = extra_routes(settings)
    return Terms(
        digest=digest(settings, text),
        release=settings.coolify.routes,
        extra_routes=text,
        rules=rules(settings, text),
        trusted_peers=Networks.of(settings.peer_networks),
        trusted_hops=Networks.of(settings.hop_networks),
        report_only=settings.enforcement == "report",
        expiry_ms=settings.mail.expiry_header_hours * HOUR_MS,
        lookups_per_second=settings.limits.lookups_per_second,
        log_level=settings.log.level,
        log_decisions=settings.log.decisions,
        warnings=warnings(settings),
    )


def digest(settings: Settings, extra: str | None) -> str:
    """What a configuration is known by: equal where all that may be shown of it is equal.

    Settings that may hold a secret are left out: whoever reads a digest could try passwords.

    Args:
        settings: the configuration.
        extra: the text of the operator's own routes, or None.
    """
    shown = {path: str(value) for path, value in values_of(settings, private=False).items()}
    text = json.dumps([shown, extra], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]
