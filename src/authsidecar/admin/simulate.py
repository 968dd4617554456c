"""What a change would have done to the decisions that were made: receipts judged by other rules."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from authsidecar.admin.replay import TAKEN, Rejudged, Replay
from authsidecar.decision.allowlist import Allowlist
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Allow, Credential, Place, TokenId, TokenRecord
from authsidecar.decision.resources import Places
from authsidecar.decision.routes import ROUTE_UNKNOWN
from authsidecar.observe.receipts import HIDDEN, Receipt
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.receipts import Kept
from authsidecar.store.registry import Registry

PROGRESS_EVERY: Final = 1000
"""Receipts between two calls of the progress, and between two turns of everything else."""

Direction = Literal["refused", "admitted"]
"""What would be refused that was admitted, or admitted that was refused."""


@dataclass(frozen=True, slots=True)
class SimulatedChange:
    """What receipts are judged by.

    Attributes:
        rules: the other rules.
        allowlist: the other allowlist; None: as it was.
    """

    rules: Rules
    allowlist: Allowlist | None = None


@dataclass(frozen=True, slots=True)
class Flip:
    """Decisions that would be others, of one token, route and reason.

    Attributes:
        direction: which way.
        token: whose; None: none was proven.
        route: method and template; or the path, where there was no route.
        code: the reason that would refuse it, or that refused it.
        receipts: how many receipts say so.
        decisions: for how many decisions these stand.
        estimated: whether that is an estimate: not all such admissions were kept, a counter was
            guessed, or a secret was taken as right.
        example: one of the receipts.
    """

    direction: Direction
    token: int | None
    route: str
    code: str
    receipts: int
    decisions: float
    estimated: bool
    example: Receipt


@dataclass(frozen=True, slots=True)
class Unknown:
    """What can't be known, and of how many decisions.

    Attributes:
        why: in a sentence.
        decisions: about how many.
    """

    why: str
    decisions: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a change would have done.

    Attributes:
        judged: how many receipts were judged.
        decisions: for how many decisions they stand, about.
        flips: what would be decided otherwise, the most frequent first.
        unknown: what can't be known.
    """

    judged: int
    decisions: float
    flips: tuple[Flip, ...]
    unknown: tuple[Unknown, ...]


UNREAD: Final = "requests that could not be read are not judged: only their reason was kept"
PATHS: Final = "paths without a route, of which words were not kept, may reach a route now"
DEFECTS: Final = "the sidecar failed to decide"
DROPPED: Final = "receipts were dropped: too many a second, or Redis away"


@dataclass(slots=True)
class _Tally:
    example: Receipt
    receipts: int = 0
    decisions: float = 0.0
    estimated: bool = False


@dataclass(slots=True)
class _Found:
    flips: dict[tuple[Direction, int | None, str, str], _Tally] = field(default_factory=dict)
    unknown: dict[str, float] = field(default_factory=dict)
    judged: int = 0
    decisions: float = 0.0


async def simulate(
    kept: Kept,
    change: SimulatedChange,
    *,
    registry: Registry,
    store: DecisionStore | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Simulation:
    """Judge receipts by other rules, and tell what would flip.

    Args:
        kept: the receipts, in their order.
        change: what they are judged by.
        registry: asked for what no receipt says: the switches, tokens that were never proven.
        store: asked for where resources lie; None: they stay unknown.
        progress: called with how many are done, and of how many.

    Raises:
        RedisError, StoreError: Redis is away.
    """
    replay = Replay(
        change.rules,
        await registry.instance(),
        change.allowlist,
        await _unproven(kept.receipts, registry, store),
        places=None if store is None else _places(store),
    )
    found = _Found()
    for done, one in enumerate(kept.receipts):
        if done % PROGRESS_EVERY == 0:
            progress(done, len(kept.receipts))
            await asyncio.sleep(0)
        judged = await replay.judge(one) if one.code != "internal_error" else None
        found.judged += judged is not None
        found.decisions += one.weight
        _note(found, one, judged)
    progress(len(kept.receipts), len(kept.receipts))
    if kept.dropped:
        found.unknown[DROPPED] = kept.dropped
    flips = [
        Flip(
            direction, token, route, code, of.receipts, of.decisions, of.estimated, of.example
        )
        for (direction, token, route, code), of in found.flips.items()
    ]  # fmt: skip
    return Simulation(
        found.judged,
        found.decisions,
        tuple(sorted(flips, key=lambda one: (-one.decisions, one.direction, one.route))),
        tuple(Unknown(why, count) for why, count in found.unknown.items()),
    )


def _note(found: _Found, one: Receipt, judged: Rejudged | None) -> None:
    if judged is None:
        why = DEFECTS if one.code == "internal_error" else UNREAD
        found.unknown[why] = found.unknown.get(why, 0) + one.weight
        return
    verdict = judged.outcome.verdict
    code = None if isinstance(verdict, Allow) else verdict.reason.code
    if code == one.code == ROUTE_UNKNOWN.code and HIDDEN in (one.path or ""):
        found.unknown[PATHS] = found.unknown.get(PATHS, 0) + one.weight
    if (code is None) == (one.code is None):
        return
    direction: Direction = "admitted" if code is None else "refused"
    route = judged.outcome.route or one.route or one.path or ""
    token = one.token if one.token is not None or judged.doubt != "secret" else one.claimed
    key = (direction, token, f"{one.method} {route}", code or one.code or "")
    tally = found.flips.setdefault(key, _Tally(one))
    tally.receipts += 1
    tally.decisions += one.weight
    tally.estimated |= one.weight != 1 or judged.doubt is not None


async def _unproven(
    receipts: Sequence[Receipt], registry: Registry, store: DecisionStore | None
) -> dict[TokenId, TokenRecord]:
    """The tokens as they are, of requests that were refused before their secret was looked at."""
    found: dict[TokenId, TokenRecord] = {}
    if store is None:
        return found
    numbers = {
        TokenId(one.claimed)
        for one in receipts
        if one.token is None and one.claimed is not None and one.code == ROUTE_UNKNOWN.code
    }
    for one in await registry.tokens_of(sorted(numbers)):
        record = await store.load(Credential(one.id, one.sha256), fresh=True)
        if record is not None:
            found[one.id] = replace(record, digest=TAKEN)
    return found


def _places(store: DecisionStore) -> Callable[[tuple[str, ...]], Awaitable[Places]]:
    known: dict[str, Place | None] = {}

    async def places(keys: tuple[str, ...]) -> Places:
        if missing := tuple([key for key in keys if key not in known]):
            known.update(await store.places(missing))
        return {key: known[key] for key in keys}

    return places
