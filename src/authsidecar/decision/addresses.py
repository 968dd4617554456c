"""IP addresses and networks as values: strict to read, fast to look up.

IPv4-mapped IPv6 (`::ffff:10.0.0.1`) is the IPv4 address that it carries, wherever it is
read: otherwise one machine would have two addresses, and a list could name the wrong one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Self

from authsidecar.decision.model import Address

Network = IPv4Network | IPv6Network
"""A network without host bits; an IPv4-mapped one is already IPv4."""

LONGEST: Final = 45
"""Characters of the longest IPv6 text; anything longer is not worth a look."""

MAPPED_PREFIX: Final = 96
"""Bits of `::ffff:0:0/96`: a mapped network at least this long is an IPv4 network."""

_WHAT_IS_WRONG: Final = (
    (re.compile(r""), "the address is missing"),
    (re.compile(r".*[\x00-\x20].*", re.DOTALL), "blank or line break inside; use commas"),
    (re.compile(r".*%.*"), "zone ids are not accepted"),
    (re.compile(r".*[][].*"), "write IPv6 without brackets"),
    (re.compile(r"[0-9a-f.:]+-[0-9a-f.:]+", re.IGNORECASE), "ranges are not accepted; use a CIDR"),
    (re.compile(r"(?:[0-9]+\.)*0[0-9]+(?:\.[0-9]+)*"), "octets have no leading zeros"),
    (re.compile(r".*", re.DOTALL), "not an IP address (host names are not looked up)"),
)
"""Words for a text that is no address; the first pattern that matches all of it explains it."""


def parse_address(text: str | bytes) -> Address | None:
    """The address that the whole text spells, or None; mapped IPv6 comes back as IPv4.

    Zone ids, leading zeros, brackets, ports and blanks are not part of an address.

    >>> parse_address("::ffff:10.0.0.1")
    IPv4Address('10.0.0.1')
    >>> parse_address(b"010.0.0.1") is None
    True
    """
    address = _as_spelled(text)
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def _as_spelled(text: str | bytes) -> Address | None:
    if isinstance(text, bytes):
        # ipaddress reads 4 or 16 raw bytes as a packed address: never hand it bytes.
        text = text.decode("latin-1")
    if len(text) > LONGEST or "%" in text:
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def parse_network(text: str) -> Network:
    """The network that an address or CIDR spells; host bits are dropped.

    Args:
        text: `192.0.2.7`, `192.0.2.7/24`, `2001:db8::/32`; blanks may precede the mask.

    Raises:
        ValueError: in a few words, what is wrong with the text (which it does not repeat).

    >>> parse_network("192.0.2.77/24")
    IPv4Network('192.0.2.0/24')
    >>> parse_network("::ffff:10.0.0.0/104")
    IPv4Network('10.0.0.0/8')
    """
    host, slash, mask = text.partition("/")
    address = _as_spelled(host)
    if address is None:
        raise ValueError(next(words for wrong, words in _WHAT_IS_WRONG if wrong.fullmatch(host)))
    prefix = _prefix(mask.lstrip(" \t"), address.max_prefixlen) if slash else address.max_prefixlen
    if isinstance(address, IPv4Address):
        return IPv4Network((address, prefix), strict=False)
    mapped = address.ipv4_mapped
    if mapped is not None and prefix >= MAPPED_PREFIX:
        return IPv4Network((mapped, prefix - MAPPED_PREFIX), strict=False)
    return IPv6Network((address, prefix), strict=False)


def _prefix(mask: str, longest: int) -> int:
    if not mask:
        raise ValueError("the mask is empty")
    if not (mask.isascii() and mask.isdigit()):
        raise ValueError("the mask is not a whole number")
    if len(mask) > 3 or int(mask) > longest:
        raise ValueError(f"the mask is not 0 to {longest}")
    return int(mask)


Levels = tuple[tuple[int, frozenset[int]], ...]
"""Per prefix length: how far to shift an address, and the network numbers found there."""


@dataclass(frozen=True, slots=True)
class Networks:
    """A set of networks; asking it costs one lookup per prefix length, however many there are.

    Attributes:
        ipv4: the IPv4 networks by prefix length, widest first.
        ipv6: the same for IPv6.
    """

    ipv4: Levels = ()
    ipv6: Levels = ()

    @classmethod
    def of(cls, networks: Iterable[Network]) -> Self:
        """The set of exactly these networks."""
        levels: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            number = int(network.network_address) >> shift
            levels[network.version].setdefault(shift, set()).add(number)
        ipv4, ipv6 = (
            tuple((shift, frozenset(family[shift])) for shift in sorted(family, reverse=True))
            for family in (levels[4], levels[6])
        )
        return cls(ipv4, ipv6)

    def __contains__(self, address: Address) -> bool:
        levels = self.ipv4 if address.version == 4 else self.ipv6
        number = int(address)
        return any(number >> shift in numbers for shift, numbers in levels)

    def has_wider(self, network: Network) -> bool:
        """Whether a network with a shorter prefix covers this one."""
        levels = self.ipv4 if network.version == 4 else self.ipv6
        number = int(network.network_address)
        own_shift = network.max_prefixlen - network.prefixlen
        return any(number >> shift in numbers for shift, numbers in levels if shift > own_shift)


def networks(texts: Iterable[str]) -> Networks:
    """The set of networks that a setting lists.

    Raises:
        ValueError: names the first bad entry and what is wrong with it, in one line.
    """
    found: list[Network] = []
    for text in texts:
        try:
            found.append(parse_network(text))
        except ValueError as wrong:
            raise ValueError(f"{text!a}: {wrong}") from None
    return Networks.of(found)


def address_bucket(address: Address, ipv6_prefix: int) -> str:
    """The name of the rate-limit bucket that an address falls in.

    One IPv6 customer owns a whole network and could change address with every request.

    Args:
        address: the client.
        ipv6_prefix: bits of the network that counts as one client, 0 to 128.

    >>> address_bucket(IPv6Address("2001:db8::5"), 64)
    '2001:db8::/64'
    >>> address_bucket(IPv4Address("192.0.2.7"), 64)
    '192.0.2.7'
    """
    if isinstance(address, IPv4Address):
        return str(address)
    shift = 128 - ipv6_prefix
    return f"{IPv6Address(int(address) >> shift << shift)}/{ipv6_prefix}"
