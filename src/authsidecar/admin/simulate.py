"""What a change would have done to the decisions that were made: receipts judged by other rules."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from authsidecar.admin.recorded import TAKEN
from authsidecar.admin.replay import Rejudged, Replay, Unjudged
from authsidecar.decision.allowlist import Allowlist
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Allow, Credential, Place, TokenId, TokenRecord
from authsidecar.decision.resources import Places
from authsidecar.decision.routes import ROUTE_UNKNOWN
from authsidecar.observe.receipts import HIDDEN, Receipt
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.receipt_reader import Kept
from authsidecar.store.registry import Registry

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


NAMED: Final = (
    "tokens that are restricted to resources were refused before it was looked at what they name"
)

_UNJUDGED: Final[Mapping[str, str]] = {"unread": UNREAD, "named": NAMED, "defect": DEFECTS}


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
    pages: AsyncIterator[Kept],
    change: SimulatedChange,
    *,
    registry: Registry,
    store: DecisionStore | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Simulation:
    """Judge receipts by other rules, and tell what would flip.

    Args:
        pages: the receipts, in their order.
        change: what they are judged by.
        registry: asked for what no receipt says: the switches, tokens that were never proven.
        store: asked for where resources lie; None: they stay unknown.
        progress: called with how many are done, after each page.

    Raises:
        RedisError, StoreError: Redis is away.
    """
    unproven: dict[TokenId, TokenRecord] = {}
    looked_up: set[TokenId] = set()
    replay = Replay(
        change.rules,
        await registry.instance(),
        change.allowlist,
        unproven,
        places=None if store is None else _places(store),
    )
    found = _Found()
    done = 0
    async for page in pages:
        if store is not None:
            wanted = _unproven(page.receipts) - looked_up
            unproven.update(await _as_if_proven(wanted, registry, store))
            looked_up |= wanted
        for one in page.receipts:
            judged = await replay.judge(one) if one.code != "internal_error" else "defect"
            found.judged += isinstance(judged, Rejudged)
            found.decisions += one.weight
            _note(found, one, judged)
        if page.dropped:
            found.unknown[DROPPED] = found.unknown.get(DROPPED, 0) + page.dropped
        done += len(page.receipts)
        progress(done)
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


def _note(found: _Found, one: Receipt, judged: Rejudged | Unjudged | Literal["defect"]) -> None:
    if not isinstance(judged, Rejudged):
        why = _UNJUDGED[judged]
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


def _unproven(receipts: Iterable[Receipt]) -> set[TokenId]:
    """The tokens of requests that were refused before their secret was looked at."""
    return {
        TokenId(one.claimed)
        for one in receipts
        if one.token is None and one.claimed is not None and one.code == ROUTE_UNKNOWN.code
    }


async def _as_if_proven(
    numbers: Iterable[TokenId], registry: Registry, store: DecisionStore
) -> dict[TokenId, TokenRecord]:
    """Those of these tokens that there are now, with a secret that is taken as right."""
    found: dict[TokenId, TokenRecord] = {}
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
