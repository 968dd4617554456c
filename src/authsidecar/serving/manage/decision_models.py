"""What the management API takes and gives about decisions that were made."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from authsidecar.decision.credentials import LARGEST_ID
from authsidecar.serving.manage.models import (
    Explanation,
    Id,
    Model,
    PageQuery,
    Query,
    Time,
    TokenNumber,
)

LONGEST_SPAN_S = 31 * 24 * 3600
"""Seconds of the longest time that can be asked about."""

MOST_FLIPS = 200
"""How many kinds of flips an answer has."""

Span = Annotated[
    int, Field(ge=1, le=LONGEST_SPAN_S, description="How far back, in seconds; a day unless given.")
]
By = Literal["token", "user", "address", "route", "code"]


def _flag(given: object) -> object:
    """What a query spells `true` or `false`, and nothing else."""
    words = {"true": True, "false": False}
    return words.get(given, "neither true nor false") if isinstance(given, str) else given


class DecisionFilter(Query):
    """Which decisions."""

    deny: Annotated[bool, BeforeValidator(_flag), Field(description="Refusals alone.")] = False
    code: Annotated[
        str | None, Field(max_length=64, pattern="^[a-z_]+$", description="Of this reason.")
    ] = None
    token: Annotated[
        int | None, Field(ge=1, le=LARGEST_ID, description="Of this token, right or wrong.")
    ] = None
    user: Annotated[Id | None, Field(description="Of this user's tokens.")] = None
    team: Annotated[Id | None, Field(description="Of this team's tokens.")] = None
    address: Annotated[str | None, Field(max_length=64, description="From this address.")] = None
    route: Annotated[
        str | None, Field(max_length=300, description="Of this template, or `METHOD TEMPLATE`.")
    ] = None
    last_seconds: Span = 24 * 3600


class DecisionsQuery(DecisionFilter, PageQuery):
    """Which decisions, and which page of them."""


class TopQuery(DecisionFilter):
    """Which decisions are counted, and how."""

    by: Annotated[By, Field(description="What is counted.")] = "token"
    most: Annotated[int, Field(ge=1, le=1000, description="How many are named.")] = 10


class ReportQuery(Query):
    """Of which time."""

    last_seconds: Span = 24 * 3600
    most: Annotated[int, Field(ge=1, le=1000, description="How many of each sort are named.")] = 10


class CounterState(Model):
    """A counter after a request."""

    scope: str
    limit: int
    window_seconds: float
    remaining: int
    reset_at: Time


class Override(Model):
    """A limit at run time."""

    limit: int
    window_seconds: float


class Decision(Model):
    """A decision that was made, from its receipt; null is what is not known."""

    id: str
    at: Time
    proxy: str | None
    outcome: Literal["allow", "deny"]
    code: str | None
    status: int
    detail: Annotated[str | None, Field(description="What was needed and found.")]
    reported: Annotated[bool, Field(description="It passed, since `enforcement` is `report`.")]
    weight: Annotated[float, Field(description="For how many decisions this one stands.")]
    release: str
    config: Annotated[str, Field(description="The configuration's digest.")]
    method: str | None
    route: str | None
    path: Annotated[str | None, Field(description="`*` is a segment that is not kept.")]
    client: str | None
    peer: str | None
    request_id: str | None
    preflight: bool
    claimed: Annotated[int | None, Field(description="The token as it was sent, right or wrong.")]
    token: TokenNumber | None
    user: Id | None
    team: Id | None
    role: str | None
    permissions: list[str]
    expires_at: Time | None
    team_mcp: bool
    limits: dict[str, Override]
    restrictions: Annotated[
        dict[str, dict[str, Any]], Field(description="What narrowed the token, by holder.")
    ]
    counters: list[CounterState]
    api_enabled: bool | None
    mcp_enabled: bool | None
    address_allowed: bool | None
    isolated: bool


class DecisionPage(Model):
    """Decisions, the newest first; a page can have fewer than asked for, and yet a next one."""

    items: list[Decision]
    next: str | None


class ExplainedDecision(Model):
    """A decision with each check as it was, and as it is."""

    decision: Decision
    then: Explanation
    now: Annotated[Explanation | None, Field(description="null: the request could not be read.")]
    meaning: str | None
    what_to_do: str | None


class Refusals(Model):
    """How often one value was refused."""

    value: str
    refused: Annotated[int, Field(description="Where Coolify would not have refused.")]
    refused_by_coolify_too: int
    codes: dict[str, int]
    example: Annotated[str, Field(description="A decision's id.")]


class Top(Model):
    """Who, or what, is refused most."""

    by: By
    items: list[Refusals]


class Report(Model):
    """What was refused."""

    since: Time
    until: Time
    refused: Annotated[int, Field(description="Where Coolify would not have refused.")]
    refused_by_coolify_too: int
    reported: Annotated[int, Field(description="Of both, what passed all the same.")]
    admitted_estimate: int
    dropped: Annotated[int, Field(description="Receipts that were not kept.")]
    by_token: list[Refusals]
    by_user: list[Refusals]
    by_address: list[Refusals]
    by_route: list[Refusals]
    by_code: list[Refusals]


class Change(Model):
    """What is to be another."""

    allowlist: Annotated[
        str | None,
        Field(
            max_length=20_000,
            description='Addresses and networks with commas; "" admits everyone.',
        ),
    ] = None
    limits: Annotated[
        dict[str, Annotated[str, Field(max_length=40)]],
        Field(max_length=20, description="By scope: `100` a minute, `30/10s`, or `off`."),
    ] = Field(default_factory=dict)
    routes: Annotated[
        str | None, Field(max_length=20, description="A release line of Coolify, as `4.4`.")
    ] = None
    extra_routes: Annotated[
        str | None,
        Field(max_length=100_000, description="Your own routes, as their file has them."),
    ] = None
    last_seconds: Span = 24 * 3600


class Flip(Model):
    """Decisions that would be others, of one token, route and reason."""

    would_be: Literal["refused", "admitted"]
    token: int | None
    route: str
    code: str
    receipts: int
    decisions: Annotated[int, Field(description="For how many decisions these stand.")]
    estimated: Annotated[bool, Field(description="Whether that is an estimate.")]
    example: Decision


class Unknown(Model):
    """What can't be known."""

    why: str
    decisions_estimate: int


class Simulated(Model):
    """What a change would have done to the decisions that were made."""

    judged: Annotated[int, Field(description="Receipts.")]
    decisions_estimate: Annotated[int, Field(description="For how many decisions they stand.")]
    kinds: Annotated[int, Field(description="How many kinds of flips there are.")]
    flips: Annotated[list[Flip], Field(description=f"The {MOST_FLIPS} most frequent kinds.")]
    unknown: list[Unknown]
