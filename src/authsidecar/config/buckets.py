"""The section `limits`: how much each bucket admits."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from authsidecar.config.section import Section
from authsidecar.config.values import Seconds
from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit.charges import SCOPES


class Bucket(Section):
    """At most so many requests in any window of that length."""

    limit: int = Field(
        ge=1, le=100_000, description="Requests admitted in any window of that length."
    )
    window_seconds: Seconds = Field(
        default=60, ge=1, le=86_400, description="Length of the sliding window, in seconds."
    )

    def as_limit(self) -> Limit:
        """Give the limit as the core knows it."""
        return Limit(self.limit, round(self.window_seconds * 1000))


def _bucket(value: Any) -> Any:
    """Let a plain number stand for a bucket with that limit."""
    plain = isinstance(value, int | str) and not isinstance(value, bool)
    return {"limit": value} if plain else value


OptionalBucket = Annotated[
    Bucket | None,
    BeforeValidator(
        _bucket, json_schema_input_type=Annotated[int, Field(ge=1, le=100_000)] | Bucket | None
    ),
]


class Limits(Section):
    """How much is admitted; a bucket is null (off), a plain limit, or limit and window_seconds."""

    user: OptionalBucket = Field(
        default=Bucket(limit=200),
        description="Per user; the environment's API_RATE_LIMIT is its default.",
    )
    token: OptionalBucket = Field(default=None, description="Per token.")
    team: OptionalBucket = Field(default=None, description="Per team.")
    address: OptionalBucket = Field(default=None, description="Per client address.")
    failed: OptionalBucket = Field(
        default=Bucket(limit=30), description="Failed authentications (401) per client address."
    )
    unknown: OptionalBucket = Field(
        default=Bucket(limit=200),
        description="Requests to unknown routes (404) per client address.",
    )
    health: OptionalBucket = Field(
        default=Bucket(limit=1000),
        description="Requests to /api/health and /api/v1/health together, per client address.",
    )
    feedback: OptionalBucket = Field(
        default=Bucket(limit=3), description="Requests to /api/feedback per client address."
    )
    sentinel: OptionalBucket = Field(
        default=None, description="Requests to /api/v1/sentinel/push per client address."
    )
    whoami: OptionalBucket = Field(
        default=Bucket(limit=60),
        description="Requests to /authz/whoami per client address; a token's own limits pay "
        "nothing for them.",
    )
    ipv6_prefix: int = Field(
        default=64, ge=48, le=128, description="Bits of an IPv6 address that count as one client."
    )
    lookups_per_second: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="Look-ups of unknown tokens that a client address past `failed` still has, "
        "per second.",
    )

    def as_limits(self) -> Mapping[str, Limit]:
        """Give the limits that are on, by scope."""
        buckets = {scope: getattr(self, scope) for scope in SCOPES}
        return {scope: bucket.as_limit() for scope, bucket in buckets.items() if bucket is not None}
