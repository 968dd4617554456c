"""A store in memory, for the pure core: one instance, one record, and what was asked of it."""

from dataclasses import dataclass, field

from authsidecar.decision.authorize import (
    STALE,
    Charged,
    Claim,
    Rules,
    Stale,
    StoreError,
)
from authsidecar.decision.model import Credential, Limit, Place, Quota, TeamId, TokenRecord
from authsidecar.decision.policy import Instance, Policy
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.decision.resources import Places
from authsidecar.decision.routes import coolify
from authsidecar.times import UnixMs
from tests.support.cases import NOW, OPEN, record

RULES = Rules(
    Policy(coolify("4.3")),
    {"user": Limit(200), "failed": Limit(30), "unknown": Limit(200), "health": Limit(1000)},
)


@dataclass
class MemoryStore:
    """A Store that holds one instance and one record, and keeps what it is asked."""

    record: TokenRecord | None = field(default_factory=record)
    state: Instance = OPEN
    cached: bool = True
    stale: int = 0
    admits: bool = True
    paced: bool = False
    broken: str = ""
    team: TeamId | None = None
    held: Places | None = None
    canary: bool = False
    calls: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    repeat_keys: list[bytes | None] = field(default_factory=list)
    refused: list[tuple[str, UnixMs]] = field(default_factory=list)
    looked_up: list[tuple[str, Credential]] = field(default_factory=list)

    def now(self) -> UnixMs:
        return NOW

    def current(self) -> Instance | None:
        return self.state if self.cached else None

    async def instance(self, *, fresh: bool) -> Instance:
        self.calls.append(f"instance fresh={fresh}")
        return self.state

    def known(self, credential: Credential) -> TokenRecord | None:
        assert isinstance(credential, Credential)
        return self.record if self.cached else None

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        assert isinstance(credential, Credential)
        self.calls.append(f"load fresh={fresh}")
        return self.record

    async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> Charged | Stale:
        if self.broken:
            raise StoreError(self.broken, "charge")
        self.claims.append(claim)
        self.repeat_keys.append(repeat_key)
        if self.stale and (claim.instance or claim.record):
            self.stale -= 1
            return STALE
        left = 9 if self.admits else 0
        quotas = tuple(Quota(c.scope, c.limit, left, UnixMs(NOW + 5)) for c in claim.counters)
        return Charged(self.admits, quotas, NOW)

    async def places(self, keys: tuple[str, ...]) -> Places:
        self.calls.append(f"places {' '.join(keys)}")
        return dict.fromkeys(keys, None if self.team is None else Place(self.team))

    def held_places(self, keys: tuple[str, ...]) -> Places | None:
        return None if self.held is None else {key: self.held.get(key) for key in keys}

    async def provable_places(self, keys: tuple[str, ...]) -> Places:
        return await self.places(keys)

    def may_look_up(self, address: str, credential: Credential) -> bool:
        self.looked_up.append((address, credential))
        return not self.paced

    def refused_address(self, address: str, until: UnixMs) -> None:
        self.refused.append((address, until))

    async def charge_and_read(
        self, claim: Claim, others: tuple[Charge, ...]
    ) -> tuple[Charged | Stale, tuple[Quota, ...]]:
        charged = await self.charge(claim, repeat_key=None)
        return charged, tuple(Quota(c.scope, c.limit, 3, UnixMs(NOW + 7)) for c in others)

    def is_canary(self, credential: Credential) -> bool:
        return self.canary
