"""A bounded pace of look-ups for addresses that have used up their failed authentications.

Local to a process and approximate by design: it protects Redis from a flood of unknown tokens,
it never admits or refuses a token that the process knows.
"""

from collections import OrderedDict
from typing import Final

from authsidecar.times import UnixMs

ADDRESSES: Final = 10_000
"""How many refused addresses are remembered at the most; the longest unseen goes first."""


class AddressPace:
    """Which addresses are refused for now, and how many look-ups they have left."""

    def __init__(self, lookups_per_second: int = 10, addresses: int = ADDRESSES) -> None:
        """Every address may look up until it is refused.

        Args:
            lookups_per_second: what a refused address may still look up, above 0.
            addresses: how many are remembered, above 0.
        """
        self._rate = lookups_per_second
        self._addresses = addresses
        self._refused: OrderedDict[str, tuple[UnixMs, float, UnixMs]] = OrderedDict()

    def set_rate(self, lookups_per_second: int) -> None:
        """Let a refused address look up so much from now on."""
        self._rate = lookups_per_second

    def refuse(self, address: str, until: UnixMs) -> None:
        """The address's bucket is empty until then."""
        held = self._refused.get(address)
        left, at = (held[1], held[2]) if held else (float(self._rate), UnixMs(0))
        self._refused[address] = (until, left, at)
        self._refused.move_to_end(address)
        if len(self._refused) > self._addresses:
            self._refused.popitem(last=False)

    def may_look_up(self, address: str, now: UnixMs) -> bool:
        """Whether a look-up is within the pace; takes it if so."""
        held = self._refused.get(address)
        if held is None:
            return True
        until, left, at = held
        if now >= until:
            del self._refused[address]
            return True
        left = min(float(self._rate), left + max(0, now - at) * self._rate / 1000)
        allowed = left >= 1
        self._refused[address] = (until, left - allowed, now)
        self._refused.move_to_end(address)
        return allowed
