"""The allowlist: its text is parsed once, when it is saved, and then only looked up.

Only bare `0.0.0.0` means everyone; a masked entry is the network that it spells. Nothing
bad is ever widened: strict reading refuses it, lenient reading leaves it out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from authsidecar.decision.addresses import Network, Networks, parse_network
from authsidecar.decision.model import Address

EVERYONE: Final = "0.0.0.0"
"""The entry that admits both families, alone or among others."""

NOBODY: Final = "nobody"
"""How a list without a good entry is written; empty text would come back as everyone."""

BLANKS: Final = " \t\n\r\0\x0b"
"""What PHP's trim() takes off an entry, as Coolify does."""

LONGEST_QUOTE: Final = 60
"""Characters of a bad entry that its error repeats."""


class AllowlistError(ValueError):
    """An entry of an allowlist that is being saved is not an address, network or wildcard."""


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Who may call.

    Attributes:
        entries: what was kept, as its author spelled it, trimmed, in its order.
        everyone: nothing was listed, or the wildcard was.
        networks: what the entries mean; empty if everyone may call.
    """

    entries: tuple[str, ...]
    everyone: bool
    networks: Networks

    def admits(self, address: Address) -> bool:
        """Whether this address may call; as fast with ten thousand entries as with one."""
        return self.everyone or address in self.networks

    @property
    def text(self) -> str:
        """The list as it is stored and shown; `parse_lenient` reads the same list from it."""
        if self.entries or self.everyone:
            return ",".join(self.entries)
        return NOBODY


def parse(text: str) -> Allowlist:
    """The list that an operator wants to save, without its redundant entries.

    Raises:
        AllowlistError: names the first bad entry, its position and what is wrong, in one line.

    >>> parse("192.0.2.0/24, 192.0.2.7 ,2001:db8::1").text
    '192.0.2.0/24,2001:db8::1'
    """
    found: list[tuple[str, Network]] = []
    for position, entry in enumerate(_entries(text), start=1):
        try:
            found.append((entry, parse_network(entry)))
        except ValueError as wrong:
            quoted = entry[:LONGEST_QUOTE]
            raise AllowlistError(f"entry {position}, {quoted!a}: {wrong}") from None
    return _allowlist(found, blank=not found)


def parse_lenient(text: str | None) -> tuple[Allowlist, tuple[str, ...]]:
    """The list in Coolify's own table, and the bad entries that were left out of it.

    A list of only bad entries admits nobody; none at all (NULL, blanks, commas) everyone.
    """
    found: list[tuple[str, Network]] = []
    bad: list[str] = []
    for entry in _entries(text or ""):
        try:
            found.append((entry, parse_network(entry)))
        except ValueError:
            bad.append(entry)
    return _allowlist(found, blank=not found and not bad), tuple(bad)


def wildcards(allowlist: Allowlist) -> tuple[str, ...]:
    """The entries that admit everyone or a whole family, for a warning to name."""
    return tuple(
        entry
        for entry in allowlist.entries
        if entry == EVERYONE or parse_network(entry).prefixlen == 0
    )


def _entries(text: str) -> Iterator[str]:
    trimmed = (entry.strip(BLANKS) for entry in text.split(","))
    return (entry for entry in trimmed if entry)


def _allowlist(found: list[tuple[str, Network]], *, blank: bool) -> Allowlist:
    if blank:
        return Allowlist((), everyone=True, networks=Networks())
    if any(entry == EVERYONE for entry, _ in found):
        return Allowlist((EVERYONE,), everyone=True, networks=Networks())
    spelled: dict[Network, str] = {}
    for entry, network in found:
        spelled.setdefault(network, entry)
    listed = Networks.of(spelled)
    kept = {network: entry for network, entry in spelled.items() if not listed.has_wider(network)}
    return Allowlist(tuple(kept.values()), everyone=False, networks=Networks.of(kept))
