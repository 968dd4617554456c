"""What was refused: counted by token, owner, address, route and code, from receipts."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from authsidecar.observe.receipts import Receipt
from authsidecar.store.receipt_reader import Kept
from authsidecar.times import UnixMs

By = Literal["token", "user", "address", "route", "code"]

BY: Final[tuple[By, ...]] = ("token", "user", "address", "route", "code")

OWN: Final = frozenset(
    {
        "untrusted_peer",
        "headers_too_large",
        "request_unreadable",
        "request_timeout",
        "reserved_header",
        "forwarded_header_invalid",
        "client_address_invalid",
        "method_override",
        "ambiguous_target",
        "token_prefix_missing",
        "authorization_ambiguous",
        "token_restricted",
        "store_unavailable",
        "internal_error",
    }
)
"""Reasons for which Coolify itself would not have refused (docs/explanation/deviations.md)."""


def value_of(one: Receipt, by: By) -> str:
    """What a receipt is counted under; `-` where it has none."""
    match by:
        case "token":
            token = one.token or one.claimed
            return "-" if token is None else str(token)
        case "user":
            return "-" if one.user is None else str(one.user)
        case "address":
            return one.address or "-"
        case "route":
            return f"{one.method} {one.route}" if one.method and one.route else "-"
        case "code":
            return one.code or "-"


@dataclass(frozen=True, slots=True)
class Count:
    """How often one value was refused.

    Attributes:
        by: what is counted.
        value: of that; `-` is none.
        refused: how often the sidecar refused where Coolify would not have.
        refused_by_coolify_too: how often it refused what Coolify refuses anyway.
        codes: how often for each reason, the commonest first.
        example: a decision's id.
    """

    by: By
    value: str
    refused: int
    refused_by_coolify_too: int
    codes: Mapping[str, int]
    example: str


@dataclass(frozen=True, slots=True)
class RefusalReport:
    """Refusals of a time.

    Attributes:
        since: the first millisecond.
        until: the last one.
        refused: where Coolify would not have refused.
        refused_by_coolify_too: what Coolify refuses anyway.
        reported: of both, how many passed all the same since `enforcement` is `report`.
        admitted: admissions, as an estimate: each receipt counts for those that were not kept.
        dropped: receipts that were not kept.
        counts: by token, owner, address, route and code, the most refused first.
    """

    since: UnixMs
    until: UnixMs
    refused: int
    refused_by_coolify_too: int
    reported: int
    admitted: float
    dropped: int
    counts: Mapping[By, tuple[Count, ...]]


@dataclass(slots=True)
class _Tally:
    own: int = 0
    too: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    example: str = ""


async def report(
    pages: AsyncIterator[Kept], since: UnixMs, until: UnixMs, *, most: int | None = None
) -> RefusalReport:
    """Count what was refused.

    Args:
        pages: the receipts.
        since: the first millisecond.
        until: the last one.
        most: how many values of each sort are named; None: all.
    """
    tallies: dict[By, dict[str, _Tally]] = {by: {} for by in BY}
    total = _Tally()
    reported, admitted, dropped = 0, 0.0, 0
    async for page in pages:
        dropped += page.dropped
        for one in page.receipts:
            if one.code is None:
                admitted += one.weight
                continue
            reported += one.reported
            _add(total, one)
            for by in BY:
                _add(tallies[by].setdefault(value_of(one, by), _Tally()), one)
    return RefusalReport(
        since,
        until,
        total.own,
        total.too,
        reported,
        admitted,
        dropped,
        {by: _counts(by, found)[:most] for by, found in tallies.items()},
    )


async def top(receipts: AsyncIterator[Receipt], by: By, most: int) -> tuple[Count, ...]:
    """Who, or what, is refused most.

    Args:
        receipts: of any outcome.
        by: what is counted.
        most: how many are named.
    """
    tallies: dict[str, _Tally] = {}
    async for one in receipts:
        if one.code is not None:
            _add(tallies.setdefault(value_of(one, by), _Tally()), one)
    return _counts(by, tallies)[:most]


def _add(tally: _Tally, one: Receipt) -> None:
    code = one.code or ""
    if code in OWN:
        tally.own += 1
    else:
        tally.too += 1
    tally.codes[code] += 1
    tally.example = one.id


def _counts(by: By, tallies: Mapping[str, _Tally]) -> tuple[Count, ...]:
    found = [
        Count(by, value, of.own, of.too, dict(of.codes.most_common()), of.example)
        for value, of in tallies.items()
    ]
    return tuple(sorted(found, key=lambda c: (-c.refused - c.refused_by_coolify_too, c.value)))
