"""The client's address, from X-Forwarded-For and nothing else.

The right end was written by the proxy that calls us; every step to the left is believed
only because the address before it is a trusted hop. The left end is the client's to forge.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from authsidecar.decision.addresses import Networks, parse_address
from authsidecar.decision.model import Address, Deny, Kind, Reason

CLIENT_ADDRESS_INVALID: Final = Reason(
    "client_address_invalid",
    Kind.MALFORMED,
    400,
    "The client address in X-Forwarded-For cannot be read.",
)
"""An entry on the way to the client is no address, or the way is longer than MAX_HOPS."""

MAX_HOPS: Final = 64
"""Entries that are looked at; no real chain of proxies is as long."""

LONGEST_ENTRY: Final = 64
"""Bytes of the longest entry that is read, so that junk cannot fill the cache with itself."""

# Some balancers append the client's port; only bracketed IPv6 can carry one unambiguously.
_WITH_PORT: Final = re.compile(rb"([0-9.]+):[0-9]{1,5}|\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")


def client_address(forwarded_for: Sequence[bytes], trusted_hops: Networks) -> Address | Deny:
    """The rightmost address that is not a trusted hop; the leftmost if all of them are.

    Args:
        forwarded_for: every X-Forwarded-For value as it arrived, in order.
        trusted_hops: the networks, a CDN's say, that are skipped.
    """
    # One piece more than is looked at: whether there is one tells a chain that is too long.
    entries = b",".join(forwarded_for).rsplit(b",", MAX_HOPS)
    for steps, entry in enumerate(reversed(entries), start=1):
        if steps > MAX_HOPS:
            return Deny(CLIENT_ADDRESS_INVALID, f"more than {MAX_HOPS} trusted hops")
        text = entry.strip(b" \t")
        address = _entry(text) if len(text) <= LONGEST_ENTRY else None
        if address is None:
            return Deny(CLIENT_ADDRESS_INVALID, f"entry {steps} from the right is no address")
        if steps == len(entries) or address not in trusted_hops:
            return address
    return Deny(CLIENT_ADDRESS_INVALID, "no entry")


@lru_cache(maxsize=4096)
def _entry(text: bytes) -> Address | None:
    """One entry, with or without a port."""
    if match := _WITH_PORT.fullmatch(text):
        ipv4, ipv6 = match.groups()
        address = parse_address(ipv4 or ipv6)
        # "[10.0.0.1]" is neither an IPv6 address nor an IPv4 spelling that anybody sends.
        return address if ipv4 or b":" in ipv6 else None
    return parse_address(text)
