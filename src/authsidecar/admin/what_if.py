"""A change that somebody wants to try before it is made: read, and put in the place of what is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from authsidecar.admin.refusal import Refusal
from authsidecar.admin.simulate import SimulatedChange
from authsidecar.decision.allowlist import AllowlistError, parse
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit.charges import SCOPES
from authsidecar.decision.restrictions import parse_rate
from authsidecar.decision.routes import RouteError, coolify, extra


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What is to be another; None or empty: nothing of that.

    Attributes:
        allowlist: addresses and networks with commas.
        limits: by scope, `100` a minute, `30/10s`, or `off`.
        release: the release line of Coolify whose routes are used.
        extra_routes: the text of the operator's own routes.
    """

    allowlist: str | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    release: str | None = None
    extra_routes: str | None = None


@dataclass(frozen=True, slots=True)
class RoutesNow:
    """From what the routes in force are made.

    Attributes:
        release: the release line of Coolify.
        extra: the text of the operator's own routes, or None.
    """

    release: str
    extra: str | None


def changed(rules: Rules, routes: RoutesNow, wanted: WhatIf) -> SimulatedChange | Refusal:
    """What receipts are to be judged by.

    Args:
        rules: those in force.
        routes: from what theirs are made.
        wanted: what is to be another.
    """
    limits = dict(rules.limits)
    for scope, rate in wanted.limits.items():
        if scope not in SCOPES:
            return Refusal(f"limits: {scope!a} is not one of {', '.join(SCOPES)}")
        try:
            limit = _limit(rate)
        except ValueError as error:
            return Refusal(f"limits: {scope}: {error}")
        if limit is None:
            limits.pop(scope, None)
        else:
            limits[scope] = limit
    policy = rules.policy
    if wanted.release is not None or wanted.extra_routes is not None:
        own = routes.extra if wanted.extra_routes is None else wanted.extra_routes
        try:
            table = coolify(wanted.release or routes.release)
            policy = replace(policy, routes=table if own is None else extra(own, table))
        except RouteError as error:
            return Refusal(f"routes: {error}")
    try:
        allowlist = None if wanted.allowlist is None else parse(wanted.allowlist)
    except AllowlistError as error:
        return Refusal(f"allowlist: {error}")
    return SimulatedChange(replace(rules, policy=policy, limits=limits), allowlist)


def _limit(rate: str) -> Limit | None:
    """The limit that a text spells; None: off."""
    if rate == "off":
        return None
    return parse_rate(rate if "/" in rate else f"{rate}/60s")
