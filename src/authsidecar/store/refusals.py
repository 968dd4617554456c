"""Counters that refuse again and again are not asked about each time: a flood costs little.

Approximate by design, and only ever towards refusing: a key that Redis has refused FLOOD times
within RECHECK_MS is refused here until that time is over or its window opens, whichever comes
first; then Redis is asked again. So a raised limit is noticed at once by whoever is not flooding,
and within RECHECK_MS by whoever is.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

from authsidecar.decision.model import Quota
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.times import UnixMs

FLOOD: Final = 3
"""Refusals by Redis within RECHECK_MS that make a flood."""

RECHECK_MS: Final = 250
"""How long a refusal may be repeated without asking, in milliseconds."""

FORGET_MS: Final = 10_000
"""After how long a refusal is forgotten that nobody has met again, in milliseconds."""

KEYS: Final = 10_000
"""How many counters are remembered at the most; the longest unseen goes first."""


class Refusals:
    """What Redis refused lately, by counter and its limit: one with another limit is another.

    Attributes:
        seen: how often, since when, and what was said.
    """

    def __init__(self, keys: int = KEYS) -> None:
        """Nothing is refused.

        Args:
            keys: how many are remembered, above 0.
        """
        self._keys = keys
        self.seen: OrderedDict[Charge, tuple[int, UnixMs, Quota]] = OrderedDict()

    def note(self, counter: Charge, quota: Quota, now: UnixMs) -> None:
        """Redis has refused this counter just now."""
        held = self.seen.get(counter)
        if held is None or (held[0] < FLOOD and not 0 <= now - held[1] < RECHECK_MS):
            times, since = 1, now
        elif held[0] < FLOOD:
            times, since = held[0] + 1, held[1]
        else:
            times, since = FLOOD, now  # it was asked about, and still refuses
        self.seen[counter] = (times, since, quota)
        self.seen.move_to_end(counter)
        if len(self.seen) > self._keys:
            self.seen.popitem(last=False)

    def touches(self, counters: Collection[Charge]) -> bool:
        """Whether any of these was refused lately."""
        return not self.seen.keys().isdisjoint(counters)

    def forget_old(self, now: UnixMs) -> None:
        """Forget what nobody has met again: as long as any is remembered, all requests look.

        What was met may be a little later than this: Redis has said its time before it was read.
        """
        while self.seen:
            counter, (_, since, _) = next(iter(self.seen.items()))
            if abs(now - since) < FORGET_MS:
                break
            del self.seen[counter]

    def clear(self, counter: Charge) -> None:
        """Redis has admitted this counter just now."""
        self.seen.pop(counter, None)

    def standing(self, counter: Charge, now: UnixMs) -> Quota | None:
        """The refusal that stands without asking, or None: ask.

        When its time is over, one caller asks for all: it stands for the others meanwhile.
        """
        held = self.seen.get(counter)
        if held is None or held[0] < FLOOD:
            return None
        _, since, quota = held
        if not since <= now < quota.reset_at:
            del self.seen[counter]
            return None
        if now >= since + RECHECK_MS:
            self.seen[counter] = (FLOOD, now, quota)
            self.seen.move_to_end(counter)
            return None
        return quota
